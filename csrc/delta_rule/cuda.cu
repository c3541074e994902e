// The delta rule on a GPU. A block of threads has 32 columns of one head's state in shared memory, a column a
// lane, and its rows dealt out to the warps; steps are walked through one by one. For what is computed going
// back see cpu_block.h.
#include "common/cuda.cuh"
#include "delta_rule/delta_rule.h"

namespace zoo::cuda {
namespace {

constexpr int kColumns = 32, kWarps = 8, kThreads = kColumns * kWarps;

// Where a thread stands, and where it finds what.
template <class F>
struct Place {
  const DeltaProblem& p;
  int64_t batch, head, column;
  int lane, warp;
  bool active;  // a lane without a column computes zeros

  __device__ explicit Place(const DeltaProblem& p)
      : p(p), batch(blockIdx.x / p.heads), head(blockIdx.x % p.heads),
        column(static_cast<int64_t>(blockIdx.y) * kColumns + threadIdx.x % kColumns),
        lane(static_cast<int>(threadIdx.x) % kColumns),
        warp(static_cast<int>(threadIdx.x) / kColumns), active(column < p.head_dim) {}

  __device__ int64_t row(int64_t t) const { return (batch * p.length + t) * p.heads + head; }
  __device__ int64_t matrix() const { return (batch * p.heads + head) * p.state * p.head_dim; }
  __device__ int64_t border(int64_t t) const {
    const int64_t spans = (p.length + kDeltaSpan - 1) / kDeltaSpan;
    return ((batch * spans + t / kDeltaSpan) * p.heads + head) * p.state * p.head_dim;
  }
  __device__ const F* keys(const void* data, int64_t t) const {
    return static_cast<const F*>(data) + row(t) * p.state;
  }
  __device__ F value(const void* data, int64_t t) const {
    return active ? static_cast<const F*>(data)[row(t) * p.head_dim + column] : F(0);
  }
  __device__ F number(const void* data, int64_t t) const {
    return static_cast<const F*>(data)[row(t)];
  }

  __device__ void load(F* state, const void* from, int64_t start) const {
    for (int64_t n = warp; n < p.state; n += kWarps)
      state[n * kColumns + lane] =
          from && active ? static_cast<const F*>(from)[start + n * p.head_dim + column] : F(0);
  }
  __device__ void store(void* to, const F* state, int64_t start) const {
    if (!active) return;
    for (int64_t n = warp; n < p.state; n += kWarps)
      static_cast<F*>(to)[start + n * p.head_dim + column] = state[n * kColumns + lane];
  }
};

// The sum of what the warps have for a column. `sums`: [warp][lane]; the barrier inside is the only one.
template <class F>
__device__ F over_warps(F* sums, F value) {
  sums[threadIdx.x] = value;
  __syncthreads();
  F sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += sums[w * kColumns + threadIdx.x % kColumns];
  return sum;
}

template <class F>
__device__ F over_lanes(F value) {
  for (int flip = 1; flip < 32; flip *= 2) value += __shfl_xor_sync(kFullWarp, value, flip);
  return value;
}

template <class F>
struct Step {
  F found, written;  // r and u
};

// From one state to the next, which may be the same memory; `out` takes this warp's part of S^T q.
template <class F, bool kBeta, bool kDecay>
__device__ Step<F> take_step(const Place<F>& place, const F* from, F* to, F* sums, int64_t t, F& out) {
  const DeltaProblem& p = place.p;
  const F *const k = place.keys(p.k, t), *const q = place.keys(p.q, t);
  const F a = kDecay ? place.number(p.decay, t) : F(1);
  Step<F> step{F(0), place.value(p.v, t)};
  if (kBeta) {
    for (int64_t n = place.warp; n < p.state; n += kWarps)
      step.found += k[n] * from[n * kColumns + place.lane];
    step.found = over_warps(sums, step.found);
    step.written = place.number(p.beta, t) * (step.written - a * step.found);
  }
  out = 0;
  for (int64_t n = place.warp; n < p.state; n += kWarps) {
    const F s = a * from[n * kColumns + place.lane] + k[n] * step.written;
    to[n * kColumns + place.lane] = s;
    out += q[n] * s;
  }
  return step;
}

template <class F, bool kBeta, bool kDecay>
__global__ void __launch_bounds__(kThreads) forward_kernel(const DeltaForward call) {
  const DeltaProblem& p = call.problem;
  const Place<F> place(p);
  F* const state = &shared_memory<F>();
  F* const sums = state + p.state * kColumns;  // three of [warp][lane]
  place.load(state, p.initial_state, place.matrix());
  for (int64_t t = 0; t < p.length; ++t) {
    if (call.borders && t % kDeltaSpan == 0) place.store(call.borders, state, place.border(t));
    F out;
    take_step<F, kBeta, kDecay>(place, state, state, sums, t, out);
    // In turns, as the first warp may still read those of the step before.
    out = over_warps(sums + (1 + t % 2) * kThreads, out);
    if (place.warp == 0 && place.active)
      static_cast<F*>(call.out)[place.row(t) * p.head_dim + place.column] = out;
  }
  place.store(call.last_state, state, place.matrix());
}

// What blocks of columns have apart before it is added up: [block][batch, length, heads, ...].
template <class F>
struct Parts {
  F *dq, *dk, *dbeta, *ddecay;
  F *states, *found;  // [block][step of a span][state][lane], [block][step of a span][lane]
};

template <class F, bool kBeta, bool kDecay>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const DeltaBackward call, const Parts<F> parts) {
  const DeltaProblem& p = call.problem;
  const Place<F> place(p);
  const int64_t size = p.state * kColumns;
  F* const G = &shared_memory<F>();
  F *const sums = G + size, *const other = sums + kThreads;
  const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
  const int64_t rows = p.batch * p.length * p.heads;
  F* const states = parts.states + block * (kDeltaSpan + 1) * size;
  F* const held = parts.found + block * kDeltaSpan * kColumns;
  place.load(G, call.dlast_state, place.matrix());
  for (int64_t end = p.length; end > 0;) {
    const int64_t begin = (end - 1) / kDeltaSpan * kDeltaSpan;
    place.load(states, call.borders, place.border(begin));
    for (int64_t t = begin; t < end; ++t) {
      F* const from = states + (t - begin) * size;
      F none;
      const Step<F> step =
          take_step<F, kBeta, kDecay>(place, from, from + size, t % 2 ? other : sums, t, none);
      if (place.warp == 0) held[(t - begin) * kColumns + place.lane] = step.found;
    }
    __syncthreads();
    for (int64_t t = end - 1; t >= begin; --t) {
      const F *const before = states + (t - begin) * size, *const after = before + size;
      const F *const k = place.keys(p.k, t), *const q = place.keys(p.q, t);
      const F a = kDecay ? place.number(p.decay, t) : F(1);
      const F dout = call.dout ? place.value(call.dout, t) : F(0);
      const int64_t row = blockIdx.y * rows + place.row(t);
      F du = 0;
      for (int64_t n = place.warp; n < p.state; n += kWarps) {
        const F g = G[n * kColumns + place.lane] + q[n] * dout;
        G[n * kColumns + place.lane] = g;
        du += k[n] * g;
        const F dq = over_lanes(after[n * kColumns + place.lane] * dout);
        if (place.lane == 0) parts.dq[row * p.state + n] = dq;
      }
      du = over_warps(sums, du);
      F u = place.value(p.v, t), w = du, da = 0;
      if (kBeta) {
        const F beta = place.number(p.beta, t), found = held[(t - begin) * kColumns + place.lane];
        const F error = u - a * found;
        u = beta * error;
        w = beta * du;
        if (place.warp == 0) {
          const F dbeta = over_lanes(du * error);
          if (place.lane == 0) parts.dbeta[row] = dbeta;
          da = -found * w;
        }
      }
      if (place.warp == 0 && place.active)
        static_cast<F*>(call.dv)[place.row(t) * p.head_dim + place.column] = w;
      for (int64_t n = place.warp; n < p.state; n += kWarps) {
        F g = G[n * kColumns + place.lane];
        const F s = before[n * kColumns + place.lane];
        const F dk = over_lanes(kBeta ? g * u - a * s * w : g * u);
        if (place.lane == 0) parts.dk[row * p.state + n] = dk;
        da += g * s;
        if (kBeta) g -= k[n] * w;
        G[n * kColumns + place.lane] = a * g;
      }
      da = over_warps(other, da);
      if (kDecay && place.warp == 0) {
        da = over_lanes(da);
        if (place.lane == 0) parts.ddecay[row] = da;
      }
    }
    end = begin;
  }
  if (call.dinitial_state) place.store(call.dinitial_state, G, place.matrix());
}

int64_t blocks_of(const DeltaProblem& p) { return (p.head_dim + kColumns - 1) / kColumns; }

dim3 grid_for(const DeltaProblem& p) { return grid_of(p.batch * p.heads, blocks_of(p)); }

template <class F>
size_t memory_bytes(const DeltaProblem& p) {
  return static_cast<size_t>(p.state * kColumns + 3 * kThreads) * sizeof(F);
}

template <class F>
int64_t lay_out(const DeltaProblem& p, void* workspace, Parts<F>& parts) {
  Scratch scratch(workspace);
  const int64_t blocks = blocks_of(p), rows = p.batch * p.length * p.heads;
  const int64_t all = blocks * p.batch * p.heads;
  parts.dq = scratch.take<F>(blocks * rows * p.state);
  parts.dk = scratch.take<F>(blocks * rows * p.state);
  parts.dbeta = scratch.take<F>(blocks * rows);
  parts.ddecay = scratch.take<F>(blocks * rows);
  parts.states = scratch.take<F>(all * (kDeltaSpan + 1) * p.state * kColumns);
  parts.found = scratch.take<F>(all * kDeltaSpan * kColumns);
  return scratch.size();
}

// f.template operator()<F, kBeta, kDecay>() for the kind of the problem.
template <class Run>
auto with_kind(const DeltaProblem& p, const Run& run) {
  const auto with_scalar = [&]<class F>() {
    if (p.beta && p.decay) return run.template operator()<F, true, true>();
    if (p.beta) return run.template operator()<F, true, false>();
    if (p.decay) return run.template operator()<F, false, true>();
    return run.template operator()<F, false, false>();
  };
  if (p.dtype == DType::kFloat64) return with_scalar.template operator()<double>();
  return with_scalar.template operator()<float>();
}

}  // namespace

int64_t delta_workspace(const DeltaBackward& call) {
  return with_kind(call.problem, [&]<class F, bool, bool>() {
    Parts<F> parts;
    return lay_out(call.problem, nullptr, parts);
  });
}

const char* delta_forward(const DeltaForward& call, void* stream) {
  return message(with_kind(call.problem, [&]<class F, bool kBeta, bool kDecay>() {
    return launch(forward_kernel<F, kBeta, kDecay>, grid_for(call.problem), kThreads,
                  memory_bytes<F>(call.problem), stream, call);
  }));
}

const char* delta_backward(const DeltaBackward& call, void* workspace, void* stream) {
  const DeltaProblem& p = call.problem;
  return message(with_kind(p, [&]<class F, bool kBeta, bool kDecay>() {
    Parts<F> parts;
    lay_out(p, workspace, parts);
    FirstError error;
    error(launch(backward_kernel<F, kBeta, kDecay>, grid_for(p), kThreads, memory_bytes<F>(p), stream,
                 call, parts));
    const int64_t blocks = blocks_of(p), rows = p.batch * p.length * p.heads;
    const auto add_up = [&](const F* from, void* to, int64_t size) {
      error(sum_rows(from, static_cast<F*>(to), blocks, rows * size, stream));
    };
    add_up(parts.dq, call.dq, p.state);
    add_up(parts.dk, call.dk, p.state);
    if (kBeta) add_up(parts.dbeta, call.dbeta, 1);
    if (kDecay) add_up(parts.ddecay, call.ddecay, 1);
    return error.first();
  }));
}

}  // namespace zoo::cuda
