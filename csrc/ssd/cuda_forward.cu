#include "ssd/cuda_output.cuh"

namespace zoo::cuda {
namespace ssd {
namespace {

template <class T>
struct ForwardScratch {
  using F = Accumulator<T>;
  F *keeps, *states = nullptr;  // the states where they are not left as borders
  int64_t bytes;

  ForwardScratch(const Problem<T>& p, const SsdForward& call, void* workspace) {
    Scratch scratch(workspace);
    keeps = scratch.take<F>(chunks_of_heads(p));
    if (call.borders.span == 0) states = scratch.take<F>(states_size(p));
    bytes = scratch.size();
  }
};

template <class T>
cudaError_t forward(const SsdForward& call, void* workspace, void* stream) {
  using F = Accumulator<T>;
  const Problem<T> p = describe<T>(call.problem);
  const ForwardScratch<T> scratch(p, call, workspace);
  F* const states = call.borders.data ? static_cast<F*>(call.borders.data) : scratch.states;
  FirstError run;
  run(find_states<T, false>(p, {}, states, scratch.keeps, p.initial,
                            static_cast<F*>(call.last_state), stream));
  run(find_outputs<T, true>(p, states, signal<T>(call.out), stream));
  return run.first();
}

}  // namespace
}  // namespace ssd

int64_t ssd_workspace(const SsdForward& call) {
  return with_type(call.problem.dtype, [&](auto t) {
    using T = decltype(t);
    return ssd::ForwardScratch<T>(ssd::describe<T>(call.problem), call, nullptr).bytes;
  });
}

const char* ssd_forward(const SsdForward& call, void* workspace, void* stream) {
  return message(with_type(call.problem.dtype, [&](auto t) {
    return ssd::forward<decltype(t)>(call, workspace, stream);
  }));
}

}  // namespace zoo::cuda
