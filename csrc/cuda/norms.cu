/* Batch and layer normalisation. Formulas: fastneuron/kernels/reference/norms.py.

   Means and variances are two sums, the second around the mean. Over the batch they are column sums
   in two stages; over the features a warp has a row. */

#include "functions.h"
#include "kernels.h"
#include "state.h"
#include "sums.h"

namespace {

/* 1 / sqrt(variance + epsilon); of a variance that is not finite NaN, which the loss shows. */
template <class T> FN_DEVICE T inverse_root_of(T variance, T epsilon)
{
    const T nothing = variance - variance; /* 0, or NaN */
    return nothing == 0 ? 1 / root_of(variance + epsilon) : nothing;
}

/* x, or its squared distance from a mean. */
template <class T> struct Spread {
    static constexpr int COUNT = 1;
    const T *x, *mean; /* (O,) or null */
    int columns;

    FN_DEVICE void at(int row, int column, T (&terms)[1]) const
    {
        const T number = x[static_cast<int64_t>(row) * columns + column];
        const T distance = mean ? number - mean[column] : number;
        terms[0] = mean ? distance * distance : number;
    }
};

template <class T>
int start_spread(const void *x, const void *mean, void *partial, int rows, int columns,
                 int rows_of_group, void *stream)
{
    const Spread<T> term{static_cast<const T *>(x), static_cast<const T *>(mean), columns};
    return start_column_sums<T>(term, partial, rows, columns, rows_of_group, stream);
}

template <class T>
__global__ void __launch_bounds__(RUN_THREADS)
    inverse_root(const T *variance, T epsilon, T *inverse, int n)
{
    const int64_t at = FN_MY_RUN;
    if (at < n)
        inverse[at] = inverse_root_of(variance[at], epsilon);
}

template <class T>
int start_inverse(const void *variance, double epsilon, void *inverse, int n, void *stream)
{
    return launch(static_cast<cudaStream_t>(stream), grid_of(n), dim3(RUN_THREADS), inverse_root<T>,
                  static_cast<const T *>(variance), static_cast<T>(epsilon),
                  static_cast<T *>(inverse), n);
}

constexpr int ROW_WARPS = 4;
#define FN_MY_ROW                                                                                  \
    (static_cast<int>(blockIdx.x) * ROW_WARPS + static_cast<int>(threadIdx.x) / WARP_LANES)

/* Mean and inverse root of each row: lane l takes features l, l + 32 and so on. */
template <class T>
__global__ void __launch_bounds__(ROW_WARPS *WARP_LANES)
    row_moments(const T *x, T epsilon, T *mean, T *inverse, int rows, int columns)
{
    const int row = FN_MY_ROW, lane = static_cast<int>(threadIdx.x) % WARP_LANES;
    if (row >= rows)
        return;
    const T *mine = x + static_cast<int64_t>(row) * columns;
    const T share = T(1) / static_cast<T>(columns);
    T total = 0;
    for (int column = lane; column < columns; column += WARP_LANES)
        total += mine[column];
    const T middle = sum_of_warp(total) * share;
    total = 0;
    for (int column = lane; column < columns; column += WARP_LANES) {
        const T distance = mine[column] - middle;
        total += distance * distance;
    }
    const T variance = sum_of_warp(total) * share;
    if (lane == 0) {
        mean[row] = middle;
        inverse[row] = inverse_root_of(variance, epsilon);
    }
}

inline dim3 grid_of_rows(int rows) { return dim3(static_cast<unsigned>(ceiling(rows, ROW_WARPS))); }

template <class T>
int start_row_moments(const void *x, double epsilon, void *mean, void *inverse, int rows,
                      int columns, void *stream)
{
    if (rows == 0)
        return 0;
    return launch(static_cast<cudaStream_t>(stream), grid_of_rows(rows),
                  dim3(ROW_WARPS * WARP_LANES), row_moments<T>, static_cast<const T *>(x),
                  static_cast<T>(epsilon), static_cast<T *>(mean), static_cast<T *>(inverse), rows,
                  columns);
}

/* What a normalisation has of a place: mean and inverse are of rows or of columns. */
template <class T> struct Normal {
    const T *x, *mean, *inverse;
    int rows, columns;
    bool of_rows;

    FN_DEVICE T inverse_at(int row, int column) const { return inverse[of_rows ? row : column]; }
    FN_DEVICE T at(int row, int column) const
    {
        const T distance =
            x[static_cast<int64_t>(row) * columns + column] - mean[of_rows ? row : column];
        return distance * inverse_at(row, column);
    }
};

template <class T>
Normal<T> normal(const void *x, const void *mean, const void *inverse, int rows, int columns,
                 int of_rows)
{
    return {static_cast<const T *>(x), static_cast<const T *>(mean),
            static_cast<const T *>(inverse), rows, columns, of_rows != 0};
}

/* a = f(weight xhat + bias), and z before f where the gate needs that. */
template <class T>
__global__ void __launch_bounds__(RUN_THREADS)
    norm_forward(const Normal<T> rows, const T *weight, const T *bias, int activation, T *a, T *z)
{
    const int64_t at = FN_MY_RUN;
    if (at >= static_cast<int64_t>(rows.rows) * rows.columns)
        return;
    const int row = static_cast<int>(at / rows.columns), column = static_cast<int>(at % rows.columns);
    T y = rows.at(row, column) * weight[column];
    if (bias)
        y += bias[column];
    if (z)
        z[at] = y;
    a[at] = activated(activation, y);
}

template <class T>
int start_norm_forward(int activation, const void *x, const void *mean, const void *inverse,
                       int of_rows, const void *weight, const void *bias, void *a, void *z,
                       int rows, int columns, void *stream)
{
    if (rows == 0)
        return 0;
    return launch(static_cast<cudaStream_t>(stream), grid_of(static_cast<int64_t>(rows) * columns),
                  dim3(RUN_THREADS), norm_forward<T>,
                  normal<T>(x, mean, inverse, rows, columns, of_rows),
                  static_cast<const T *>(weight), static_cast<const T *>(bias), activation,
                  static_cast<T *>(a), static_cast<T *>(z));
}

/* dy xhat, and dy. */
template <class T> struct NormTerms {
    static constexpr int COUNT = 2;
    Normal<T> rows;
    const T *dy;

    FN_DEVICE void at(int row, int column, T (&terms)[2]) const
    {
        const T d = dy[static_cast<int64_t>(row) * rows.columns + column];
        terms[0] = d * rows.at(row, column);
        terms[1] = d;
    }
};

template <class T>
int start_norm_sums(const void *x, const void *mean, const void *inverse, int of_rows,
                    const void *dy, void *partial, int rows, int columns, int rows_of_group,
                    void *stream)
{
    const NormTerms<T> term{normal<T>(x, mean, inverse, rows, columns, of_rows),
                            static_cast<const T *>(dy)};
    return start_column_sums<T>(term, partial, rows, columns, rows_of_group, stream);
}

/* dx = weight inverse (dy - mean dy - xhat mean(dy xhat)), whose means are those sums over B; of
   running statistics, which the batch does not move, dx = weight inverse dy. */
template <class T>
__global__ void __launch_bounds__(RUN_THREADS)
    batch_backward(const Normal<T> rows, const T *weight, const T *dy, const T *dweight,
                   const T *dbias, T share, T *dx)
{
    const int64_t at = FN_MY_RUN;
    if (at >= static_cast<int64_t>(rows.rows) * rows.columns)
        return;
    const int row = static_cast<int>(at / rows.columns), column = static_cast<int>(at % rows.columns);
    T d = dy[at];
    if (dweight)
        d = d - dbias[column] * share - rows.at(row, column) * (dweight[column] * share);
    dx[at] = d * rows.inverse_at(row, column) * weight[column];
}

template <class T>
int start_batch_backward(const void *x, const void *mean, const void *inverse, const void *weight,
                         const void *dy, const void *dweight, const void *dbias, void *dx, int rows,
                         int columns, void *stream)
{
    if (rows == 0)
        return 0;
    return launch(static_cast<cudaStream_t>(stream), grid_of(static_cast<int64_t>(rows) * columns),
                  dim3(RUN_THREADS), batch_backward<T>,
                  normal<T>(x, mean, inverse, rows, columns, 0), static_cast<const T *>(weight),
                  static_cast<const T *>(dy), static_cast<const T *>(dweight),
                  static_cast<const T *>(dbias), static_cast<T>(1.0 / rows), static_cast<T *>(dx));
}

/* The same over the features: a warp has a row, with g = weight dy. */
template <class T>
__global__ void __launch_bounds__(ROW_WARPS *WARP_LANES)
    layer_backward(const Normal<T> rows, const T *weight, const T *dy, T *dx)
{
    const int row = FN_MY_ROW, lane = static_cast<int>(threadIdx.x) % WARP_LANES;
    if (row >= rows.rows)
        return;
    const int64_t start = static_cast<int64_t>(row) * rows.columns;
    const T share = T(1) / static_cast<T>(rows.columns);
    T total = 0, along = 0;
    for (int column = lane; column < rows.columns; column += WARP_LANES) {
        const T g = weight[column] * dy[start + column];
        total += g;
        along += g * rows.at(row, column);
    }
    total = sum_of_warp(total) * share;
    along = sum_of_warp(along) * share;
    for (int column = lane; column < rows.columns; column += WARP_LANES) {
        const T g = weight[column] * dy[start + column];
        dx[start + column] = rows.inverse[row] * (g - total - rows.at(row, column) * along);
    }
}

template <class T>
int start_layer_backward(const void *x, const void *mean, const void *inverse, const void *weight,
                         const void *dy, void *dx, int rows, int columns, void *stream)
{
    if (rows == 0)
        return 0;
    return launch(static_cast<cudaStream_t>(stream), grid_of_rows(rows),
                  dim3(ROW_WARPS * WARP_LANES), layer_backward<T>,
                  normal<T>(x, mean, inverse, rows, columns, 1), static_cast<const T *>(weight),
                  static_cast<const T *>(dy), static_cast<T *>(dx));
}

/* Running statistics follow those of a batch, whose step is applied; `wider` is B / (B - 1). */
template <class T>
__global__ void __launch_bounds__(RUN_THREADS)
    move_statistics(const T *mean, const T *variance, T *running_mean, T *running_variance,
                    T momentum, T wider, int n, const fn_cuda_state *state)
{
    const int64_t at = FN_MY_RUN;
    if (at >= n || state->status != STATUS_OK)
        return;
    running_mean[at] += momentum * (mean[at] - running_mean[at]);
    running_variance[at] += momentum * (variance[at] * wider - running_variance[at]);
}

template <class T>
int start_move(const void *mean, const void *variance, void *running_mean, void *running_variance,
               double momentum, int rows, int n, const void *state, void *stream)
{
    if (rows < 2)
        return 0; /* one row has no variance */
    return launch(static_cast<cudaStream_t>(stream), grid_of(n), dim3(RUN_THREADS),
                  move_statistics<T>, static_cast<const T *>(mean),
                  static_cast<const T *>(variance), static_cast<T *>(running_mean),
                  static_cast<T *>(running_variance), static_cast<T>(momentum),
                  static_cast<T>(rows / (rows - 1.0)), n,
                  static_cast<const fn_cuda_state *>(state));
}

} // namespace

extern "C" int fn_cuda_spread(int dtype, const void *x, const void *mean, void *partial, int rows,
                              int columns, int rows_of_group, void *stream)
{
    return FN_OF(dtype, start_spread)(x, mean, partial, rows, columns, rows_of_group, stream);
}

extern "C" int fn_cuda_inverse_root(int dtype, const void *variance, double epsilon, void *inverse,
                                    int n, void *stream)
{
    return FN_OF(dtype, start_inverse)(variance, epsilon, inverse, n, stream);
}

extern "C" int fn_cuda_row_moments(int dtype, const void *x, double epsilon, void *mean,
                                   void *inverse, int rows, int columns, void *stream)
{
    return FN_OF(dtype, start_row_moments)(x, epsilon, mean, inverse, rows, columns, stream);
}

extern "C" int fn_cuda_norm_forward(int dtype, int activation, const void *x, const void *mean,
                                    const void *inverse, int of_rows, const void *weight,
                                    const void *bias, void *a, void *z, int rows, int columns,
                                    void *stream)
{
    return FN_OF(dtype, start_norm_forward)(activation, x, mean, inverse, of_rows, weight, bias, a,
                                            z, rows, columns, stream);
}

extern "C" int fn_cuda_norm_sums(int dtype, const void *x, const void *mean, const void *inverse,
                                 int of_rows, const void *dy, void *partial, int rows, int columns,
                                 int rows_of_group, void *stream)
{
    return FN_OF(dtype, start_norm_sums)(x, mean, inverse, of_rows, dy, partial, rows, columns,
                                         rows_of_group, stream);
}

extern "C" int fn_cuda_batch_backward(int dtype, const void *x, const void *mean,
                                      const void *inverse, const void *weight, const void *dy,
                                      const void *dweight, const void *dbias, void *dx, int rows,
                                      int columns, void *stream)
{
    return FN_OF(dtype, start_batch_backward)(x, mean, inverse, weight, dy, dweight, dbias, dx,
                                              rows, columns, stream);
}

extern "C" int fn_cuda_layer_backward(int dtype, const void *x, const void *mean,
                                      const void *inverse, const void *weight, const void *dy,
                                      void *dx, int rows, int columns, void *stream)
{
    return FN_OF(dtype, start_layer_backward)(x, mean, inverse, weight, dy, dx, rows, columns,
                                              stream);
}

extern "C" int fn_cuda_move_statistics(int dtype, const void *mean, const void *variance,
                                       void *running_mean, void *running_variance, double momentum,
                                       int rows, int n, const void *state, void *stream)
{
    return FN_OF(dtype, start_move)(mean, variance, running_mean, running_variance, momentum, rows,
                                    n, state, stream);
}
