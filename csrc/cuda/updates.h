/* What a step of the optimizer does to a number, and whether it is done. */

#ifndef FN_UPDATES_H
#define FN_UPDATES_H

#include "functions.h"
#include "kernels.h"
#include "platform.h"

/* A step's scalars, rounded to T after they were combined in float64. */
template <class T> struct Numbers {
    T rate, l2, shrink, beta1, rest1, beta2, rest2, epsilon, correction, clip;

    FN_DEVICE Numbers(const double *s, double clip_scale)
        : rate(static_cast<T>(s[OPTIMIZERS_RATE])), l2(static_cast<T>(s[OPTIMIZERS_L2])),
          shrink(static_cast<T>(s[OPTIMIZERS_SHRINK])), beta1(static_cast<T>(s[OPTIMIZERS_BETA1])),
          rest1(static_cast<T>(1 - s[OPTIMIZERS_BETA1])),
          beta2(static_cast<T>(s[OPTIMIZERS_BETA2])),
          rest2(static_cast<T>(1 - s[OPTIMIZERS_BETA2])),
          epsilon(static_cast<T>(s[OPTIMIZERS_EPSILON])),
          correction(static_cast<T>(s[OPTIMIZERS_CORRECTION])), clip(static_cast<T>(clip_scale))
    {
    }
};

/* One parameter's step; m and v are its moments, as many as the kind has. */
template <class T>
FN_DEVICE void stepped(int kind, const Numbers<T> &s, bool decays, T *p, T g, T *m, T *v)
{
    g = s.clip * g + (decays ? s.l2 : T(0)) * *p;
    switch (kind) {
    case UPDATE_SGD:
        *p -= s.rate * g;
        break;
    case UPDATE_MOMENTUM:
        *m = s.beta1 * *m + g;
        *p -= s.rate * *m;
        break;
    case UPDATE_NESTEROV:
        *m = s.beta1 * *m + g;
        *p -= s.rate * (g + s.beta1 * *m);
        break;
    case UPDATE_ADAM:
        *m = s.beta1 * *m + s.rest1 * g;
        *v = s.beta2 * *v + s.rest2 * (g * g);
        *p = *p - (decays ? s.shrink : T(0)) * *p -
             s.rate * *m / (root_of(*v) * s.correction + s.epsilon);
        break;
    default: /* RMSprop, whose one moment comes first */
        *m = s.beta2 * *m + s.rest2 * (g * g);
        *p -= s.rate * g / (root_of(*m) + s.epsilon);
    }
}

/* A pack of parameters' step; the moments are null where there is none. */
template <class T>
FN_DEVICE void pack_stepped(int kind, const Numbers<T> &s, bool decays, T *p, const T *g, T *m, T *v)
{
    typedef Pack<T> P;
    P my_p = *reinterpret_cast<const P *>(p), my_m = {}, my_v = {};
    const P my_g = *reinterpret_cast<const P *>(g);
    if (m)
        my_m = *reinterpret_cast<const P *>(m);
    if (v)
        my_v = *reinterpret_cast<const P *>(v);
#pragma unroll
    for (int i = 0; i < P::SIZE; i++)
        stepped(kind, s, decays, my_p.at + i, my_g.at[i], my_m.at + i, my_v.at + i);
    *reinterpret_cast<P *>(p) = my_p;
    if (m)
        *reinterpret_cast<P *>(m) = my_m;
    if (v)
        *reinterpret_cast<P *>(v) = my_v;
}

/* A thread's share of the sum of the squares of what is trained from `first` to `end`, in float64 as
   the reference engine has it: the square of a float32 number may overflow float32, which is what is
   to be found. */
template <class T>
FN_DEVICE double my_squares(const T *g, const unsigned char *marks, int64_t first, int64_t end,
                            int threads)
{
    double total = 0;
    for (int64_t at = first + static_cast<int>(threadIdx.x); at < end; at += threads) {
        if (marks[at / FN_RUN] & FN_TRAINED) {
            const double x = static_cast<double>(g[at]);
            total += x * x;
        }
    }
    return total;
}

/* Whether a step whose gradient has such a squared norm is applied; `largest` is that of T. */
FN_DEVICE bool applies(double squared, double largest) { return squared <= largest; }

/* What keeps a gradient's norm to a limit, where there is one. */
FN_DEVICE double clip_scale(double squared, double limit)
{
    const double norm = sqrt(squared);
    return limit > 0 && limit < norm ? limit / norm : 1;
}

constexpr double LARGEST_SINGLE = 3.4028234663852886e38, LARGEST_DOUBLE = 1.7976931348623157e308;

#endif
