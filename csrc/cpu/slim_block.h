/* What slim layers add to phase A, where rows are many; see slim.h for what they are. */

#ifndef FN_SLIM_BLOCK_H
#define FN_SLIM_BLOCK_H

#include "bounds.h"
#include "context.h"
#include "slim.h"

/* Turn a block of panel rows into columns, at the start of a run of slim layers. */
static void into_run(const TrainingStep *s, const int64_t *layer, int rows_at, int columns_at,
                     int64_t first, int64_t n_rows)
{
    const int64_t columns = layer[columns_at == AT_SLIM_IN ? AT_INPUTS : AT_OUTPUTS];
    turn_rows(s->arena + layer[rows_at] + first * PANEL, PANEL, NULL, n_rows, columns,
              s->arena + layer[columns_at] + first, s->head[AT_SLIM_STRIDE]);
}

/* Turn columns into a block of panel rows, at the end of such a run. */
static void out_of_run(const TrainingStep *s, const int64_t *layer, int columns_at, int rows_at,
                       int64_t first, int64_t n_rows)
{
    const int64_t columns = layer[columns_at == AT_SLIM_OUT ? AT_OUTPUTS : AT_INPUTS];
    turn_columns(s->arena + layer[columns_at] + first, s->head[AT_SLIM_STRIDE], n_rows, columns,
                 s->arena + layer[rows_at] + first * PANEL);
}

/* Whether a slim layer's outputs are read as panel rows. */
static bool leaves_run(const TrainingStep *s, int64_t index)
{
    if (index + 1 < s->head[AT_N_LAYERS])
        return !layer_of(s, index + 1)[AT_SLIM];
    return !(s->stages & STAGES_LOSS) || s->head[AT_LOSS] == LOSS_CROSS_ENTROPY;
}

/* Gather rows of x to the columns of a slim layer 0. */
static void slim_gather(const TrainingStep *s, int64_t first, int64_t n_rows)
{
    const int64_t stride = s->head[AT_SLIM_STRIDE];
    real *here = s->arena + layer_of(s, 0)[AT_SLIM_IN] + first;
    turn_rows(s->x, s->x_columns, s->samples + first, n_rows, s->x_columns, here, stride);
    if (s->most)
        for (int64_t c = 0; c < s->x_columns; c++)
            note_run(entry(s->most, 0, OF_INPUT), here + c * stride, slim_rows(n_rows));
}

/* `layer_forward` of a slim layer; where its run begins or ends, rows are turned. */
static void slim_layer_forward(const TrainingStep *s, int64_t index, int64_t first, int64_t n_rows,
                               real *most)
{
    const int64_t *layer = layer_of(s, index);
    if (index > 0 && !layer_of(s, index - 1)[AT_SLIM])
        into_run(s, layer, AT_IN_ROWS, AT_SLIM_IN, first, n_rows);
    slim_forward(s->arena, s->head, layer, first, slim_rows(n_rows), most);
    if (leaves_run(s, index))
        out_of_run(s, layer, AT_SLIM_OUT, AT_OUT_ROWS, first, n_rows);
}

/* Any loss but cross-entropy of a block of rows whose outputs are columns. */
static void slim_loss_block(const TrainingStep *s, const int64_t *layer, int64_t first,
                            int64_t n_rows)
{
    slim_losses(s->head[AT_LOSS], s->arena + layer[AT_SLIM_OUT] + first,
                s->arena + layer[AT_SLIM_OUT_DELTA] + first, s->head[AT_SLIM_STRIDE],
                layer[AT_OUTPUTS], s->targets, s->weight, s->samples + first, n_rows,
                region(s, AT_ROW_LOSS) + first, (real)(1.0 / (double)s->batch), s->scratch);
}

/* Turn a slim layer's dL/d(output) into dL/dz, and where `further` into dL/d(input).

   What dL/d(input) is gated with is left to the layer before. */
static void slim_layer_backward(const TrainingStep *s, int64_t index, int64_t first, int64_t n_rows,
                                bool further)
{
    const int64_t *layer = layer_of(s, index);
    const bool at_end = index + 1 == s->head[AT_N_LAYERS];
    const bool foreign = s->stages & STAGES_FOREIGN;
    const bool as_rows = at_end ? foreign || s->head[AT_LOSS] == LOSS_CROSS_ENTROPY
                                : !layer_of(s, index + 1)[AT_SLIM];
    if (as_rows)
        into_run(s, layer, AT_OUT_DELTA, AT_SLIM_OUT_DELTA, first, n_rows);
    slim_gate(s->arena, s->head, layer, first, slim_rows(n_rows), entry(s->most, index, OF_DELTA));
    if (!further)
        return;
    slim_backward(s->arena, s->head, layer, first, slim_rows(n_rows));
    if (index == 0 || !layer_of(s, index - 1)[AT_SLIM])
        out_of_run(s, layer, AT_SLIM_IN_DELTA, AT_IN_DELTA, first, n_rows);
}

#endif
