#include "selective_scan/cuda_gradient.cuh"
#include "selective_scan/cuda_scan.cuh"

namespace zoo::cuda {
namespace scan {
namespace {

// Pieces of the scratch memory, as GradientArguments wants them.
template <class T>
struct BackwardScratch {
  using F = Accumulator<T>;
  F *start = nullptr, *sum_delta = nullptr;  // only where there are several chunks
  F *da, *db, *dc, *dskip = nullptr, *dbias = nullptr;
  int64_t bytes;

  BackwardScratch(const Problem<T>& p, void* workspace) {
    Scratch scratch(workspace);
    const int64_t rows = p.batch * p.chunks, states = rows * p.channels * p.states;
    if (p.chunks > 1) {
      start = scratch.take<F>(states);
      sum_delta = scratch.take<F>(rows * p.channels);
    }
    da = scratch.take<F>(states);
    db = scratch.take<F>(p.b.constant ? states : varying(p));
    dc = scratch.take<F>(p.c.constant ? states : varying(p));
    if (p.skip) dskip = scratch.take<F>(rows * p.channels);
    if (p.bias) dbias = scratch.take<F>(rows * p.channels);
    bytes = scratch.size();
  }

  static int64_t parts(const Problem<T>& p) {
    return blocks_per_group<Tiling<T, true>>(p.channels_per_group());
  }
  static int64_t varying(const Problem<T>& p) {
    return parts(p) * p.batch * p.groups * p.states * p.length;
  }
};

template <class T>
cudaError_t backward(const ScanBackward& call, void* workspace, void* stream) {
  using F = Accumulator<T>;
  using Tile = Tiling<T, true>;
  GradientArguments<T> args{};
  args.problem = describe<T, true>(call.problem);
  const Problem<T>& p = args.problem;
  const BackwardScratch<T> scratch(p, workspace);
  args.dout = sequence<const T>(call.dout);
  args.du = sequence<T>(call.du);
  args.ddelta = sequence<T>(call.ddelta);
  args.dz = sequence<T>(call.dz);
  args.borders = static_cast<const F*>(call.borders.data);
  args.start = static_cast<const F*>(call.dlast_state);
  args.end = static_cast<F*>(call.dinitial_state);
  args.da = scratch.da;
  args.db = scratch.db;
  args.dc = scratch.dc;
  args.dskip = scratch.dskip;
  args.dbias = scratch.dbias;

  FirstError run;
  if (p.chunks > 1) {
    ScanArguments<T> ends{};
    ends.problem = p;
    ends.dout = args.dout;
    ends.end = scratch.start;
    ends.end_delta = scratch.sum_delta;
    run(launch_scan<T, Pass::kGradients>(ends, stream));
    run(chain_chunks(scratch.start, scratch.sum_delta, p.a, args.start, args.end, p.batch, p.chunks,
                     p.channels, p.states, !p.reverse, stream));
    args.start = scratch.start;
    args.end = nullptr;
  }
  run(launch(gradient_kernel<T>, grid<Tile>(p), Tile::kThreads, gradient_shared_bytes(p), stream,
             args));

  const int64_t rows = p.batch * p.chunks, of_channels = p.channels * p.states;
  run(sum_rows(scratch.da, static_cast<F*>(call.dA), rows, of_channels, stream));
  const auto projection_gradient = [&](const F* parts, const ScanProjection& to) {
    if (to.constant) {
      run(sum_rows(parts, static_cast<F*>(to.data), rows, of_channels, stream));
    } else {
      const int64_t n_parts = BackwardScratch<T>::parts(p);
      run(sum_rows(parts, static_cast<T*>(to.data), n_parts,
                   BackwardScratch<T>::varying(p) / n_parts, stream));
    }
  };
  projection_gradient(scratch.db, call.dB);
  projection_gradient(scratch.dc, call.dC);
  if (p.skip) run(sum_rows(scratch.dskip, static_cast<F*>(call.dD), rows, p.channels, stream));
  if (p.bias)
    run(sum_rows(scratch.dbias, static_cast<F*>(call.ddelta_bias), rows, p.channels, stream));
  return run.first();
}

}  // namespace
}  // namespace scan

int64_t selective_scan_workspace(const ScanBackward& call) {
  return with_type(call.problem.dtype, [&](auto t) {
    using T = decltype(t);
    return scan::BackwardScratch<T>(scan::describe<T, true>(call.problem), nullptr).bytes;
  });
}

const char* selective_scan_backward(const ScanBackward& call, void* workspace, void* stream) {
  if (call.problem.batch == 0) return nullptr;
  return message(with_type(call.problem.dtype, [&](auto t) {
    return scan::backward<decltype(t)>(call, workspace, stream);
  }));
}

}  // namespace zoo::cuda
