/* A small network in one block: some rows of the batch go through all layers and back.

   Their activations stay in shared memory, feature by feature, so that a thread reads four rows of a
   feature at a time; a layer's weight is copied there while it is needed, or all parameters lie there
   from the start. A delta takes the place of the activation that it belongs to. Where everything
   lies comes from fastneuron/kernels/fused_plan.py; the idea is that of Mueller, Rousselle, Novak &
   Keller 2021, "Real-time neural radiance caching for path tracing", ACM TOG 40 (fully fused
   networks); here with biases, any width and any layers, over which all loops run.

   Order: an output's sum starts from b and goes over I, as in products.h; a weight's gradient goes
   over the rows of a tile, then over the tiles as they come. */

#ifndef FN_FUSED_H
#define FN_FUSED_H

#include "kernels.h"
#include "losses.h"

/* Threads of a block, at most, and how many such blocks a multiprocessor's registers are for. */
constexpr int FUSED_THREADS = 256, FUSED_BLOCKS = 2;
/* Numbers between rows of four features or outputs, see fused_plan. */
constexpr int FUSED_PAD = 4;

/* What a model trains on; targets or labels are null, and so is weight where all count the same.
   Row i of a tile is the sample order[i], or i where order is null. */
template <class T> struct Samples {
    const T *x, *targets;
    const int64_t *labels;
    const T *weight;
    const int64_t *order;

    FN_DEVICE int64_t sample(int row) const { return order ? order[row] : row; }
};

/* Four numbers that begin at a multiple of 16 bytes. */
template <class T> FN_DEVICE void read4(const T *place, T (&four)[4])
{
    Share<T, 4, 1>::read(place, 0, four);
}

template <class T> FN_DEVICE void write4(T *place, const T (&four)[4])
{
    typedef Pack<T> P;
#pragma unroll
    for (int i = 0; i < 4; i += P::SIZE) {
        P pack;
#pragma unroll
        for (int j = 0; j < P::SIZE; j++)
            pack.at[j] = four[i + j];
        *reinterpret_cast<P *>(place + i) = pack;
    }
}

FN_DEVICE int whole_fours(int count) { return (count + 3) / 4 * 4; }

/* A network's tile in shared memory, `near`. All threads of the block call these together; what a
   pass computes ends with a barrier, what copies parameters or outputs does not. HOLDS says that all parameters lie there, else p is where
   they are in global memory. */
template <class T, bool HOLDS> class Fused {
public:
    FN_DEVICE Fused(const fn_cuda_network &net, T *near, const T *p)
        : net(net), near(near), p(p), stride(net.rows + FUSED_PAD)
    {
    }

    FN_DEVICE void hold() const
    {
        for (int q = first_pack(); q < net.flat; q += all_packs())
            *reinterpret_cast<Pack<T> *>(near + q) = *reinterpret_cast<const Pack<T> *>(p + q);
    }

    FN_DEVICE void let_go(T *to) const
    {
        for (int q = first_pack(); q < net.flat; q += all_packs())
            *reinterpret_cast<Pack<T> *>(to + q) = *reinterpret_cast<const Pack<T> *>(near + q);
    }

    /* Rows of x as the input's tile, with zeros in rows past `count`. */
    FN_DEVICE void take(const Samples<T> &from, int count) const
    {
        const int inputs = net.layer[0].inputs, across = whole_fours(inputs);
        T *tile = near + net.tile_at;
        for (int q = thread(); q < across * net.rows; q += threads()) {
            const int r = q / across, k = q % across;
            const bool there = r < count && k < inputs;
            tile[k * stride + r] = there ? from.x[from.sample(r) * inputs + k] : T(0);
        }
        __syncthreads();
    }

    /* The tiles of all layers, zeros in rows past `count`. */
    FN_DEVICE void forward(int count) const
    {
        for (int index = 0; index < net.layers; index++)
            forward_of(net.layer[index], source_of(index), count);
    }

    /* The losses of `count` of the batch's rows, and dL/dz in the place of the output. */
    FN_DEVICE void loss(const Samples<T> &from, int code, T *losses, int count, int batch) const
    {
        const fn_cuda_layer &last = net.layer[net.layers - 1];
        for (int r = thread(); r < count; r += threads()) {
            const int64_t sample = from.sample(r);
            T *out = near + last.tile_at + r;
            const T *saved = near + saved_of(last) + r;
            const int apart = stride, activation = last.activation;
            const LossRow<T> row{out, apart,
                                 from.targets ? from.targets + sample * last.outputs : nullptr,
                                 from.labels ? from.labels[sample] : 0,
                                 from.weight ? from.weight[sample] : T(1), batch, last.outputs};
            losses[r] = loss_of_row<1>(row, code, 0, [=](int o, T d) {
                out[o * apart] = gated(activation, d, saved[o * apart]);
            });
        }
        __syncthreads();
    }

    /* The gradient from dL/dz of the last layer, added to that of the tiles before where `adds`. */
    FN_DEVICE void backward(T *gradient, int count, bool adds) const
    {
        for (int index = net.layers - 1; index >= 0; index--) {
            const fn_cuda_layer &layer = net.layer[index];
            /* The last layer's is there still. */
            if (!HOLDS && index > 0 && index < net.layers - 1)
                copy_weight(layer);
            gradient_of(layer, source_of(index), gradient, count, adds);
            __syncthreads();
            if (index > 0) {
                delta_below(layer, net.layer[index - 1]);
                __syncthreads();
            }
        }
    }

    /* The rows of the last tile, (count, O). */
    FN_DEVICE void give(T *out, int count) const
    {
        const fn_cuda_layer &last = net.layer[net.layers - 1];
        for (int q = thread(); q < count * last.outputs; q += threads())
            out[q] = near[last.tile_at + q % last.outputs * stride + q / last.outputs];
    }

private:
    const fn_cuda_network &net;
    T *const near;
    const T *const p;
    const int stride; /* from feature to feature */

    static FN_DEVICE int thread() { return thread_anew(); }
    static FN_DEVICE int threads() { return static_cast<int>(blockDim.x); }
    static FN_DEVICE int first_pack() { return thread() * Pack<T>::SIZE; }
    static FN_DEVICE int all_packs() { return threads() * Pack<T>::SIZE; }

    FN_DEVICE int source_of(int index) const
    {
        return index ? net.layer[index - 1].tile_at : net.tile_at;
    }

    static FN_DEVICE int saved_of(const fn_cuda_layer &layer)
    {
        return layer.z_at ? layer.z_at : layer.tile_at;
    }

    /* A weight, with zeros around it. */
    FN_DEVICE void copy_weight(const fn_cuda_layer &layer) const
    {
        const T *from = p + layer.weight_at;
        for (int q = thread(); q < whole_fours(layer.inputs) * layer.stride; q += threads()) {
            const int i = q / layer.stride, o = q % layer.stride;
            const bool there = i < layer.inputs && o < layer.outputs;
            near[q] = there ? from[i * layer.row + o] : T(0);
        }
    }

    FN_DEVICE void forward_of(const fn_cuda_layer &layer, int source, int count) const
    {
        if (!HOLDS) {
            copy_weight(layer);
            __syncthreads();
        }
        const int down = net.rows / 4, outputs = layer.outputs, inputs = layer.inputs;
        const T *bias = (HOLDS ? near : p) + layer.bias_at;
        T *saved = near + saved_of(layer), *target = near + layer.tile_at;
        for (int q = thread(); q < down * (whole_fours(outputs) / 4); q += threads()) {
            const int row = q % down * 4, column = q / down * 4;
            T sums[4][4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const T first = layer.bias_at && column + j < outputs ? bias[column + j] : T(0);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    sums[j][i] = first;
            }
            const T *xs = near + source + row, *ws = near + layer.near_at + column;
            for (int k = 0; k < inputs; k++) {
                T x[4], w[4];
                read4(xs + k * stride, x);
                read4(ws + k * layer.stride, w);
#pragma unroll
                for (int j = 0; j < 4; j++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        sums[j][i] = fused(x[i], w[j], sums[j][i]);
            }
#pragma unroll
            for (int j = 0; j < 4; j++)
                write4(saved + (column + j) * stride + row, sums[j]);
            /* A loop of its own, so that f need not stand here 16 times beside the sums. */
#pragma unroll 1
            for (int j = column; j < column + 4; j++) {
                const int there = j < outputs ? count - row : 0;
                T z[4], a[4];
                read4(saved + j * stride + row, z);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    a[i] = i < there ? activated(layer.activation, z[i]) : T(0);
                    z[i] = i < there ? z[i] : T(0);
                }
                if (saved != target)
                    write4(saved + j * stride + row, z);
                write4(target + j * stride + row, a);
            }
        }
        __syncthreads();
    }

    FN_DEVICE void gradient_of(const fn_cuda_layer &layer, int source, T *gradient, int count,
                               bool adds) const
    {
        const int across = whole_fours(layer.inputs) / 4, down = whole_fours(layer.outputs) / 4;
        const T *delta = near + layer.tile_at;
        for (int q = thread(); q < across * down; q += threads()) {
            /* Neighbours take neighbouring outputs: their rows begin in different banks, and their
               gradients lie side by side. */
            const int i = q / down, o = q % down;
            T sums[4][4] = {};
            for (int row = 0; row < count; row += 4) {
                T x[4][4];
#pragma unroll
                for (int r = 0; r < 4; r++)
                    read4(near + source + (i + r * across) * stride + row, x[r]);
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    T d[4];
                    read4(delta + (o + c * down) * stride + row, d);
#pragma unroll
                    for (int k = 0; k < 4; k++)
#pragma unroll
                        for (int r = 0; r < 4; r++)
                            sums[r][c] = fused(x[r][k], d[k], sums[r][c]);
                }
            }
#pragma unroll
            for (int r = 0; r < 4; r++) {
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    const int to_i = i + r * across, to_o = o + c * down;
                    if (to_i < layer.inputs && to_o < layer.outputs)
                        put(gradient + layer.weight_at + to_i * layer.row + to_o, sums[r][c], adds);
                }
            }
        }
        if (!layer.bias_at)
            return;
        for (int o = thread(); o < layer.outputs; o += threads()) {
            T total = 0;
            for (int row = 0; row < count; row += 4) { /* past the batch are zeros */
                T four[4];
                read4(delta + o * stride + row, four);
#pragma unroll
                for (int k = 0; k < 4; k++)
                    total += four[k];
            }
            put(gradient + layer.bias_at + o, total, adds);
        }
    }

    /* delta w^T f' in the place of the layer's input, which is what the layer `below` gave. */
    FN_DEVICE void delta_below(const fn_cuda_layer &layer, const fn_cuda_layer &below) const
    {
        const int down = net.rows / 4, across = whole_fours(layer.inputs) / 4;
        const T *delta = near + layer.tile_at, *saved = near + saved_of(below);
        T *source = near + below.tile_at;
        for (int q = thread(); q < down * across; q += threads()) {
            const int row = q % down * 4, i = q / down * 4;
            /* As in the forward pass: the slopes first, by themselves. */
#pragma unroll 1
            for (int c = 0; c < 4; c++) {
                const int at = (i + c) * stride + row;
                T slope[4];
                read4(saved + at, slope);
#pragma unroll
                for (int r = 0; r < 4; r++)
                    slope[r] = gated(below.activation, T(1), slope[r]);
                write4(source + at, slope);
            }
            T sums[4][4] = {};
            /* Past the outputs there are zeros in both, up to whole groups of four. */
            for (int o = 0; o < layer.outputs; o += 4) {
                T w[4][4];
#pragma unroll
                for (int c = 0; c < 4; c++)
                    read4(near + layer.near_at + (i + c) * layer.stride + o, w[c]);
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    T d[4];
                    read4(delta + (o + k) * stride + row, d);
#pragma unroll
                    for (int c = 0; c < 4; c++)
#pragma unroll
                        for (int r = 0; r < 4; r++)
                            sums[c][r] = fused(d[r], w[c][k], sums[c][r]);
                }
            }
#pragma unroll
            for (int c = 0; c < 4; c++) {
                T *place = source + (i + c) * stride + row;
                T slope[4];
                read4(place, slope);
#pragma unroll
                for (int r = 0; r < 4; r++)
                    sums[c][r] *= slope[r];
                write4(place, sums[c]);
            }
        }
    }

    static FN_DEVICE void put(T *place, T sum, bool adds) { *place = adds ? *place + sum : sum; }
};

/* Whether kernels can take a network in blocks of so many threads. */
template <class T> bool fits(const fn_cuda_network *net, int threads)
{
    const bool power = threads > 0 && (threads & (threads - 1)) == 0;
    return net->layers <= FN_FUSED_LAYERS && power && threads <= FUSED_THREADS &&
           static_cast<size_t>(net->numbers) * sizeof(T) <= LAUNCHED_BYTES;
}

#endif
