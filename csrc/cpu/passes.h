/* Phase A of a step: rows go forward, meet the loss, and come back as deltas.

   A thread takes blocks of rows through all layers. Where a thread's rows would be few and the
   weights many, it takes panels of columns instead, a layer at a time for all rows: its panels are
   those that it updates in phase B, so that half of the weights no longer come from the other
   thread's cache. Both give the same bits.

   At a batch normalisation rows meet: the pass by rows is cut there, and panels are dealt out. */

#ifndef FN_PASSES_H
#define FN_PASSES_H

#include "bounds.h"
#include "context.h"
#include "dropout.h"
#include "few.h"
#include "gather.h"
#include "marks.h"
#include "norms.h"
#include "row_norms.h"
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
    mark(s, MARKS_GATHER, 0);
    const int64_t *layer = layer_of(s, 0);
    if (is_slim(s, layer))
        slim_gather(s, first, n_rows);
    else
        gather_rows(s->x, s->x_columns, s->samples + first, 0, n_rows,
                    s->arena + layer[AT_IN_ROWS] + first * PANEL, panel_stride(s),
                    entry(s->most, 0, OF_INPUT));
}

/* What decides which numbers of a layer are dropped in this step. */
static Draw draw_for(const TrainingStep *s, int64_t index)
{
    const int64_t *layer = layer_of(s, index);
    return draw_of_layer((uint32_t)s->scalars[OPTIMIZERS_KEY_LOW],
                         (uint32_t)s->scalars[OPTIMIZERS_KEY_HIGH], index, layer[AT_DROPPED],
                         s->arena[layer[AT_NUMBERS] + AT_KEPT_SCALE]);
}

/* Take some rows forward through some panels of a layer: of a layer normalisation through all, of
   a batch normalisation all rows. */
static void forward_part(const TrainingStep *s, int64_t index, int64_t first_panel,
                         int64_t end_panel, int64_t first, int64_t n_rows)
{
    mark(s, MARKS_FORWARD, index);
    const int64_t *layer = layer_of(s, index), offset = first * PANEL, stride = panel_stride(s);
    const bool inside = index + 1 < s->head[AT_N_LAYERS];
    real *most = inside ? entry(s->most, index + 1, OF_INPUT) : NULL;
    const real *x = s->arena + layer[AT_IN_ROWS] + offset;
    real *pre = s->arena + layer[AT_PRE_ROWS] + offset;
    real *out = s->arena + layer[AT_OUT_ROWS] + offset;
    switch (layer[AT_KIND]) {
    case AT_DENSE:
        if (is_slim(s, layer))
            slim_layer_forward(s, index, first, n_rows, most);
        else
            layer_forward(s->arena, s->head, layer, first_panel, end_panel, x, pre, out, stride,
                          n_rows, most);
        break;
    case AT_BATCH_NORM:
        for (int64_t q = first_panel; q < end_panel; q++)
            batch_norm_forward(s->arena, s->head, layer, q, stride, s->batch, most);
        break;
    case AT_LAYER_NORM:
        layer_norm_forward(s->arena, s->head, layer, x, pre, out, stride, n_rows,
                           s->arena + layer[AT_KEPT] + first, most);
        break;
    case AT_FROZEN_NORM:
        running_norm_forward(s->arena, s->head, layer, first_panel, end_panel, x, pre, out, stride,
                             n_rows, most);
        break;
    case AT_DROPOUT: {
        const Draw draws = draw_for(s, index);
        dropout(&draws, first_panel, end_panel, x, out, stride, first, n_rows, ACTIVATION_IDENTITY,
                x, most);
    }
    }
}

/* Turn some rows' outputs into loss and dL/dz of the last layer. */
static void loss_part(const TrainingStep *s, int64_t first, int64_t n_rows)
{
    const int64_t index = s->head[AT_N_LAYERS] - 1, stride = panel_stride(s);
    const int64_t *last = layer_of(s, index);
    mark(s, MARKS_LOSS, index);
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

/* Take some rows' deltas back through some input panels of a layer: of a layer normalisation
   through all, of a batch normalisation all rows. */
static void backward_part(const TrainingStep *s, int64_t index, int64_t first_panel,
                          int64_t end_panel, int64_t first, int64_t n_rows)
{
    mark(s, MARKS_BACKWARD, index);
    const int64_t *layer = layer_of(s, index), stride = panel_stride(s);
    const int64_t *before = index > 0 ? layer_of(s, index - 1) : NULL;
    real *most = before ? entry(s->most, index - 1, OF_DELTA) : NULL;
    if (is_slim(s, layer)) {
        const bool further = index >= s->head[AT_BACK_TO] || s->stages & STAGES_INPUT_DELTA;
        slim_layer_backward(s, index, first, n_rows, further);
        if (further && before && !before[AT_SLIM])
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
    switch (layer[AT_KIND]) {
    case AT_DENSE:
        if (s->few)
            few_rows_backward(s->arena, s->head, layer, first_panel, end_panel, stride, first,
                              n_rows, code, saved, most);
        else
            layer_backward(s->arena, s->head, layer, first_panel, end_panel, stride, first, n_rows,
                           code, saved, most);
        break;
    case AT_BATCH_NORM:
        for (int64_t q = first_panel; q < end_panel; q++)
            batch_norm_backward(s->arena, s->head, layer, q, stride, s->batch, code, saved, most);
        break;
    case AT_LAYER_NORM:
        layer_norm_backward(s->arena, s->head, layer, stride, first, n_rows, code, saved, most);
        break;
    case AT_FROZEN_NORM:
        running_norm_backward(s->arena, s->head, layer, first_panel, end_panel, stride, first,
                              n_rows, code, saved, most);
        break;
    case AT_DROPOUT: {
        const Draw draws = draw_for(s, index);
        real *d = s->arena + layer[AT_OUT_DELTA] + first * PANEL;
        dropout(&draws, first_panel, end_panel, d, d, stride, first, n_rows, code,
                s->arena + saved + first * PANEL, most);
    }
    }
}

/* The first layer that deltas go back through. The first that is trained need not be one, but a
   slim layer gates its own. */
static int64_t final_layer(const TrainingStep *s)
{
    const int64_t back_to = s->head[AT_BACK_TO];
    if (s->stages & STAGES_INPUT_DELTA)
        return 0;
    return back_to > 0 && is_slim(s, layer_of(s, back_to - 1)) ? back_to - 1 : back_to;
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

/* Wait for the team; false where it gives up. */
static bool meet(const TrainingStep *s)
{
    if (s->n_threads > 1) /* alone there is nobody to wait for */
        mark(s, MARKS_WAIT, 0);
    return barrier(s->words, s->n_threads);
}

INLINE int64_t draw_of(const TrainingStep *s, int64_t total)
{
    return draw(s->words, s->tid, s->n_threads, total);
}

INLINE int64_t panels_of(const TrainingStep *s, int64_t index, int column)
{
    return panels(layer_of(s, index)[column]);
}

/* The first batch normalisation from layer `index` on, or the number of layers. */
static int64_t cut_from(const TrainingStep *s, int64_t index)
{
    while (index < s->head[AT_N_LAYERS] && layer_of(s, index)[AT_KIND] != AT_BATCH_NORM)
        index++;
    return index;
}

/* The last batch normalisation before layer `index`, or -1. */
static int64_t cut_before(const TrainingStep *s, int64_t index)
{
    do
        index--;
    while (index >= 0 && layer_of(s, index)[AT_KIND] != AT_BATCH_NORM);
    return index;
}

/* Take blocks of rows forward through the layers from `first` up to `end`, and where that is all,
   meet the loss and go back as far as layer `last`. */
static void rows_forward(const TrainingStep *s, int64_t first, int64_t end, int64_t last)
{
    const int64_t block = block_rows(s), blocks = blocks_of(s, block);
    int64_t ticket;
    while ((ticket = draw_of(s, blocks)) < blocks) {
        const int64_t row = ticket * block, n_rows = least(block, s->batch - row);
        if (s->stages & STAGES_FORWARD) {
            if (first == 0)
                gather_part(s, row, n_rows);
            for (int64_t index = first; index < end; index++)
                forward_part(s, index, 0, panels_of(s, index, AT_OUTPUTS), row, n_rows);
        }
        if (end < s->head[AT_N_LAYERS])
            continue;
        loss_part(s, row, n_rows);
        if (s->stages & STAGES_BACKWARD)
            for (int64_t index = end - 1; index >= last; index--)
                backward_part(s, index, 0, panels_of(s, index, AT_INPUTS), row, n_rows);
    }
}

/* Take blocks of rows back through the layers from `index` down to `last`. */
static void rows_backward(const TrainingStep *s, int64_t index, int64_t last)
{
    const int64_t block = block_rows(s), blocks = blocks_of(s, block);
    int64_t ticket;
    while ((ticket = draw_of(s, blocks)) < blocks)
        for (int64_t i = index; i >= last; i--)
            backward_part(s, i, 0, panels_of(s, i, AT_INPUTS), ticket * block,
                          least(block, s->batch - ticket * block));
}

/* Take all rows forward, or back, through a layer, its panels dealt out. */
static void panels_forward(const TrainingStep *s, int64_t index)
{
    const int64_t count = panels_of(s, index, AT_OUTPUTS);
    int64_t ticket;
    while ((ticket = draw_of(s, count)) < count)
        forward_part(s, index, ticket, ticket + 1, 0, s->batch);
}
static void panels_backward(const TrainingStep *s, int64_t index)
{
    const int64_t count = panels_of(s, index, AT_INPUTS);
    int64_t ticket;
    while ((ticket = draw_of(s, count)) < count)
        backward_part(s, index, ticket, ticket + 1, 0, s->batch);
}

/* Rows go through the layers between batch normalisations, and the team meets before and after
   each of those. */
static bool phase_a_by_rows(const TrainingStep *s)
{
    const int64_t n_layers = s->head[AT_N_LAYERS], final = final_layer(s);
    int64_t first = 0;
    if (s->stages & STAGES_FORWARD)
        for (int64_t cut; (cut = cut_from(s, first)) < n_layers; first = cut + 1) {
            if (cut > first || first == 0) {
                rows_forward(s, first, cut, cut);
                if (!meet(s))
                    return false;
            }
            panels_forward(s, cut);
            if (!meet(s))
                return false;
        }
    int64_t cut = cut_before(s, n_layers);
    rows_forward(s, cut + 1, n_layers, most_of(cut + 1, final));
    if (s->stages & STAGES_BACKWARD)
        for (; cut >= final; cut = cut_before(s, cut)) {
            if (!meet(s))
                return false;
            panels_backward(s, cut);
            const int64_t last = most_of(cut_before(s, cut) + 1, final);
            if (cut <= last)
                continue;
            if (!meet(s))
                return false;
            rows_backward(s, cut - 1, last);
        }
    return true;
}

/* Gather, each layer forward, loss, each layer back, and the team meets after each. A layer
   normalisation takes blocks of rows, as the loss does. */
static bool phase_a_by_columns(const TrainingStep *s)
{
    const int64_t block = block_rows(s), blocks = blocks_of(s, block);
    const int64_t n_layers = s->head[AT_N_LAYERS];
    int64_t ticket;
    if (s->stages & STAGES_FORWARD) {
        while ((ticket = draw_of(s, blocks)) < blocks)
            gather_part(s, ticket * block, least(block, s->batch - ticket * block));
        if (!meet(s))
            return false;
        for (int64_t index = 0; index < n_layers; index++) {
            if (layer_of(s, index)[AT_KIND] != AT_LAYER_NORM)
                panels_forward(s, index);
            else
                while ((ticket = draw_of(s, blocks)) < blocks)
                    forward_part(s, index, 0, panels_of(s, index, AT_OUTPUTS), ticket * block,
                                 least(block, s->batch - ticket * block));
            if (!meet(s))
                return false;
        }
    }
    while ((ticket = draw_of(s, blocks)) < blocks)
        loss_part(s, ticket * block, least(block, s->batch - ticket * block));
    if (s->stages & STAGES_BACKWARD)
        for (int64_t index = n_layers - 1; index >= final_layer(s); index--) {
            if (!meet(s))
                return false;
            if (layer_of(s, index)[AT_KIND] != AT_LAYER_NORM)
                panels_backward(s, index);
            else
                rows_backward(s, index, index);
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
