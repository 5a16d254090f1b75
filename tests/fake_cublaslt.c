/* What cuBLASLt is to its caller, in host memory: the same functions, which check what they are
   given and compute the product, column-major, as the library's documentation says. Whatever is
   wrong makes CUBLAS_STATUS_INVALID_VALUE, and fake_fault() says what.

   Algorithm i sums in its own order, so two algorithms differ in their last bits. fake_set() makes
   the library refuse epilogues, or account for its algorithms otherwise. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID = 7, NOT_SUPPORTED = 15 };
enum { HANDLE = 0x48414e44, DESCRIPTION, LAYOUT, PREFERENCE, ALGORITHM };
enum { RELU = 2, BIAS = 4, DRELU = 136, AUX = 128, BGRAD = 16, BGRADA = 256 };

typedef struct { int kind; } Handle;
typedef struct {
    int kind, compute, scale;
    int32_t transposed[2];
    uint32_t epilogue;
    void *bias, *aux;
    int64_t aux_ld;
} Description;
typedef struct { int kind, type; uint64_t rows, columns; int64_t ld; } Layout;
typedef struct { int kind; uint64_t workspace; uint32_t reductions, alignments[4]; } Preference;
typedef struct { uint64_t data[8]; } Algorithm;
typedef struct {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
} Result;

static char fault[400];
static int64_t starts = 1, refused, fails, reduction, numerics = 0x80000, offered = 3, runs, alive, last;

#define REQUIRE(condition, ...)                              \
    if (!(condition)) {                                      \
        snprintf(fault, sizeof fault, __VA_ARGS__);          \
        return INVALID;                                      \
    }
#define IS(object, what) REQUIRE(object && (object)->kind == what, #object " is no " #what)

const char *fake_fault(void) { return fault; }

int64_t fake_get(const char *name) {
    if (!strcmp(name, "runs")) return runs;
    if (!strcmp(name, "alive")) return alive;
    if (!strcmp(name, "last")) return last; /* the compute type of the last product */
    return -1;
}

void fake_set(const char *name, int64_t value) {
    fault[0] = 0;
    if (!strcmp(name, "starts")) starts = value;
    if (!strcmp(name, "refused")) refused = value; /* bits of epilogues */
    if (!strcmp(name, "fails")) fails = value; /* likewise, but they are offered all the same */
    if (!strcmp(name, "reduction")) reduction = value;
    if (!strcmp(name, "numerics")) numerics = value;
    if (!strcmp(name, "offered")) offered = value;
    if (!strcmp(name, "runs")) runs = value;
}

size_t cublasLtGetVersion(void) { return 130002; }
const char *cublasLtGetStatusName(int status) { return status == INVALID ? "INVALID" : "FAILED"; }
const char *cublasLtGetStatusString(int status) { return fault[0] ? fault : "no more is known"; }

static void *made(size_t size, int kind) {
    int *object = calloc(1, size);
    object[0] = kind;
    alive++;
    return object;
}

static int destroy(int *object, int kind) {
    REQUIRE(object && *object == kind, "what is destroyed is something else");
    *object = 0;
    free(object);
    alive--;
    return SUCCESS;
}

int cublasLtCreate(Handle **out) {
    if (!starts) return NOT_INITIALIZED;
    *out = made(sizeof(Handle), HANDLE);
    return SUCCESS;
}
int cublasLtDestroy(int *object) { return destroy(object, HANDLE); }

int cublasLtMatmulDescCreate(Description **out, int compute, int scale) {
    int doubles = compute == 70, fits = doubles || compute == 68 || compute == 77 || compute == 75;
    REQUIRE(fits && scale == doubles, "compute type %d with scale type %d", compute, scale);
    Description *d = *out = made(sizeof **out, DESCRIPTION);
    d->compute = compute, d->scale = scale, d->epilogue = 1;
    return SUCCESS;
}
int cublasLtMatmulDescDestroy(int *object) { return destroy(object, DESCRIPTION); }

int cublasLtMatmulDescSetAttribute(Description *d, int which, const void *from, size_t size) {
    IS(d, DESCRIPTION);
    void *to = which == 3 || which == 4 ? &d->transposed[which - 3] : which == 7 ? &d->epilogue
             : which == 8 ? (void *)&d->bias : which == 11 ? (void *)&d->aux
             : which == 12 ? (void *)&d->aux_ld : 0;
    REQUIRE(to, "attribute %d of a description", which);
    REQUIRE(size == (which < 8 ? 4u : 8u), "attribute %d has not %zu bytes", which, size);
    memcpy(to, from, size);
    return SUCCESS;
}

int cublasLtMatrixLayoutCreate(Layout **out, int type, uint64_t rows, uint64_t columns, int64_t ld) {
    REQUIRE(rows && columns, "an empty matrix");
    REQUIRE(ld >= (int64_t)rows, "leading dimension %lld of %llu rows", (long long)ld,
            (unsigned long long)rows);
    Layout made_of = {LAYOUT, type, rows, columns, ld};
    *out = made(sizeof **out, LAYOUT);
    **out = made_of;
    return SUCCESS;
}
int cublasLtMatrixLayoutDestroy(int *object) { return destroy(object, LAYOUT); }

int cublasLtMatmulPreferenceCreate(Preference **out) {
    *out = made(sizeof **out, PREFERENCE);
    (*out)->reductions = 7;
    for (int i = 0; i < 4; i++) (*out)->alignments[i] = 256;
    return SUCCESS;
}
int cublasLtMatmulPreferenceDestroy(int *object) { return destroy(object, PREFERENCE); }

int cublasLtMatmulPreferenceSetAttribute(Preference *p, int which, const void *from, size_t size) {
    IS(p, PREFERENCE);
    void *to = which == 1 ? (void *)&p->workspace : which == 3 ? (void *)&p->reductions
             : which >= 5 && which <= 8 ? &p->alignments[which - 5] : 0;
    REQUIRE(to, "attribute %d of a preference", which);
    REQUIRE(size == (which == 1 ? 8u : 4u), "attribute %d has not %zu bytes", which, size);
    memcpy(to, from, size);
    return SUCCESS;
}

/* Sizes of the product, and whether everything fits together. */
static int fit(const Handle *h, const Description *d, const Layout *a, const Layout *b,
               const Layout *c, const Layout *out, uint64_t *m, uint64_t *n, uint64_t *k) {
    IS(h, HANDLE);
    IS(d, DESCRIPTION);
    IS(a, LAYOUT);
    IS(b, LAYOUT);
    IS(c, LAYOUT);
    IS(out, LAYOUT);
    int type = d->compute == 70;
    REQUIRE(a->type == type && b->type == type && c->type == type && out->type == type,
            "types %d %d %d %d", a->type, b->type, c->type, out->type);
    *m = d->transposed[0] ? a->columns : a->rows, *k = d->transposed[0] ? a->rows : a->columns;
    *n = d->transposed[1] ? b->rows : b->columns;
    REQUIRE(*k == (d->transposed[1] ? b->columns : b->rows), "A and B do not fit");
    REQUIRE(out->rows == *m && out->columns == *n, "D does not fit");
    REQUIRE(c->rows == *m && c->columns == *n, "C does not fit");
    if (d->epilogue & (BIAS | BGRAD | BGRADA)) REQUIRE(d->bias, "an epilogue without its vector");
    if (d->epilogue & AUX) {
        REQUIRE(d->aux, "an epilogue without its mask");
        REQUIRE(d->aux_ld % 128 == 0 && d->aux_ld >= (int64_t)*m, "a mask of %lld bits for %llu",
                (long long)d->aux_ld, (unsigned long long)*m);
    }
    return SUCCESS;
}

static uint64_t signature(const Description *d, uint64_t m, uint64_t n, uint64_t k) {
    uint64_t s = m * 1000003 + n * 10007 + k;
    return s * 64 + d->epilogue * 4096 + d->compute * 4 + d->transposed[0] * 2 + d->transposed[1];
}

int cublasLtMatmulAlgoGetHeuristic(const Handle *h, const Description *d, const Layout *a,
                                   const Layout *b, const Layout *c, const Layout *out,
                                   const Preference *p, int most, Result *results, int *found) {
    uint64_t m, n, k;
    int wrong = fit(h, d, a, b, c, out, &m, &n, &k);
    if (wrong) return wrong;
    IS(p, PREFERENCE);
    REQUIRE(p->reductions == 2, "reductions that need not give the same bits: %u", p->reductions);
    for (int i = 0; i < 4; i++)
        REQUIRE(p->alignments[i] == 16, "alignment %u is not what is there", p->alignments[i]);
    *found = 0;
    if (d->epilogue & refused || p->workspace < 64) return NOT_SUPPORTED;
    for (; *found < most && *found < offered; ++*found) {
        Result result = {{{ALGORITHM, *found, signature(d, m, n, k)}}, 64, SUCCESS, 1, {0}};
        if (*found == 2) result.workspace = p->workspace + 1, result.state = NOT_SUPPORTED;
        results[*found] = result;
    }
    return SUCCESS;
}

int cublasLtMatmulAlgoConfigGetAttribute(const Algorithm *algorithm, int which, void *to,
                                         size_t size, size_t *written) {
    REQUIRE(algorithm->data[0] == ALGORITHM, "no algorithm");
    REQUIRE(which == 3 && size == 4, "attribute %d of %zu bytes", which, size);
    *(uint32_t *)to = (uint32_t)reduction, *written = size;
    return SUCCESS;
}

int cublasLtMatmulAlgoCapGetAttribute(const Algorithm *algorithm, int which, void *to, size_t size,
                                      size_t *written) {
    REQUIRE(algorithm->data[0] == ALGORITHM, "no algorithm");
    REQUIRE(which == 15 && size == 8, "attribute %d of %zu bytes", which, size);
    *(uint64_t *)to = (uint64_t)numerics, *written = size;
    return SUCCESS;
}

/* A factor as tensor cores take it: `kept` bits of its fraction, to nearest. */
static double factor(const void *from, int type, uint64_t at, int compute) {
    if (type) return ((const double *)from)[at];
    float x = ((const float *)from)[at];
    if (compute == 68 || !isfinite(x)) return x;
    int dropped = compute == 77 ? 13 : 16;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits += (1u << (dropped - 1)) - 1 + (bits >> dropped & 1);
    bits &= ~((1u << dropped) - 1);
    memcpy(&x, &bits, 4);
    return x;
}

/* The sum s + t in the type of the sums. */
static double add(double s, double t, int type) { return type ? s + t : (float)((float)s + (float)t); }

static void put(void *to, int type, uint64_t at, double x) {
    if (type) ((double *)to)[at] = x;
    else ((float *)to)[at] = (float)x;
}

int cublasLtMatmul(const Handle *h, const Description *d, const void *alpha, const void *left,
                   const Layout *a, const void *right, const Layout *b, const void *beta,
                   const void *c, const Layout *lc, void *out, const Layout *ld,
                   const Algorithm *algorithm, void *workspace, size_t size, void *stream) {
    uint64_t m, n, k;
    int wrong = fit(h, d, a, b, lc, ld, &m, &n, &k);
    if (wrong) return wrong;
    int type = a->type, e = d->epilogue, order = (int)algorithm->data[1];
    double one = type ? *(const double *)alpha : *(const float *)alpha;
    double zero = type ? *(const double *)beta : *(const float *)beta;
    REQUIRE(one == 1 && zero == 0, "alpha %g, beta %g", one, zero);
    REQUIRE(left && right && out && c == out && !stream, "addresses or stream");
    REQUIRE(algorithm->data[0] == ALGORITHM && algorithm->data[2] == signature(d, m, n, k),
            "an algorithm of another product");
    if (e & fails) return NOT_SUPPORTED;
    REQUIRE(size >= 64 && workspace, "too little scratch: %zu bytes", size);
    memset(workspace, 0xff, size);
    runs++;
    last = d->compute;
    if (e & BGRAD)
        for (uint64_t i = 0; i < m; i++) put(d->bias, type, i, 0);
    for (uint64_t j = 0; j < n; j++)
        for (uint64_t i = 0; i < m; i++) {
            double sum = 0;
            for (uint64_t t = 0; t < k; t++) {
                uint64_t l = order ? k - 1 - t : t;
                double x = factor(left, type, d->transposed[0] ? l + i * a->ld : i + l * a->ld,
                                  d->compute);
                double y = factor(right, type, d->transposed[1] ? j + l * b->ld : l + j * b->ld,
                                  d->compute);
                sum = add(sum, type ? x * y : (float)(x * y), type);
            }
            const double bias = e & BIAS ? (type ? ((double *)d->bias)[i] : ((float *)d->bias)[i]) : 0;
            if (e & BIAS) sum = add(sum, bias, type);
            uint64_t bit = j * d->aux_ld + i;
            unsigned char *byte = (unsigned char *)d->aux + bit / 8, mark = (unsigned char)(1 << bit % 8);
            if ((e & DRELU) == DRELU) {
                if (!(*byte & mark)) sum = 0;
            } else if (e & RELU) {
                if (e & AUX) *byte = sum > 0 ? *byte | mark : *byte & ~mark;
                if (sum < 0) sum = 0;
            }
            put(out, type, i + j * ld->ld, sum);
            if (e & BGRAD) {
                double old = type ? ((double *)d->bias)[i] : ((float *)d->bias)[i];
                put(d->bias, type, i, add(old, sum, type));
            }
        }
    if (e & BGRADA)
        for (uint64_t i = 0; i < m; i++) {
            double sum = 0;
            for (uint64_t l = 0; l < k; l++)
                sum = add(sum, factor(left, type, d->transposed[0] ? l + i * a->ld : i + l * a->ld, 68),
                          type);
            put(d->bias, type, i, sum);
        }
    return SUCCESS;
}
