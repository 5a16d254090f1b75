/* Passes over activations: gather, bias and activation, gate and bias gradient, dropout. */

#include "functions.h"
#include "kernels.h"
#include "state.h"
#include "sums.h"

namespace {

/* out (B, width) = rows of x (n, width): those of `order` from where the step's batch begins. */
template <class T>
__global__ void __launch_bounds__(RUN_THREADS)
    gather(const Matrix<T> x, const int64_t *order, const int64_t *bounds,
           const fn_cuda_state *state, T *out, int rows, bool whole)
{
    constexpr int SIZE = Pack<T>::SIZE;
    const int packs = (x.width + SIZE - 1) / SIZE;
    const int64_t run = FN_MY_RUN;
    if (run >= static_cast<int64_t>(rows) * packs)
        return;
    const int row = static_cast<int>(run / packs), at = static_cast<int>(run % packs) * SIZE;
    const int64_t first = bounds ? bounds[state->step] : 0;
    const Pack<T> pack = x.pack(static_cast<int>(order[first + row]), at);
    store<SIZE>(out, row, at, x.width, whole, pack.at);
}

template <class T>
int start_gather(const void *x, const void *order, const void *bounds, const void *state, void *out,
                 int n, int rows, int width, void *stream)
{
    const T *from = static_cast<const T *>(x);
    const int64_t runs = static_cast<int64_t>(rows) * ceiling(width, Pack<T>::SIZE);
    if (runs == 0)
        return 0;
    return launch(static_cast<cudaStream_t>(stream), grid_of(runs), dim3(RUN_THREADS), gather<T>,
                  Matrix<T>{from, n, width, whole_packs(from, width)},
                  static_cast<const int64_t *>(order), static_cast<const int64_t *>(bounds),
                  static_cast<const fn_cuda_state *>(state), static_cast<T *>(out), rows,
                  whole_packs(static_cast<T *>(out), width));
}

/* a (B, O) = f(z + bias); z and a may be one. */
template <class T>
__global__ void __launch_bounds__(RUN_THREADS)
    bias_act_forward(const Matrix<T> z, const T *bias, int activation, T *a, bool whole)
{
    constexpr int SIZE = Pack<T>::SIZE;
    const int packs = (z.width + SIZE - 1) / SIZE;
    const int64_t run = FN_MY_RUN;
    if (run >= static_cast<int64_t>(z.lines) * packs)
        return;
    const int row = static_cast<int>(run / packs), at = static_cast<int>(run % packs) * SIZE;
    Pack<T> pack = z.pack(row, at);
#pragma unroll
    for (int i = 0; i < SIZE; i++) {
        if (bias && at + i < z.width)
            pack.at[i] += bias[at + i];
        pack.at[i] = activated(activation, pack.at[i]);
    }
    store<SIZE>(a, row, at, z.width, whole, pack.at);
}

template <class T>
int start_bias_act(const void *z, const void *bias, int activation, void *a, int rows, int columns,
                   void *stream)
{
    const T *from = static_cast<const T *>(z);
    const int64_t runs = static_cast<int64_t>(rows) * ceiling(columns, Pack<T>::SIZE);
    if (runs == 0)
        return 0;
    return launch(static_cast<cudaStream_t>(stream), grid_of(runs), dim3(RUN_THREADS),
                  bias_act_forward<T>, Matrix<T>{from, rows, columns, whole_packs(from, columns)},
                  static_cast<const T *>(bias), activation, static_cast<T *>(a),
                  whole_packs(static_cast<T *>(a), columns));
}

/* dz = da f'(saved), written as it is summed. */
template <class T> struct Gate {
    static constexpr int COUNT = 1;
    const T *da, *saved;
    T *dz; /* which may be da */
    int columns, activation;

    FN_DEVICE void at(int row, int column, T (&terms)[1]) const
    {
        const int64_t place = static_cast<int64_t>(row) * columns + column;
        terms[0] = gated(activation, da[place], saved[place]);
        dz[place] = terms[0];
    }
};

template <class T>
int start_gate(const void *da, const void *saved, int activation, void *dz, void *partial, int rows,
               int columns, int rows_of_group, void *stream)
{
    const Gate<T> term{static_cast<const T *>(da), static_cast<const T *>(saved),
                       static_cast<T *>(dz), columns, activation};
    return start_column_sums<T>(term, partial, rows, columns, rows_of_group, stream);
}

template <class T>
int start_sum_parts(const void *parts, double factor, void *sums, int count, int n, void *stream)
{
    constexpr int THREADS = RUN_THREADS;
    const T *from = static_cast<const T *>(parts);
    if (n == 0)
        return 0;
    return launch(static_cast<cudaStream_t>(stream), grid_of(ceiling(n, Pack<T>::SIZE)),
                  dim3(THREADS), sum_parts<T, THREADS>,
                  Matrix<T>{from, count, n, whole_packs(from, n)}, static_cast<T>(factor),
                  static_cast<T *>(sums), whole_packs(static_cast<T *>(sums), n));
}

struct Words {
    uint32_t at[4];
};

/* Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011): four random words of a counter and a key. */
FN_DEVICE Words philox(Words c, uint32_t low, uint32_t high)
{
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t p = 0xD2511F53ull * c.at[0], q = 0xCD9E8D57ull * c.at[2];
        c = {{static_cast<uint32_t>(q >> 32) ^ c.at[1] ^ low, static_cast<uint32_t>(q),
              static_cast<uint32_t>(p >> 32) ^ c.at[3] ^ high, static_cast<uint32_t>(p)}};
        low += 0x9E3779B9u;
        high += 0xBB67AE85u;
    }
    return c;
}

/* y = x mask / (1 - rate), forward and backward; a thread has the four rows of a counter. The key is
   read from the step's scalars. x and y may be one. */
template <class T>
__global__ void __launch_bounds__(RUN_THREADS)
    dropout(const T *x, const double *scalars, const fn_cuda_state *state, uint32_t layer,
            uint32_t dropped, T scale, T *y, int rows, int columns)
{
    const int64_t run = FN_MY_RUN;
    const int four = static_cast<int>(run / columns), column = static_cast<int>(run % columns);
    if (four > (rows - 1) / 4)
        return;
    const double *key = scalars_of(scalars, state);
    const Words words = philox({{static_cast<uint32_t>(column), static_cast<uint32_t>(four), layer, 0}},
                               static_cast<uint32_t>(key[OPTIMIZERS_KEY_LOW]),
                               static_cast<uint32_t>(key[OPTIMIZERS_KEY_HIGH]));
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int64_t place = (static_cast<int64_t>(four) * 4 + i) * columns + column;
        if (four * 4 + i < rows)
            y[place] = x[place] * (words.at[i] >= dropped ? scale : T(0));
    }
}

template <class T>
int start_dropout(const void *x, const void *scalars, const void *state, unsigned layer,
                  unsigned dropped, double rate, void *y, int rows, int columns, void *stream)
{
    if (rows == 0 || columns == 0)
        return 0;
    return launch(static_cast<cudaStream_t>(stream),
                  grid_of(static_cast<int64_t>(ceiling(rows, 4)) * columns), dim3(RUN_THREADS),
                  dropout<T>, static_cast<const T *>(x), static_cast<const double *>(scalars),
                  static_cast<const fn_cuda_state *>(state), layer, dropped,
                  static_cast<T>(1 / (1 - rate)), static_cast<T *>(y), rows, columns);
}

} // namespace

extern "C" int fn_cuda_gather(int dtype, const void *x, const void *order, const void *bounds,
                              const void *state, void *out, int n, int rows, int width,
                              void *stream)
{
    return (dtype == FN_WHOLE    ? start_gather<int64_t>
            : dtype == FN_DOUBLE ? start_gather<double>
                                 : start_gather<float>)(x, order, bounds, state, out, n, rows,
                                                        width, stream);
}

extern "C" int fn_cuda_bias_act_forward(int dtype, int activation, const void *z, const void *bias,
                                        void *a, int rows, int outputs, void *stream)
{
    return FN_OF(dtype, start_bias_act)(
        z, bias, activation, a, rows, outputs, stream);
}

extern "C" int fn_cuda_act_bias_backward(int dtype, int activation, const void *da,
                                         const void *saved, void *dz, void *partial, int rows,
                                         int outputs, int rows_of_group, void *stream)
{
    return FN_OF(dtype, start_gate)(
        da, saved, activation, dz, partial, rows, outputs, rows_of_group, stream);
}

extern "C" int fn_cuda_sum_parts(int dtype, const void *parts, double factor, void *sums, int count,
                                 int n, void *stream)
{
    return FN_OF(dtype, start_sum_parts)(
        parts, factor, sums, count, n, stream);
}

extern "C" int fn_cuda_dropout(int dtype, const void *x, const void *scalars, const void *state,
                               unsigned layer, unsigned dropped, double rate, void *y, int rows,
                               int columns, void *stream)
{
    return FN_OF(dtype, start_dropout)(
        x, scalars, state, layer, dropped, rate, y, rows, columns, stream);
}
