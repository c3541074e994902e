// The forward kernel, and the same kernel as the backward pass and the cut along the sequence need it:
// with states alone as its result.
#pragma once

#include "selective_scan/cuda.cuh"

namespace zoo::cuda::scan {

enum class Pass {
  kOutput,     // y and the last state
  kStates,     // the state before each tile, or at the end of each chunk
  kGradients,  // the recurrence of the gradients, against the scan: q_t = a_t (q_{t+1} + C_t dy_t)
};

template <class T>
struct ScanArguments {
  using F = Accumulator<T>;
  Problem<T> problem;
  Sequence<T> out;         // kOutput
  Sequence<const T> dout;  // kGradients; may be absent
  const F* start;          // [batch, chunk, channel, state]; zero if absent
  F* end;                  // the same; may be absent
  F* end_delta;            // [batch, chunk, channel] sum of the step sizes, NaN after a reset
  F* borders;              // [batch, tile, channel, state]; may be absent
};

template <class F, class Tile>
struct __align__(16) ScanShared {
  F b[kSlab][Tile::kPitch], c[kSlab][Tile::kPitch];
};

// The passes other than the main one run where the GPU is not full, and may have more registers.
template <class T, Pass kPass>
constexpr int kScanBlocks =
    kPass == Pass::kOutput ? Tiling<T, false>::kBlocks : (Tiling<T, false>::kBlocks + 2) / 2;

template <class T, Pass kPass>
__global__ void __launch_bounds__(Tiling<T, false>::kThreads, kScanBlocks<T, kPass>)
    scan_kernel(const ScanArguments<T> args) {
  using F = Accumulator<T>;
  using Tile = Tiling<T, false>;
  constexpr int K = Tile::kSteps, kLanes = Tile::kLanes;
  using Shared = ScanShared<F, Tile>;
  Shared& shared = shared_memory<Shared>();
  const Problem<T>& p = args.problem;
  const int N = p.states, pitch = N | 1;
  F* const carry = reinterpret_cast<F*>(&shared + 1);  // [kChannels][pitch]
  F* const decay = carry + Tile::kChannels * pitch;    // [kChannels][pitch]
  const Place<Tile> at(p);
  const bool backwards = p.reverse != (kPass == Pass::kGradients);
  const int tid = static_cast<int>(threadIdx.x);
  const int64_t per_group = p.channels_per_group();
  const int64_t first_channel =
      at.group * per_group + static_cast<int64_t>(at.block_in_group) * Tile::kChannels;
  const int n_channels =
      static_cast<int>(min(static_cast<int64_t>(Tile::kChannels),
                           per_group - static_cast<int64_t>(at.block_in_group) * Tile::kChannels));

  for (int e = tid; e < Tile::kChannels * N; e += Tile::kThreads) {
    const int local = e / N, n = e % N;
    const int64_t channel = first_channel + min(local, n_channels - 1);
    decay[local * pitch + n] = p.a[channel * N + n] * static_cast<F>(kLog2E);
    carry[local * pitch + n] = args.start ? args.start[at.row(p, channel) * N + n] : 0;
  }

  F sum_delta = 0;
  bool any_reset = false;
  const int lowest = at.chunk * p.tiles_per_chunk;
  const int count = min(p.tiles_per_chunk, p.tiles - lowest);
  for (int k = 0; k < count; ++k) {
    const int tile = backwards ? lowest + count - 1 - k : lowest + k;
    const int64_t tile_first = static_cast<int64_t>(tile) * Tile::kTile;
    const int64_t first = tile_first + (backwards ? kLanes - 1 - at.lane : at.lane) * K;

    F delta[K], x[K], y[K];
    load_delta<K>(delta, p, at.batch, at.channel, first);
    if constexpr (kPass == Pass::kGradients) {
#pragma unroll
      for (int i = 0; i < K; ++i) x[i] = 0;
      if (args.dout.data) load<K>(x, args.dout, at.batch, at.channel, first, p.length);
      if (p.z.data) {
        load<K>(y, p.z, at.batch, at.channel, first, p.length);
#pragma unroll
        for (int i = 0; i < K; ++i) x[i] *= y[i] * sigmoid(y[i]);
      }
    } else {
      load<K>(x, p.u, at.batch, at.channel, first, p.length);
      const F skip = p.skip ? p.skip[at.channel] : 0;
#pragma unroll
      for (int i = 0; i < K; ++i) {
        y[i] = skip * x[i];
        x[i] *= delta[i];
      }
    }
    unsigned resets = load_resets<K>(p, at.batch, first);
    if (backwards) {
      turn_round(delta);
      turn_round(x);
      turn_round(y);
      resets = turn_round_bits<K>(resets);
    }
    F total = 0;
#pragma unroll
    for (int i = 0; i < K; ++i) total += delta[i];
    sum_delta += total;
    any_reset |= resets != 0;

    for (int n0 = 0; n0 < N; n0 += kSlab) {
      const int in_slab = min(kSlab, N - n0);
      __syncthreads();
      if (kPass != Pass::kGradients)
        fill_slab<Tile, T>(shared.b, p.b, at.batch, at.group, n0, in_slab, tile_first, p.length,
                           backwards);
      if (kPass != Pass::kStates)
        fill_slab<Tile, T>(shared.c, p.c, at.batch, at.group, n0, in_slab, tile_first, p.length,
                           backwards);
      if (args.borders && n0 == 0)
        for (int e = tid; e < n_channels * N; e += Tile::kThreads)
          args.borders[((at.batch * p.tiles + tile) * p.channels + first_channel) * N + e] =
              carry[e / N * pitch + e % N];
      __syncthreads();
#pragma unroll 1
      for (int n = n0; n < n0 + in_slab; ++n) {
        const int own = at.local * pitch + n;
        const F decay_n = decay[own], start = carry[own];
        F a[K], b[K];
        if constexpr (kPass == Pass::kGradients) {
          coefficients<Tile, T>(b, p.c, shared.c[n - n0], at.lane, at.channel * N + n);
        } else {
          coefficients<Tile, T>(b, p.b, shared.b[n - n0], at.lane, at.channel * N + n);
        }
        F h = 0;
#pragma unroll
        for (int i = 0; i < K; ++i) {
          a[i] = exp2_fast(delta[i] * decay_n);
          b[i] *= x[i];
        }
        F factor = p.negative ? negative_factors(a) : exp2_fast(total * decay_n);
        if (resets) {
          factor = 0;
#pragma unroll
          for (int i = 0; i < K; ++i)
            if (resets >> i & 1u) a[i] = 0;
        }
#pragma unroll
        for (int i = 0; i < K; ++i) {
          if constexpr (kPass == Pass::kGradients) {
            h = a[i] * (h + b[i]);
          } else {
            h = a[i] * h + b[i];
          }
        }
        __syncwarp();  // all lanes have read `start`
        F before = chain<kLanes, false>(factor, h, start, at.lane);
        if (at.lane == kLanes - 1) carry[own] = h;
        if constexpr (kPass == Pass::kOutput) {
          F c[K];
          coefficients<Tile, T>(c, p.c, shared.c[n - n0], at.lane, at.channel * N + n);
#pragma unroll
          for (int i = 0; i < K; ++i) {
            before = a[i] * before + b[i];
            y[i] += c[i] * before;
          }
        }
      }
    }

    if constexpr (kPass == Pass::kOutput) {
      if (backwards) turn_round(y);
      if (p.z.data) {
        load<K>(x, p.z, at.batch, at.channel, first, p.length);
#pragma unroll
        for (int i = 0; i < K; ++i) y[i] *= x[i] * sigmoid(x[i]);
      }
      if (at.active) store<K>(y, args.out, at.batch, at.channel, first, p.length);
    }
  }

  __syncthreads();
  if (args.end)
    for (int e = tid; e < n_channels * N; e += Tile::kThreads)
      args.end[at.row(p, first_channel) * N + e] = carry[e / N * pitch + e % N];
  if (args.end_delta) {
    sum_delta = sum_over_lanes<kLanes>(any_reset ? static_cast<F>(NAN) : sum_delta);
    if (at.active && at.lane == 0) args.end_delta[at.row(p, at.channel)] = sum_delta;
  }
}

// What the chunks end with, starting from zero, becomes what they start with. A thread has one state of
// one channel of one sequence.
template <class F>
__global__ void chain_chunks_kernel(F* states, const F* sum_delta, const F* a, const F* start,
                                    F* end, int64_t batch, int chunks, int64_t channels, int N,
                                    bool backwards) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= batch * channels * N) return;
  const int64_t row = channels * N, of_row = item % row, b = item / row;
  const F decay = a[of_row] * static_cast<F>(kLog2E);
  F state = start ? start[item] : 0;
  for (int k = 0; k < chunks; ++k) {
    const int64_t at = b * chunks + (backwards ? chunks - 1 - k : k);
    const F sum = sum_delta[at * channels + of_row / N];
    const F offset = states[at * row + of_row];
    states[at * row + of_row] = state;
    state = sum != sum ? offset : exp2_fast(sum * decay) * state + offset;
  }
  if (end) end[item] = state;
}

template <class F>
cudaError_t chain_chunks(F* states, const F* sum_delta, const F* a, const F* start, F* end,
                         int64_t batch, int chunks, int64_t channels, int N, bool backwards,
                         void* stream) {
  constexpr int kThreads = 128;
  return launch(chain_chunks_kernel<F>, blocks_for(batch * channels * N, kThreads), kThreads, 0,
                stream, states, sum_delta, a, start, end, batch, chunks, channels, N, backwards);
}

template <class T>
size_t scan_shared_bytes(int states) {
  using Tile = Tiling<T, false>;
  using F = Accumulator<T>;
  return sizeof(ScanShared<F, Tile>) + 2 * sizeof(F) * Tile::kChannels * (states | 1);
}

template <class T, Pass kPass>
cudaError_t launch_scan(const ScanArguments<T>& args, void* stream) {
  using Tile = Tiling<T, false>;
  const Problem<T>& p = args.problem;
  return launch(scan_kernel<T, kPass>, grid<Tile>(p), Tile::kThreads,
                scan_shared_bytes<T>(p.states), stream, args);
}

}  // namespace zoo::cuda::scan
