/* The three products of a dense layer, each with what happens to its sums before they are stored. */

#ifndef FN_PRODUCTS_H
#define FN_PRODUCTS_H

#include "functions.h"
#include "tiles.h"

/* A form says what the operands are, where sums start, and what becomes of a run of finished sums:
   `finish` stores it and leaves what a column sum shall take. Grid: tiles of columns, tiles of rows,
   slices of the depth. */

/* a (B, O) = f(b + x w). The sums start from the bias: it is read once a tile and costs no pass. */
template <class T> struct Forward {
    static constexpr bool LEFT_ALONG_DEPTH = true, RIGHT_ALONG_DEPTH = false, SUMS = false;
    Matrix<T> x, w;
    const T *bias; /* (O,) or null */
    T *a, *z;      /* z (B, O) or null: the pre-activation, where the gate needs that */
    int rows, columns, depth, activation;
    bool whole;

    FN_DEVICE const Matrix<T> &left() const { return x; }
    FN_DEVICE const Matrix<T> &right() const { return w; }
    FN_DEVICE int begin(int) const { return 0; }
    FN_DEVICE int end(int) const { return depth; }
    FN_DEVICE T start(int column) const
    {
        return bias && column < columns ? bias[column] : T(0);
    }
    template <int COUNT> FN_DEVICE void finish(int row, int column, int, T (&run)[COUNT]) const
    {
        if (z)
            store<COUNT>(z, row, column, columns, whole, run);
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            run[i] = activated(activation, run[i]);
        store<COUNT>(a, row, column, columns, whole, run);
    }
};

/* dz (B, I) = (dz_above w^T) f'(saved), and for the bias below its sum over each tile's rows. */
template <class T> struct DataGradient {
    static constexpr bool LEFT_ALONG_DEPTH = true, RIGHT_ALONG_DEPTH = true, SUMS = true;
    Matrix<T> dz_above, w;
    const T *saved; /* (B, I), or null where the gate is 1 */
    T *dz;
    T *partial; /* (tiles of rows, I), or null where the layer below has no bias */
    int rows, columns, depth, activation;
    bool whole;

    FN_DEVICE const Matrix<T> &left() const { return dz_above; }
    FN_DEVICE const Matrix<T> &right() const { return w; }
    FN_DEVICE int begin(int) const { return 0; }
    FN_DEVICE int end(int) const { return depth; }
    FN_DEVICE T start(int) const { return T(0); }
    template <int COUNT> FN_DEVICE void finish(int row, int column, int, T (&run)[COUNT]) const
    {
        if (saved) {
            const T *line = saved + static_cast<int64_t>(row) * columns;
#pragma unroll
            for (int i = 0; i < COUNT; i++)
                run[i] = column + i < columns ? gated(activation, run[i], line[column + i]) : T(0);
        }
        store<COUNT>(dz, row, column, columns, whole, run);
    }
};

/* dw (I, O) = x^T dz, or a slice of the batch's share of it: `sum_parts` adds the slices. */
template <class T> struct WeightGradient {
    static constexpr bool LEFT_ALONG_DEPTH = false, RIGHT_ALONG_DEPTH = false, SUMS = false;
    const T *x, *dz;
    T *dw; /* (slices, I, O) */
    int rows, columns, depth, rows_of_slice;
    bool whole_left, whole, whole_out;

    /* Lines end with the batch; where a slice ends before it, `end` keeps to that, since a slice is
       a whole number of tiles deep. */
    FN_DEVICE Matrix<T> left() const { return {x, depth, rows, whole_left}; }
    FN_DEVICE Matrix<T> right() const { return {dz, depth, columns, whole}; }
    FN_DEVICE int begin(int slice) const { return slice * rows_of_slice; }
    FN_DEVICE int end(int slice) const
    {
        const int64_t next = static_cast<int64_t>(slice + 1) * rows_of_slice;
        return next < depth ? static_cast<int>(next) : depth;
    }
    FN_DEVICE T start(int) const { return T(0); }
    template <int COUNT> FN_DEVICE void finish(int row, int column, int slice, T (&run)[COUNT]) const
    {
        T *mine = dw + static_cast<int64_t>(slice) * rows * columns;
        store<COUNT>(mine, row, column, columns, whole_out, run);
    }
};

/* Two blocks a multiprocessor, so that one computes while the other waits: with 256 threads each may
   have 128 registers, which sm_80 would pass by one (129) if it were not told. */
template <class T, class Tile, class Form>
__global__ void __launch_bounds__(Tile::THREADS, 2) product(const Form form)
{
    typedef Share<T, Tile::MY_ROWS, Tile::DOWN> Rows;
    typedef Share<T, Tile::MY_COLUMNS, Tile::ACROSS> Columns;
    const int down = static_cast<int>(threadIdx.x) / Tile::ACROSS;
    const int across = static_cast<int>(threadIdx.x) % Tile::ACROSS;
    const int row = static_cast<int>(blockIdx.y) * Tile::ROWS;
    const int column = static_cast<int>(blockIdx.x) * Tile::COLUMNS;
    const int slice = static_cast<int>(blockIdx.z);
    T sums[Tile::MY_ROWS][Tile::MY_COLUMNS];
#pragma unroll
    for (int j = 0; j < Tile::MY_COLUMNS; j++) {
        const T start = form.start(column + Columns::place(across, j));
#pragma unroll
        for (int i = 0; i < Tile::MY_ROWS; i++)
            sums[i][j] = start;
    }
    multiply<T, Tile, Form::LEFT_ALONG_DEPTH, Form::RIGHT_ALONG_DEPTH>(
        form.left(), form.right(), row, column, form.begin(slice), form.end(slice), sums);
    T totals[Tile::MY_COLUMNS] = {};
#pragma unroll
    for (int j = 0; j < Tile::MY_COLUMNS; j += Columns::RUN) {
#pragma unroll
        for (int i = 0; i < Tile::MY_ROWS; i++) {
            const int my_row = row + Rows::place(down, i);
            T run[Columns::RUN];
#pragma unroll
            for (int k = 0; k < Columns::RUN; k++)
                run[k] = sums[i][j + k];
            if (my_row >= form.rows)
                continue;
            form.finish(my_row, column + Columns::place(across, j), slice, run);
#pragma unroll
            for (int k = 0; k < Columns::RUN; k++)
                totals[j + k] += run[k];
        }
    }
    if constexpr (Form::SUMS) {
        /* A thread has summed its rows in ascending order; here follow the threads of a column. */
        if (!form.partial)
            return;
        FN_SHARED(T, of_threads, Tile::DOWN * Tile::COLUMNS);
#pragma unroll
        for (int j = 0; j < Tile::MY_COLUMNS; j++)
            of_threads[down * Tile::COLUMNS + Columns::place(across, j)] = totals[j];
        __syncthreads();
        for (int c = static_cast<int>(threadIdx.x); c < Tile::COLUMNS; c += Tile::THREADS) {
            T total = of_threads[c];
            for (int d = 1; d < Tile::DOWN; d++)
                total += of_threads[d * Tile::COLUMNS + c];
            if (column + c < form.columns)
                form.partial[static_cast<int64_t>(blockIdx.y) * form.columns + column + c] = total;
        }
    }
}

#endif
