/* The slots on row-major arrays: pack rows or weights to panels, run the engine's loops, unpack. */

#ifndef FN_SLOTS_H
#define FN_SLOTS_H

#include "elementwise.h"
#include "gather.h"
#include "losses.h"
#include "softmax.h"
#include "tile.h"
#include "tiles.h"
#include "updates.h"
#include "vectors.h"

/* Copy `n_rows` rows of one panel to `columns` columns of a matrix, `stride` apart. */
static void unpack_panel(const real *panel, int64_t n_rows, int64_t columns, real *out,
                         int64_t stride)
{
    for (int64_t r = 0; r < n_rows; r++)
        copy(out + r * stride, panel + r * PANEL, columns);
}

/* f(x w + b), one output panel at a time. Scratch: panels of x, a panel of w, one of the result,
   and a panel row. */
static void dense_forward(const real *x, const real *w, const real *b, int64_t code, int64_t n_rows,
                          int64_t inputs, int64_t outputs, real *out, real *scratch)
{
    const int64_t stride = n_rows * PANEL;
    real *rows = scratch, *weight = rows + panels(inputs) * stride;
    real *result = weight + inputs * PANEL, *start = result + stride;
    for (int64_t r = 0; r < n_rows; r++)
        gather(x + r * inputs, inputs, rows + r * PANEL, stride);
    for (int64_t first = 0; first < outputs; first += PANEL) {
        const int64_t columns = least(PANEL, outputs - first);
        clear(weight, inputs * PANEL);
        for (int64_t i = 0; i < inputs; i++)
            copy(weight + i * PANEL, w + i * outputs + first, columns);
        clear(start, PANEL);
        if (b)
            copy(start, b + first, columns);
        product_rows(columns, TILE_PLAIN, result, start, 0, rows, stride, weight, inputs, n_rows,
                     NULL, NULL, weight, 0);
        activate(code, result, stride);
        unpack_panel(result, n_rows, columns, out + first, outputs);
    }
}

/* f(z + b); `out` may be z itself. */
static void bias_act_forward(const real *z, const real *b, int64_t code, int64_t n_rows,
                             int64_t outputs, real *out)
{
    for (int64_t r = 0; r < n_rows; r++, z += outputs, out += outputs) {
        for (int64_t j = 0; j < outputs; j++)
            out[j] = b ? z[j] + b[j] : z[j];
        activate(code, out, outputs);
    }
}

/* dz = da * f'; db, zeros, becomes the sum of dz; `out` may be da itself. */
static void act_bias_backward(const real *da, const real *saved, int64_t code, int64_t n_rows,
                              int64_t outputs, real *out, real *db)
{
    for (int64_t r = 0; r < n_rows; r++, da += outputs, saved += outputs, out += outputs) {
        if (out != da)
            copy(out, da, outputs);
        gate(code, out, saved, outputs);
        for (int64_t j = 0; db && j < outputs; j++)
            db[j] += out[j];
    }
}

/* dz w^T for dz in panels. Scratch: a panel of w^T and one of the result. */
static void input_gradient(const real *dz, const real *w, const real *zero_row, int64_t n_rows,
                           int64_t inputs, int64_t outputs, real *dx, real *scratch)
{
    real *turned = scratch, *result = turned + outputs * PANEL;
    for (int64_t first = 0; first < inputs; first += PANEL) {
        const int64_t columns = least(PANEL, inputs - first);
        clear(turned, outputs * PANEL);
        for (int64_t k = 0; k < columns; k++)
            for (int64_t o = 0; o < outputs; o++)
                turned[o * PANEL + k] = w[(first + k) * outputs + o];
        product_rows(columns, TILE_PLAIN, result, zero_row, 0, dz, n_rows * PANEL, turned, outputs,
                     n_rows, NULL, NULL, turned, 0);
        unpack_panel(result, n_rows, columns, dx + first, inputs);
    }
}

/* dx = dz w^T unless NULL, dw = x^T dz, db = sums of dz unless NULL, with dz = dy * f'. Scratch:
   two panel rows, panels of x and of dz, and what `input_gradient` and one weight tile take. */
static void dense_backward(const real *dy, const real *x, const real *w, const real *saved,
                           int64_t code, int64_t n_rows, int64_t inputs, int64_t outputs, real *dx,
                           real *dw, real *db, real *scratch)
{
    const int64_t stride = n_rows * PANEL;
    real *zero_row = scratch, *bias_out = zero_row + PANEL, *rows = bias_out + PANEL;
    real *dz = rows + panels(inputs) * stride, *rest = dz + panels(outputs) * stride;
    clear(zero_row, PANEL);
    for (int64_t r = 0; r < n_rows; r++) {
        gather(x + r * inputs, inputs, rows + r * PANEL, stride);
        scatter_delta(dy + r * outputs, outputs, dz + r * PANEL, stride);
        for (int64_t q = 0; q < panels(outputs); q++)
            gate(code, dz + q * stride + r * PANEL, saved + r * outputs + q * PANEL,
                 least(PANEL, outputs - q * PANEL));
    }
    if (dx)
        input_gradient(dz, w, zero_row, n_rows, inputs, outputs, dx, rest);
    for (int64_t q = 0; q < panels(outputs); q++)
        for (int64_t p = 0; p < panels(inputs); p++) {
            const int64_t columns = least(PANEL, outputs - q * PANEL);
            const int64_t count = least(PANEL, inputs - p * PANEL);
            const bool wants_bias = p == 0 && db;
            weight_gradient(rest, zero_row, rows + p * stride, dz + q * stride, n_rows, count,
                            columns, wants_bias ? bias_out : NULL, NOTHING_AHEAD, NULL, NULL);
            unpack_panel(rest, count, columns, dw + (p * outputs + q) * PANEL, outputs);
            if (wants_bias)
                copy(db + q * PANEL, bias_out, columns);
        }
}

/* Loss times weight of each row, and dL/d(out) of the weighted mean. Scratch: panels of a row,
   and of its deltas. */
static void loss_rows(int64_t code, const real *out, const int64_t *labels, const real *targets,
                      const real *weight, int64_t n_rows, int64_t outputs, real *rows, real *dout,
                      real *scratch)
{
    real *delta = scratch + panels(outputs) * PANEL;
    const real share = (real)(1.0 / (double)n_rows);
    for (int64_t r = 0; r < n_rows; r++) {
        const real *target = targets ? targets + r * outputs : NULL;
        const real scale = row_scale(weight, r, share);
        gather(out + r * outputs, outputs, scratch, PANEL);
        const real loss =
            code == LOSS_CROSS_ENTROPY
                ? cross_entropy_row(scratch, delta, PANEL, outputs, labels ? labels[r] : 0, target,
                                    scale)
                : values_row(code, scratch, delta, PANEL, target, outputs, scale);
        rows[r] = loss * (real)n_rows;
        copy(dout + r * outputs, delta, outputs);
    }
}

/* One optimizer update of a run of parameters; `scratch` has four panel rows for its tail.
   Moments that the optimizer does not have may stand anywhere, even where p does. */
static void update_run(int64_t kind, real *p, const real *g, real *m, real *v, int64_t size,
                       const double *scalars, double clip, real *scratch)
{
    const int64_t rest = size % PANEL, even = size - rest;
    update(kind, p, g, m, v, even, scalars, clip, 1, PANEL);
    if (rest == 0)
        return;
    real *last[] = {scratch, scratch + PANEL, scratch + 2 * PANEL, scratch + 3 * PANEL};
    const real *given[] = {p, g, m, v};
    clear(scratch, 4 * PANEL);
    for (int i = 0; i < 4; i++)
        if (given[i])
            copy(last[i], given[i] + even, rest);
    update(kind, last[0], last[1], last[2], last[3], PANEL, scalars, clip, 1, PANEL);
    if (m)
        copy(m + even, last[2], rest);
    if (v)
        copy(v + even, last[3], rest);
    copy(p + even, last[0], rest);
}

#endif
