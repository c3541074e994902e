// Mamba-2's scan on a GPU: what its kernels share. For the equations see cpu_chunk.h and cpu_backward.h.
//
// A block has a chunk of 64 steps of one head. All work is products of matrices of at most 64 rows and
// columns: 256 threads hold 4 x 4 elements of the result each, and slabs of both operands pass through
// shared memory, where functions that compute their elements put them. All sums are float32.
#pragma once

#include "common/cuda.cuh"
#include "ssd/ssd.h"

namespace zoo::cuda::ssd {

constexpr int kSteps = 64;    // of a chunk
constexpr int kTile = 64;     // rows and columns of a product
constexpr int kThreads = 256;
constexpr int kSlab = 16;     // of the dimension that is summed over, in shared memory at a time
constexpr int kPitch = kTile + 4;
constexpr int kEdge = 4;      // rows and columns of a thread
constexpr int kLanes = kTile / kEdge;  // threads along a row; they are in one warp
static_assert(kSteps == kSsdSpan && kLanes * kLanes == kThreads);

// [batch, position, head or group, channel or state].
template <class T>
struct Signal {
  T* data;
  int64_t batch, step, head;
};

template <class T>
struct Problem {
  using F = Accumulator<T>;
  int64_t batch, length, heads, channels, groups, states;
  int chunks, channel_tiles, state_tiles;
  bool reverse;
  Signal<const T> x, b, c, z;  // z may be absent
  const F *dt, *a;             // [batch, position, head]; [head]
  const F* skip;               // may be absent
  int64_t skip_head, skip_channel;
  const F* initial;       // [batch, head, channel, state], may be absent
  const int* sequence;    // [batch, position], may be absent
};

// Which chunk a block has. Its results over channels or states are cut into tiles, counted by blockIdx.y.
template <class T>
struct Place {
  int64_t batch, head, group, chunk, begin;
  int count;  // steps

  __device__ explicit Place(const Problem<T>& p) {
    int64_t rest = blockIdx.x;
    head = rest % p.heads;
    rest /= p.heads;
    chunk = rest % p.chunks;
    batch = rest / p.chunks;
    group = head / (p.heads / p.groups);
    begin = chunk * kSteps;
    count = static_cast<int>(p.length - begin < kSteps ? p.length - begin : kSteps);
  }

  // In memory, of step s of the chunk.
  __device__ int64_t position(const Problem<T>& p, int64_t s) const {
    return p.reverse ? p.length - 1 - (begin + s) : begin + s;
  }
  // [batch, chunk, head]
  __device__ int64_t row(const Problem<T>& p) const {
    return (batch * p.chunks + chunk) * p.heads + head;
  }

  // Element i of step s of a signal; 0 outside, and where there is none.
  template <class U>
  __device__ Accumulator<U> at(const Problem<T>& p, const Signal<const U>& signal, int64_t which,
                               int s, int64_t i, int64_t size) const {
    if (s >= count || i >= size || !signal.data) return 0;
    return widen(signal.data[batch * signal.batch + position(p, s) * signal.step +
                             which * signal.head + i]);
  }
  __device__ Accumulator<T> x(const Problem<T>& p, int s, int64_t i) const {
    return at(p, p.x, head, s, i, p.channels);
  }
  __device__ Accumulator<T> b(const Problem<T>& p, int s, int64_t n) const {
    return at(p, p.b, group, s, n, p.states);
  }
  __device__ Accumulator<T> c(const Problem<T>& p, int s, int64_t n) const {
    return at(p, p.c, group, s, n, p.states);
  }
};

template <class F>
struct Slabs {
  F a[kSlab][kPitch], b[kSlab][kPitch];
};

// Step sizes and decays of a chunk, in shared memory.
template <class F>
struct Decays {
  F dt[kSteps];
  F high[kSteps], low[kSteps];  // log2 of the decay from the start of the chunk, in two parts
  F enter[kSteps], leave[kSteps];
  int segment[kSteps];  // packed sequences that have begun inside the chunk
  F keep;

  // By all threads of the block; there is a barrier at its end.
  template <class T>
  __device__ void fill(const Problem<T>& p, const Place<T>& place) {
    const int s = static_cast<int>(threadIdx.x);
    if (s < kSteps) {
      dt[s] = s < place.count
                  ? p.dt[(place.batch * p.length + place.position(p, s)) * p.heads + place.head]
                  : F(0);
      const int64_t step = place.begin + s;
      const int* const ids = p.sequence ? p.sequence + place.batch * p.length : nullptr;
      segment[s] = ids && s < place.count && step > 0 &&
                   ids[place.position(p, s)] != ids[place.position(p, s - 1)];
    }
    __syncthreads();
    int segments = 0;
    if (s < kSteps) {
      double total = 0;
      for (int i = 0; i <= s; ++i) {
        total += dt[i];
        segments += segment[i];
      }
      total *= p.a[place.head] * kLog2E;
      high[s] = static_cast<F>(total);
      low[s] = static_cast<F>(total - high[s]);
    }
    __syncthreads();
    if (s < kSteps) segment[s] = segments;
    __syncthreads();
    if (s < kSteps) {
      const int last = place.count - 1;
      const bool inside = s < place.count;
      enter[s] = inside && segments == 0 ? exp2_fast(high[s]) : F(0);
      leave[s] = inside && segments == segment[last]
                     ? exp2_fast((high[last] - high[s]) + (low[last] - low[s]))
                     : F(0);
      if (s == last) keep = enter[s];
    }
    __syncthreads();
  }

  // From step j to step t; 0 if nothing passes.
  __device__ F between(int j, int t) const {
    if (t < j || segment[t] != segment[j]) return 0;
    return exp2_fast((high[t] - high[j]) + (low[t] - low[j]));
  }
};

template <class F>
struct Tile {
  F v[kEdge][kEdge] = {};

  __device__ static int row(int i) { return static_cast<int>(threadIdx.x) / kLanes * kEdge + i; }
  __device__ static int column(int j) { return static_cast<int>(threadIdx.x) % kLanes * kEdge + j; }

  // f(element, row, column).
  template <class G>
  __device__ void each(const G& f) {
#pragma unroll
    for (int i = 0; i < kEdge; ++i) {
#pragma unroll
      for (int j = 0; j < kEdge; ++j) f(v[i][j], row(i), column(j));
    }
  }
};

// Which of its two indices neighbouring threads count along when they compute an operand's elements: the one
// whose elements are neighbours in memory.
enum class Along { kSum, kEdge };

template <Along kAlong, class F, class G>
__device__ void fill_slab(F (*slab)[kPitch], int64_t k0, const G& element) {
#pragma unroll
  for (int e = static_cast<int>(threadIdx.x); e < kSlab * kTile; e += kThreads) {
    const int k = kAlong == Along::kSum ? e % kSlab : e / kTile;
    const int m = kAlong == Along::kSum ? e / kSlab : e % kTile;
    slab[k][m] = element(k0 + k, m);
  }
}

// tile[m][n] += sum over k < count of a(k, m) b(k, n), which must give 0 for k outside; m, n < kTile.
template <Along kA, Along kB, class F, class A, class B>
__device__ void multiply(Tile<F>& tile, Slabs<F>& slabs, int64_t count, const A& a, const B& b) {
  for (int64_t k0 = 0; k0 < count; k0 += kSlab) {
    __syncthreads();
    fill_slab<kA>(slabs.a, k0, a);
    fill_slab<kB>(slabs.b, k0, b);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kSlab; ++k) {
      F left[kEdge], right[kEdge];
      load_aligned<16>(left, &slabs.a[k][Tile<F>::row(0)]);
      load_aligned<16>(right, &slabs.b[k][Tile<F>::column(0)]);
#pragma unroll
      for (int i = 0; i < kEdge; ++i) {
#pragma unroll
        for (int j = 0; j < kEdge; ++j) tile.v[i][j] += left[i] * right[j];
      }
    }
  }
}

// Sums along the rows of the whole tile of what the threads have of each of their rows, added to
// sums[row] in shared memory. Rows belong to one warp, so there is nothing to wait for.
template <class F>
__device__ void add_row_sums(F* sums, F (&own)[kEdge]) {
#pragma unroll
  for (int i = 0; i < kEdge; ++i) {
#pragma unroll
    for (int flip = 1; flip < kLanes; flip *= 2) own[i] += __shfl_xor_sync(kFullWarp, own[i], flip);
    if (Tile<F>::column(0) == 0) sums[Tile<F>::row(i)] += own[i];
  }
}

// [state][channel] of the states before the chunks, or of the gradients of those behind them; elements
// outside are 0.
template <class F, class T>
__device__ F state_at(const F* states, const Problem<T>& p, const Place<T>& place, int64_t n,
                      int64_t channel) {
  if (n >= p.states || channel >= p.channels) return 0;
  return states[(place.row(p) * p.states + n) * p.channels + channel];
}

// What a chunk adds to a state: sum over its steps of weight, times m (B or C), times x (or dy). And, for
// each chunk, what it keeps of the state that enters.
template <class T, bool kGradient>
__global__ void __launch_bounds__(kThreads)
    gain_kernel(const Problem<T> p, const Signal<const T> dy, Accumulator<T>* gains,
                Accumulator<T>* keeps) {
  using F = Accumulator<T>;
  struct Memory {
    Slabs<F> slabs;
    Decays<F> decays;
  };
  Memory& memory = shared_memory<Memory>();
  const Decays<F>& d = memory.decays;
  const Place<T> place(p);
  memory.decays.fill(p, place);
  if (blockIdx.y == 0 && threadIdx.x == 0) keeps[place.row(p)] = d.keep;
  const int64_t n0 = blockIdx.y % p.state_tiles * kTile, c0 = blockIdx.y / p.state_tiles * kTile;
  Tile<F> tile;
  multiply<Along::kEdge, Along::kEdge>(
      tile, memory.slabs, kSteps,
      [&](int64_t k, int m) {
        const int s = static_cast<int>(k);
        return kGradient ? place.c(p, s, n0 + m) * d.enter[s]
                         : place.b(p, s, n0 + m) * (d.leave[s] * d.dt[s]);
      },
      [&](int64_t k, int m) {
        const int s = static_cast<int>(k);
        return kGradient ? place.at(p, dy, place.head, s, c0 + m, p.channels)
                         : place.x(p, s, c0 + m);
      });
  tile.each([&](F value, int row, int column) {
    const int64_t n = n0 + row, c = c0 + column;
    if (n < p.states && c < p.channels)
      gains[(place.row(p) * p.states + n) * p.channels + c] = value;
  });
}

// Replaces what each chunk adds by the state before it (kGradient: by the gradient of the state behind it,
// from the last chunk to the first). A thread has one element of the states of one head.
template <class T, bool kGradient>
__global__ void __launch_bounds__(kThreads)
    pass_kernel(const Problem<T> p, Accumulator<T>* states, const Accumulator<T>* keeps,
                const Accumulator<T>* start, Accumulator<T>* end) {
  using F = Accumulator<T>;
  const int64_t size = p.states * p.channels;
  const int64_t element = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (element >= size) return;
  const int64_t batch = blockIdx.x / p.heads, head = blockIdx.x % p.heads;
  const int64_t n = element / p.channels, c = element % p.channels;
  const int64_t outside = ((batch * p.heads + head) * p.channels + c) * p.states + n;
  F state = start ? start[outside] : F(0);
  for (int i = 0; i < p.chunks; ++i) {
    const int chunk = kGradient ? p.chunks - 1 - i : i;
    const int64_t row = (batch * p.chunks + chunk) * p.heads + head;
    F* const here = states + row * size + element;
    const F gain = *here;
    *here = state;
    state = keeps[row] * state + gain;
  }
  if (end) end[outside] = state;
}

// --- On the host -------------------------------------------------------------------------------------

template <class T>
Signal<T> signal(const SsdSignal& s) {
  return {static_cast<T*>(s.data), s.batch, s.step, s.head};
}

template <class T>
Problem<T> describe(const SsdProblem& p) {
  using F = Accumulator<T>;
  Problem<T> q{};
  q.batch = p.batch;
  q.length = p.length;
  q.heads = p.heads;
  q.channels = p.head_dim;
  q.groups = p.groups;
  q.states = p.state;
  q.chunks = static_cast<int>((p.length + kSteps - 1) / kSteps);
  q.channel_tiles = static_cast<int>((p.head_dim + kTile - 1) / kTile);
  q.state_tiles = static_cast<int>((p.state + kTile - 1) / kTile);
  q.reverse = p.reverse;
  q.x = signal<const T>(p.x);
  q.b = signal<const T>(p.B);
  q.c = signal<const T>(p.C);
  q.z = signal<const T>(p.z);
  q.dt = static_cast<const F*>(p.dt);
  q.a = static_cast<const F*>(p.A);
  q.skip = static_cast<const F*>(p.D);
  q.skip_head = p.D_head;
  q.skip_channel = p.D_channel;
  q.initial = static_cast<const F*>(p.initial_state);
  q.sequence = p.seq_idx;
  return q;
}

template <class T>
int64_t chunks_of_heads(const Problem<T>& p) {
  return p.batch * p.chunks * p.heads;
}

template <class T>
dim3 chunk_grid(const Problem<T>& p, int tiles) {
  return grid_of(chunks_of_heads(p), tiles);
}

template <class T>
int64_t states_size(const Problem<T>& p) {
  return chunks_of_heads(p) * p.states * p.channels;
}

// The states before all chunks (kGradient: the gradients of those behind them), from `start` to `end`.
template <class T, bool kGradient>
cudaError_t find_states(const Problem<T>& p, const Signal<const T>& dy, Accumulator<T>* states,
                        Accumulator<T>* keeps, const Accumulator<T>* start, Accumulator<T>* end,
                        void* stream) {
  using F = Accumulator<T>;
  const size_t bytes = sizeof(Slabs<F>) + sizeof(Decays<F>);
  const cudaError_t error =
      launch(gain_kernel<T, kGradient>, chunk_grid(p, p.state_tiles * p.channel_tiles), kThreads,
             bytes, stream, p, dy, states, keeps);
  if (error != cudaSuccess) return error;
  const dim3 grid = grid_of(p.batch * p.heads, (p.states * p.channels + kThreads - 1) / kThreads);
  return launch(pass_kernel<T, kGradient>, grid, kThreads, 0, stream, p, states,
                static_cast<const F*>(keeps), start, end);
}

}  // namespace zoo::cuda::ssd
