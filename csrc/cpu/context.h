/* What the parts of a training step look at, so that they need not be given it one by one. */

#ifndef FN_CONTEXT_H
#define FN_CONTEXT_H

#include "constants.h"
#include "vectors.h"

typedef struct {
    /* The chunk's, as in fn_training. */
    int64_t stages;
    real *arena;
    int64_t *head;
    const int64_t *layers, *tiles;
    const real *x;
    int64_t x_columns;
    const int64_t *labels;
    const real *targets;
    int64_t target_columns;
    const real *weight;
    int64_t *words;
    int64_t tid, n_threads;
    real *scratch; /* this thread's own: see scratch_size */
    int64_t *marks; /* this thread's marks of time, or NULL where nobody asks: see marks.h */
    /* The step's. */
    const int64_t *samples; /* (batch,) */
    int64_t batch;
    const int64_t *coming; /* (n_coming,): rows of the next step */
    int64_t n_coming;
    const double *scalars;
    double *loss;
    real *most; /* this thread's maxima, or NULL where none are noted */
    bool few;   /* deltas go back through the weights as they lie */
    bool slim;  /* rows are many enough for layers of a few columns to work on columns */
} TrainingStep;

INLINE const int64_t *layer_of(const TrainingStep *s, int64_t index)
{
    return s->layers + index * AT_LAYER_COLUMNS;
}
INLINE const int64_t *tile_of(const TrainingStep *s, int64_t index)
{
    return s->tiles + index * AT_TILE_COLUMNS;
}
/* The place in the arena that an entry of the head names. */
INLINE real *region(const TrainingStep *s, int entry) { return s->arena + s->head[entry]; }
/* Elements from one panel of rows to the next. */
INLINE int64_t panel_stride(const TrainingStep *s) { return s->head[AT_CAPACITY] * PANEL; }
INLINE int64_t n_parameters(const TrainingStep *s)
{
    return s->head[AT_MOMENT_1] - s->head[AT_PARAMETERS];
}
/* Whether a layer works on columns in this step. */
INLINE bool is_slim(const TrainingStep *s, const int64_t *layer)
{
    return s->slim && layer[AT_SLIM];
}

/* Elements of one thread's own scratch: a square tile and four panel rows. */
INLINE int64_t scratch_size(void) { return PANEL * PANEL + 4 * PANEL; }

#endif
