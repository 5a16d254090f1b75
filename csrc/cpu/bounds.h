/* Whether a step's gradient is certain to be finite, known before the gradient is computed.

   An update may only be applied when the whole gradient is known to be finite. Computing all of
   it first costs a pass over memory and a barrier; but |dW_ij| <= B max|a| max|dz|, so the
   largest activation and delta of each layer nearly always settle the question. They are taken
   while phase A has the rows in cache, as integers: the bits of |x| order like |x|, with NaN
   above infinity. */

#ifndef FN_BOUNDS_H
#define FN_BOUNDS_H

#include "context.h"
#include "sums.h"

/* Kinds of maxima: of a layer's input, of its dL/dz. */
enum { OF_INPUT, OF_DELTA, KINDS };

/* The number that has these bits. */
INLINE double number_of(whole its_bits)
{
    real number;
    memcpy(&number, &its_bits, sizeof number);
    return (double)number;
}

/* Where thread `tid` notes its largest numbers: KINDS panel rows a layer. */
INLINE real *maxima_of(const TrainingStep *s, int64_t tid)
{
    return region(s, AT_MAXIMA) + tid * KINDS * s->head[AT_N_LAYERS] * PANEL;
}

/* Where the largest input or delta of a layer is noted; NULL where none is. */
INLINE real *entry(real *most, int64_t index, int kind)
{
    return most ? most + (KINDS * index + kind) * PANEL : NULL;
}

/* One maximum over all lanes and threads. */
static double largest_of_team(const TrainingStep *s, int64_t index, int kind)
{
    whole found = 0;
    for (int64_t tid = 0; tid < s->n_threads; tid++) {
        const whole own = largest_bits(entry(maxima_of(s, tid), index, kind), PANEL);
        found = own > found ? own : found;
    }
    return number_of(found);
}

/* A bound of the sum of squares of a layer's weight gradient.

   Of a normalisation the inputs are at most sqrt(n) in size, n being what its variance is over. */
static double squares_of_weights(const TrainingStep *s, const int64_t *layer, double most_a,
                                 double most_d)
{
    const double inputs = (double)layer[AT_INPUTS], outputs = (double)layer[AT_OUTPUTS];
    switch (layer[AT_KIND]) {
    case AT_DENSE:
        return inputs * outputs * (most_a * most_d) * (most_a * most_d);
    case AT_BATCH_NORM:
        return outputs * (double)s->batch * (most_d * most_d);
    case AT_LAYER_NORM:
        return outputs * inputs * (most_d * most_d);
    default:
        return 0;
    }
}

/* Whether loss, gradient and the gradient's squared norm must all be finite.

   The bound is computed in double, where it cannot round down by more than 1e-13; half the range is
   kept for the rounding of the sums themselves. */
static bool certainly_finite(const TrainingStep *s)
{
    const double limit = sizeof(real) == 4 ? 1.7e38 : 8.0e307;
    const double batch = (double)s->batch;
    double squared = 0;
    for (int64_t index = 0; index < s->head[AT_N_LAYERS]; index++) {
        const int64_t *layer = layer_of(s, index);
        const double most_a = largest_of_team(s, index, OF_INPUT);
        const double most_d = batch * largest_of_team(s, index, OF_DELTA);
        squared += squares_of_weights(s, layer, most_a, most_d);
        squared += (double)layer[AT_OUTPUTS] * most_d * most_d;
    }
    double loss = 0;
    if (s->stages & STAGES_LOSS)
        loss = batch * number_of(largest_bits(region(s, AT_ROW_LOSS), s->batch));
    return squared < limit && loss < limit;
}

#endif
