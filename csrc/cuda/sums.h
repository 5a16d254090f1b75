/* Sums whose order is a function of shape alone: over a warp, a block, and columns in two stages. */

#ifndef FN_SUMS_H
#define FN_SUMS_H

#include "tiles.h"

constexpr int WARP_LANES = 32;

/* Each lane's number added up, the same bits in every lane: halves meet halves. */
template <int LANES = WARP_LANES, class T> FN_DEVICE T sum_of_warp(T x)
{
#pragma unroll
    for (int mask = LANES / 2; mask > 0; mask /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, mask);
    return x;
}

template <int LANES = WARP_LANES, class T> FN_DEVICE T largest_of_warp(T x)
{
#pragma unroll
    for (int mask = LANES / 2; mask > 0; mask /= 2) {
        const T other = __shfl_xor_sync(0xffffffffu, x, mask);
        x = other > x ? other : x;
    }
    return x;
}

/* Each thread's number added up, a power of two of them: all threads of the block come here, and all
   have the sum. `of_threads`, shared, has a place for each and can be used again at once. */
FN_DEVICE double sum_of_threads(double *of_threads, int threads, double x)
{
    const int thread = static_cast<int>(threadIdx.x);
    of_threads[thread] = x;
    __syncthreads();
    for (int half = threads / 2; half > 0; half /= 2) {
        if (thread < half)
            of_threads[thread] += of_threads[thread + half];
        __syncthreads();
    }
    const double total = of_threads[0];
    __syncthreads();
    return total;
}

template <int THREADS> FN_DEVICE double sum_of_block(double x)
{
    static_assert((THREADS & (THREADS - 1)) == 0);
    FN_SHARED(double, of_threads, THREADS);
    return sum_of_threads(of_threads, THREADS, x);
}

/* Column sums, stage 1: a block takes a group of rows and ACROSS columns. Each thread adds every
   DOWN-th row in ascending order, then follow the threads of a column. A term gives Term::COUNT
   numbers of a place; partial is (COUNT, groups, columns), or null where no sum is wanted. */
template <class T, int ACROSS, int DOWN, class Term>
__global__ void __launch_bounds__(ACROSS *DOWN)
    column_sums(const Term term, T *partial, int rows, int columns, int rows_of_group)
{
    const int across = static_cast<int>(threadIdx.x) % ACROSS;
    const int down = static_cast<int>(threadIdx.x) / ACROSS;
    const int column = static_cast<int>(blockIdx.x) * ACROSS + across;
    const int group = static_cast<int>(blockIdx.y), first = group * rows_of_group;
    const int end = rows - first < rows_of_group ? rows : first + rows_of_group;
    T totals[Term::COUNT] = {};
    if (column < columns) {
        for (int row = first + down; row < end; row += DOWN) {
            T terms[Term::COUNT];
            term.at(row, column, terms);
#pragma unroll
            for (int i = 0; i < Term::COUNT; i++)
                totals[i] += terms[i];
        }
    }
    if (!partial)
        return;
    FN_SHARED(T, of_threads, Term::COUNT * DOWN * ACROSS);
#pragma unroll
    for (int i = 0; i < Term::COUNT; i++)
        of_threads[(i * DOWN + down) * ACROSS + across] = totals[i];
    __syncthreads();
    if (down > 0 || column >= columns)
        return;
#pragma unroll
    for (int i = 0; i < Term::COUNT; i++) {
        T total = totals[i];
        for (int d = 1; d < DOWN; d++)
            total += of_threads[(i * DOWN + d) * ACROSS + across];
        partial[(static_cast<int64_t>(gridDim.y) * i + group) * columns + column] = total;
    }
}

/* Stage 2, of column sums and of the slices of a weight gradient: sums (n,) = factor times the sum
   of parts (count, n) in ascending order. A factor of 1 changes no bit. */
template <class T, int THREADS>
__global__ void __launch_bounds__(THREADS)
    sum_parts(const Matrix<T> parts, T factor, T *sums, bool whole)
{
    constexpr int SIZE = Pack<T>::SIZE;
    const int at = (static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x)) * SIZE;
    if (at >= parts.width)
        return;
    T totals[SIZE] = {};
    for (int part = 0; part < parts.lines; part++) {
        const Pack<T> pack = parts.pack(part, at);
#pragma unroll
        for (int i = 0; i < SIZE; i++)
            totals[i] += pack.at[i];
    }
#pragma unroll
    for (int i = 0; i < SIZE; i++)
        totals[i] *= factor;
    store<SIZE>(sums, 0, at, parts.width, whole, totals);
}

/* A warp reads 32 columns at once. */
constexpr int SUM_ACROSS = 32, SUM_DOWN = 8;

template <class T, class Term>
int start_column_sums(const Term &term, void *partial, int rows, int columns, int rows_of_group,
                      void *stream)
{
    if (rows == 0 || columns == 0)
        return 0;
    const dim3 grid(static_cast<unsigned>(ceiling(columns, SUM_ACROSS)),
                    static_cast<unsigned>(ceiling(rows, rows_of_group)));
    return launch(static_cast<cudaStream_t>(stream), grid, dim3(SUM_ACROSS * SUM_DOWN),
                  column_sums<T, SUM_ACROSS, SUM_DOWN, Term>, term, static_cast<T *>(partial), rows,
                  columns, rows_of_group);
}

/* Blocks for n runs of `each` numbers, and threads that take one each. */
constexpr int RUN_THREADS = 128;
inline dim3 grid_of(int64_t n) { return dim3(static_cast<unsigned>(ceiling(n, RUN_THREADS))); }
#define FN_MY_RUN (static_cast<int64_t>(blockIdx.x) * RUN_THREADS + static_cast<int>(threadIdx.x))

#endif
