#include "selective_scan/cuda_scan.cuh"

namespace zoo::cuda {
namespace scan {
namespace {

template <class T>
struct ForwardScratch {
  Accumulator<T>*states = nullptr, *sum_delta = nullptr;  // only where there are several chunks
  int64_t bytes;

  ForwardScratch(const Problem<T>& p, void* workspace) {
    Scratch scratch(workspace);
    if (p.chunks > 1) {
      states = scratch.take<Accumulator<T>>(p.batch * p.chunks * p.channels * p.states);
      sum_delta = scratch.take<Accumulator<T>>(p.batch * p.chunks * p.channels);
    }
    bytes = scratch.size();
  }
};

template <class T>
cudaError_t forward(const ScanForward& call, void* workspace, void* stream) {
  using F = Accumulator<T>;
  ScanArguments<T> args{};
  args.problem = describe<T, false>(call.problem);
  const Problem<T>& p = args.problem;
  args.start = static_cast<const F*>(call.problem.initial_state);
  args.end = static_cast<F*>(call.last_state);
  if (p.chunks > 1) {
    const ForwardScratch<T> scratch(p, workspace);
    ScanArguments<T> ends = args;
    ends.start = nullptr;
    ends.end = scratch.states;
    ends.end_delta = scratch.sum_delta;
    cudaError_t error = launch_scan<T, Pass::kStates>(ends, stream);
    if (error != cudaSuccess) return error;
    error = chain_chunks(scratch.states, scratch.sum_delta, p.a, args.start, args.end, p.batch,
                         p.chunks, p.channels, p.states, p.reverse, stream);
    if (error != cudaSuccess) return error;
    args.start = scratch.states;
    args.end = nullptr;
  }
  args.out = sequence<T>(call.out);
  args.borders = static_cast<F*>(call.borders.data);
  return launch_scan<T, Pass::kOutput>(args, stream);
}

}  // namespace
}  // namespace scan

int64_t selective_scan_workspace(const ScanForward& call) {
  return with_type(call.problem.dtype, [&](auto t) {
    using T = decltype(t);
    return scan::ForwardScratch<T>(scan::describe<T, false>(call.problem), nullptr).bytes;
  });
}

const char* selective_scan_forward(const ScanForward& call, void* workspace, void* stream) {
  if (call.problem.batch == 0) return nullptr;
  return message(with_type(call.problem.dtype, [&](auto t) {
    return scan::forward<decltype(t)>(call, workspace, stream);
  }));
}

}  // namespace zoo::cuda
