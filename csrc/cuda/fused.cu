/* A step of a small network up to the blocks' partial gradients, and predictions of many. */

#include "fused.h"
#include "state.h"

namespace {

template <class T>
__global__ void __launch_bounds__(FUSED_THREADS, FUSED_BLOCKS)
    fused_step(FN_GRID_CONSTANT const fn_cuda_network net, const Samples<T> data,
               const int64_t *bounds, const fn_cuda_state *state, const T *p, T *row_losses,
               T *partial, int loss, int batch)
{
    FN_LAUNCHED_SHARED(T, near);
    const int row = static_cast<int>(blockIdx.x) * net.rows;
    const int count = batch - row < net.rows ? batch - row : net.rows;
    T *mine = partial + static_cast<int64_t>(blockIdx.x) * net.flat;
    for (int i = thread_anew(); i < net.flat; i += static_cast<int>(blockDim.x))
        mine[i] = 0; /* the gaps between arrays; barriers follow before any gradient */
    const Fused<T, false> block(net, near, p);
    Samples<T> tile = data;
    tile.order += bounds[state->step] + row;
    block.take(tile, count);
    block.forward(count);
    block.loss(tile, loss, row_losses + row, count, batch);
    block.backward(mine, count, false);
}

template <class T, bool HOLDS>
__global__ void __launch_bounds__(FUSED_THREADS, FUSED_BLOCKS)
    fused_forward(FN_GRID_CONSTANT const fn_cuda_network net, const T *x, const T *p, T *out,
                  int batch, int64_t apart)
{
    FN_LAUNCHED_SHARED(T, near);
    const int64_t model = static_cast<int64_t>(blockIdx.y);
    const int row = static_cast<int>(blockIdx.x) * net.rows;
    const int count = batch - row < net.rows ? batch - row : net.rows;
    const int inputs = net.layer[0].inputs, outputs = net.layer[net.layers - 1].outputs;
    const Fused<T, HOLDS> block(net, near, p + model * net.flat);
    if (HOLDS)
        block.hold();
    Samples<T> tile = {};
    tile.x = x + model * apart + static_cast<int64_t>(row) * inputs;
    block.take(tile, count);
    block.forward(count);
    block.give(out + (model * batch + row) * outputs, count);
}

template <class T>
int start_step(int loss, const fn_cuda_network *network, int threads, const void *x,
               const void *targets, const void *labels, const void *weight, const void *order,
               const void *bounds, const void *state, const void *p, void *row_losses,
               void *partial, int rows, void *stream)
{
    if (rows == 0)
        return 0;
    if (!fits<T>(network, threads))
        return -1;
    const Samples<T> data{static_cast<const T *>(x), static_cast<const T *>(targets),
                          static_cast<const int64_t *>(labels), static_cast<const T *>(weight),
                          static_cast<const int64_t *>(order)};
    const size_t shared = static_cast<size_t>(network->numbers) * sizeof(T);
    return launch_sharing(shared, static_cast<cudaStream_t>(stream),
                          dim3(static_cast<unsigned>(ceiling(rows, network->rows))),
                          dim3(static_cast<unsigned>(threads)), fused_step<T>, *network, data,
                          static_cast<const int64_t *>(bounds),
                          static_cast<const fn_cuda_state *>(state), static_cast<const T *>(p),
                          static_cast<T *>(row_losses), static_cast<T *>(partial), loss, rows);
}

template <class T>
int start_forward(const fn_cuda_network *network, int models, int threads, const void *x,
                  const void *p, void *out, int rows, int64_t apart, void *stream)
{
    if (rows == 0 || models == 0)
        return 0;
    if (!fits<T>(network, threads))
        return -1;
    /* A gradient comes last. */
    const int numbers = network->gradient_at ? network->gradient_at : network->numbers;
    return launch_sharing(static_cast<size_t>(numbers) * sizeof(T),
                          static_cast<cudaStream_t>(stream),
                          dim3(static_cast<unsigned>(ceiling(rows, network->rows)),
                               static_cast<unsigned>(models)),
                          dim3(static_cast<unsigned>(threads)),
                          network->holds ? fused_forward<T, true> : fused_forward<T, false>,
                          *network, static_cast<const T *>(x), static_cast<const T *>(p),
                          static_cast<T *>(out), rows, apart);
}

} // namespace

extern "C" int fn_cuda_fused_step(int dtype, int loss, const void *network, int threads,
                                  const void *x, const void *targets, const void *labels,
                                  const void *weight, const void *order, const void *bounds,
                                  const void *state, const void *p, void *row_losses,
                                  void *partial, int rows, void *stream)
{
    return FN_OF(dtype, start_step)(loss, static_cast<const fn_cuda_network *>(network), threads, x,
                                    targets, labels, weight, order, bounds, state, p, row_losses,
                                    partial, rows, stream);
}

extern "C" int fn_cuda_fused_forward(int dtype, const void *network, int models, int threads,
                                     const void *x, const void *p, void *out, int rows,
                                     int64_t apart, void *stream)
{
    return FN_OF(dtype, start_forward)(static_cast<const fn_cuda_network *>(network), models,
                                       threads, x, p, out, rows, apart, stream);
}
