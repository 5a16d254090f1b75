/* What one build of the kernels offers: one table for each dtype and instruction set. */

#ifndef FN_KERNELS_H
#define FN_KERNELS_H

#include <stdint.h>

/* Everything one thread of the team needs for a chunk of training steps. Arrays of numbers are of
   the table's dtype; what is absent is NULL. Shapes: n data rows, I inputs, O outputs. */
typedef struct {
    int64_t stages;        /* STAGES_ bits */
    void *arena;           /* training state, see fastneuron/kernels/layout.py */
    int64_t *head;         /* (AT_HEAD_ENTRIES,) */
    const int64_t *layers; /* (n_layers, AT_LAYER_COLUMNS) */
    const int64_t *tiles;  /* (n_tiles, AT_TILE_COLUMNS) */
    const void *x;         /* (n, I), or dL/d(output) (n, O) of a foreign loss */
    int64_t x_columns;
    const int64_t *labels; /* (n,) or NULL */
    const void *targets;   /* (n, target_columns) or NULL */
    int64_t target_columns;
    const void *weight;    /* (n,) or NULL */
    const int64_t *order;  /* row numbers, batch after batch */
    const int64_t *bounds; /* (n_steps + 1,) */
    int64_t n_steps;
    const double *scalars; /* (n_steps, OPTIMIZERS_N_SCALARS) */
    double *losses;        /* (n_steps,) */
    int64_t *words;        /* the team's: see fastneuron/kernels/stages.py */
    int64_t tid, n_threads;
} fn_training;

/* The same for inference: x (n, I) to out (n, O). */
typedef struct {
    void *arena;
    const int64_t *head, *layers;
    const void *x;
    int64_t n_rows, x_columns;
    void *out;
    int64_t *words, tid, n_threads;
} fn_inference;

typedef struct {
    int64_t vector_bytes;
    void (*train)(const fn_training *);
    void (*infer)(const fn_inference *);
    /* The slots on row-major arrays; NULL stands for what is left out. `scratch` is in elements. */
    void (*dense_forward)(const void *x, const void *w, const void *b, int64_t code, int64_t n_rows,
                          int64_t inputs, int64_t outputs, void *out, void *scratch);
    void (*bias_act_forward)(const void *z, const void *b, int64_t code, int64_t n_rows,
                             int64_t outputs, void *out);
    void (*act_bias_backward)(const void *da, const void *saved, int64_t code, int64_t n_rows,
                              int64_t outputs, void *out, void *db);
    void (*dense_backward)(const void *dy, const void *x, const void *w, const void *saved,
                           int64_t code, int64_t n_rows, int64_t inputs, int64_t outputs, void *dx,
                           void *dw, void *db, void *scratch);
    void (*loss_rows)(int64_t code, const void *out, const int64_t *labels, const void *targets,
                      const void *weight, int64_t n_rows, int64_t outputs, void *rows, void *dout,
                      void *scratch);
    void (*update_run)(int64_t kind, void *p, const void *g, void *m, void *v, int64_t size,
                       const double *scalars, double clip, void *scratch);
    /* What the processor can do at most, see ceilings.h. */
    void (*multiply_adds)(void *out, int64_t turns);
    void (*read_all)(const void *x, int64_t size, int64_t turns, void *out);
    void (*copy_all)(const void *x, void *y, int64_t size, int64_t turns);
} fn_kernels;

#endif
