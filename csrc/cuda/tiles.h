/* A tile of a matrix product: operands over registers into shared memory, sums in registers.

   Every sum runs over the depth in ascending order, by fused multiply-adds, from where it starts:
   its bits depend on the depth alone, not on the tile, the row or the batch. */

#ifndef FN_TILES_H
#define FN_TILES_H

#include "platform.h"

/* A tile of ROWS x COLUMNS sums; a block's threads have MY_ROWS x MY_COLUMNS each. */
template <int ROWS_, int COLUMNS_, int DEPTH_, int MY_ROWS_, int MY_COLUMNS_> struct Tile {
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, DEPTH = DEPTH_;
    static constexpr int MY_ROWS = MY_ROWS_, MY_COLUMNS = MY_COLUMNS_;
    static constexpr int DOWN = ROWS / MY_ROWS, ACROSS = COLUMNS / MY_COLUMNS;
    static constexpr int THREADS = DOWN * ACROSS;
    static_assert(ROWS % MY_ROWS == 0 && COLUMNS % MY_COLUMNS == 0);
};

/* A row-major matrix of which `lines` lines may be read; what is asked for beyond is 0. */
template <class T> struct Matrix {
    const T *start;
    int lines, width;
    bool whole; /* see whole_packs */

    FN_DEVICE Pack<T> pack(int line, int at) const
    {
        Pack<T> found = {};
        if (line >= lines)
            return found;
        const T *place = start + static_cast<int64_t>(line) * width + at;
        if (whole && at < width)
            return *reinterpret_cast<const Pack<T> *>(place);
#pragma unroll
        for (int i = 0; i < Pack<T>::SIZE; i++)
            if (at + i < width)
                found.at[i] = place[i];
        return found;
    }
};

/* COUNT numbers of a line, or those that the line still has. */
template <int COUNT, class T>
FN_DEVICE void store(T *start, int line, int at, int width, bool whole, const T (&values)[COUNT])
{
    T *place = start + static_cast<int64_t>(line) * width + at;
    if constexpr (COUNT == Pack<T>::SIZE) {
        if (whole && at < width) {
            Pack<T> pack;
#pragma unroll
            for (int i = 0; i < COUNT; i++)
                pack.at[i] = values[i];
            *reinterpret_cast<Pack<T> *>(place) = pack;
            return;
        }
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        if (at + i < width)
            place[i] = values[i];
}

/* One operand: SPAN rows or columns of the product by DEPTH, on its way into shared memory.

   In memory the numbers of a pack lie along the depth, and are transposed on their way, or along the
   span. Lines in shared memory are a pack longer than the span, so that the transposed stores of a
   warp fall into different banks. */
template <class T, int SPAN, int DEPTH, int THREADS, bool ALONG_DEPTH> struct Operand {
    static constexpr int SIZE = Pack<T>::SIZE;
    static constexpr int LINE = SPAN + SIZE, NUMBERS = LINE * DEPTH;
    static constexpr int A_LINE = (ALONG_DEPTH ? DEPTH : SPAN) / SIZE; /* packs */
    static constexpr int PACKS = SPAN * DEPTH / SIZE;
    static constexpr int MINE = (PACKS + THREADS - 1) / THREADS;
    static_assert(SPAN % SIZE == 0 && DEPTH % SIZE == 0);

    Pack<T> held[MINE] = {};

    FN_DEVICE void fetch(const Matrix<T> &from, int span, int depth, int thread)
    {
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            const int pack = thread + i * THREADS;
            const int line = pack / A_LINE, at = pack % A_LINE * SIZE;
            if (pack < PACKS)
                held[i] = ALONG_DEPTH ? from.pack(span + line, depth + at)
                                      : from.pack(depth + line, span + at);
        }
    }

    FN_DEVICE void stash(T *tile, int thread) const
    {
#pragma unroll
        for (int i = 0; i < MINE; i++) {
            const int pack = thread + i * THREADS;
            const int line = pack / A_LINE, at = pack % A_LINE * SIZE;
            if (pack >= PACKS)
                continue;
            if constexpr (ALONG_DEPTH) {
#pragma unroll
                for (int j = 0; j < SIZE; j++)
                    tile[(at + j) * LINE + line] = held[i].at[j];
            } else {
                *reinterpret_cast<Pack<T> *>(tile + line * LINE + at) = held[i];
            }
        }
    }
};

/* A thread's rows or columns are runs of RUN next to each other, the runs of all threads side by
   side: what a warp reads from shared memory at once is in one piece. */
template <class T, int MINE, int THREADS> struct Share {
    static constexpr int RUN = MINE < Pack<T>::SIZE ? MINE : Pack<T>::SIZE;
    static_assert(MINE % RUN == 0);
    static FN_DEVICE int place(int thread, int i)
    {
        return i / RUN * (THREADS * RUN) + thread * RUN + i % RUN;
    }

    /* A thread's numbers of a line in shared memory. */
    static FN_DEVICE void read(const T *line, int thread, T (&numbers)[MINE])
    {
#pragma unroll
        for (int i = 0; i < MINE; i += RUN) {
            if constexpr (RUN == Pack<T>::SIZE) {
                const Pack<T> run = *reinterpret_cast<const Pack<T> *>(line + place(thread, i));
#pragma unroll
                for (int j = 0; j < RUN; j++)
                    numbers[i + j] = run.at[j];
            } else {
#pragma unroll
                for (int j = 0; j < RUN; j++)
                    numbers[i + j] = line[place(thread, i) + j];
            }
        }
    }
};

/* sums[r][c] += sum over depths of left[depth][row r] right[depth][column c], from `begin` to `end`.

   While a tile is multiplied the next one is on its way; shared memory has room for both, so that
   one barrier a tile is enough. */
template <class T, class Tile, bool LEFT_ALONG_DEPTH, bool RIGHT_ALONG_DEPTH>
FN_DEVICE void multiply(const Matrix<T> &left, const Matrix<T> &right, int row, int column,
                        int begin, int end, T (&sums)[Tile::MY_ROWS][Tile::MY_COLUMNS])
{
    typedef Operand<T, Tile::ROWS, Tile::DEPTH, Tile::THREADS, LEFT_ALONG_DEPTH> Left;
    typedef Operand<T, Tile::COLUMNS, Tile::DEPTH, Tile::THREADS, RIGHT_ALONG_DEPTH> Right;
    typedef Share<T, Tile::MY_ROWS, Tile::DOWN> Rows;
    typedef Share<T, Tile::MY_COLUMNS, Tile::ACROSS> Columns;
    FN_SHARED(T, left_tiles, 2 * Left::NUMBERS);
    FN_SHARED(T, right_tiles, 2 * Right::NUMBERS);
    const int thread = static_cast<int>(threadIdx.x);
    const int down = thread / Tile::ACROSS, across = thread % Tile::ACROSS;
    Left l;
    Right r;
    l.fetch(left, row, begin, thread);
    r.fetch(right, column, begin, thread);
    l.stash(left_tiles, thread);
    r.stash(right_tiles, thread);
    __syncthreads();
    int now = 0;
    for (int depth = begin; depth < end; depth += Tile::DEPTH) {
        const bool more = depth + Tile::DEPTH < end;
        if (more) {
            l.fetch(left, row, depth + Tile::DEPTH, thread);
            r.fetch(right, column, depth + Tile::DEPTH, thread);
        }
        const T *my_left = left_tiles + now * Left::NUMBERS;
        const T *my_right = right_tiles + now * Right::NUMBERS;
#pragma unroll
        for (int d = 0; d < Tile::DEPTH; d++) {
            T x[Tile::MY_ROWS], y[Tile::MY_COLUMNS];
            Rows::read(my_left + d * Left::LINE, down, x);
            Columns::read(my_right + d * Right::LINE, across, y);
#pragma unroll
            for (int i = 0; i < Tile::MY_ROWS; i++)
#pragma unroll
                for (int j = 0; j < Tile::MY_COLUMNS; j++)
                    sums[i][j] = fused(x[i], y[j], sums[i][j]);
        }
        if (more) {
            now = 1 - now;
            l.stash(left_tiles + now * Left::NUMBERS, thread);
            r.stash(right_tiles + now * Right::NUMBERS, thread);
            __syncthreads();
        }
    }
}

#endif
