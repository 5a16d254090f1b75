/* Many steps of many small networks in one kernel: a block is a model from first step to last.

   Nothing waits between steps but a block for its own threads: no launch, no barrier of the grid.
   Parameters lie in shared memory from step to step where they fit, and the gradient too; moments
   stay in global memory. Order: that of fused.h in a tile; a batch's tiles one after the other; the loss and
   the squares of the gradient over the threads of a block. So a model's bits are those of its own
   shape and data. */

#include "fused.h"
#include "sums.h"
#include "updates.h"

namespace {

/* M models; see fn_cuda_ensemble_steps. */
template <class T> struct Ensemble {
    fn_cuda_network net;
    Samples<T> data;
    int64_t x_apart, y_apart, weight_apart, order_apart;
    const int64_t *bounds;
    const double *scalars;
    const unsigned char *marks;
    T *p, *g, *m, *v, *rows;
    double *losses, largest;
    fn_cuda_state *state;
    int64_t last;
    int loss, kind, tables, most;
};

/* All parameters of a model and their moments. */
template <class T>
FN_DEVICE void update_model(const Ensemble<T> &e, const double *scalars, double squared, T *p,
                            const T *g, int64_t start, const unsigned char *marks)
{
    const double clip = clip_scale(squared, scalars[OPTIMIZERS_CLIP_NORM]);
    const Numbers<T> s(scalars, clip);
    const int step = static_cast<int>(blockDim.x) * Pack<T>::SIZE;
    for (int q = thread_anew() * Pack<T>::SIZE; q < e.net.flat; q += step) {
        const int mark = marks[q / FN_RUN];
        if (mark & FN_TRAINED)
            pack_stepped(e.kind, s, mark & FN_DECAYS, p + q, g + q,
                         e.m ? e.m + start + q : e.m, e.v ? e.v + start + q : e.v);
    }
}

/* What is in shared memory from step to step. */
enum Near { NEITHER, PARAMETERS, BOTH };

template <class T, Near NEAR>
__global__ void __launch_bounds__(FUSED_THREADS, FUSED_BLOCKS)
    ensemble_steps(FN_GRID_CONSTANT const Ensemble<T> e)
{
    constexpr bool HOLDS = NEAR != NEITHER;
    FN_LAUNCHED_SHARED(T, near);
    FN_SHARED(double, of_threads, FUSED_THREADS);
    const int model = static_cast<int>(blockIdx.x), models = static_cast<int>(gridDim.x);
    const int threads = static_cast<int>(blockDim.x);
    const int64_t start = static_cast<int64_t>(model) * e.net.flat;
    const unsigned char *marks = e.marks + start / FN_RUN;
    T *rows = e.rows + static_cast<int64_t>(model) * e.most;
    const Fused<T, HOLDS> block(e.net, near, e.p + start);
    T *const p = HOLDS ? near : e.p + start, *const g = NEAR == BOTH ? near + e.net.gradient_at
                                                                     : e.g + start;
    int64_t step = e.state[model].step, status = e.state[model].status;
    if (HOLDS)
        block.hold();
    if (NEAR == BOTH)
        for (int i = thread_anew(); i < e.net.flat; i += threads)
            g[i] = 0; /* the gaps between arrays */
    __syncthreads(); /* all have read the state, which may be written at once */
    while (step < e.last && status == STATUS_OK) {
        const int64_t first = e.bounds[step];
        const int batch = static_cast<int>(e.bounds[step + 1] - first);
        Samples<T> data = e.data;
        data.x += model * e.x_apart;
        data.targets = data.targets ? data.targets + model * e.y_apart : nullptr;
        data.labels = data.labels ? data.labels + model * e.y_apart : nullptr;
        data.weight = data.weight ? data.weight + model * e.weight_apart : nullptr;
        data.order += model * e.order_apart + first;
        for (int row = 0; row < batch; row += e.net.rows, data.order += e.net.rows) {
            const int count = batch - row < e.net.rows ? batch - row : e.net.rows;
            block.take(data, count);
            block.forward(count);
            block.loss(data, e.loss, rows + row, count, batch);
            block.backward(g, count, row > 0);
        }
        const double mine = my_losses(rows, batch, threads);
        const double mean = sum_of_threads(of_threads, threads, mine) / batch;
        if (thread_anew() == 0)
            e.losses[step * models + model] = mean;
        if (!is_finite(mean)) {
            status = STATUS_LOSS_NOT_FINITE;
            break;
        }
        const double my_part = my_squares(g, marks, 0, e.net.flat, threads);
        const double squared = sum_of_threads(of_threads, threads, my_part);
        if (!applies(squared, e.largest)) {
            status = STATUS_GRADIENT_NOT_FINITE;
            break;
        }
        const int64_t table = step * e.tables + (e.tables == 1 ? 0 : model);
        update_model(e, e.scalars + table * OPTIMIZERS_N_SCALARS, squared, p, g, start, marks);
        step++; /* before any parameter is read comes the barrier of `take` */
    }
    if (HOLDS)
        block.let_go(e.p + start);
    if (thread_anew() == 0) {
        e.state[model].step = step;
        e.state[model].status = status;
    }
}

template <class T>
int start_steps(int loss, int kind, const fn_cuda_network *network, int models, int threads,
                const void *x, const void *targets, const void *labels, const void *weight,
                const void *order, const void *bounds, const void *scalars, const void *marks,
                void *p, void *g, void *m, void *v, void *rows, void *losses, void *state,
                int64_t x_apart, int64_t y_apart, int64_t weight_apart, int64_t order_apart,
                int tables, int most, int64_t last, void *stream)
{
    if (models == 0)
        return 0;
    if (!fits<T>(network, threads))
        return -1;
    const Samples<T> data{static_cast<const T *>(x), static_cast<const T *>(targets),
                          static_cast<const int64_t *>(labels), static_cast<const T *>(weight),
                          static_cast<const int64_t *>(order)};
    const Ensemble<T> all{*network, data, x_apart, y_apart, weight_apart, order_apart,
                          static_cast<const int64_t *>(bounds),
                          static_cast<const double *>(scalars),
                          static_cast<const unsigned char *>(marks),
                          static_cast<T *>(p), static_cast<T *>(g), static_cast<T *>(m),
                          static_cast<T *>(v), static_cast<T *>(rows),
                          static_cast<double *>(losses),
                          sizeof(T) == sizeof(float) ? LARGEST_SINGLE : LARGEST_DOUBLE,
                          static_cast<fn_cuda_state *>(state), last, loss, kind, tables, most};
    const auto kernel = network->gradient_at ? ensemble_steps<T, BOTH>
                        : network->holds     ? ensemble_steps<T, PARAMETERS>
                                             : ensemble_steps<T, NEITHER>;
    return launch_sharing(static_cast<size_t>(network->numbers) * sizeof(T),
                          static_cast<cudaStream_t>(stream), dim3(static_cast<unsigned>(models)),
                          dim3(static_cast<unsigned>(threads)), kernel, all);
}

} // namespace

extern "C" int fn_cuda_ensemble_steps(
    int dtype, int loss, int kind, const void *network, int models, int threads, const void *x,
    const void *targets, const void *labels, const void *weight, const void *order,
    const void *bounds, const void *scalars, const void *marks, void *p, void *g, void *m, void *v,
    void *rows, void *losses, void *state, int64_t x_apart, int64_t y_apart, int64_t weight_apart,
    int64_t order_apart, int tables, int most, int64_t last, void *stream)
{
    return FN_OF(dtype, start_steps)(
        loss, kind, static_cast<const fn_cuda_network *>(network), models, threads, x, targets,
        labels, weight, order, bounds, scalars, marks, p, g, m, v, rows, losses, state, x_apart,
        y_apart, weight_apart, order_apart, tables, most, last, stream);
}
