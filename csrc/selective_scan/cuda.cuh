// What the forward and the backward CUDA kernels of the selective scan share.
//
// The work is cut along two axes. A block has kChannels channels of one group, each of them in the hands
// of kLanes neighbouring threads, and goes through its part of the sequence in tiles of kTile positions.
// In a tile a thread holds kSteps successive positions in registers; for each of the states in turn it
// runs the recurrence over them from zero, the lanes of the channel put their parts in line with
// shuffles, and the thread runs again from the state that it now knows. What a whole tile shares, B and
// C, stands in shared memory in float32. Where the channels alone cannot fill the GPU, the sequence is
// cut into chunks, and a first pass finds the state at the start of each.
//
// All arithmetic is in 2^x rather than e^x: A is scaled by log2(e) once ("decay").
#pragma once

#include <algorithm>

#include "common/cuda.cuh"
#include "selective_scan/selective_scan.h"

namespace zoo::cuda::scan {

template <class T, bool kBackward>
struct Tiling {
  using F = Accumulator<T>;
  static constexpr int kTile = static_cast<int>(kScanChunk);  // the forward pass leaves a border at each
  static constexpr bool kDouble = std::is_same_v<T, double>;
  static constexpr int kThreads = kBackward ? 256 : 128;
  static constexpr int kBlocks = kDouble ? 1 : (kBackward ? 2 : 4);  // of one multiprocessor, at least
  static constexpr int kSteps = (kDouble ? 8 : 16) / (kBackward ? 2 : 1);
  static constexpr int kLanes = kTile / kSteps;
  static constexpr int kChannels = kThreads / kLanes;
  static constexpr int kWide = 16 / static_cast<int>(sizeof(F));
  static constexpr int kPitch = kTile + kWide;  // rows of a slab start in different banks
};

constexpr int kSlab = 16;  // states whose B and C stand in shared memory at the same time

// [batch, channel, position] with any strides. `bytes` is the widest access that alignment permits.
template <class T>
struct Sequence {
  T* data = nullptr;
  int64_t batch = 0, channel = 0, step = 0;
  int bytes = 0;
};

// B or C: [batch, group, state, position], or constant, [channel, state].
template <class T>
struct Projection {
  const T* data = nullptr;
  int64_t batch = 0, group = 0, state = 0, step = 0;
  const Accumulator<T>* constant = nullptr;
};

template <class T>
struct Problem {
  using F = Accumulator<T>;
  int64_t batch, channels, length;
  int states, groups;
  int chunks, tiles_per_chunk, tiles;  // along the sequence
  bool softplus, reverse, negative;
  Sequence<const T> u, delta, z;  // z may be absent
  Projection<T> b, c;
  const F *a, *skip, *bias;  // [channel, state]; [channel], may be absent
  const uint8_t* reset;      // [batch, position], may be absent

  __host__ __device__ int64_t channels_per_group() const { return channels / groups; }
};

template <class Tile>
__host__ __device__ inline int64_t blocks_per_group(int64_t channels_per_group) {
  return (channels_per_group + Tile::kChannels - 1) / Tile::kChannels;
}

// Which part of the problem a block and a thread have.
template <class Tile>
struct Place {
  int64_t batch, channel;
  int chunk, group, block_in_group, local, lane;
  bool active;  // a thread without a channel of its own goes along with the last one and keeps silent

  template <class P>
  __device__ explicit Place(const P& p) {
    const int64_t per_group = p.channels_per_group();
    const int in_group = static_cast<int>(blocks_per_group<Tile>(per_group));
    int64_t rest = blockIdx.x;
    block_in_group = static_cast<int>(rest % in_group);
    rest /= in_group;
    group = static_cast<int>(rest % p.groups);
    rest /= p.groups;
    chunk = static_cast<int>(rest % p.chunks);
    batch = rest / p.chunks;
    lane = static_cast<int>(threadIdx.x) % Tile::kLanes;
    local = static_cast<int>(threadIdx.x) / Tile::kLanes;
    const int64_t wanted = static_cast<int64_t>(block_in_group) * Tile::kChannels + local;
    active = wanted < per_group;
    channel = group * per_group + (active ? wanted : per_group - 1);
  }

  // [batch, chunk, channel], to which the states may be added as a last dimension.
  template <class P>
  __device__ int64_t row(const P& p, int64_t of_channel) const {
    return (batch * p.chunks + chunk) * p.channels + of_channel;
  }
};

template <int kSteps, class F>
__device__ __forceinline__ void turn_round(F (&v)[kSteps]) {
#pragma unroll
  for (int i = 0; i < kSteps / 2; ++i) {
    const F last = v[kSteps - 1 - i];
    v[kSteps - 1 - i] = v[i];
    v[i] = last;
  }
}

template <int kSteps>
__device__ __forceinline__ unsigned turn_round_bits(unsigned bits) {
  unsigned turned = 0;
  if (bits) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) turned |= (bits >> i & 1u) << (kSteps - 1 - i);
  }
  return turned;
}

// Successive positions from `first` on, in registers; zero behind the end of the sequence.
template <int kSteps, class T>
__device__ __forceinline__ void load(Accumulator<T> (&out)[kSteps], const Sequence<const T>& s,
                                     int64_t batch, int64_t channel, int64_t first, int64_t length) {
  load_steps(out, s.data + batch * s.batch + channel * s.channel + first * s.step, s.step,
             length - first, s.bytes);
}

template <int kSteps, class T>
__device__ __forceinline__ void store(const Accumulator<T> (&in)[kSteps], const Sequence<T>& s,
                                      int64_t batch, int64_t channel, int64_t first,
                                      int64_t length) {
  store_steps(in, s.data + batch * s.batch + channel * s.channel + first * s.step, s.step,
              length - first, s.bytes);
}

// Step sizes after bias and softplus. Behind the end they are zero, so that nothing happens there.
template <int kSteps, class T>
__device__ __forceinline__ void load_delta(Accumulator<T> (&delta)[kSteps], const Problem<T>& p,
                                           int64_t batch, int64_t channel, int64_t first) {
  load<kSteps>(delta, p.delta, batch, channel, first, p.length);
  const Accumulator<T> bias = p.bias ? p.bias[channel] : 0;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    delta[i] += bias;
    if (p.softplus) delta[i] = softplus(delta[i]);
    if (first + i >= p.length) delta[i] = 0;
  }
}

// One bit for each of the positions from `first` on that no state may enter.
template <int kSteps, class T>
__device__ __forceinline__ unsigned load_resets(const Problem<T>& p, int64_t batch, int64_t first) {
  unsigned bits = 0;
  if (p.reset) {
    const uint8_t* const row = p.reset + batch * p.length + first;
#pragma unroll
    for (int i = 0; i < kSteps; ++i)
      if (first + i < p.length && row[i]) bits |= 1u << i;
  }
  return bits;
}

// Where position `s` of a tile stands in its row of shared memory: such that the lanes of a channel,
// kSteps positions apart, read from different banks.
template <class Tile>
__device__ __forceinline__ int slot(int s) {
  const int lane = s / Tile::kSteps, i = s % Tile::kSteps;
  return (i / Tile::kWide * Tile::kLanes + lane) * Tile::kWide + i % Tile::kWide;
}

// States n0 .. n0+count of B or C for a tile that begins at `first`, in the order of the scan.
template <class Tile, class T>
__device__ void fill_slab(Accumulator<T> (*slab)[Tile::kPitch], const Projection<T>& m,
                          int64_t batch, int group, int n0, int count, int64_t first,
                          int64_t length, bool backwards) {
  if (m.constant) return;
  const T* const base = m.data + batch * m.batch + group * m.group + n0 * m.state + first * m.step;
  const bool by_state = m.state < m.step;  // the smaller stride goes to neighbouring threads
  const int end = by_state ? kSlab * Tile::kTile : count * Tile::kTile;
  for (int e = static_cast<int>(threadIdx.x); e < end; e += Tile::kThreads) {
    const int n = by_state ? e % kSlab : e / Tile::kTile;
    const int l = by_state ? e / kSlab : e % Tile::kTile;
    if (n >= count) continue;
    slab[n][slot<Tile>(backwards ? Tile::kTile - 1 - l : l)] =
        first + l < length ? widen(base[n * m.state + l * m.step]) : 0;
  }
}

// One state of B or C for the steps of a thread.
template <class Tile, class T>
__device__ __forceinline__ void coefficients(Accumulator<T> (&out)[Tile::kSteps],
                                             const Projection<T>& m,
                                             const Accumulator<T>* slab_row, int lane,
                                             int64_t constant_at) {
  using F = Accumulator<T>;
  if (m.constant) {
    const F value = m.constant[constant_at];
#pragma unroll
    for (int i = 0; i < Tile::kSteps; ++i) out[i] = value;
    return;
  }
  struct __align__(16) Pack {
    F v[Tile::kWide];
  };
#pragma unroll
  for (int i = 0; i < Tile::kSteps; i += Tile::kWide) {
    const int at = (i / Tile::kWide * Tile::kLanes + lane) * Tile::kWide;
    const Pack pack = *reinterpret_cast<const Pack*>(slab_row + at);
#pragma unroll
    for (int j = 0; j < Tile::kWide; ++j) out[i + j] = pack.v[j];
  }
}

// Affine maps h -> factor * h + offset, one for each lane of a channel, are chained from lane 0 up (or,
// kDown, from the last lane down); on return `offset` is what the lane's steps end with. The result is
// what they start with. `start` is the same for all lanes: what the first of them starts with.
template <int kLanes, bool kDown, class F>
__device__ __forceinline__ F chain(F factor, F& offset, F start, int lane) {
  const int rank = kDown ? kLanes - 1 - lane : lane;
  const auto from = [](F v, int distance) {
    return kDown ? __shfl_down_sync(kFullWarp, v, distance, kLanes)
                 : __shfl_up_sync(kFullWarp, v, distance, kLanes);
  };
  if (rank == 0) offset = factor * start + offset;
#pragma unroll
  for (int distance = 1; distance < kLanes; distance *= 2) {
    const F before = from(offset, distance), factor_before = from(factor, distance);
    if (rank >= distance) {
      offset = factor * before + offset;
      factor *= factor_before;
    }
  }
  const F before = from(offset, 1);
  return rank == 0 ? start : before;
}

// Factors from exp(delta A); the result is their product.
template <int kSteps, class F>
__device__ __forceinline__ F negative_factors(F (&a)[kSteps]) {
  F product = 1;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    a[i] = 2 * a[i] - 1;
    product *= a[i];
  }
  return product;
}

template <int kLanes, class F>
__device__ __forceinline__ F sum_over_lanes(F v) {
#pragma unroll
  for (int flip = 1; flip < kLanes; flip *= 2) v += __shfl_xor_sync(kFullWarp, v, flip);
  return v;
}

// --- On the host -------------------------------------------------------------------------------------

template <class T>
Sequence<T> sequence(const ScanSequence& s) {
  return {static_cast<T*>(s.data), s.batch, s.channel, s.step,
          access_bytes(static_cast<T*>(s.data), s.batch, s.channel, s.step)};
}

template <class T>
Projection<T> projection(const ScanProjection& m) {
  using F = Accumulator<T>;
  if (m.constant) return {.constant = static_cast<const F*>(m.data)};
  return {static_cast<const T*>(m.data), m.batch, m.group, m.state, m.step, nullptr};
}

template <class T, bool kBackward>
Problem<T> describe(const ScanProblem& p) {
  using F = Accumulator<T>;
  using Tile = Tiling<T, kBackward>;
  Problem<T> q{};
  q.batch = p.batch;
  q.channels = p.dim;
  q.length = p.length;
  q.states = static_cast<int>(p.state);
  q.groups = static_cast<int>(p.groups);
  q.tiles = static_cast<int>((p.length + Tile::kTile - 1) / Tile::kTile);
  q.softplus = p.softplus;
  q.reverse = p.reverse;
  q.negative = p.negative;
  q.u = sequence<const T>(p.u);
  q.delta = sequence<const T>(p.delta);
  q.z = sequence<const T>(p.z);
  q.b = projection<T>(p.B);
  q.c = projection<T>(p.C);
  q.a = static_cast<const F*>(p.A);
  q.skip = static_cast<const F*>(p.D);
  q.bias = static_cast<const F*>(p.delta_bias);
  q.reset = p.reset;

  // A chunk of its own costs a pass more, so there are several only where one leaves half the GPU idle,
  // and where the factor of a whole chunk is an exponential.
  const int64_t room = static_cast<int64_t>(multiprocessors()) * Tile::kBlocks;
  const int64_t blocks = p.batch * p.groups * blocks_per_group<Tile>(p.dim / p.groups);
  constexpr int kTilesAtLeast = 4;
  int64_t chunks = 1;
  if (2 * blocks <= room && !p.negative)
    chunks = std::clamp<int64_t>(q.tiles / kTilesAtLeast, 1, (room + blocks - 1) / blocks);
  q.tiles_per_chunk = static_cast<int>((q.tiles + chunks - 1) / chunks);
  q.chunks = (q.tiles + q.tiles_per_chunk - 1) / q.tiles_per_chunk;
  return q;
}

template <class Tile, class T>
dim3 grid(const Problem<T>& p) {
  const int64_t per_group = blocks_per_group<Tile>(p.channels_per_group());
  return grid_of(p.batch * p.chunks * p.groups * per_group);
}

}  // namespace zoo::cuda::scan
