/* What starts the kernels: of float32 (dtype 0) or float64 (1), arrays row-major, on the device.

   Shapes: B batch rows, I inputs, O outputs. Each returns 0 or CUDA's error of the start. `tile` and
   how sums are split come from the plan, which makes them of shapes alone. */

#ifndef FN_CUDA_KERNELS_H
#define FN_CUDA_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { FN_SINGLE, FN_DOUBLE };
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

#ifdef __cplusplus
}
#endif

#endif
