// The backward kernel. It goes against the scan, tile by tile, from borders that an earlier pass has left:
// the states before each tile are never kept inside it, but run again from there.
#pragma once

#include "selective_scan/cuda.cuh"

namespace zoo::cuda::scan {

template <class T>
struct GradientArguments {
  using F = Accumulator<T>;
  Problem<T> problem;
  Sequence<const T> dout;       // may be absent: zero
  Sequence<T> du, ddelta, dz;   // dz is absent with z
  const F* borders;             // [batch, tile, channel, state] state before each tile
  const F* start;               // [batch, chunk, channel, state] gradient from behind the chunk, or null
  F* end;                       // the same: gradient of the state before the chunk, or null
  // Sums, in parts that another kernel adds up in a fixed order.
  F* da;                        // [batch, chunk, channel, state]
  F *db, *dc;                   // [block of a group, batch, group, state, position], or constant, as da
  F *dskip, *dbias;             // [batch, chunk, channel], or null
};

template <int kSteps, class T>
__device__ __forceinline__ void load_dout(Accumulator<T> (&out)[kSteps],
                                          const GradientArguments<T>& args, int64_t batch,
                                          int64_t channel, int64_t first) {
  if (args.dout.data) return load<kSteps>(out, args.dout, batch, channel, first, args.problem.length);
#pragma unroll
  for (int i = 0; i < kSteps; ++i) out[i] = 0;
}

constexpr int kSumStates = 2;  // states whose dB and dC are added up over the warps at the same time

template <class F, class Tile>
struct __align__(16) GradientShared {
  static constexpr int kWarps = Tile::kThreads / 32;
  F b[kSlab][Tile::kPitch], c[kSlab][Tile::kPitch];
  F sums[2][kSumStates][2][kWarps][Tile::kTile];  // [turn, state, dB or dC, warp, position]
  F border[Tile::kChannels][kSlab + 1];
};

// v of all channels of the warp added up. Each thread is left with kSteps / (channels of a warp) sums, from
// the returned step on.
template <class Tile, class F>
__device__ __forceinline__ int sum_over_channels(F (&v)[Tile::kSteps]) {
  int from = 0;
#pragma unroll
  for (int flip = 16, half = Tile::kSteps / 2; flip >= Tile::kLanes; flip /= 2, half /= 2) {
    const bool upper = threadIdx.x & flip;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const F keep = upper ? v[i + half] : v[i], give = upper ? v[i] : v[i + half];
      v[i] = keep + __shfl_xor_sync(kFullWarp, give, flip);
    }
    from += upper ? half : 0;
  }
  return from;
}

// Where B (or C) is constant, its gradient is a sum over positions, as that of A.
template <class Tile, class T>
__device__ __forceinline__ void add_up_constant(const Projection<T>& m,
                                                const Accumulator<T> (&v)[Tile::kSteps],
                                                Accumulator<T>* sums, int own, int lane) {
  if (!m.constant) return;
  Accumulator<T> sum = 0;
#pragma unroll
  for (int i = 0; i < Tile::kSteps; ++i) sum += v[i];
  sum = sum_over_lanes<Tile::kLanes>(sum);
  if (lane == 0) sums[own] += sum;
}

// dB and dC of `count` states from n0 on and of a tile's positions, added up over the warps of the block.
template <class Tile, class T, class Sums>
__device__ __forceinline__ void write_sums(const GradientArguments<T>& args, const Sums& sums,
                                           const Place<Tile>& at, int n0, int count,
                                           int64_t tile_first) {
  using F = Accumulator<T>;
  const Problem<T>& p = args.problem;
  for (int e = static_cast<int>(threadIdx.x); e < count * 2 * Tile::kTile; e += Tile::kThreads) {
    const int s = e % Tile::kTile, which = e / Tile::kTile % 2, n = e / Tile::kTile / 2;
    const Projection<T>& m = which ? p.c : p.b;
    F* const to = which ? args.dc : args.db;
    const int64_t position = tile_first + (p.reverse ? Tile::kTile - 1 - s : s);
    if (m.constant || position >= p.length) continue;
    F sum = 0;
#pragma unroll
    for (int warp = 0; warp < Tile::kThreads / 32; ++warp) sum += sums[n][which][warp][s];
    const int64_t row = (at.block_in_group * p.batch + at.batch) * p.groups + at.group;
    to[(row * p.states + n0 + n) * p.length + position] = sum;
  }
}

template <class T>
__global__ void __launch_bounds__(Tiling<T, true>::kThreads, Tiling<T, true>::kBlocks)
    gradient_kernel(const GradientArguments<T> args) {
  using F = Accumulator<T>;
  using Tile = Tiling<T, true>;
  constexpr int K = Tile::kSteps, kLanes = Tile::kLanes;
  constexpr int kLeft = K * kLanes / 32;  // sums of a thread after sum_over_channels
  static_assert(kLeft >= 1);
  using Shared = GradientShared<F, Tile>;
  Shared& shared = shared_memory<Shared>();
  const Problem<T>& p = args.problem;
  const int N = p.states, pitch = N | 1;
  F* const carry = reinterpret_cast<F*>(&shared + 1);  // [kChannels][pitch], as all that follow
  F* const decay = carry + Tile::kChannels * pitch;
  F* const da = decay + Tile::kChannels * pitch;
  F* const db = da + Tile::kChannels * pitch;  // the last two only where B, C are constant
  F* const dc = db + (p.b.constant ? Tile::kChannels * pitch : 0);
  const Place<Tile> at(p);
  const int tid = static_cast<int>(threadIdx.x);
  const int64_t per_group = p.channels_per_group();
  const int64_t first_channel =
      at.group * per_group + static_cast<int64_t>(at.block_in_group) * Tile::kChannels;
  const int n_channels =
      static_cast<int>(min(static_cast<int64_t>(Tile::kChannels),
                           per_group - static_cast<int64_t>(at.block_in_group) * Tile::kChannels));

  for (int e = tid; e < Tile::kChannels * N; e += Tile::kThreads) {
    const int local = e / N, n = e % N, to = local * pitch + n;
    const int64_t channel = first_channel + min(local, n_channels - 1);
    decay[to] = p.a[channel * N + n] * static_cast<F>(kLog2E);
    carry[to] = args.start ? args.start[at.row(p, channel) * N + n] : 0;
    da[to] = 0;
    if (p.b.constant) db[to] = 0;
    if (p.c.constant) dc[to] = 0;
  }

  F dskip = 0, dbias = 0;
  int turn = 0;
  const F skip = p.skip ? p.skip[at.channel] : 0;
  const int lowest = at.chunk * p.tiles_per_chunk;
  const int count = min(p.tiles_per_chunk, p.tiles - lowest);
  for (int k = 0; k < count; ++k) {
    const int tile = p.reverse ? lowest + k : lowest + count - 1 - k;
    const int64_t tile_first = static_cast<int64_t>(tile) * Tile::kTile;
    const int64_t first = tile_first + (p.reverse ? kLanes - 1 - at.lane : at.lane) * K;

    // In the order of the scan: the last step, where the gradient comes in, is K - 1.
    F delta[K], du[K], dy[K], y[K], ddelta[K], ddu[K];
    load_delta<K>(delta, p, at.batch, at.channel, first);
    load<K>(du, p.u, at.batch, at.channel, first, p.length);
    load_dout<K>(dy, args, at.batch, at.channel, first);
    if (p.z.data) {
      load<K>(y, p.z, at.batch, at.channel, first, p.length);
#pragma unroll
      for (int i = 0; i < K; ++i) dy[i] *= y[i] * sigmoid(y[i]);
    }
#pragma unroll
    for (int i = 0; i < K; ++i) {
      y[i] = skip * du[i];
      du[i] = at.active ? du[i] * delta[i] : 0;
      dy[i] = at.active ? dy[i] : 0;
      ddelta[i] = ddu[i] = 0;
    }
    unsigned resets = load_resets<K>(p, at.batch, first);
    if (p.reverse) {
      turn_round(delta);
      turn_round(du);
      turn_round(dy);
      turn_round(y);
      resets = turn_round_bits<K>(resets);
    }
    F total = 0;
#pragma unroll
    for (int i = 0; i < K; ++i) total += delta[i];

    for (int n0 = 0; n0 < N; n0 += kSlab) {
      const int in_slab = min(kSlab, N - n0);
      __syncthreads();
      fill_slab<Tile, T>(shared.b, p.b, at.batch, at.group, n0, in_slab, tile_first, p.length,
                         p.reverse);
      fill_slab<Tile, T>(shared.c, p.c, at.batch, at.group, n0, in_slab, tile_first, p.length,
                         p.reverse);
      for (int e = tid; e < n_channels * in_slab; e += Tile::kThreads) {
        const int local = e / in_slab, n = e % in_slab;
        const int64_t row = (at.batch * p.tiles + tile) * p.channels + first_channel + local;
        shared.border[local][n] = args.borders[row * N + n0 + n];
      }
      __syncthreads();
#pragma unroll 1
      for (int n = n0; n < n0 + in_slab; ++n) {
        const int own = at.local * pitch + n;
        const F decay_n = decay[own], start = carry[own];
        const F border = shared.border[at.active ? at.local : 0][n - n0];
        F a[K], b[K], c[K], h[K];
        coefficients<Tile, T>(b, p.b, shared.b[n - n0], at.lane, at.channel * N + n);
#pragma unroll
        for (int i = 0; i < K; ++i) a[i] = exp2_fast(delta[i] * decay_n);
        F factor = p.negative ? negative_factors(a) : exp2_fast(total * decay_n);
        if (resets) {
          factor = 0;
#pragma unroll
          for (int i = 0; i < K; ++i)
            if (resets >> i & 1u) a[i] = 0;
        }
        F end = 0;
#pragma unroll
        for (int i = 0; i < K; ++i) end = a[i] * end + du[i] * b[i];
        const F before = chain<kLanes, false>(factor, end, border, at.lane);
        h[0] = a[0] * before + du[0] * b[0];
#pragma unroll
        for (int i = 1; i < K; ++i) h[i] = a[i] * h[i - 1] + du[i] * b[i];

        coefficients<Tile, T>(c, p.c, shared.c[n - n0], at.lane, at.channel * N + n);
        F q = 0;
#pragma unroll
        for (int i = K - 1; i >= 0; --i) q = a[i] * (q + c[i] * dy[i]);
        F q_end = q;
        q = chain<kLanes, true>(factor, q_end, start, at.lane);
        __syncwarp();  // all lanes have read `start`
        if (at.lane == 0) carry[own] = q_end;
        F da_n = 0;
#pragma unroll
        for (int i = K - 1; i >= 0; --i) {
          y[i] += c[i] * h[i];
          const F g = q + c[i] * dy[i];
          c[i] = h[i] * dy[i];  // dC
          q = a[i] * g;
          const F slope_g = p.negative ? (resets >> i & 1u ? 0 : q + g) : q;
          const F through_a = slope_g * (i > 0 ? h[i - 1] : before);
          da_n += through_a * delta[i];
          ddelta[i] += decay_n * through_a;
          ddu[i] += b[i] * g;
          b[i] = du[i] * g;  // dB
        }
        da_n = sum_over_lanes<kLanes>(da_n);
        if (at.lane == 0) da[own] += da_n;

        add_up_constant<Tile, T>(p.b, b, db, own, at.lane);
        add_up_constant<Tile, T>(p.c, c, dc, own, at.lane);
        if (p.b.constant && p.c.constant) continue;
        const int warp = tid / 32, s = n % kSumStates;
        const int from = sum_over_channels<Tile>(b);
        sum_over_channels<Tile>(c);
#pragma unroll
        for (int i = 0; i < kLeft; ++i) {
          shared.sums[turn][s][0][warp][at.lane * K + from + i] = b[i];
          shared.sums[turn][s][1][warp][at.lane * K + from + i] = c[i];
        }
        if (s == kSumStates - 1 || n == N - 1) {
          __syncthreads();
          write_sums<Tile, T>(args, shared.sums[turn], at, n - s, s + 1, tile_first);
          turn ^= 1;
        }
      }
    }

    // ddu is the gradient of delta * u.
    F other[K];
    load<K>(other, p.u, at.batch, at.channel, first, p.length);
    if (p.reverse) {
      turn_round(delta);
      turn_round(dy);
      turn_round(y);
      turn_round(ddelta);
      turn_round(ddu);
    }
#pragma unroll
    for (int i = 0; i < K; ++i) {
      ddelta[i] = ddelta[i] * static_cast<F>(kLn2) + other[i] * ddu[i];
      if (p.softplus) ddelta[i] *= -expm1(-delta[i]);
      if (first + i >= p.length) ddelta[i] = 0;
      dbias += ddelta[i];
      dskip += other[i] * dy[i];
      ddu[i] = skip * dy[i] + delta[i] * ddu[i];
    }
    if (at.active) {
      store<K>(ddelta, args.ddelta, at.batch, at.channel, first, p.length);
      store<K>(ddu, args.du, at.batch, at.channel, first, p.length);
    }
    if (p.z.data) {
      load<K>(ddelta, p.z, at.batch, at.channel, first, p.length);
      load_dout<K>(ddu, args, at.batch, at.channel, first);
#pragma unroll
      for (int i = 0; i < K; ++i) {
        const F gate = sigmoid(ddelta[i]);
        y[i] *= ddu[i] * gate * (1 + ddelta[i] * (1 - gate));
      }
      if (at.active) store<K>(y, args.dz, at.batch, at.channel, first, p.length);
    }
  }

  __syncthreads();
  for (int e = tid; e < n_channels * N; e += Tile::kThreads) {
    const int from = e / N * pitch + e % N;
    const int64_t to = at.row(p, first_channel) * N + e;
    args.da[to] = da[from];
    if (p.b.constant) args.db[to] = db[from];
    if (p.c.constant) args.dc[to] = dc[from];
    if (args.end) args.end[to] = carry[from];
  }
  dskip = sum_over_lanes<kLanes>(dskip);
  dbias = sum_over_lanes<kLanes>(dbias);
  if (at.active && at.lane == 0) {
    if (args.dskip) args.dskip[at.row(p, at.channel)] = dskip;
    if (args.dbias) args.dbias[at.row(p, at.channel)] = dbias;
  }
}

template <class T>
size_t gradient_shared_bytes(const Problem<T>& p) {
  using F = Accumulator<T>;
  using Tile = Tiling<T, true>;
  const int arrays = 3 + (p.b.constant != nullptr) + (p.c.constant != nullptr);
  return sizeof(GradientShared<F, Tile>) + arrays * sizeof(F) * Tile::kChannels * (p.states | 1);
}

}  // namespace zoo::cuda::scan
