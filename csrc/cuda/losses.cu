/* Losses: of every row with its gradient, and of the batch. */

#include "kernels.h"
#include "losses.h"
#include "state.h"

namespace {

/* Arguments of a loss over a batch; labels or targets are null. */
template <class T> struct Batch {
    const T *out, *targets;
    const int64_t *labels;
    const T *weight; /* (B,) or null */
    T *row_losses, *dout;
    int rows, columns;
};

constexpr int LOSS_WARPS = 4;

/* A warp has a row. */
template <class T>
__global__ void __launch_bounds__(LOSS_WARPS *WARP_LANES) loss_rows(const Batch<T> batch, int code)
{
    const int lane = static_cast<int>(threadIdx.x) % WARP_LANES;
    const int row = static_cast<int>(blockIdx.x) * LOSS_WARPS +
                    static_cast<int>(threadIdx.x) / WARP_LANES;
    if (row >= batch.rows)
        return;
    const int64_t start = static_cast<int64_t>(row) * batch.columns;
    const LossRow<T> mine{batch.out + start, 1, batch.targets ? batch.targets + start : nullptr,
                          batch.labels ? batch.labels[row] : 0,
                          batch.weight ? batch.weight[row] : T(1), batch.rows, batch.columns};
    T *dout = batch.dout + start;
    const T loss = loss_of_row<WARP_LANES>(mine, code, lane,
                                           [dout](int column, T d) { dout[column] = d; });
    if (lane == 0)
        batch.row_losses[row] = loss;
}

template <class T>
int start_rows(int code, const void *out, const void *targets, const void *labels,
               const void *weight, void *row_losses, void *dout, int rows, int columns,
               void *stream)
{
    if (rows == 0)
        return 0;
    const Batch<T> batch{static_cast<const T *>(out), static_cast<const T *>(targets),
                         static_cast<const int64_t *>(labels), static_cast<const T *>(weight),
                         static_cast<T *>(row_losses), static_cast<T *>(dout), rows, columns};
    return launch(static_cast<cudaStream_t>(stream),
                  dim3(static_cast<unsigned>(ceiling(rows, LOSS_WARPS))),
                  dim3(LOSS_WARPS * WARP_LANES), loss_rows<T>, batch, code);
}

constexpr int MEAN_THREADS = 128;

/* The batch's loss, summed in float64 as the reference engine does; one block. A loss that is not
   finite ends the chunk: what comes after looks at the state. */
template <class T>
__global__ void __launch_bounds__(MEAN_THREADS)
    batch_loss(const T *row_losses, int rows, double *losses, fn_cuda_state *state)
{
    const double mine = my_losses(row_losses, rows, MEAN_THREADS);
    const double total = sum_of_block<MEAN_THREADS>(mine);
    if (threadIdx.x > 0 || state->status != STATUS_OK)
        return;
    const double mean = total / rows;
    losses[state->step] = mean;
    if (!is_finite(mean))
        state->status = STATUS_LOSS_NOT_FINITE;
}

template <class T>
int start_batch(const void *row_losses, void *losses, void *state, int rows, void *stream)
{
    return launch(static_cast<cudaStream_t>(stream), dim3(1), dim3(MEAN_THREADS), batch_loss<T>,
                  static_cast<const T *>(row_losses), rows, static_cast<double *>(losses),
                  static_cast<fn_cuda_state *>(state));
}

} // namespace

extern "C" int fn_cuda_loss_rows(int dtype, int loss, const void *out, const void *targets,
                                 const void *labels, const void *weight, void *row_losses,
                                 void *dout, int rows, int outputs, void *stream)
{
    return FN_OF(dtype, start_rows)(
        loss, out, targets, labels, weight, row_losses, dout, rows, outputs, stream);
}

extern "C" int fn_cuda_batch_loss(int dtype, const void *row_losses, void *losses, void *state,
                                  int rows, void *stream)
{
    return FN_OF(dtype, start_batch)(row_losses, losses,
                                                                           state, rows, stream);
}
