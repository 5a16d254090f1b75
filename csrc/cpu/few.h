/* Steps of few rows: what they cost is memory traffic, so a phase visits each weight once.

   Deltas go back through the weights as they lie, and gradients are computed in the registers of
   their update. Such a step leaves the transposed copies of the weights behind: see AT_STALE. */

#ifndef FN_FEW_H
#define FN_FEW_H

#include "constants.h"
#include "elementwise.h"
#include "low.h"

/* Do what `layer_backward` does, for few rows, from the weights themselves. A sum goes over every
   L-th output, and then over the L lanes of a register. */
static void few_rows_backward(real *arena, const int64_t *head, const int64_t *layer,
                              int64_t first_panel, int64_t end_panel, int64_t stride, int64_t first,
                              int64_t n_rows, int64_t code, int64_t saved, real *most)
{
    const int64_t inputs = layer[AT_INPUTS], outputs = layer[AT_OUTPUTS];
    const int64_t offset = first * PANEL, size = n_rows * PANEL, w_panel = inputs * PANEL;
    const real *weight = arena + head[AT_PARAMETERS] + layer[AT_WEIGHT];
    const bool far = inputs * outputs * (int64_t)sizeof(real) >= AT_FAR_WEIGHTS;
    for (int64_t p = first_panel; p < end_panel; p++) {
        const int64_t here = p * stride + offset, left = inputs - p * PANEL;
        real *target = arena + layer[AT_IN_DELTA] + here;
        if (left <= LANES) /* the other half of the last panel is not visited below */
            for (int64_t r = 0; r < n_rows; r++)
                clear(target + r * PANEL + LANES, LANES);
        for (int64_t half = 0; half < least(PANEL, left); half += LANES) {
            const real *w = weight + (p * PANEL + half) * PANEL;
            int64_t r = 0;
            while (r < n_rows) {
                const real *delta = arena + layer[AT_OUT_DELTA] + offset + r * PANEL;
                real *out = target + r * PANEL + half;
                const int64_t ahead = far && r == 0 ? LANES * PANEL : 0;
                if (n_rows - r >= BACK_ROWS) {
                    for (int i = 0; i < LANES; i += LANES / BACK_ROWS)
                        low_back(BACK_ROWS, out + i, delta, stride, w + i * PANEL, w_panel,
                                 left - half - i, outputs, ahead);
                    r += BACK_ROWS;
                } else if (n_rows - r >= 2) {
                    for (int i = 0; i < LANES; i += LANES / 2)
                        low_back(2, out + i, delta, stride, w + i * PANEL, w_panel,
                                 left - half - i, outputs, ahead);
                    r += 2;
                } else {
                    low_back(1, out, delta, stride, w, w_panel, left - half, outputs, ahead);
                    r++;
                }
            }
        }
        if (code != ACTIVATION_IDENTITY)
            gate(code, target, arena + saved + here, size);
        if (most)
            note_run(most, target, size);
    }
}

#endif
