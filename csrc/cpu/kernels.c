/* The kernels of the C engine for one dtype and instruction set: FN_NAME is the table of what they
   offer. One translation unit, so that everything can be inlined where it pays. */

#include "kernels.h"

#include "ceilings.h"
#include "slots.h"
#include "worker.h"

/* The table's entries take arrays of whatever dtype it is for as void. */
static void slot_dense_forward(const void *x, const void *w, const void *b, int64_t code,
                               int64_t n_rows, int64_t inputs, int64_t outputs, void *out,
                               void *scratch)
{
    dense_forward(x, w, b, code, n_rows, inputs, outputs, out, scratch);
}

static void slot_bias_act_forward(const void *z, const void *b, int64_t code, int64_t n_rows,
                                  int64_t outputs, void *out)
{
    bias_act_forward(z, b, code, n_rows, outputs, out);
}

static void slot_act_bias_backward(const void *da, const void *saved, int64_t code, int64_t n_rows,
                                   int64_t outputs, void *out, void *db)
{
    act_bias_backward(da, saved, code, n_rows, outputs, out, db);
}

static void slot_dense_backward(const void *dy, const void *x, const void *w, const void *saved,
                                int64_t code, int64_t n_rows, int64_t inputs, int64_t outputs,
                                void *dx, void *dw, void *db, void *scratch)
{
    dense_backward(dy, x, w, saved, code, n_rows, inputs, outputs, dx, dw, db, scratch);
}

static void slot_loss_rows(int64_t code, const void *out, const int64_t *labels,
                           const void *targets, const void *weight, int64_t n_rows,
                           int64_t outputs, void *rows, void *dout, void *scratch)
{
    loss_rows(code, out, labels, targets, weight, n_rows, outputs, rows, dout, scratch);
}

static void slot_update_run(int64_t kind, void *p, const void *g, void *m, void *v, int64_t size,
                            const double *scalars, double clip, void *scratch)
{
    update_run(kind, p, g, m, v, size, scalars, clip, scratch);
}

static void ceiling_multiply_adds(void *out, int64_t turns) { multiply_adds(out, turns); }

static void ceiling_read_all(const void *x, int64_t size, int64_t turns, void *out)
{
    read_all(x, size, turns, out);
}

static void ceiling_copy_all(const void *x, void *y, int64_t size, int64_t turns)
{
    copy_all(x, y, size, turns);
}

const fn_kernels FN_NAME = {
    .vector_bytes = VECTOR_BYTES,
    .train = train,
    .infer = infer,
    .dense_forward = slot_dense_forward,
    .bias_act_forward = slot_bias_act_forward,
    .act_bias_backward = slot_act_bias_backward,
    .dense_backward = slot_dense_backward,
    .loss_rows = slot_loss_rows,
    .update_run = slot_update_run,
    .multiply_adds = ceiling_multiply_adds,
    .read_all = ceiling_read_all,
    .copy_all = ceiling_copy_all,
};
