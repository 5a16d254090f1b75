/* Phase B: gradient and update of the parameters, one tile of a weight panel at a time.

   A tile of a dense layer is the square of one input panel and one output panel. Its gradient sums
   over the rows of the batch in ascending order; the bias gradient is one more accumulator row of
   the first input tile, whose input is always 1, fed by loads that happen anyway. Tiles of other
   kinds are one panel of weights and biases, a row each. */

#ifndef FN_TILES_H
#define FN_TILES_H

#include "context.h"
#include "norms.h"
#include "row_norms.h"
#include "slim.h"
#include "sums.h"
#include "tile.h"
#include "transpose.h"
#include "updates.h"

/* dW of `n_rows` inputs and one panel of outputs, in chunks of the batch.

   `bias_out`, unless NULL, gets db of the panel. Where `parameters` are given, a step of
   gradient descent with the rate and the decay at `rates` is done to them, instead of leaving dW
   at `out`. */
static void weight_gradient(real *out, const real *zero_row, const real *a, const real *b,
                            int64_t batch, int64_t n_rows, int64_t columns, real *bias_out,
                            Ahead ahead, real *parameters, const real *rates)
{
    const real *start = zero_row;
    int64_t start_step = 0, r = 0;
    do {
        const int64_t depth = least(AT_BATCH_CHUNK, batch - r);
        const bool descends = parameters && r + depth == batch;
        product_batch(columns, descends ? TILE_DESCENT : TILE_PLAIN, descends ? parameters : out,
                      start, start_step, a + r * PANEL, b + r * PANEL, depth, n_rows, bias_out,
                      rates, &ahead);
        if (ahead.step != 0) {
            for (int i = 0; i < AHEAD; i++)
                ahead.place[i] += depth / UNROLL * ahead.step;
            ahead.soon += depth / UNROLL * TALLS * ahead.soon_step;
        }
        start = out;
        start_step = PANEL;
        r += depth;
    } while (r < batch);
}

/* Whether a tile's gradient is computed with its inputs for lanes. */
INLINE bool is_turned(const TrainingStep *s, const int64_t *tile)
{
    return tile[AT_TILE_OUTPUTS] <= AT_TURNED_OUTPUTS && tile[AT_TILE_BIAS] < 0 &&
           s->batch >= AT_TURNED_ROWS;
}

/* Write a gradient that stands at `turned`, a panel row for each output, as a tile. */
static void turn_back(const real *turned, real *out, int64_t inputs, int64_t outputs)
{
    clear(out, inputs * PANEL);
    for (int64_t o = 0; o < outputs; o++)
        for (int64_t i = 0; i < inputs; i++)
            out[i * PANEL + o] = turned[o * PANEL + i];
}

/* Weight gradient of one tile, and bias gradient of its panel: see `weight_gradient`. `spare` has
   room for AT_TURNED_OUTPUTS panel rows. */
static void gradient(const TrainingStep *s, const int64_t *tile, real *out, real *bias_out,
                     Ahead ahead, real *parameters, const real *rates, real *spare)
{
    const int64_t *layer = layer_of(s, tile[AT_TILE_LAYER]);
    const int64_t inputs = tile[AT_TILE_INPUTS], outputs = tile[AT_TILE_OUTPUTS];
    const real *a = s->arena + tile[AT_TILE_A], *b = s->arena + tile[AT_TILE_B];
    if (is_slim(s, layer)) {
        slim_gradient(s->arena, s->head, layer, s->batch, out, bias_out);
    } else if (is_turned(s, tile)) { /* the same products in the same order */
        weight_gradient(spare, region(s, AT_ZEROS), b, a, s->batch, outputs, inputs, NULL,
                        NOTHING_AHEAD, NULL, NULL);
        turn_back(spare, out, inputs, outputs);
    } else {
        weight_gradient(out, region(s, AT_ZEROS), a, b, s->batch, inputs, outputs, bias_out, ahead,
                        parameters, rates);
    }
}

/* Number of a tile's output panel, where it has one row of weights. */
INLINE int64_t panel_of(const TrainingStep *s, const int64_t *tile)
{
    return (tile[AT_TILE_WEIGHT] - layer_of(s, tile[AT_TILE_LAYER])[AT_WEIGHT]) / PANEL;
}

/* Gradient of a tile of one row of weights and one of biases, of which either may be NULL. */
static void row_gradient(const TrainingStep *s, const int64_t *tile, real *out, real *bias_out)
{
    const int64_t *layer = layer_of(s, tile[AT_TILE_LAYER]);
    const real *d = s->arena + tile[AT_TILE_B];
    switch (tile[AT_TILE_KIND]) {
    case AT_BATCH_NORM: /* phase A had to have it */
        if (out)
            copy(out, kept_of(s->arena, layer, KEPT_DWEIGHT, panel_of(s, tile)), PANEL);
        if (bias_out)
            copy(bias_out, kept_of(s->arena, layer, KEPT_DBIAS, panel_of(s, tile)), PANEL);
        break;
    case AT_LAYER_NORM:
        layer_norm_gradient(s->arena, s->head, layer, s->arena + tile[AT_TILE_A], d,
                            tile[AT_TILE_OUTPUTS], s->batch, out, bias_out);
        break;
    default: /* of a dense layer whose weights are not trained */
        if (is_slim(s, layer))
            slim_bias_gradient(s->arena, s->head, layer, s->batch, bias_out);
        else
            bias_gradient(d, s->batch, bias_out);
    }
}

/* Gradient of one tile, to the gradient region; its sum of squares beside it. */
static void tile_gradient(const TrainingStep *s, int64_t ticket)
{
    const int64_t *tile = tile_of(s, ticket);
    const bool with_bias = tile[AT_TILE_BIAS] >= 0;
    real *out = region(s, AT_GRADIENT) + tile[AT_TILE_WEIGHT];
    real *bias_out = with_bias ? region(s, AT_GRADIENT) + tile[AT_TILE_BIAS] : NULL;
    if (tile[AT_TILE_KIND] == AT_DENSE)
        gradient(s, tile, out, bias_out, NOTHING_AHEAD, NULL, NULL, s->scratch);
    else
        row_gradient(s, tile, tile[AT_TILE_INPUTS] > 0 ? out : NULL, bias_out);
    region(s, AT_TILE_SQUARES)[tile[AT_TILE_NUMBER]] =
        squares(out, tile[AT_TILE_INPUTS] * PANEL, bias_out, with_bias ? PANEL : 0);
}

/* Refresh one tile of the transposed copy, which dense layers have. */
static void transpose_tile(const TrainingStep *s, const int64_t *tile)
{
    if (tile[AT_TILE_KIND] != AT_DENSE)
        return;
    transpose(region(s, AT_PARAMETERS) + tile[AT_TILE_WEIGHT], s->arena + tile[AT_TILE_TRANSPOSED],
              tile[AT_TILE_INPUTS], tile[AT_TILE_OUTPUTS]);
}

/* The optimizer's update of parameters from `position` on. */
static void update_from(const TrainingStep *s, const int64_t *tile, int64_t position, int64_t size,
                        const real *slope, double clip, int64_t decays)
{
    update(s->head[AT_UPDATE], region(s, AT_PARAMETERS) + position, slope,
           region(s, AT_MOMENT_1) + position, region(s, AT_MOMENT_2) + position, size, s->scalars,
           clip, decays, tile[AT_TILE_OUTPUTS]);
}

/* Update the parameters of one tile, and their transposed copy.

   The gradients stand at `slope` and `bias_slope`; without `slope`, the weights are updated
   already. Layers that no deltas go back through have no use for a copy in training, nor have steps
   of few rows. The weight of a normalisation decays like a bias: it makes nothing steeper. */
static void apply(const TrainingStep *s, const int64_t *tile, const real *slope,
                  const real *bias_slope, double clip)
{
    if (slope)
        update_from(s, tile, tile[AT_TILE_WEIGHT], tile[AT_TILE_INPUTS] * PANEL, slope, clip,
                    tile[AT_TILE_KIND] == AT_DENSE ? 1 : s->head[AT_DECAY_BIAS]);
    if (tile[AT_TILE_BIAS] >= 0)
        update_from(s, tile, tile[AT_TILE_BIAS], PANEL, bias_slope, clip, s->head[AT_DECAY_BIAS]);
    if (!s->few && tile[AT_TILE_LAYER] >= s->head[AT_BACK_TO])
        transpose_tile(s, tile);
    if (tile[AT_TILE_KIND] == AT_BATCH_NORM && s->batch >= 2)
        move_statistics(s->arena, layer_of(s, tile[AT_TILE_LAYER]), panel_of(s, tile), s->batch);
}

/* Update one tile whose gradient stands in the gradient region. */
static void tile_update(const TrainingStep *s, const int64_t *tile, double clip)
{
    const real *slopes = region(s, AT_GRADIENT);
    apply(s, tile, slopes + tile[AT_TILE_WEIGHT], slopes + tile[AT_TILE_BIAS], clip);
}

/* Place of one of a row's `pieces` that the next step will gather. */
static const real *coming_piece(const TrainingStep *s, int64_t piece, int64_t pieces, int64_t size)
{
    const int64_t r = piece / pieces;
    if (r >= s->n_coming)
        return s->arena;
    return s->x + s->coming[r] * s->x_columns + piece % pieces * size;
}

/* What a tile's gradient asks the caches for.

   Of many parameters: its own, their moments and their transposed copy, for the update that
   follows, and its share of the activations of the next input panel. In layer 0, of `first_tiles`
   tiles, beside them, or alone, a piece of the rows that the next step begins with: a thread's
   share of the tiles has its share of the rows. */
static Ahead lines_ahead(const TrainingStep *s, int64_t ticket, int64_t first_tiles)
{
    const int64_t *tile = tile_of(s, ticket);
    const bool far = n_parameters(s) * (int64_t)sizeof(real) > AT_FAR_PARAMETERS;
    const bool first = tile[AT_TILE_LAYER] == 0 && s->n_coming > 0;
    if (!far && !first)
        return NOTHING_AHEAD;
    const int64_t turns = most_of(s->batch / UNROLL, 1);
    const int64_t streams = far ? 1 : AHEAD;
    const int64_t pieces = most_of(streams * first_tiles / most_of(s->n_coming, 1), 1);
    const int64_t size = (s->x_columns + pieces - 1) / pieces;
    Ahead ahead = {.soon = s->arena};
    if (!far) {
        ahead.step = most_of(size / turns, 1);
        for (int i = 0; i < AHEAD; i++)
            ahead.place[i] = coming_piece(s, AHEAD * ticket + i, pieces, size);
        return ahead;
    }
    const int64_t moments = s->head[AT_UPDATE] != UPDATE_SGD ? n_parameters(s) : 0;
    ahead.step = most_of(PANEL * PANEL / turns, 1);
    for (int i = 0; i < AHEAD - 1; i++)
        ahead.place[i] = region(s, AT_PARAMETERS) + tile[AT_TILE_WEIGHT] + i * moments;
    ahead.place[AHEAD - 1] =
        first ? coming_piece(s, ticket, pieces, size) : s->arena + tile[AT_TILE_TRANSPOSED];
    const int64_t shares = TALLS * tile[AT_TILE_SHARES];
    /* Not past a line: what the tiles have no time to ask for is left out. */
    ahead.soon_step = least((PANEL * UNROLL + shares - 1) / shares, LINE);
    ahead.soon = s->arena + tile[AT_TILE_NEXT_A] +
                 tile[AT_TILE_SHARE] * TALLS * turns * ahead.soon_step;
    return ahead;
}

/* Gradient and update of one tile in one visit; the gradient never leaves the cache.

   For plain gradient descent it does not leave the registers, unless it `is_turned`. */
static void tile_step(const TrainingStep *s, int64_t ticket, int64_t first_tiles)
{
    const int64_t *tile = tile_of(s, ticket);
    real *slope = s->scratch, *bias_slope = slope + PANEL * PANEL, *rates = bias_slope + PANEL;
    const bool descends = s->head[AT_UPDATE] == UPDATE_SGD && !is_turned(s, tile) &&
                          !is_slim(s, layer_of(s, tile[AT_TILE_LAYER]));
    rates[0] = (real)s->scalars[OPTIMIZERS_RATE];
    rates[1] = (real)s->scalars[OPTIMIZERS_L2];
    gradient(s, tile, slope, tile[AT_TILE_BIAS] >= 0 ? bias_slope : NULL,
             lines_ahead(s, ticket, first_tiles),
             descends ? region(s, AT_PARAMETERS) + tile[AT_TILE_WEIGHT] : NULL, rates, bias_slope);
    apply(s, tile, descends ? NULL : slope, bias_slope, 1.0);
}

/* Gradient and update of one tile, of few rows: no gradient is stored, no copy refreshed. */
static void few_rows_step(const TrainingStep *s, const int64_t *tile)
{
    const bool far = n_parameters(s) * (int64_t)sizeof(real) > AT_FAR_PARAMETERS;
    const int64_t ahead = far ? PANEL * PANEL : 0;
    real *p = region(s, AT_PARAMETERS), *m = region(s, AT_MOMENT_1), *v = region(s, AT_MOMENT_2);
    const real *b = s->arena + tile[AT_TILE_B];
    int64_t at = tile[AT_TILE_WEIGHT];
    update_by_rows(s->head[AT_UPDATE], p + at, m + at, v + at, tile[AT_TILE_INPUTS] * PANEL,
                   s->arena + tile[AT_TILE_A], PANEL, b, s->batch, s->scalars, 1,
                   tile[AT_TILE_OUTPUTS], ahead);
    at = tile[AT_TILE_BIAS];
    if (at < 0)
        return;
    *s->scratch = 1; /* the input of a bias, in every row */
    update_by_rows(s->head[AT_UPDATE], p + at, m + at, v + at, PANEL, s->scratch, 0, b, s->batch,
                   s->scalars, s->head[AT_DECAY_BIAS], tile[AT_TILE_OUTPUTS], ahead);
}

/* Squared norm of the whole gradient, tiles in ascending order, in the arena's dtype.

   In that dtype on purpose: a gradient whose square overflows it counts as not finite, which bounds
   every update that an optimizer can make. */
static double squared_norm(const TrainingStep *s)
{
    const real *first = region(s, AT_TILE_SQUARES);
    real total = 0;
    for (int64_t i = 0; i < s->head[AT_N_TILES]; i++)
        total += first[i];
    return (double)total;
}

#endif
