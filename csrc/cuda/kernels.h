/* What starts the kernels: of float32 (dtype 0) or float64 (1), arrays row-major, on the device.
   Row numbers, labels and bounds are int64 (2), scalars and losses float64.

   Shapes: B batch rows, I inputs, O outputs. Each returns 0 or CUDA's error of the start. `tile` and
   how sums are split come from the plan, which makes them of shapes alone. */

#ifndef FN_CUDA_KERNELS_H
#define FN_CUDA_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { FN_SINGLE, FN_DOUBLE, FN_WHOLE };
/* FN_TINY is for tests: a block of 16 threads. */
enum { FN_LARGE, FN_SMALL, FN_TINY };

/* Rows, columns and depth of a tile, and threads of its block; 0 where there is no such tile. */
int fn_cuda_tile(int dtype, int tile, int *sizes);

/* a (B, O) = f(x (B, I) w (I, O) + bias (O,)); z (B, O) too, where it is not null. */
int fn_cuda_forward(int dtype, int tile, int activation, const void *x, const void *w,
                    const void *bias, void *a, void *z, int rows, int inputs, int outputs,
                    void *stream);
/* dz (B, I) = (dz_above (B, O) w^T) f'(saved (B, I)); partial (tiles of rows, I): column sums. */
int fn_cuda_data_gradient(int dtype, int tile, int activation, const void *dz_above, const void *w,
                          const void *saved, void *dz, void *partial, int rows, int inputs,
                          int outputs, void *stream);
/* dw (slices, I, O) = x^T dz, each slice of `rows_of_slice` rows, a multiple of the tile's depth. */
int fn_cuda_weight_gradient(int dtype, int tile, const void *x, const void *dz, void *dw, int rows,
                            int inputs, int outputs, int rows_of_slice, void *stream);

/* A chunk of steps under way. A status that is not OK stops all that would change parameters. */
typedef struct {
    int64_t step; /* whole steps so far */
    int64_t status;
    double clip_scale; /* what the gradient of this step is multiplied by */
} fn_cuda_state;

/* Numbers of a flat buffer that have a mark in common: every array of parameters begins at a whole
   run, 64 bytes of float32. Those between arrays are 0 in gradients. */
enum { FN_RUN = 16 };
enum { FN_TRAINED = 1, FN_DECAYS = 2 };

/* out (B, width) = the rows order[bounds[step] + 0, 1, ...] of x (n, width); bounds may be null: 0.
   dtype may be FN_WHOLE. */
int fn_cuda_gather(int dtype, const void *x, const void *order, const void *bounds,
                   const void *state, void *out, int n, int rows, int width, void *stream);
/* a (B, O) = f(z + bias); bias may be null, a may be z. */
int fn_cuda_bias_act_forward(int dtype, int activation, const void *z, const void *bias, void *a,
                             int rows, int outputs, void *stream);
/* dz (B, O) = da f'(saved); partial (groups of rows, O) or null: column sums. dz may be da. */
int fn_cuda_act_bias_backward(int dtype, int activation, const void *da, const void *saved,
                              void *dz, void *partial, int rows, int outputs, int rows_of_group,
                              void *stream);
/* sums (n,) = factor * the sum of parts (count, n). */
int fn_cuda_sum_parts(int dtype, const void *parts, double factor, void *sums, int count, int n,
                      void *stream);
/* y (B, O) = x mask / (1 - rate), the mask of the key in the step's scalars; y may be x. */
int fn_cuda_dropout(int dtype, const void *x, const void *scalars, const void *state,
                    unsigned layer, unsigned dropped, double rate, void *y, int rows, int columns,
                    void *stream);

/* row_losses (B,) and dout (B, O) of out (B, O); targets (B, O) or labels (B,), the other null;
   weight (B,) or null. */
int fn_cuda_loss_rows(int dtype, int loss, const void *out, const void *targets, const void *labels,
                      const void *weight, void *row_losses, void *dout, int rows, int outputs,
                      void *stream);
/* losses[step] = the mean of row_losses. */
int fn_cuda_batch_loss(int dtype, const void *row_losses, void *losses, void *state, int rows,
                       void *stream);

/* Numbers that fn_cuda_clip needs for n of a gradient: its `partial`, float64. */
int fn_cuda_norm_parts(int64_t n);
/* The scale that keeps the norm of what is trained to the step's limit; see fn_cuda_state. */
int fn_cuda_clip(int dtype, const void *g, const void *marks, void *partial, const void *scalars,
                 void *state, int64_t n, void *stream);
/* One step of the optimizer on n parameters; m and v are null where the kind has no such moment. All
   begin at 16 bytes. */
int fn_cuda_update(int dtype, int kind, void *p, const void *g, void *m, void *v, const void *marks,
                   const void *scalars, const void *state, int64_t n, void *stream);
/* The step is done: the next one's batch and scalars are in use from here on. */
int fn_cuda_advance(void *state, void *stream);

/* Stage 1 of column sums (groups of rows, O): of x (B, O), or of (x - mean (O,))^2. */
int fn_cuda_spread(int dtype, const void *x, const void *mean, void *partial, int rows, int columns,
                   int rows_of_group, void *stream);
/* inverse (n,) = 1 / sqrt(variance + epsilon). */
int fn_cuda_inverse_root(int dtype, const void *variance, double epsilon, void *inverse, int n,
                         void *stream);
/* mean and inverse (B,) of the rows of x (B, O). */
int fn_cuda_row_moments(int dtype, const void *x, double epsilon, void *mean, void *inverse,
                        int rows, int columns, void *stream);
/* a (B, O) = f(weight xhat + bias), xhat = (x - mean) inverse; both are (B,) if of_rows, else (O,).
   bias may be null; z (B, O) too, where it is not null. */
int fn_cuda_norm_forward(int dtype, int activation, const void *x, const void *mean,
                         const void *inverse, int of_rows, const void *weight, const void *bias,
                         void *a, void *z, int rows, int columns, void *stream);
/* Stage 1 of column sums, (2, groups of rows, O): of dy xhat, and of dy. */
int fn_cuda_norm_sums(int dtype, const void *x, const void *mean, const void *inverse, int of_rows,
                      const void *dy, void *partial, int rows, int columns, int rows_of_group,
                      void *stream);
/* dx (B, O) of dy through a batch normalisation, with its gradients dweight and dbias (O,); without
   them, both null, as where mean and inverse are running ones. dx may be dy. */
int fn_cuda_batch_backward(int dtype, const void *x, const void *mean, const void *inverse,
                           const void *weight, const void *dy, const void *dweight,
                           const void *dbias, void *dx, int rows, int columns, void *stream);
/* dx (B, O) of dy through a layer normalisation; mean, inverse (B,). dx may be dy. */
int fn_cuda_layer_backward(int dtype, const void *x, const void *mean, const void *inverse,
                           const void *weight, const void *dy, void *dx, int rows, int columns,
                           void *stream);
/* Running statistics (n,) after a step on a batch of that many rows, unless the chunk has ended. */
int fn_cuda_move_statistics(int dtype, const void *mean, const void *variance, void *running_mean,
                            void *running_variance, double momentum, int rows, int n,
                            const void *state, void *stream);

/* Where a small network lies in a block's shared memory, in numbers: fastneuron/kernels/fused_plan.py
   says what they are. 0 stands for a bias, or a place of z or of a gradient, that is not there. */
enum { FN_FUSED_LAYERS = 16 };
typedef struct {
    int32_t inputs, outputs, activation;
    int32_t weight_at, bias_at, row; /* in the flat vector of parameters */
    int32_t near_at, stride, tile_at, z_at;
} fn_cuda_layer;
typedef struct {
    int32_t layers, rows, tile_at, numbers, flat, holds, gradient_at;
    fn_cuda_layer layer[FN_FUSED_LAYERS];
} fn_cuda_network;

/* A step on the rows order[bounds[step]], ... of x, up to row_losses (B,) and the gradients partial
   (blocks of network.rows rows, n) of p (n,), 0 between arrays; targets, labels and weight as in
   fn_cuda_loss_rows, but of all x. network: fn_cuda_network, on the host, -1 where it is too large,
   as for all of these. threads: of a block, a power of two. */
int fn_cuda_fused_step(int dtype, int loss, const void *network, int threads, const void *x,
                       const void *targets, const void *labels, const void *weight,
                       const void *order, const void *bounds, const void *state, const void *p,
                       void *row_losses, void *partial, int rows, void *stream);
/* out (models, B, O) of x (B, I), `apart` numbers from model to model, by p (models, n). */
int fn_cuda_fused_forward(int dtype, const void *network, int models, int threads, const void *x,
                          const void *p, void *out, int rows, int64_t apart, void *stream);
/* Steps up to `last` of M models, each from where its state (M,) stands: a block a model. x, targets
   or labels, weight and order begin `apart` numbers from model to model, 0 where all share them.
   scalars (steps, tables, N_SCALARS), tables M or 1 for all; marks (M, n / FN_RUN); p, g, m, v
   (M, n), g 0 between arrays, of no use where the network has a place for it, m and v null where the kind has no such moment; rows (M, most), the
   losses of a batch's rows; losses (steps, M). What fails stops alone. */
int fn_cuda_ensemble_steps(int dtype, int loss, int kind, const void *network, int models,
                           int threads, const void *x, const void *targets, const void *labels,
                           const void *weight, const void *order, const void *bounds,
                           const void *scalars, const void *marks, void *p, void *g, void *m,
                           void *v, void *rows, void *losses, void *state, int64_t x_apart,
                           int64_t y_apart, int64_t weight_apart, int64_t order_apart, int tables,
                           int most, int64_t last, void *stream);

/* Devices that there are, or the error that says why none can be had; in words. */
int fn_cuda_devices(int *count);
const char *fn_cuda_error(int error);
int fn_cuda_allocate(void **place, size_t bytes);
int fn_cuda_release(void *place);
int fn_cuda_clear(void *place, size_t bytes, void *stream);
/* In either direction, or on the device. */
int fn_cuda_copy(void *to, const void *source, size_t bytes, void *stream);
int fn_cuda_wait(void *stream);
/* A stream that waits for no other; launches on it can be recorded. */
int fn_cuda_stream(void **stream);
int fn_cuda_end_stream(void *stream);

/* A start of one of the functions above, up to fn_cuda_ensemble_steps, but for its stream: each
   argument as a whole number (or address) and as a real one, of which the function takes its own. */
enum { FN_ARGUMENTS = 28 };
typedef struct {
    int64_t whole;
    double real;
} fn_cuda_argument;
typedef struct {
    int64_t function;
    fn_cuda_argument arguments[FN_ARGUMENTS];
} fn_cuda_call;
/* The number of the function of that name with so many arguments but for the stream, or -1. */
int fn_cuda_function(const char *name, int count);
const char *fn_cuda_name(int64_t function);
/* Start the calls in order, all of them `times` times; `at` is the one that failed. */
int fn_cuda_run(const fn_cuda_call *calls, int count, int64_t times, void *stream, int *at);
/* Record the same as a graph; nothing is run. The functions must have run before: what loads a
   kernel cannot be recorded. `at` is the call that failed, or -1. */
int fn_cuda_record(const fn_cuda_call *calls, int count, int64_t times, void *stream, void **graph,
                   int *at);
int fn_cuda_replay(void *graph, int64_t times, void *stream);
int fn_cuda_forget(void *graph);

#ifdef __cplusplus
}
#endif

#endif
