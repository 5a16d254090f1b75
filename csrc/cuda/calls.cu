/* Launches as data: a list of calls is started from here again and again, or recorded as a graph,
   so that who made the list is not asked at every step. */

#include <cstddef>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels.h"
#include "platform.h"

namespace {

template <class P> P taken(const fn_cuda_argument &argument)
{
    if constexpr (std::is_pointer_v<P>)
        return reinterpret_cast<P>(static_cast<uintptr_t>(argument.whole));
    else if constexpr (std::is_floating_point_v<P>)
        return static_cast<P>(argument.real);
    else
        return static_cast<P>(argument.whole);
}

/* Calls a function whose last parameter is the stream. */
template <auto F> struct Start;
template <class... P, int (*F)(P...)> struct Start<F> {
    static constexpr size_t COUNT = sizeof...(P) - 1;
    static_assert(COUNT <= FN_ARGUMENTS);

    template <size_t... I>
    static int with(const fn_cuda_argument *given, void *stream, std::index_sequence<I...>)
    {
        return F(taken<std::tuple_element_t<I, std::tuple<P...>>>(given[I])..., stream);
    }
    static int call(const fn_cuda_argument *given, void *stream)
    {
        return with(given, stream, std::make_index_sequence<COUNT>());
    }
};

struct Function {
    const char *name;
    int count;
    int (*start)(const fn_cuda_argument *, void *);
};

#define FN_FUNCTION(name)                                                                          \
    {                                                                                              \
        #name, static_cast<int>(Start<fn_cuda_##name>::COUNT), Start<fn_cuda_##name>::call         \
    }
const Function FUNCTIONS[] = {
    FN_FUNCTION(forward),          FN_FUNCTION(data_gradient),     FN_FUNCTION(weight_gradient),
    FN_FUNCTION(gather),           FN_FUNCTION(bias_act_forward),  FN_FUNCTION(act_bias_backward),
    FN_FUNCTION(sum_parts),        FN_FUNCTION(dropout),           FN_FUNCTION(loss_rows),
    FN_FUNCTION(batch_loss),       FN_FUNCTION(clip),              FN_FUNCTION(update),
    FN_FUNCTION(advance),          FN_FUNCTION(spread),            FN_FUNCTION(inverse_root),
    FN_FUNCTION(row_moments),      FN_FUNCTION(norm_forward),      FN_FUNCTION(norm_sums),
    FN_FUNCTION(batch_backward),   FN_FUNCTION(layer_backward),    FN_FUNCTION(move_statistics),
    FN_FUNCTION(fused_step),       FN_FUNCTION(fused_forward),     FN_FUNCTION(ensemble_steps),
};
constexpr int N_FUNCTIONS = static_cast<int>(sizeof FUNCTIONS / sizeof FUNCTIONS[0]);

} // namespace

extern "C" int fn_cuda_function(const char *name, int count)
{
    for (int i = 0; i < N_FUNCTIONS; i++)
        if (!std::strcmp(FUNCTIONS[i].name, name) && FUNCTIONS[i].count == count)
            return i;
    return -1;
}

extern "C" const char *fn_cuda_name(int64_t function) { return FUNCTIONS[function].name; }

extern "C" int fn_cuda_run(const fn_cuda_call *calls, int count, int64_t times, void *stream,
                           int *at)
{
    for (int64_t time = 0; time < times; time++) {
        for (*at = 0; *at < count; ++*at) {
            const fn_cuda_call &call = calls[*at];
            const int wrong = FUNCTIONS[call.function].start(call.arguments, stream);
            if (wrong)
                return wrong;
        }
    }
    return 0;
}

extern "C" int fn_cuda_record(const fn_cuda_call *calls, int count, int64_t times, void *stream,
                              void **graph, int *at)
{
    const cudaStream_t on = static_cast<cudaStream_t>(stream);
    *graph = nullptr;
    *at = -1;
    int wrong = told(cudaStreamBeginCapture(on, cudaStreamCaptureModeThreadLocal));
    if (wrong)
        return wrong;
    wrong = fn_cuda_run(calls, count, times, stream, at);
    cudaGraph_t recorded = nullptr;
    const int ended = told(cudaStreamEndCapture(on, &recorded)); /* in any case: it frees the stream */
    wrong = wrong ? wrong : ended;
    cudaGraphExec_t made = nullptr;
    if (!wrong)
        wrong = told(cudaGraphInstantiate(&made, recorded, 0));
    if (recorded)
        told(cudaGraphDestroy(recorded));
    *graph = made;
    return wrong;
}

extern "C" int fn_cuda_replay(void *graph, int64_t times, void *stream)
{
    const cudaGraphExec_t all = static_cast<cudaGraphExec_t>(graph);
    int wrong = 0;
    for (int64_t time = 0; time < times && !wrong; time++)
        wrong = told(cudaGraphLaunch(all, static_cast<cudaStream_t>(stream)));
    return wrong;
}

extern "C" int fn_cuda_forget(void *graph)
{
    return told(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)));
}
