/* Phase A: blocks of batch rows go forward, meet the loss, and come back as deltas.

   Rows never meet here, so how the batch is cut into blocks, and who takes which, changes no bit. A
   sum runs over a layer's inputs (forward) or outputs (data gradient) in ascending order. */

#ifndef FN_ROWS_H
#define FN_ROWS_H

#include "elementwise.h"
#include "gather.h"
#include "losses.h"
#include "products.h"
#include "softmax.h"

/* Whether an activation and its gate are done while values are in registers, or in a visit of their
   own. */
INLINE bool is_in_passing(int64_t code)
{
    return code == ACTIVATION_RELU || code == ACTIVATION_IDENTITY;
}

/* Calls each(code, ...) with the activation as a constant where it is done in passing, and with the
   identity where it follows in a visit of its own. */
#define FN_IN_PASSING(code, each, ...)                                                             \
    do {                                                                                           \
        if ((code) == ACTIVATION_RELU)                                                             \
            each(ACTIVATION_RELU, __VA_ARGS__);                                                    \
        else                                                                                       \
            each(ACTIVATION_IDENTITY, __VA_ARGS__);                                                \
    } while (0)

/* Apply f to a run of whole panel rows from `pre` to `out`, which may be the same, and note the
   largest |f| of each lane, unless `most` is NULL. */
static void activate_run(int64_t code, const real *pre, real *out, int64_t size, real *most)
{
    if (pre != out)
        copy(out, pre, size);
    activate(code, out, size);
    if (most)
        note_run(most, out, size);
}

/* Gate a run of deltas in place, and note the largest. */
static void gate_run(int64_t code, real *delta, const real *saved, int64_t size, real *most)
{
    if (code != ACTIVATION_IDENTITY)
        gate(code, delta, saved, size);
    if (most)
        note_run(most, delta, size);
}

/* Compute f(x W + b) of a block of rows, of the output panels from `first_panel` up to `end_panel`;
   z stays at `pre` where that is not `out`. `most` is where the largest |output| of each lane is
   noted, or NULL. */
static void layer_forward(real *arena, const int64_t *head, const int64_t *layer,
                          int64_t first_panel, int64_t end_panel, const real *a, real *pre,
                          real *out, int64_t stride, int64_t n_rows, real *most)
{
    const int64_t inputs = layer[AT_INPUTS], outputs = layer[AT_OUTPUTS];
    const int64_t code = layer[AT_ACTIVATION];
    const bool in_tile = is_in_passing(code);
    const real *weight = arena + head[AT_PARAMETERS] + layer[AT_WEIGHT];
    const real *bias = arena + layer[AT_START];
    const int64_t bias_panel = layer[AT_BIAS] >= 0 ? PANEL : 0;
    const int64_t chunk = chunk_depth(inputs, n_rows);
    const int64_t ahead_step = fetch_step(inputs, outputs, n_rows);
    for (int64_t k = 0; k < inputs; k += chunk) {
        const int64_t depth = least(chunk, inputs - k);
        const bool last = k + depth == inputs;
        const int epilogue = last && code == ACTIVATION_RELU ? TILE_RELU_OUTPUT : TILE_PLAIN;
        for (int64_t q = first_panel; q < end_panel;) {
            const int64_t count = group_of(end_panel - q), here = q * stride;
            const bool going_on = k > 0;
            panels_product(count, outputs - q * PANEL, epilogue, pre + here, stride,
                           going_on ? pre + here : bias + q * bias_panel, going_on ? PANEL : 0,
                           going_on ? stride : bias_panel, a + k / PANEL * stride,
                           weight + (q * inputs + k) * PANEL, inputs * PANEL, depth, n_rows, pre,
                           last && in_tile ? most : NULL, ahead_step);
            q += count;
            if (!last || in_tile)
                continue;
            for (int64_t place = here; place < q * stride; place += stride)
                activate_run(code, pre + place, out + place, n_rows * PANEL, most);
        }
    }
}

/* Turn dL/d(output) of a block of rows into dL/dz in place; `most` as in `layer_forward`. */
static void gate_output(real *arena, const int64_t *layer, int64_t stride, int64_t first,
                        int64_t n_rows, real *most)
{
    const int64_t code = layer[AT_ACTIVATION], size = n_rows * PANEL;
    for (int64_t q = 0; q < panels(layer[AT_OUTPUTS]); q++) {
        const int64_t here = q * stride + first * PANEL;
        gate_run(code, arena + layer[AT_OUT_DELTA] + here, arena + layer[AT_SAVED_ROWS] + here,
                 size, most);
    }
}

/* Carry dL/dz of a block of rows back through the weights, and through f before them, to the input
   panels from `first_panel` up to `end_panel`. `code` is the activation of the layer before and
   `saved` where in the arena its f' is computed from; the result is that layer's dL/dz. `most` is
   where the largest of each lane is noted, or NULL. */
static void layer_backward(real *arena, const int64_t *head, const int64_t *layer,
                           int64_t first_panel, int64_t end_panel, int64_t stride, int64_t first,
                           int64_t n_rows, int64_t code, int64_t saved, real *most)
{
    const int64_t inputs = layer[AT_INPUTS], outputs = layer[AT_OUTPUTS];
    const int64_t offset = first * PANEL;
    const bool in_tile = is_in_passing(code);
    const real *delta = arena + layer[AT_OUT_DELTA] + offset;
    const real *weight = arena + layer[AT_TRANSPOSED];
    const int64_t chunk = chunk_depth(outputs, n_rows);
    const int64_t ahead_step = fetch_step(inputs, outputs, n_rows);
    for (int64_t k = 0; k < outputs; k += chunk) {
        const int64_t depth = least(chunk, outputs - k);
        const bool last = k + depth == outputs;
        const int epilogue = last && code == ACTIVATION_RELU ? TILE_RELU_GATE : TILE_PLAIN;
        for (int64_t p = first_panel; p < end_panel;) {
            const int64_t count = group_of(end_panel - p), here = p * stride + offset;
            const bool going_on = k > 0;
            real *target = arena + layer[AT_IN_DELTA] + here;
            panels_product(count, inputs - p * PANEL, epilogue, target, stride,
                           going_on ? target : arena + head[AT_ZEROS], going_on ? PANEL : 0,
                           going_on ? stride : 0, delta + k / PANEL * stride,
                           weight + (p * outputs + k) * PANEL, outputs * PANEL, depth, n_rows,
                           arena + saved + here, last && in_tile ? most : NULL, ahead_step);
            p += count;
            if (!last || in_tile)
                continue;
            for (int64_t place = here; place < p * stride + offset; place += stride)
                gate_run(code, arena + layer[AT_IN_DELTA] + place, arena + saved + place,
                         n_rows * PANEL, most);
        }
    }
}

/* Cross-entropy of a block of rows: groups of rows side by side where the classes are few. */
static void cross_entropy_block(real *arena, const int64_t *head, const int64_t *layer,
                                int64_t stride, const int64_t *labels, const real *targets,
                                const real *weight, const int64_t *samples, int64_t first,
                                int64_t n_rows, int64_t batch, real *scratch)
{
    const int64_t classes = layer[AT_OUTPUTS], end = first + n_rows;
    const real share = (real)(1.0 / (double)batch);
    real *losses = arena + head[AT_ROW_LOSS];
    for (int64_t r = first; r < end;) {
        const real *out = arena + layer[AT_OUT_ROWS] + r * PANEL;
        real *delta = arena + layer[AT_OUT_DELTA] + r * PANEL;
        if (classes <= PANEL) {
            const int64_t group = least(LANES, end - r);
            softmax_group(out, delta, scratch, classes, labels, targets, weight, samples + r, group,
                          losses + r, share);
            r += group;
        } else {
            const int64_t sample = samples[r];
            losses[r] = cross_entropy_row(out, delta, stride, classes, labels ? labels[sample] : 0,
                                          targets ? targets + sample * classes : NULL,
                                          row_scale(weight, sample, share));
            r++;
        }
    }
}

/* Any other loss of a block of rows. */
static void values_block(real *arena, const int64_t *head, const int64_t *layer, int64_t stride,
                         const real *targets, int64_t target_columns, const real *weight,
                         const int64_t *samples, int64_t first, int64_t n_rows, int64_t batch)
{
    const real share = (real)(1.0 / (double)batch);
    const int64_t outputs = layer[AT_OUTPUTS];
    const real *out = arena + layer[AT_OUT_ROWS];
    real *delta = arena + layer[AT_OUT_DELTA], *losses = arena + head[AT_ROW_LOSS];
#define EACH(name)                                                                                 \
    for (int64_t r = first; r < first + n_rows; r++) {                                             \
        const real *target = targets + samples[r] * target_columns;                                \
        const real *coming = targets + samples[least(r + 1, batch - 1)] * target_columns;          \
        losses[r] = values_of_row(name, out + r * PANEL, delta + r * PANEL, stride, target,        \
                                  coming, outputs, row_scale(weight, samples[r], share));          \
    }
    FN_VALUES(head[AT_LOSS], EACH)
#undef EACH
}

#endif
