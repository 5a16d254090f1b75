/* Starts the products. */

#include "kernels.h"
#include "products.h"

typedef Tile<8, 8, 4, 2, 2> Tiny;

template <class T> struct Tiles;
#ifdef FN_ONLY_TINY /* for tests that compile often */
template <class T> struct Tiles {
    typedef Tiny Large, Small;
};
#else
/* 8 x 8 sums a thread: each number out of shared memory meets 8 others. */
template <> struct Tiles<float> {
    typedef Tile<128, 128, 8, 8, 8> Large;
    typedef Tile<64, 64, 8, 4, 4> Small;
};
/* Numbers of twice the bytes: half as many fit a thread's registers and a block's shared memory. */
template <> struct Tiles<double> {
    typedef Tile<64, 64, 8, 4, 4> Large;
    typedef Tile<32, 32, 8, 2, 2> Small;
};
#endif

namespace {

template <class T, class Tile, class Form>
int start(const Form &form, int slices, cudaStream_t stream)
{
    const dim3 grid(static_cast<unsigned>(ceiling(form.columns, Tile::COLUMNS)),
                    static_cast<unsigned>(ceiling(form.rows, Tile::ROWS)),
                    static_cast<unsigned>(slices));
    if (grid.x == 0 || grid.y == 0 || grid.z == 0)
        return 0;
    return launch(stream, grid, dim3(Tile::THREADS), product<T, Tile, Form>, form);
}

template <class T, class Form> int of_tile(int tile, const Form &form, int slices, void *stream)
{
    const cudaStream_t on = static_cast<cudaStream_t>(stream);
    switch (tile) {
    case FN_LARGE:
        return start<T, typename Tiles<T>::Large>(form, slices, on);
    case FN_SMALL:
        return start<T, typename Tiles<T>::Small>(form, slices, on);
#ifndef __CUDACC__
    case FN_TINY:
        return start<T, Tiny>(form, slices, on);
#endif
    }
    return -1;
}

template <class Tile> int described(int *sizes)
{
    sizes[0] = Tile::ROWS;
    sizes[1] = Tile::COLUMNS;
    sizes[2] = Tile::DEPTH;
    return Tile::THREADS;
}

template <class T> int tile_of(int tile, int *sizes)
{
    switch (tile) {
    case FN_LARGE:
        return described<typename Tiles<T>::Large>(sizes);
    case FN_SMALL:
        return described<typename Tiles<T>::Small>(sizes);
#ifndef __CUDACC__
    case FN_TINY:
        return described<Tiny>(sizes);
#endif
    }
    return 0;
}

template <class T> Matrix<T> matrix(const void *start, int lines, int width)
{
    const T *numbers = static_cast<const T *>(start);
    return {numbers, lines, width, whole_packs(numbers, width)};
}

template <class T>
int forward(int tile, int activation, const void *x, const void *w, const void *bias, void *a,
            void *z, int rows, int inputs, int outputs, void *stream)
{
    Forward<T> form{matrix<T>(x, rows, inputs), matrix<T>(w, inputs, outputs),
                    static_cast<const T *>(bias), static_cast<T *>(a), static_cast<T *>(z),
                    rows, outputs, inputs, activation,
                    whole_packs(static_cast<T *>(a), outputs) &&
                        whole_packs(static_cast<T *>(z), outputs)};
    return of_tile<T>(tile, form, 1, stream);
}

template <class T>
int data_gradient(int tile, int activation, const void *dz_above, const void *w, const void *saved,
                  void *dz, void *partial, int rows, int inputs, int outputs, void *stream)
{
    DataGradient<T> form{matrix<T>(dz_above, rows, outputs), matrix<T>(w, inputs, outputs),
                         static_cast<const T *>(saved), static_cast<T *>(dz),
                         static_cast<T *>(partial), rows, inputs, outputs, activation,
                         whole_packs(static_cast<T *>(dz), inputs)};
    return of_tile<T>(tile, form, 1, stream);
}

template <class T>
int weight_gradient(int tile, const void *x, const void *dz, void *dw, int rows, int inputs,
                    int outputs, int rows_of_slice, void *stream)
{
    const T *left = static_cast<const T *>(x), *right = static_cast<const T *>(dz);
    T *out = static_cast<T *>(dw);
    const int64_t one = static_cast<int64_t>(inputs) * outputs;
    const int slices = ceiling(rows, rows_of_slice);
    WeightGradient<T> form{left, right, out, inputs, outputs, rows, rows_of_slice,
                           whole_packs(left, inputs), whole_packs(right, outputs),
                           whole_packs(out, outputs) && (slices == 1 || whole_packs(out, one))};
    return of_tile<T>(tile, form, slices, stream);
}

} // namespace

extern "C" int fn_cuda_tile(int dtype, int tile, int *sizes)
{
    return FN_OF(dtype, tile_of)(tile, sizes);
}

extern "C" int fn_cuda_forward(int dtype, int tile, int activation, const void *x, const void *w,
                               const void *bias, void *a, void *z, int rows, int inputs,
                               int outputs, void *stream)
{
    return FN_OF(dtype, forward)(
        tile, activation, x, w, bias, a, z, rows, inputs, outputs, stream);
}

extern "C" int fn_cuda_data_gradient(int dtype, int tile, int activation, const void *dz_above,
                                     const void *w, const void *saved, void *dz, void *partial,
                                     int rows, int inputs, int outputs, void *stream)
{
    return FN_OF(dtype, data_gradient)(
        tile, activation, dz_above, w, saved, dz, partial, rows, inputs, outputs, stream);
}

extern "C" int fn_cuda_weight_gradient(int dtype, int tile, const void *x, const void *dz, void *dw,
                                       int rows, int inputs, int outputs, int rows_of_slice,
                                       void *stream)
{
    return FN_OF(dtype, weight_gradient)(
        tile, x, dz, dw, rows, inputs, outputs, rows_of_slice, stream);
}
