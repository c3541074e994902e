// The recurrent cells on a GPU. A block of threads has one head of a few sequences and walks through all
// steps, its recurrent matrix in shared memory where that is large enough; no block waits for another.
#include "common/cuda.cuh"
#include "recurrent_cell/recurrent_cell.h"
#define ZOO_CELL __device__ __forceinline__
#include "recurrent_cell/cells.h"

namespace zoo::cuda {
namespace {

constexpr int kThreads = 256, kRows = 8;  // sequences of a block

template <class F>
struct Math {
  using Number = F;
  static constexpr double kHuge = sizeof(F) == 8 ? 1e300 : 1e37;
  static constexpr double kMostExponent = sizeof(F) == 8 ? 700 : 80;

  static __device__ __forceinline__ F set(double x) { return static_cast<F>(x); }
  static __device__ __forceinline__ F max(F a, F b) { return a > b ? a : b; }
  static __device__ __forceinline__ F min(F a, F b) { return a < b ? a : b; }
  static __device__ __forceinline__ F exp(F x) { return exp_fast(x); }
  static __device__ __forceinline__ F sigmoid(F x) { return cuda::sigmoid(x); }
  static __device__ __forceinline__ F softplus(F x) { return cuda::softplus(x); }
};

template <class F, template <class> class Kind>
struct Walk {
  using C = Kind<Math<F>>;
  static constexpr int kStates = C::kStates, kGates = C::kGates, kRecurrent = C::kRecurrent;

  const CellProblem& p;
  int64_t head, first, rows;

  __device__ explicit Walk(const CellProblem& p)
      : p(p), head(blockIdx.x % p.heads), first(blockIdx.x / p.heads * kRows),
        rows(p.batch - first < kRows ? p.batch - first : kRows) {}

  __device__ int64_t gate_at(int64_t row, int64_t t, int gates, int gate, int64_t c) const {
    return (((row * p.length + t) * gates + gate) * p.heads + head) * p.channels + c;
  }
  __device__ int64_t state_at(int state, int64_t row, int64_t t, int64_t c) const {
    return (((state * p.batch + row) * p.length + t) * p.heads + head) * p.channels + c;
  }
  __device__ int64_t first_at(int state, int64_t row, int64_t c) const {
    return ((state * p.batch + row) * p.heads + head) * p.channels + c;
  }
  // Of R as it is.
  __device__ F weight(int64_t gate, int64_t out, int64_t in) const {
    return static_cast<const F*>(p.R)[((gate * p.heads + head) * p.channels + out) * p.channels + in];
  }
  // f(row of the block, channel) for all of them, dealt out to the threads.
  template <class Body>
  __device__ void each(const Body& body) const {
    for (int64_t i = threadIdx.x; i < rows * p.channels; i += kThreads)
      body(i / p.channels, i % p.channels);
  }
};

template <class F, template <class> class Kind, bool kOnChip>
__global__ void __launch_bounds__(kThreads) forward_kernel(const CellForward call) {
  using W = Walk<F, Kind>;
  const W walk(call.problem);
  const CellProblem& p = walk.p;
  const int64_t D = p.channels, columns = W::kRecurrent * D, plane = kRows * D;
  F* const states = &shared_memory<F>();       // [state][row][channel]
  F* const raw = states + W::kStates * plane;  // [row][gate of R, channel]
  F* const R = raw + kRows * columns;          // [in][gate, out]
  if (kOnChip) {
    for (int64_t i = threadIdx.x; i < columns * D; i += kThreads)
      R[i % D * columns + i / D] = walk.weight(i / D / D, i / D % D, i % D);
  }
  for (int64_t i = threadIdx.x; i < W::kStates * plane; i += kThreads) states[i] = 0;
  __syncthreads();
  walk.each([&](int64_t m, int64_t c) {
    for (int s = 0; s < W::kStates; ++s)
      states[s * plane + m * D + c] =
          static_cast<const F*>(p.initial_states)[walk.first_at(s, walk.first + m, c)];
  });
  __syncthreads();
  for (int64_t t = 0; t < p.length; ++t) {
    for (int64_t column = threadIdx.x; column < columns; column += kThreads) {
      F sums[kRows] = {};
      for (int64_t in = 0; in < D; ++in) {
        const F weight =
            kOnChip ? R[in * columns + column] : walk.weight(column / D, column % D, in);
#pragma unroll
        for (int m = 0; m < kRows; ++m) sums[m] += weight * states[m * D + in];
      }
      for (int m = 0; m < kRows; ++m) raw[m * columns + column] = sums[m];
    }
    __syncthreads();
    walk.each([&](int64_t m, int64_t c) {
      const int64_t row = walk.first + m;
      F gates[W::kGates], s[W::kStates];
      for (int g = 0; g < W::kGates; ++g) {
        const int input = W::C::input(g);
        F gate = static_cast<const F*>(call.b)[(g * p.heads + walk.head) * D + c];
        if (g < W::kRecurrent) gate += raw[m * columns + g * D + c];
        if (input >= 0)
          gate += static_cast<const F*>(call.Wx)[walk.gate_at(row, t, W::C::kInputs, input, c)];
        if (call.gates) static_cast<F*>(call.gates)[walk.gate_at(row, t, W::kGates, g, c)] = gate;
        gates[g] = gate;
      }
      for (int i = 0; i < W::kStates; ++i) s[i] = states[i * plane + m * D + c];
      W::C::forward(gates, s);
      for (int i = 0; i < W::kStates; ++i) {
        states[i * plane + m * D + c] = s[i];
        static_cast<F*>(call.states)[walk.state_at(i, row, t, c)] = s[i];
      }
    });
    __syncthreads();
  }
}

template <class F, template <class> class Kind, bool kOnChip>
__global__ void __launch_bounds__(kThreads) backward_kernel(const CellBackward call) {
  using W = Walk<F, Kind>;
  const W walk(call.problem);
  const CellProblem& p = walk.p;
  const int64_t D = p.channels, columns = W::kRecurrent * D, plane = kRows * D;
  F* const d = &shared_memory<F>();       // [state][row][channel]
  F* const raw = d + W::kStates * plane;  // [row][gate of R, channel]: their gradients
  F* const R = raw + kRows * columns;     // [gate, out][in]
  if (kOnChip) {
    for (int64_t i = threadIdx.x; i < columns * D; i += kThreads)
      R[i] = walk.weight(i / D / D, i / D % D, i % D);
  }
  for (int64_t i = threadIdx.x; i < W::kStates * plane; i += kThreads) d[i] = 0;
  __syncthreads();
  const F* const all = static_cast<const F*>(call.states);
  for (int64_t t = p.length - 1; t >= 0; --t) {
    walk.each([&](int64_t m, int64_t c) {
      const int64_t row = walk.first + m;
      F gates[W::kGates], before[W::kStates], after[W::kStates], gradient[W::kStates];
      for (int g = 0; g < W::kGates; ++g)
        gates[g] = static_cast<const F*>(call.gates)[walk.gate_at(row, t, W::kGates, g, c)];
      for (int s = 0; s < W::kStates; ++s) {
        before[s] = t > 0 ? all[walk.state_at(s, row, t - 1, c)]
                          : static_cast<const F*>(p.initial_states)[walk.first_at(s, row, c)];
        after[s] = all[walk.state_at(s, row, t, c)];
        gradient[s] = d[s * plane + m * D + c] +
                      static_cast<const F*>(call.dstates)[walk.state_at(s, row, t, c)];
      }
      W::C::backward(gates, before, after, gradient);
      for (int s = 0; s < W::kStates; ++s) d[s * plane + m * D + c] = gradient[s];
      for (int g = 0; g < W::kGates; ++g) {
        static_cast<F*>(call.dgates)[walk.gate_at(row, t, W::kGates, g, c)] = gates[g];
        if (g < W::kRecurrent) raw[m * columns + g * D + c] = gates[g];
      }
    });
    __syncthreads();
    walk.each([&](int64_t m, int64_t in) {
      F sum = d[m * D + in];
      for (int64_t column = 0; column < columns; ++column)
        sum += raw[m * columns + column] *
               (kOnChip ? R[column * D + in] : walk.weight(column / D, column % D, in));
      d[m * D + in] = sum;
    });
    __syncthreads();
  }
  walk.each([&](int64_t m, int64_t c) {
    for (int s = 0; s < W::kStates; ++s)
      static_cast<F*>(call.dinitial_states)[walk.first_at(s, walk.first + m, c)] =
          d[s * plane + m * D + c];
  });
}

// dR[gate, head, out, in], the sum over all steps of a gate's gradient times the state before.
template <class F, template <class> class Kind>
__global__ void __launch_bounds__(kThreads) weights_kernel(const CellBackward call) {
  using W = Walk<F, Kind>;
  const CellProblem& p = call.problem;
  const int64_t D = p.channels, i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= W::kRecurrent * p.heads * D * D) return;
  const int64_t in = i % D, out = i / D % D, head = i / D / D % p.heads, gate = i / D / D / p.heads;
  const int64_t step = p.heads * D;
  F sum = 0;
  for (int64_t row = 0; row < p.batch; ++row) {
    const F* const first = static_cast<const F*>(p.initial_states) + row * step + head * D + in;
    const F* const h = static_cast<const F*>(call.states) + row * p.length * step + head * D + in;
    const F* const g = static_cast<const F*>(call.dgates) +
                       (row * p.length * W::kGates + gate) * step + head * D + out;
    for (int64_t t = 0; t < p.length; ++t)
      sum += g[t * W::kGates * step] * (t > 0 ? h[(t - 1) * step] : *first);
  }
  static_cast<F*>(call.dR)[i] = sum;
}

int most_shared_bytes() {
  int device = 0, bytes = 48 * 1024;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

template <class F, template <class> class Kind, template <class, template <class> class, bool> class Pass,
          class Call>
cudaError_t walk_through(const Call& call, void* stream) {
  using W = Walk<F, Kind>;
  const CellProblem& p = call.problem;
  const int64_t plane = kRows * p.channels, columns = W::kRecurrent * p.channels;
  const int64_t small = (W::kStates * plane + kRows * columns) * static_cast<int64_t>(sizeof(F));
  const int64_t large = small + columns * p.channels * static_cast<int64_t>(sizeof(F));
  const dim3 grid = grid_of((p.batch + kRows - 1) / kRows * p.heads);
  if (large <= most_shared_bytes())
    return launch(Pass<F, Kind, true>::kernel(), grid, kThreads, static_cast<size_t>(large), stream, call);
  return launch(Pass<F, Kind, false>::kernel(), grid, kThreads, static_cast<size_t>(small), stream, call);
}

template <class F, template <class> class Kind, bool kOnChip>
struct ForwardPass {
  static auto kernel() { return forward_kernel<F, Kind, kOnChip>; }
};

template <class F, template <class> class Kind, bool kOnChip>
struct BackwardPass {
  static auto kernel() { return backward_kernel<F, Kind, kOnChip>; }
};

template <class F, template <class> class Kind>
cudaError_t forward(const CellForward& call, void* stream) {
  return walk_through<F, Kind, ForwardPass>(call, stream);
}

template <class F, template <class> class Kind>
cudaError_t backward(const CellBackward& call, void* stream) {
  using W = Walk<F, Kind>;
  const CellProblem& p = call.problem;
  FirstError error;
  error(walk_through<F, Kind, BackwardPass>(call, stream));
  error(launch(weights_kernel<F, Kind>,
               blocks_for(W::kRecurrent * p.heads * p.channels * p.channels, kThreads), kThreads, 0,
               stream, call));
  error(sum_rows(static_cast<const F*>(call.dgates), static_cast<F*>(call.db), p.batch * p.length,
                 W::kGates * p.heads * p.channels, stream));
  return error.first();
}

template <class F, class Call>
cudaError_t with_cell(const Call& call, void* stream) {
  constexpr bool kForward = std::is_same_v<Call, CellForward>;
  const auto run = [&]<template <class> class Kind>() {
    if constexpr (kForward) {
      return forward<F, Kind>(call, stream);
    } else {
      return backward<F, Kind>(call, stream);
    }
  };
  switch (call.problem.cell) {
    case Cell::kElman: return run.template operator()<cells::Elman>();
    case Cell::kLstm: return run.template operator()<cells::Lstm>();
    case Cell::kGru: return run.template operator()<cells::Gru>();
    default: return run.template operator()<cells::Slstm>();
  }
}

template <class Call>
const char* run(const Call& call, void* stream) {
  return message(call.problem.dtype == DType::kFloat64 ? with_cell<double>(call, stream)
                                                       : with_cell<float>(call, stream));
}

}  // namespace

const char* cell_forward(const CellForward& call, void* stream) { return run(call, stream); }

const char* cell_backward(const CellBackward& call, void* stream) { return run(call, stream); }

}  // namespace zoo::cuda
