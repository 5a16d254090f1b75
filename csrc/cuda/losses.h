/* Losses of a row of the batch with their gradients, and of the batch. Formulas:
   fastneuron/losses.py. */

#ifndef FN_LOSSES_H
#define FN_LOSSES_H

#include "functions.h"
#include "sums.h"

/* Any loss but cross-entropy of output o and target y: l, and dl/do in `slope`. */
template <class T> FN_DEVICE T loss_of(int code, T o, T y, T *slope)
{
    const T r = o - y;
    switch (code) {
    case LOSS_MSE:
        *slope = 2 * r;
        return r * r;
    case LOSS_MAE:
        *slope = r > 0 ? T(1) : r < 0 ? T(-1) : r; /* r: 0, or NaN */
        return size_of(r);
    case LOSS_HUBER: {
        const T size = size_of(r);
        *slope = not_above(not_below(r, T(-1)), T(1));
        return size > 1 ? size - T(0.5) : T(0.5) * r * r;
    }
    case LOSS_BINARY_CROSS_ENTROPY:
        *slope = logistic(o) - y;
        return not_below(o, T(0)) - o * y + log1p_of(exp_of(-size_of(o)));
    default: { /* Poisson */
        const T e = exp_of(o);
        *slope = e - y;
        return e - y * o;
    }
    }
}

/* A row, whose outputs lie `apart` numbers from each other; y (O,), or null where `label` stands for
   the row that is 1 there. */
template <class T> struct LossRow {
    const T *out;
    int apart;
    const T *y;
    int64_t label;
    T weight;
    int rows, columns; /* of the batch */
};

/* LANES threads of a warp, or one, have a row: lane l takes outputs l, l + LANES and so on, then the
   lanes are added up. put(o, dL/dout) may overwrite that output. Returns the row's loss times its
   weight. */
template <int LANES, class T, class Put>
FN_DEVICE T values_of_row(const LossRow<T> &row, int code, int lane, const Put &put)
{
    const T factor = row.weight / static_cast<T>(row.rows) / static_cast<T>(row.columns);
    T total = 0;
    for (int column = lane; column < row.columns; column += LANES) {
        T slope;
        total += loss_of(code, row.out[column * row.apart], row.y[column], &slope);
        put(column, factor * slope);
    }
    return row.weight * (sum_of_warp<LANES>(total) / static_cast<T>(row.columns));
}

/* The logits less their largest, so that no exponential overflows. */
template <int LANES, class T, class Put>
FN_DEVICE T cross_entropy_of_row(const LossRow<T> &row, int lane, const Put &put)
{
    const T scale = row.weight / static_cast<T>(row.rows);
    T top = row.out[0];
    for (int column = lane; column < row.columns; column += LANES) {
        const T out = row.out[column * row.apart];
        top = out > top ? out : top;
    }
    top = largest_of_warp<LANES>(top);
    T total = 0, share = row.y ? T(0) : T(1);
    for (int column = lane; column < row.columns; column += LANES) {
        total += exp_of(row.out[column * row.apart] - top);
        if (row.y)
            share += row.y[column];
    }
    const T log_total = log_of(sum_of_warp<LANES>(total));
    share = row.y ? sum_of_warp<LANES>(share) : share;
    T loss = 0;
    for (int column = lane; column < row.columns; column += LANES) {
        const T log_p = row.out[column * row.apart] - top - log_total;
        const T target = row.y ? row.y[column] : column == row.label ? T(1) : T(0);
        if (row.y || column == row.label)
            loss -= target * log_p;
        put(column, scale * (exp_of(log_p) * share - target));
    }
    return row.weight * sum_of_warp<LANES>(loss);
}

template <int LANES, class T, class Put>
FN_DEVICE T loss_of_row(const LossRow<T> &row, int code, int lane, const Put &put)
{
    return code == LOSS_CROSS_ENTROPY ? cross_entropy_of_row<LANES>(row, lane, put)
                                      : values_of_row<LANES>(row, code, lane, put);
}

/* A thread's share of the sum of the rows' losses, in float64 as the reference engine has it. */
template <class T> FN_DEVICE double my_losses(const T *row_losses, int rows, int threads)
{
    double total = 0;
    for (int row = static_cast<int>(threadIdx.x); row < rows; row += threads)
        total += static_cast<double>(row_losses[row]);
    return total;
}

FN_DEVICE bool is_finite(double x) { return x - x == 0; }

#endif
