/* Phase A of a step: rows go forward, meet the loss, and come back as deltas.

   A thread takes blocks of rows through all layers. Where a thread's rows would be few and the
   weights many, it takes panels of columns instead, a layer at a time for all rows: its panels are
   those that it updates in phase B, so that half of the weights no longer come from the other
   thread's cache. Both give the same bits. */

#ifndef FN_PASSES_H
#define FN_PASSES_H

#include "bounds.h"
#include "context.h"
#include "few.h"
#include "gather.h"
#include "rows.h"
#include "slim_block.h"
#include "sync.h"

/* Whether a team deals out a layer's columns in phase A, rather than the rows.

   By rows every thread reads all weights, of which the others updated their share; by columns all
   activations and deltas, of which the others computed theirs: what is less goes to and fro. */
static bool goes_by_columns(const TrainingStep *s)
{
    if (s->n_threads == 1 || s->slim || s->batch > AT_COLUMNS_ROWS * s->n_threads)
        return false;
    int64_t columns = 0;
    for (int64_t index = 0; index < s->head[AT_N_LAYERS]; index++)
        columns += layer_of(s, index)[AT_INPUTS] + layer_of(s, index)[AT_OUTPUTS];
    return s->batch * columns < n_parameters(s);
}

/* Copy some rows of the batch to the input of layer 0. */
static void gather_part(const TrainingStep *s, int64_t first, int64_t n_rows)
{
    const int64_t *layer = layer_of(s, 0);
    if (is_slim(s, layer))
        slim_gather(s, first, n_rows);
    else
        gather_rows(s->x, s->x_columns, s->samples + first, 0, n_rows,
                    s->arena + layer[AT_IN_ROWS] + first * PANEL, panel_stride(s),
                    entry(s->most, 0, OF_INPUT));
}

/* Take some rows forward through some output panels of a layer. */
static void forward_part(const TrainingStep *s, int64_t index, int64_t first_panel,
                         int64_t end_panel, int64_t first, int64_t n_rows)
{
    const int64_t *layer = layer_of(s, index), offset = first * PANEL;
    const bool inside = index + 1 < s->head[AT_N_LAYERS];
    real *most = inside ? entry(s->most, index + 1, OF_INPUT) : NULL;
    if (is_slim(s, layer))
        slim_layer_forward(s, index, first, n_rows, most);
    else
        layer_forward(s->arena, s->head, layer, first_panel, end_panel,
                      s->arena + layer[AT_IN_ROWS] + offset, s->arena + layer[AT_PRE_ROWS] + offset,
                      s->arena + layer[AT_OUT_ROWS] + offset, panel_stride(s), n_rows, most);
}

/* Turn some rows' outputs into loss and dL/dz of the last layer. */
static void loss_part(const TrainingStep *s, int64_t first, int64_t n_rows)
{
    const int64_t index = s->head[AT_N_LAYERS] - 1, stride = panel_stride(s);
    const int64_t *last = layer_of(s, index);
    if (s->stages & STAGES_LOSS) {
        if (s->head[AT_LOSS] == LOSS_CROSS_ENTROPY)
            cross_entropy_block(s->arena, s->head, last, stride, s->labels, s->targets, s->weight,
                                s->samples, first, n_rows, s->batch, s->scratch);
        else if (is_slim(s, last))
            slim_loss_block(s, last, first, n_rows);
        else
            values_block(s->arena, s->head, last, stride, s->targets, s->target_columns,
                         s->weight, s->samples, first, n_rows, s->batch);
    }
    if (s->stages & STAGES_FOREIGN)
        for (int64_t r = first; r < first + n_rows; r++)
            scatter_delta(s->targets + r * s->target_columns, s->target_columns,
                          s->arena + last[AT_OUT_DELTA] + r * PANEL, stride);
    if (s->stages & STAGES_BACKWARD && !is_slim(s, last)) /* slim layers gate their own */
        gate_output(s->arena, last, stride, first, n_rows, entry(s->most, index, OF_DELTA));
}

/* Take some rows' deltas back through some input panels of a layer. */
static void backward_part(const TrainingStep *s, int64_t index, int64_t first_panel,
                          int64_t end_panel, int64_t first, int64_t n_rows)
{
    const int64_t *layer = layer_of(s, index), stride = panel_stride(s);
    const int64_t *before = index > 0 ? layer_of(s, index - 1) : NULL;
    real *most = before ? entry(s->most, index - 1, OF_DELTA) : NULL;
    if (is_slim(s, layer)) {
        slim_layer_backward(s, index, first, n_rows, before || s->stages & STAGES_INPUT_DELTA);
        if (before && !before[AT_SLIM])
            gate_output(s->arena, before, stride, first, n_rows, most);
        return;
    }
    int64_t code = ACTIVATION_IDENTITY, saved = 0;
    if (before && is_slim(s, before)) {
        most = NULL; /* it gates, and notes, for itself */
    } else if (before) {
        code = before[AT_ACTIVATION];
        saved = before[AT_SAVED_ROWS];
    }
    if (s->few)
        few_rows_backward(s->arena, s->head, layer, first_panel, end_panel, stride, first, n_rows,
                          code, saved, most);
    else
        layer_backward(s->arena, s->head, layer, first_panel, end_panel, stride, first, n_rows,
                       code, saved, most);
}

/* The first layer that deltas go back through: slim layers gate their own, the first one too. */
static int64_t final_layer(const TrainingStep *s)
{
    return s->stages & STAGES_INPUT_DELTA || is_slim(s, layer_of(s, 0)) ? 0 : 1;
}

/* Rows that a thread takes through phase A at a time. */
static int64_t block_rows(const TrainingStep *s)
{
    const int64_t share =
        s->n_threads == 1 ? s->batch : (s->batch + s->n_threads - 1) / s->n_threads;
    const int64_t unit = s->slim ? AT_SLIM_ROWS : AT_TILE_ROWS;
    const bool all_slim = s->slim && s->head[AT_SLIM_LAYERS] == s->head[AT_N_LAYERS];
    /* No division: a unit is a power of two. */
    return least(all_slim ? AT_SLIM_BLOCK : AT_MAX_BLOCK, (share + unit - 1) & -unit);
}

/* Blocks of so many rows that a batch is cut into. */
static int64_t blocks_of(const TrainingStep *s, int64_t block)
{
    return s->batch <= block ? 1 : (s->batch + block - 1) / block;
}

/* Take one block of rows through all of phase A. */
static void pass_of_rows(const TrainingStep *s, int64_t first, int64_t n_rows)
{
    if (s->stages & STAGES_FORWARD) {
        gather_part(s, first, n_rows);
        for (int64_t index = 0; index < s->head[AT_N_LAYERS]; index++)
            forward_part(s, index, 0, panels(layer_of(s, index)[AT_OUTPUTS]), first, n_rows);
    }
    loss_part(s, first, n_rows);
    if (s->stages & STAGES_BACKWARD)
        for (int64_t index = s->head[AT_N_LAYERS] - 1; index >= final_layer(s); index--)
            backward_part(s, index, 0, panels(layer_of(s, index)[AT_INPUTS]), first, n_rows);
}

INLINE int64_t draw_of(const TrainingStep *s, int64_t total)
{
    return draw(s->words, s->tid, s->n_threads, total);
}

static bool phase_a_by_rows(const TrainingStep *s)
{
    const int64_t block = block_rows(s), blocks = blocks_of(s, block);
    int64_t ticket;
    while ((ticket = draw_of(s, blocks)) < blocks)
        pass_of_rows(s, ticket * block, least(block, s->batch - ticket * block));
    return true;
}

/* Gather, each layer forward, loss, each layer back, and the team meets after each. */
static bool phase_a_by_columns(const TrainingStep *s)
{
    const int64_t block = block_rows(s), blocks = blocks_of(s, block);
    const int64_t n_layers = s->head[AT_N_LAYERS];
    int64_t ticket;
    if (s->stages & STAGES_FORWARD) {
        while ((ticket = draw_of(s, blocks)) < blocks)
            gather_part(s, ticket * block, least(block, s->batch - ticket * block));
        if (!barrier(s->words, s->n_threads))
            return false;
        for (int64_t index = 0; index < n_layers; index++) {
            const int64_t count = panels(layer_of(s, index)[AT_OUTPUTS]);
            while ((ticket = draw_of(s, count)) < count)
                forward_part(s, index, ticket, ticket + 1, 0, s->batch);
            if (!barrier(s->words, s->n_threads))
                return false;
        }
    }
    while ((ticket = draw_of(s, blocks)) < blocks)
        loss_part(s, ticket * block, least(block, s->batch - ticket * block));
    if (s->stages & STAGES_BACKWARD)
        for (int64_t index = n_layers - 1; index >= final_layer(s); index--) {
            const int64_t count = panels(layer_of(s, index)[AT_INPUTS]);
            if (!barrier(s->words, s->n_threads))
                return false;
            while ((ticket = draw_of(s, count)) < count)
                backward_part(s, index, ticket, ticket + 1, 0, s->batch);
        }
    return true;
}

/* Do phase A of one step; false where the team gives up. */
static bool phase_a(const TrainingStep *s)
{
    if (s->most)
        clear(s->most, KINDS * s->head[AT_N_LAYERS] * PANEL);
    return goes_by_columns(s) ? phase_a_by_columns(s) : phase_a_by_rows(s);
}

#endif
