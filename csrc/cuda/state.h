/* What a chunk of steps keeps on the device: kernels read it, so that nothing is asked in between. */

#ifndef FN_STATE_H
#define FN_STATE_H

#include "constants.h"
#include "kernels.h"
#include "platform.h"

/* The scalars of the step that is under way. */
FN_DEVICE const double *scalars_of(const double *scalars, const fn_cuda_state *state)
{
    return scalars + state->step * OPTIMIZERS_N_SCALARS;
}

#endif
