// causal_conv1d for the widths that have no kernels of their own: a thread has one position of one channel
// and goes along the taps. Neighbouring threads have neighbours in memory.
#include "causal_conv1d/cuda.cuh"

namespace zoo::cuda {
namespace conv {
namespace {

template <class T>
struct Wide {
  using F = Accumulator<T>;
  Problem<T> of;
  int width;
  bool columns;  // neighbours in memory are channels

  // Positions `first` to `length` of all channels, one for each thread.
  struct Spot {
    int64_t b, c, t;
    bool active;
  };
  __device__ Spot spot(int64_t first) const {
    const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const int64_t steps = of.length - first, fast = columns ? of.channels : steps;
    const int64_t slow = columns ? steps : of.channels;
    const int64_t x = item % fast, y = item / fast % slow, b = item / fast / slow;
    return {b, columns ? x : y, first + (columns ? y : x), b < of.batch};
  }
  dim3 grid(int64_t first) const {
    return blocks_for((of.length - first) * of.channels * of.batch, kThreads);
  }

  // Where a position stands in scratch memory.
  __device__ int64_t at(int64_t b, int64_t c, int64_t t) const {
    return columns ? (b * of.length + t) * of.channels + c : (b * of.channels + c) * of.length + t;
  }

  __device__ bool padding(int64_t b, int64_t t) const {
    return of.segments && of.segments[b * of.length + t] < 0;
  }

  // Whether the output at t uses the input at `from`.
  __device__ bool connected(int64_t b, int64_t t, int64_t from) const {
    if (!of.segments) return true;
    const int32_t* const ids = of.segments + b * of.length;
    return from >= 0 && ids[t] >= 0 && ids[from] == ids[t];
  }

  __device__ F input(int64_t b, int64_t c, int64_t from) const {
    if (from >= 0) return widen(*of.x.at(b, c, from));
    return of.initial.data ? widen(*of.initial.at(b, c, from + width - 1)) : F(0);
  }

  // Before the activation.
  __device__ F sum(int64_t b, int64_t c, int64_t t) const {
    F sum = of.bias ? of.bias[c] : F(0);
    for (int k = 0; k < width; ++k) {
      const int64_t from = t - (width - 1) + k;
      if (connected(b, t, from)) sum += of.weight[c * width + k] * input(b, c, from);
    }
    return sum;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    wide_forward_kernel(const Wide<T> p, const Signal<T> out) {
  const auto at = p.spot(0);
  if (!at.active) return;
  Accumulator<T> y = p.sum(at.b, at.c, at.t);
  if (p.of.silu) y = silu(y);
  *out.at(at.b, at.c, at.t) = narrow<T>(p.padding(at.b, at.t) ? Accumulator<T>(0) : y);
}

// From gradients of the output to gradients before the activation.
template <class T>
__global__ void __launch_bounds__(kThreads)
    wide_gradient_kernel(const Wide<T> p, const Signal<const T> dout, Accumulator<T>* g) {
  const auto at = p.spot(0);
  if (!at.active) return;
  Accumulator<T> v = widen(*dout.at(at.b, at.c, at.t));
  if (p.of.silu) v *= silu_slope(p.sum(at.b, at.c, at.t));
  g[p.at(at.b, at.c, at.t)] = p.padding(at.b, at.t) ? Accumulator<T>(0) : v;
}

// Gradients of the inputs from `first` on; the negative ones are initial states.
template <class T>
__global__ void __launch_bounds__(kThreads)
    wide_input_kernel(const Wide<T> p, const Accumulator<T>* g, const Signal<T> dx,
                      const Signal<T> dinitial, int first) {
  const auto at = p.spot(first);
  if (!at.active) return;
  Accumulator<T> sum = 0;
  for (int k = 0; k < p.width; ++k) {
    const int64_t t = at.t + (p.width - 1) - k;
    if (t >= 0 && t < p.of.length && p.connected(at.b, t, at.t))
      sum += p.of.weight[at.c * p.width + k] * g[p.at(at.b, at.c, t)];
  }
  T* const to = at.t >= 0 ? dx.at(at.b, at.c, at.t) : dinitial.at(at.b, at.c, at.t + p.width - 1);
  *to = narrow<T>(sum);
}

// A block has one tap of one channel, or its bias.
template <class T>
__global__ void __launch_bounds__(kThreads)
    wide_weight_kernel(const Wide<T> p, const Accumulator<T>* g, Accumulator<T>* dweight,
                       Accumulator<T>* dbias) {
  using F = Accumulator<T>;
  struct Partial {
    F of_warp[kThreads / 32];
  };
  Partial& partial = shared_memory<Partial>();
  const int64_t c = blockIdx.x / (p.width + 1);
  const int k = static_cast<int>(blockIdx.x % (p.width + 1));
  const int thread = static_cast<int>(threadIdx.x);
  F sum = 0;
  for (int64_t i = thread; i < p.of.batch * p.of.length; i += kThreads) {
    const int64_t b = i / p.of.length, t = i % p.of.length, from = t - (p.width - 1) + k;
    const F own = g[p.at(b, c, t)];
    if (k == p.width) {
      sum += own;
    } else if (p.connected(b, t, from)) {
      sum += own * p.input(b, c, from);
    }
  }
  for (int flip = 1; flip < 32; flip *= 2) sum += __shfl_xor_sync(kFullWarp, sum, flip);
  if (thread % 32 == 0) partial.of_warp[thread / 32] = sum;
  __syncthreads();
  if (thread != 0) return;
  sum = 0;
  for (int i = 0; i < kThreads / 32; ++i) sum += partial.of_warp[i];
  if (k < p.width) {
    dweight[c * p.width + k] = sum;
  } else if (dbias) {
    dbias[c] = sum;
  }
}

// A thread has one channel of one sequence.
template <class T>
__global__ void __launch_bounds__(kThreads)
    wide_update_kernel(const Signal<const T> x, const Signal<T> state, const Signal<T> out,
                       const Accumulator<T>* weight, const Accumulator<T>* bias,
                       const int32_t* positions, int64_t items, int64_t channels, int64_t length,
                       int64_t size, int width, bool with_silu) {
  using F = Accumulator<T>;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= items) return;
  const int64_t b = item / channels, c = item % channels;
  const int64_t start = positions ? positions[b] : size;
  const auto column = [&](int64_t t) { return ((start + t) % size + size) % size; };
  for (int64_t t = 0; t < length; ++t) {
    F y = bias ? bias[c] : F(0);
    for (int k = 0; k < width; ++k) {
      const int64_t from = t - (width - 1) + k;
      y += weight[c * width + k] *
           (from < 0 ? widen(*state.at(b, c, column(from))) : widen(*x.at(b, c, from)));
    }
    *out.at(b, c, t) = narrow<T>(with_silu ? silu(y) : y);
    // what this overwrites is `size` positions old, and only outputs up to this one look so far back
    if (positions && size > 0) *state.at(b, c, column(t)) = *x.at(b, c, t);
  }
  if (positions) return;
  for (int64_t i = 0; i < size; ++i) {
    const int64_t from = i + length;
    *state.at(b, c, i) = from < size ? *state.at(b, c, from) : *x.at(b, c, from - size);
  }
}

template <class T>
Wide<T> describe_wide(const ConvProblem& p) {
  const Problem<T> problem = describe<T>(p);
  return {problem, p.width, by_columns(problem.x)};
}

template <class T>
cudaError_t backward_wide(const ConvBackward& call, void* workspace, void* stream) {
  using F = Accumulator<T>;
  const Wide<T> p = describe_wide<T>(call.problem);
  F* const g = static_cast<F*>(workspace);
  FirstError run;
  run(launch(wide_gradient_kernel<T>, p.grid(0), kThreads, 0, stream, p, signal<const T>(call.dout), g));
  const int first = call.dinitial_states.data ? 1 - p.width : 0;
  run(launch(wide_input_kernel<T>, p.grid(first), kThreads, 0, stream, p, static_cast<const F*>(g),
             signal<T>(call.dx), signal<T>(call.dinitial_states), first));
  run(launch(wide_weight_kernel<T>, blocks_for(call.problem.dim * (p.width + 1), 1), kThreads,
             kThreads / 32 * sizeof(F), stream, p, static_cast<const F*>(g),
             static_cast<F*>(call.dweight), static_cast<F*>(call.dbias)));
  return run.first();
}

}  // namespace

cudaError_t forward_wide(const ConvForward& call, void* stream) {
  return with_type(call.problem.dtype, [&](auto t) {
    using T = decltype(t);
    const Wide<T> p = describe_wide<T>(call.problem);
    return launch(wide_forward_kernel<T>, p.grid(0), kThreads, 0, stream, p, signal<T>(call.out));
  });
}

int64_t wide_workspace(const ConvBackward& call) {
  const ConvProblem& p = call.problem;
  return p.batch * p.dim * p.length * static_cast<int64_t>(p.dtype == DType::kFloat64 ? 8 : 4);
}

cudaError_t backward_wide(const ConvBackward& call, void* workspace, void* stream) {
  return with_type(call.problem.dtype, [&](auto t) {
    return backward_wide<decltype(t)>(call, workspace, stream);
  });
}

cudaError_t update_wide(const ConvUpdate& call, void* stream) {
  return with_type(call.dtype, [&](auto t) {
    using T = decltype(t);
    using F = Accumulator<T>;
    const int64_t items = call.batch * call.dim;
    return launch(wide_update_kernel<T>, blocks_for(items, kThreads), kThreads, 0, stream,
                  signal<const T>(call.x), signal<T>(call.state), signal<T>(call.out),
                  static_cast<const F*>(call.weight), static_cast<const F*>(call.bias),
                  call.cache_seqlens, items, call.dim, call.length, call.size, call.width, call.silu);
  });
}

}  // namespace conv
}  // namespace zoo::cuda
