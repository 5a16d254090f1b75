/* The optimizer's step on flat buffers: the gradient's norm, then every parameter at once. */

#include "kernels.h"
#include "state.h"
#include "sums.h"
#include "updates.h"

namespace {

constexpr int NORM_THREADS = 128, NORM_NUMBERS = 4096; /* a block: 32 numbers a thread */

/* Stage 1 of the squared norm. */
template <class T>
__global__ void __launch_bounds__(NORM_THREADS)
    squares(const T *g, const unsigned char *marks, double *partial, int64_t n)
{
    const int64_t first = static_cast<int64_t>(blockIdx.x) * NORM_NUMBERS;
    const int64_t end = n - first < NORM_NUMBERS ? n : first + NORM_NUMBERS;
    const double mine = my_squares(g, marks, first, end, NORM_THREADS);
    const double total = sum_of_block<NORM_THREADS>(mine);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = total;
}

/* Stage 2, one block: the step's scale, or the end of the chunk. */
__global__ void __launch_bounds__(NORM_THREADS)
    clip(const double *partial, int count, const double *scalars, double largest,
         fn_cuda_state *state)
{
    double total = 0;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += NORM_THREADS)
        total += partial[i];
    total = sum_of_block<NORM_THREADS>(total);
    if (threadIdx.x > 0 || state->status != STATUS_OK)
        return;
    state->clip_scale = clip_scale(total, scalars_of(scalars, state)[OPTIMIZERS_CLIP_NORM]);
    if (!applies(total, largest))
        state->status = STATUS_GRADIENT_NOT_FINITE;
}

/* Parameters, gradients and moments are flat buffers of one layout: arrays begin at whole runs of
   FN_RUN numbers, of which marks[run] tells whether they are trained and whether they decay. */
template <class T>
__global__ void __launch_bounds__(RUN_THREADS)
    update(int kind, T *p, const T *g, T *m, T *v, const unsigned char *marks,
           const double *scalars, const fn_cuda_state *state, int64_t n)
{
    constexpr int SIZE = Pack<T>::SIZE;
    const int64_t at = FN_MY_RUN * SIZE;
    if (at >= n || state->status != STATUS_OK)
        return;
    const int mark = marks[at / FN_RUN];
    if (!(mark & FN_TRAINED))
        return;
    const Numbers<T> s(scalars_of(scalars, state), state->clip_scale);
    if (at + SIZE > n) { /* slots take vectors that end anywhere */
        for (int64_t i = at; i < n; i++) {
            T my_m = m ? m[i] : T(0), my_v = v ? v[i] : T(0);
            stepped(kind, s, mark & FN_DECAYS, p + i, g[i], &my_m, &my_v);
            if (m)
                m[i] = my_m;
            if (v)
                v[i] = my_v;
        }
        return;
    }
    pack_stepped(kind, s, mark & FN_DECAYS, p + at, g + at, m ? m + at : m, v ? v + at : v);
}

/* The step is done, unless the chunk has ended. */
__global__ void __launch_bounds__(1) advance(fn_cuda_state *state)
{
    if (state->status == STATUS_OK)
        state->step++;
}

template <class T>
int start_squares(const void *g, const void *marks, void *partial, int64_t n, void *stream)
{
    return launch(static_cast<cudaStream_t>(stream),
                  dim3(static_cast<unsigned>(ceiling(n, NORM_NUMBERS))), dim3(NORM_THREADS),
                  squares<T>, static_cast<const T *>(g), static_cast<const unsigned char *>(marks),
                  static_cast<double *>(partial), n);
}

template <class T>
int start_update(int kind, void *p, const void *g, void *m, void *v, const void *marks,
                 const void *scalars, const void *state, int64_t n, void *stream)
{
    return launch(static_cast<cudaStream_t>(stream), grid_of(ceiling(n, Pack<T>::SIZE)),
                  dim3(RUN_THREADS), update<T>, kind, static_cast<T *>(p),
                  static_cast<const T *>(g), static_cast<T *>(m), static_cast<T *>(v),
                  static_cast<const unsigned char *>(marks), static_cast<const double *>(scalars),
                  static_cast<const fn_cuda_state *>(state), n);
}

} // namespace

extern "C" int fn_cuda_norm_parts(int64_t n) { return ceiling(n, NORM_NUMBERS); }

extern "C" int fn_cuda_clip(int dtype, const void *g, const void *marks, void *partial,
                            const void *scalars, void *state, int64_t n, void *stream)
{
    const int wrong = FN_OF(dtype, start_squares)(
        g, marks, partial, n, stream);
    if (wrong)
        return wrong;
    return launch(static_cast<cudaStream_t>(stream), dim3(1), dim3(NORM_THREADS), clip,
                  static_cast<const double *>(partial), fn_cuda_norm_parts(n),
                  static_cast<const double *>(scalars),
                  dtype == FN_DOUBLE ? LARGEST_DOUBLE : LARGEST_SINGLE,
                  static_cast<fn_cuda_state *>(state));
}

extern "C" int fn_cuda_update(int dtype, int kind, void *p, const void *g, void *m, void *v,
                              const void *marks, const void *scalars, const void *state, int64_t n,
                              void *stream)
{
    return FN_OF(dtype, start_update)(
        kind, p, g, m, v, marks, scalars, state, n, stream);
}

extern "C" int fn_cuda_advance(void *state, void *stream)
{
    return launch(static_cast<cudaStream_t>(stream), dim3(1), dim3(1), advance,
                  static_cast<fn_cuda_state *>(state));
}
