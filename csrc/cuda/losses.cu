/* Losses: of every row with its gradient, and of the batch. Formulas: fastneuron/losses.py. */

#include "functions.h"
#include "kernels.h"
#include "state.h"
#include "sums.h"

namespace {

/* Any loss but cross-entropy of output o and target y: l, and dl/do in `slope`. */
template <class T> FN_DEVICE T loss_of(int code, T o, T y, T *slope)
{
    const T r = o - y;
    switch (code) {
    case LOSS_MSE:
        *slope = 2 * r;
        return r * r;
    case LOSS_MAE:
        *slope = r > 0 ? T(1) : r < 0 ? T(-1) : r; /* r: 0, or NaN */
        return size_of(r);
    case LOSS_HUBER: {
        const T size = size_of(r);
        *slope = not_above(not_below(r, T(-1)), T(1));
        return size > 1 ? size - T(0.5) : T(0.5) * r * r;
    }
    case LOSS_BINARY_CROSS_ENTROPY:
        *slope = logistic(o) - y;
        return not_below(o, T(0)) - o * y + log1p_of(exp_of(-size_of(o)));
    default: { /* Poisson */
        const T e = exp_of(o);
        *slope = e - y;
        return e - y * o;
    }
    }
}

/* Arguments of a loss over a batch; labels or targets are null. */
template <class T> struct Batch {
    const T *out, *targets;
    const int64_t *labels;
    const T *weight; /* (B,) or null */
    T *row_losses, *dout;
    int rows, columns;
};

/* A warp has a row: lane l takes outputs l, l + 32 and so on, then the lanes are added up. */
template <class T> FN_DEVICE void values_of_row(const Batch<T> &batch, int code, int row, int lane)
{
    const int64_t start = static_cast<int64_t>(row) * batch.columns;
    const T weight = batch.weight ? batch.weight[row] : T(1);
    const T factor = weight / static_cast<T>(batch.rows) / static_cast<T>(batch.columns);
    T total = 0;
    for (int column = lane; column < batch.columns; column += WARP_LANES) {
        T slope;
        total += loss_of(code, batch.out[start + column], batch.targets[start + column], &slope);
        batch.dout[start + column] = factor * slope;
    }
    total = sum_of_warp(total);
    if (lane == 0)
        batch.row_losses[row] = weight * (total / static_cast<T>(batch.columns));
}

/* The logits less their largest, so that no exponential overflows; a class number stands for the
   row that is 1 there. */
template <class T> FN_DEVICE void cross_entropy_of_row(const Batch<T> &batch, int row, int lane)
{
    const T *out = batch.out + static_cast<int64_t>(row) * batch.columns;
    const T *y = batch.targets + (batch.targets ? static_cast<int64_t>(row) * batch.columns : 0);
    T *dout = batch.dout + static_cast<int64_t>(row) * batch.columns;
    const T weight = batch.weight ? batch.weight[row] : T(1);
    const T scale = weight / static_cast<T>(batch.rows);
    T top = out[0];
    for (int column = lane; column < batch.columns; column += WARP_LANES)
        top = out[column] > top ? out[column] : top;
    top = largest_of_warp(top);
    T total = 0, share = 0;
    for (int column = lane; column < batch.columns; column += WARP_LANES) {
        total += exp_of(out[column] - top);
        share += batch.labels ? T(0) : y[column];
    }
    const T log_total = log_of(sum_of_warp(total));
    share = batch.labels ? T(1) : sum_of_warp(share);
    const int64_t label = batch.labels ? batch.labels[row] : 0;
    T loss = 0;
    for (int column = lane; column < batch.columns; column += WARP_LANES) {
        const T log_p = out[column] - top - log_total;
        const T target = !batch.labels ? y[column] : column == label ? T(1) : T(0);
        if (!batch.labels || column == label)
            loss -= target * log_p;
        dout[column] = scale * (exp_of(log_p) * share - target);
    }
    loss = sum_of_warp(loss);
    if (lane == 0)
        batch.row_losses[row] = weight * loss;
}

constexpr int LOSS_WARPS = 4;

template <class T>
__global__ void __launch_bounds__(LOSS_WARPS *WARP_LANES) loss_rows(const Batch<T> batch, int code)
{
    const int lane = static_cast<int>(threadIdx.x) % WARP_LANES;
    const int row = static_cast<int>(blockIdx.x) * LOSS_WARPS +
                    static_cast<int>(threadIdx.x) / WARP_LANES;
    if (row >= batch.rows)
        return;
    if (code == LOSS_CROSS_ENTROPY)
        cross_entropy_of_row(batch, row, lane);
    else
        values_of_row(batch, code, row, lane);
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
    double total = 0;
    for (int row = static_cast<int>(threadIdx.x); row < rows; row += MEAN_THREADS)
        total += static_cast<double>(row_losses[row]);
    total = sum_of_block<MEAN_THREADS>(total);
    if (threadIdx.x > 0 || state->status != STATUS_OK)
        return;
    const double mean = total / rows;
    losses[state->step] = mean;
    if (!(mean - mean == 0))
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
