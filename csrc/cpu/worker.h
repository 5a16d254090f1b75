/* What one thread of the team runs: a whole chunk of training steps, or blocks of inference.

   The words array carries the barrier and, in STAGES_STEPS and STAGES_STATUS, how it went. */

#ifndef FN_WORKER_H
#define FN_WORKER_H

#include <math.h>

#include "bounds.h"
#include "context.h"
#include "kernels.h"
#include "passes.h"
#include "sums.h"
#include "sync.h"
#include "tiles.h"

/* The factor that brings the global gradient norm down to `limit`; 0 means no limit. */
static double clip_scale(double squared, double limit)
{
    if (limit <= 0)
        return 1;
    const double norm = sqrt(squared);
    return norm > limit ? limit / norm : 1;
}

/* Tiles of the layers before this one. */
static int64_t tiles_before(const TrainingStep *s, int64_t index)
{
    return index < s->head[AT_N_LAYERS] ? layer_of(s, index)[AT_FIRST_TILE] : s->head[AT_N_TILES];
}

/* Make the transposed copies that this step reads and that are not kept up: those of the layers
   that no deltas go back through in training, and after steps of few rows, where `stale`, all
   others. */
static bool refresh_copies(const TrainingStep *s, bool stale)
{
    const int64_t kept_up = tiles_before(s, s->head[AT_BACK_TO]);
    const int64_t first = s->stages & STAGES_INPUT_DELTA ? 0 : kept_up;
    const int64_t count = (stale ? s->head[AT_N_TILES] : kept_up) - first;
    int64_t ticket;
    mark(s, MARKS_REFRESH, 0);
    while ((ticket = draw_of(s, count)) < count)
        transpose_tile(s, tile_of(s, first + ticket));
    return meet(s);
}

/* Sum up the row losses. */
static void finish_loss(const TrainingStep *s)
{
    *s->loss = sum_of_rows(region(s, AT_ROW_LOSS), s->batch);
    if (!isfinite(*s->loss))
        s->words[STAGES_STATUS] = STATUS_LOSS_NOT_FINITE;
}

/* Phase B in one visit of each tile. */
static void step_tiles(const TrainingStep *s)
{
    const int64_t n_tiles = s->head[AT_N_TILES];
    int64_t ticket;
    while ((ticket = draw_of(s, n_tiles)) < n_tiles) {
        mark(s, MARKS_GRADIENT, tile_of(s, ticket)[AT_TILE_LAYER]);
        if (tile_of(s, ticket)[AT_TILE_KIND] != AT_DENSE) {
            tile_gradient(s, ticket);
            tile_update(s, tile_of(s, ticket), 1.0);
        } else if (s->few) {
            few_rows_step(s, tile_of(s, ticket));
        } else {
            tile_step(s, ticket, tiles_before(s, 1));
        }
    }
}

/* All gradients, and then the update, once they are known to be finite. */
static bool gradients_then_update(const TrainingStep *s)
{
    const int64_t n_tiles = s->head[AT_N_TILES];
    int64_t ticket;
    if (s->stages & STAGES_BACKWARD)
        while ((ticket = draw_of(s, n_tiles)) < n_tiles) {
            mark(s, MARKS_GRADIENT, tile_of(s, ticket)[AT_TILE_LAYER]);
            tile_gradient(s, ticket);
        }
    if (!meet(s) || s->words[STAGES_STATUS] != STATUS_OK)
        return false;
    if (!(s->stages & STAGES_UPDATE))
        return true;
    mark(s, MARKS_CHECK, 0);
    const double squared = squared_norm(s);
    if (!isfinite(squared)) {
        if (s->tid == 0)
            s->words[STAGES_STATUS] = STATUS_GRADIENT_NOT_FINITE;
        return false;
    }
    const double clip = clip_scale(squared, s->scalars[OPTIMIZERS_CLIP_NORM]);
    while ((ticket = draw_of(s, n_tiles)) < n_tiles) {
        mark(s, MARKS_UPDATE, tile_of(s, ticket)[AT_TILE_LAYER]);
        tile_update(s, tile_of(s, ticket), clip);
    }
    return true;
}

/* One step; false where the chunk ends here. */
static bool step(TrainingStep *s)
{
    /* Of shapes alone: the order of its sums must not hang on the steps around it. */
    s->few = s->batch <= s->head[AT_FEW];
    s->slim = s->head[AT_SLIM_LAYERS] > 0 && s->batch >= AT_SLIM_ROWS;
    const bool stale = s->stages & STAGES_BACKWARD && !s->few && s->head[AT_STALE];
    if ((stale || (s->stages & STAGES_INPUT_DELTA && !s->few)) && !refresh_copies(s, stale))
        return false;
    const bool one_visit = s->stages & STAGES_UPDATE && s->scalars[OPTIMIZERS_CLIP_NORM] == 0 &&
                           s->head[AT_N_TILES] >= AT_FUSE_FROM;
    s->most = one_visit ? maxima_of(s, s->tid) : NULL;
    if (!phase_a(s) || !meet(s))
        return false;
    mark(s, MARKS_CHECK, 0);
    /* All have looked at it before the barrier, and will again after the next. */
    if (s->tid == 0 && (stale || s->stages & STAGES_UPDATE))
        s->head[AT_STALE] = s->few;
    if (s->tid == 0 && s->stages & STAGES_LOSS)
        finish_loss(s);
    /* All threads read the same words, and find the same. */
    if (one_visit && certainly_finite(s))
        step_tiles(s);
    else if (!gradients_then_update(s))
        return false;
    if (!(s->stages & STAGES_UPDATE))
        return true;
    if (!meet(s))
        return false;
    if (s->tid == 0)
        s->words[STAGES_STEPS]++;
    return true;
}

/* Run a chunk of steps as one thread of the team. */
static void train(const fn_training *t)
{
    TrainingStep s = {.stages = t->stages, .arena = t->arena, .head = t->head, .layers = t->layers,
              .tiles = t->tiles, .x = t->x, .x_columns = t->x_columns, .labels = t->labels,
              .targets = t->targets, .target_columns = t->target_columns, .weight = t->weight,
              .words = t->words, .tid = t->tid, .n_threads = t->n_threads};
    s.scratch = region(&s, AT_SCRATCH) + s.tid * scratch_size();
    const int64_t *asked = s.words + STAGES_MARKS;
    s.marks = asked[0] ? s.words + asked[0] + s.tid * asked[1] : NULL;
    for (int64_t i = 0; i < t->n_steps; i++) {
        const int64_t *bounds = t->bounds + i, end = t->bounds[least(i + 2, t->n_steps)];
        s.samples = t->order + bounds[0];
        s.batch = bounds[1] - bounds[0];
        s.coming = t->order + bounds[1];
        s.n_coming = end - bounds[1];
        s.scalars = t->scalars + i * OPTIMIZERS_N_SCALARS;
        s.loss = t->losses + i;
        if (!step(&s))
            break;
    }
    mark(&s, MARKS_END, 0);
}

/* Take a block of rows through one layer as predictions have it: by running statistics, and with
   nothing dropped. */
static void infer_layer(real *arena, const int64_t *head, const int64_t *layer, int64_t own,
                        int64_t stride, int64_t n_rows)
{
    const real *x = arena + layer[AT_INFER_IN] + own;
    real *z = arena + layer[AT_INFER_OUT] + own;
    const int64_t count = panels(layer[AT_OUTPUTS]);
    switch (layer[AT_KIND]) {
    case AT_DENSE:
        layer_forward(arena, head, layer, 0, count, x, z, z, stride, n_rows, NULL);
        break;
    case AT_BATCH_NORM:
    case AT_FROZEN_NORM:
        running_norm_forward(arena, head, layer, 0, count, x, z, z, stride, n_rows, NULL);
        break;
    case AT_LAYER_NORM:
        layer_norm_forward(arena, head, layer, x, z, z, stride, n_rows, NULL, NULL);
        break;
    }
}

/* Forward alone, in blocks of rows through two small buffers a thread. */
static void infer(const fn_inference *t)
{
    real *arena = t->arena;
    const int64_t *head = t->head, n_layers = head[AT_N_LAYERS];
    const int64_t stride = head[AT_INFER_ROWS] * PANEL, own = t->tid * AT_INFER_BLOCK * PANEL;
    const int64_t *last = t->layers + (n_layers - 1) * AT_LAYER_COLUMNS;
    const int64_t outputs = last[AT_OUTPUTS];
    const int64_t blocks = (t->n_rows + AT_INFER_BLOCK - 1) / AT_INFER_BLOCK;
    int64_t ticket;
    if (t->n_threads == 1)
        t->words[STAGES_TICKETS] = 0; /* one thread's caller need not have cleared the words */
    while ((ticket = draw(t->words, t->tid, t->n_threads, blocks)) < blocks) {
        const int64_t first = ticket * AT_INFER_BLOCK;
        const int64_t n_rows = least(AT_INFER_BLOCK, t->n_rows - first);
        gather_rows(t->x, t->x_columns, NULL, first, n_rows, arena + t->layers[AT_INFER_IN] + own,
                    stride, NULL);
        for (const int64_t *layer = t->layers; layer <= last; layer += AT_LAYER_COLUMNS)
            infer_layer(arena, head, layer, own, stride, n_rows);
        const real *result = arena + last[AT_INFER_OUT] + own;
        for (int64_t r = 0; r < n_rows; r++)
            for (int64_t p = 0; p < panels(outputs); p++)
                copy((real *)t->out + (first + r) * outputs + p * PANEL,
                     result + p * stride + r * PANEL, least(PANEL, outputs - p * PANEL));
    }
}

#endif
