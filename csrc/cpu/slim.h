/* Layers of a few columns for many rows: batch rows are the lanes of a register.

   A panel row of one column is 31 lanes of nothing, computed, activated, stored and read again.
   Here the rows of a block stand side by side, [column][row], and weights are broadcast. Each
   element's sum goes over k in ascending order, one fused multiply-add each: the bits of the
   register tile. Only the weight gradient has an order of its own: PARTS registers of partial sums
   over the batch.

   Blocks are whole multiples of AT_SLIM_ROWS rows here; rows after the batch's last have zeros
   for inputs and for deltas, and count for nothing. */

#ifndef FN_SLIM_H
#define FN_SLIM_H

#include "constants.h"
#include "elementwise.h"
#include "losses.h"
#include "shuffles.h"
#include "sums.h"
#include "transpose.h"
#include "vectors.h"

/* Registers of rows that go side by side, so that their sums do not wait for each other. */
#define PARTS 4

/* Rows that a block takes here. */
INLINE int64_t slim_rows(int64_t n_rows)
{
    return (n_rows + AT_SLIM_ROWS - 1) / AT_SLIM_ROWS * AT_SLIM_ROWS;
}

/* Number `index` of a list, or itself where there is no list. */
INLINE int64_t listed(const int64_t *which, int64_t index) { return which ? which[index] : index; }

/* A register of one column of LANES rows. */
INLINE vec column_of(const real *const *rows, int64_t column)
{
#define FN_OF_ROW(lane, rows, column) (rows)[lane][column]
    return (vec){EACH_LANE(FN_OF_ROW, rows, column)};
}

/* Store LANES rows as lanes of columns `step` apart, zeros where no `counts`. At most LANES / 2
   columns. */
INLINE void turn(const real *const *rows, int64_t columns, real *out, int64_t step, mask counts)
{
    if (LANES / 2 <= ONE_BY_ONE || columns <= ONE_BY_ONE) {
        for (int64_t c = 0; c < columns; c++)
            store(out + c * step, choose(counts, column_of(rows, c), zeros()));
        return;
    }
    vec turned[LANES];
    const mask there = below(columns);
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++)
        turned[r] = load_some(rows[r], there);
    transposed_pairs(turned);
#pragma GCC unroll 8
    for (int c = 0; c < LANES / 2; c++)
        if (c < columns)
            store(out + c * step, choose(counts, turned[c], zeros()));
}

/* Where LANES rows from number `first` on begin, those after the last standing where it does. */
INLINE void places_of(const real **rows, const real *source, int64_t step, const int64_t *which,
                      int64_t first, int64_t n_rows)
{
#pragma GCC unroll 16
    for (int lane = 0; lane < LANES; lane++)
        rows[lane] = source + listed(which, least(first + lane, n_rows - 1)) * step;
}

/* Copy rows, `step` apart, to columns at `out`, with zeros after them up to a multiple of
   AT_SLIM_ROWS: rows which[0] ... which[n_rows - 1], or the first where that is NULL. */
static void turn_rows(const real *source, int64_t step, const int64_t *which, int64_t n_rows,
                      int64_t columns, real *out, int64_t stride)
{
    for (int64_t r = 0; r < slim_rows(n_rows); r += LANES) {
        const real *rows[LANES];
        places_of(rows, source, step, which, r, n_rows);
        turn(rows, columns, out + r, stride, below(n_rows - r));
    }
}

/* Copy columns to rows of one panel, zeros beside them. */
static void turn_columns(const real *source, int64_t stride, int64_t n_rows, int64_t columns,
                         real *out)
{
    clear(out, n_rows * PANEL);
    for (int64_t c = 0; c < columns; c++)
        for (int64_t r = 0; r < n_rows; r++)
            out[r * PANEL + c] = source[c * stride + r];
}

/* out[c*stride + r] = start[c] + sum_k a[k*stride + r] * b[k*k_step + c*c_step], for n_rows a
   multiple of AT_SLIM_ROWS. */
static void slim_product(real *out, const real *start, const real *a, int64_t stride, const real *b,
                         int64_t k_step, int64_t c_step, int64_t depth, int64_t columns,
                         int64_t n_rows)
{
    for (int64_t c = 0; c < columns; c++)
        for (int64_t r = 0; r < n_rows; r += PARTS * LANES) {
            vec sums[PARTS];
            for (int j = 0; j < PARTS; j++)
                sums[j] = every(start[c]);
            for (int64_t k = 0; k < depth; k++) {
                const vec weight = every(b[k * k_step + c * c_step]);
#pragma GCC unroll 4
                for (int j = 0; j < PARTS; j++)
                    sums[j] = fused(load(a + k * stride + r + j * LANES), weight, sums[j]);
            }
            for (int j = 0; j < PARTS; j++)
                store(out + c * stride + r + j * LANES, sums[j]);
        }
}

/* The sum over `count` rows of column a times column d, or of d where `ones`.

   Row r is summed in lane r of PARTS registers, which are added in pairs, and then their lanes in
   halves. */
INLINE real dot(const real *a, const real *d, int64_t count, const bool ones)
{
    const int64_t even = count - count % (PARTS * LANES);
    vec sums[PARTS] = {zeros()};
    for (int64_t r = 0; r < even; r += PARTS * LANES)
#pragma GCC unroll 4
        for (int j = 0; j < PARTS; j++) {
            const vec value = ones ? every(1) : load(a + r + j * LANES);
            sums[j] = fused(value, load(d + r + j * LANES), sums[j]);
        }
    if (even < count)
#pragma GCC unroll 4
        for (int j = 0; j < PARTS; j++) {
            const int64_t r = even + j * LANES;
            const mask there = below(count - r);
            const vec value = ones ? every(1) : load_some(a + r, there);
            sums[j] = fused(value, load_some(d + r, there), sums[j]);
        }
    return sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/* Any loss but cross-entropy of a block of rows in columns; the bits of `values_row`.

   `samples` are the rows' numbers in the data, `losses` is where the row losses go, and `share` is
   what a row of weight 1 counts. The rows after the last, up to a multiple of AT_SLIM_ROWS, get
   deltas of zero. `scratch` has room for two squares of registers. */
static void slim_losses(int64_t code, const real *out, real *delta, int64_t stride, int64_t outputs,
                        const real *targets, const real *weight, const int64_t *samples,
                        int64_t n_rows, real *losses, real share, real *scratch)
{
    real *wanted = scratch + LANES * LANES;
    for (int64_t r = 0; r < slim_rows(n_rows); r += LANES) {
        const mask counts = below(n_rows - r);
        const real *rows[LANES];
        places_of(rows, targets, outputs, samples, r, n_rows);
        turn(rows, outputs, wanted, LANES, counts);
        vec scale = every(share);
        if (weight) {
            const real *weights[LANES];
            places_of(weights, weight, 1, samples, r, n_rows);
            scale *= column_of(weights, 0);
        }
        const vec factor = scale / every((real)outputs);
        vec sums[LANES / 2];
        for (int c = 0; c < LANES / 2; c++)
            sums[c] = zeros();
        for (int64_t c = 0; c < outputs; c++) {
            const int64_t here = c * stride + r;
            vec slope;
            const vec loss = loss_of((int)code, load(out + here), load(wanted + c * LANES), &slope);
            store(delta + here, choose(counts, factor * slope, zeros()));
            store(scratch + c * LANES, zeros() + loss);
        }
        for (int c = 0; c < LANES / 2; c++)
            if (c < outputs)
                sums[c] = load(scratch + c * LANES);
        for (int half = LANES / 4; half > 0; half /= 2) /* as lanes are added there */
            for (int c = 0; c < half; c++)
                sums[c] += sums[c + half];
        store_some(losses + r, factor * sums[0], counts);
    }
}

/* f(x W + b) of a block of rows, as `layer_forward`. */
static void slim_forward(real *arena, const int64_t *head, const int64_t *layer, int64_t first,
                         int64_t n_rows, real *most)
{
    const int64_t stride = head[AT_SLIM_STRIDE], code = layer[AT_ACTIVATION];
    real *pre = arena + layer[AT_SLIM_PRE] + first, *out = arena + layer[AT_SLIM_OUT] + first;
    slim_product(pre, arena + layer[AT_START], arena + layer[AT_SLIM_IN] + first, stride,
                 arena + head[AT_PARAMETERS] + layer[AT_WEIGHT], PANEL, 1, layer[AT_INPUTS],
                 layer[AT_OUTPUTS], n_rows);
    for (int64_t c = 0; c < layer[AT_OUTPUTS]; c++) {
        if (pre != out)
            copy(out + c * stride, pre + c * stride, n_rows);
        if (code != ACTIVATION_IDENTITY)
            activate(code, out + c * stride, n_rows);
        if (most)
            note_run(most, out + c * stride, n_rows);
    }
}

/* Turn dL/d(output) of a block of rows into dL/dz, as `gate_output`. */
static void slim_gate(real *arena, const int64_t *head, const int64_t *layer, int64_t first,
                      int64_t n_rows, real *most)
{
    const int64_t code = layer[AT_ACTIVATION];
    for (int64_t c = 0; c < layer[AT_OUTPUTS]; c++) {
        const int64_t here = c * head[AT_SLIM_STRIDE] + first;
        real *delta = arena + layer[AT_SLIM_OUT_DELTA] + here;
        if (code != ACTIVATION_IDENTITY)
            gate(code, delta, arena + layer[AT_SLIM_PRE] + here, n_rows);
        if (most)
            note_run(most, delta, n_rows);
    }
}

/* Carry dL/dz of a block of rows back through the weights. */
static void slim_backward(real *arena, const int64_t *head, const int64_t *layer, int64_t first,
                          int64_t n_rows)
{
    slim_product(arena + layer[AT_SLIM_IN_DELTA] + first, arena + head[AT_ZEROS],
                 arena + layer[AT_SLIM_OUT_DELTA] + first, head[AT_SLIM_STRIDE],
                 arena + head[AT_PARAMETERS] + layer[AT_WEIGHT], 1, PANEL, layer[AT_OUTPUTS],
                 layer[AT_INPUTS], n_rows);
}

/* db of a layer, in a panel row with zeros beside. */
static void slim_bias_gradient(const real *arena, const int64_t *head, const int64_t *layer,
                               int64_t batch, real *out)
{
    const real *d = arena + layer[AT_SLIM_OUT_DELTA];
    clear(out, PANEL);
    for (int64_t c = 0; c < layer[AT_OUTPUTS]; c++)
        out[c] = dot(NULL, d + c * head[AT_SLIM_STRIDE], batch, true);
}

/* dW of a layer, and db where `bias_out`, in panel rows with zeros beside. */
static void slim_gradient(const real *arena, const int64_t *head, const int64_t *layer,
                          int64_t batch, real *out, real *bias_out)
{
    const int64_t stride = head[AT_SLIM_STRIDE], inputs = layer[AT_INPUTS];
    clear(out, inputs * PANEL);
    if (bias_out)
        slim_bias_gradient(arena, head, layer, batch, bias_out);
    for (int64_t c = 0; c < layer[AT_OUTPUTS]; c++) {
        const real *d = arena + layer[AT_SLIM_OUT_DELTA] + c * stride;
        for (int64_t i = 0; i < inputs; i++)
            out[i * PANEL + c] = dot(arena + layer[AT_SLIM_IN] + i * stride, d, batch, false);
    }
}

#endif
