// What the CUDA kernels of causal_conv1d share. Where positions are neighbours in memory, a thread has
// kSteps successive positions of one channel ("rows"); where channels are, it has them for a few
// neighbouring channels ("columns"), so that either way a warp reads and writes memory in one piece.
#pragma once

#include <algorithm>

#include "causal_conv1d/causal_conv1d.h"
#include "common/cuda.cuh"

namespace zoo::cuda::conv {

constexpr int kThreads = 256;
constexpr int kSteps = 8;  // positions of a thread

template <class T>
struct Signal {  // [batch, channel, position], any strides
  T* data = nullptr;
  int64_t batch = 0, channel = 0, step = 0;
  int bytes = 0;  // widest access along positions

  __device__ T* at(int64_t b, int64_t c, int64_t t) const {
    return data + b * batch + c * channel + t * step;
  }
};

template <class T>
struct Problem {
  using F = Accumulator<T>;
  int batch, channels;
  int64_t length;
  bool silu;
  Signal<const T> x, initial;  // initial: may be absent
  const F *weight, *bias;      // bias: may be absent
  const int32_t* segments;     // [batch, position], may be absent
};

template <class F>
__device__ __forceinline__ F silu(F x) {
  return x * sigmoid(x);
}

template <class F>
__device__ __forceinline__ F silu_slope(F x) {
  const F s = sigmoid(x);
  return s * (1 + x * (1 - s));
}

// The input at any position: before the first one the initial states, behind the last one zero.
template <int kWidth, class T>
__device__ __forceinline__ Accumulator<T> input(const Problem<T>& p, int b, int c, int64_t t) {
  if (t >= p.length) return 0;
  if (t >= 0) return widen(*p.x.at(b, c, t));
  if (!p.initial.data || t < 1 - kWidth) return 0;
  return widen(*p.initial.at(b, c, t + kWidth - 1));
}

// The segments of successive positions; what is outside is padding.
template <int kCount, class T>
__device__ __forceinline__ void load_segments(int32_t (&ids)[kCount], const Problem<T>& p, int b,
                                              int64_t first) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int64_t t = first + i;
    ids[i] = t >= 0 && t < p.length ? p.segments[b * p.length + t] : -1;
  }
}

// Bit i: the tap from the i-th last position counts at a position. Bit 0 is missing in padding.
template <int kWidth>
__device__ __forceinline__ unsigned taps_that_count(const int32_t* newest) {
  unsigned bits = 0;
  if (*newest >= 0) {
#pragma unroll
    for (int back = 0; back < kWidth; ++back) bits |= (newest[-back] == *newest) << back;
  }
  return bits;
}

template <int kWidth, class F>
struct Filter {
  F weight[kWidth], bias;

  template <class T>
  __device__ __forceinline__ void load(const Problem<T>& p, int c) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) weight[k] = p.weight[c * kWidth + k];
    bias = p.bias ? p.bias[c] : 0;
  }

  // Before the activation. `x[back * stride]`, from 0 on downward, are the inputs.
  __device__ __forceinline__ F apply(const F* newest, int stride, unsigned taps) const {
    F sum = bias;
#pragma unroll
    for (int back = kWidth - 1; back >= 0; --back)
      if (taps >> back & 1u) sum += weight[kWidth - 1 - back] * newest[-back * stride];
    return sum;
  }
};

constexpr unsigned kAllTaps = ~0u;

// --- Rows --------------------------------------------------------------------------------------------

// A row (one channel of one sequence) is cut into parts, and a part has `lanes` threads, a power of two,
// which take kSteps positions each in turn.
struct Rows {
  int lanes, parts, rows;
  int64_t part_length;

  Rows(int64_t all_rows, int64_t length, int most_lanes, int64_t parts_wanted) {
    rows = static_cast<int>(all_rows);
    lanes = 4;
    while (lanes < most_lanes && lanes * kSteps < length) lanes *= 2;
    const int64_t turn = lanes * kSteps, turns = (length + turn - 1) / turn;
    const int64_t turns_of_part = (turns + parts_wanted - 1) / parts_wanted;
    part_length = turns_of_part * turn;
    parts = static_cast<int>((turns + turns_of_part - 1) / turns_of_part);
  }
  dim3 grid() const {
    const int64_t of_block = kThreads / lanes;
    return grid_of((rows + of_block - 1) / of_block * parts);
  }
};

struct RowPlace {
  int b, c, part, lane;
  int64_t first, end;
  bool active;  // a thread without a row of its own goes along with the last one and keeps silent

  __device__ RowPlace(const Rows& r, int channels, int64_t length) {
    part = static_cast<int>(blockIdx.x) % r.parts;
    const int tid = static_cast<int>(threadIdx.x), of_block = kThreads / r.lanes;
    const int wanted = static_cast<int>(blockIdx.x) / r.parts * of_block + tid / r.lanes;
    active = wanted < r.rows;
    const int row = active ? wanted : r.rows - 1;
    b = row / channels;
    c = row % channels;
    lane = tid % r.lanes;
    first = part * r.part_length + lane * kSteps;
    end = min(length, (part + 1) * r.part_length);
  }
};

// kSteps positions from `first` on, and kBefore, kAfter on either side.
template <int kWidth, int kBefore, int kAfter, class T>
__device__ __forceinline__ void load_row(Accumulator<T> (&v)[kBefore + kSteps + kAfter],
                                         const Problem<T>& p, int b, int c, int64_t first) {
#pragma unroll
  for (int i = 0; i < kBefore; ++i) v[i] = input<kWidth>(p, b, c, first - kBefore + i);
  Accumulator<T> own[kSteps];
  load_steps(own, p.x.at(b, c, first), p.x.step, p.length - first, p.x.bytes);
#pragma unroll
  for (int i = 0; i < kSteps; ++i) v[kBefore + i] = own[i];
#pragma unroll
  for (int i = 0; i < kAfter; ++i)
    v[kBefore + kSteps + i] = input<kWidth>(p, b, c, first + kSteps + i);
}

// --- Columns -----------------------------------------------------------------------------------------

constexpr int kColumnThreads = 32;  // of a block, side by side; the others take the next positions
constexpr int kColumnRuns = kThreads / kColumnThreads;

struct Columns {
  int channel_blocks, parts;
  int64_t part_length;  // a multiple of kColumnRuns * kSteps

  Columns(int64_t channels_of_thread, int64_t channels, int64_t length, int64_t parts_wanted) {
    const int64_t wide = channels_of_thread * kColumnThreads, turn = kColumnRuns * kSteps;
    const int64_t turns = (length + turn - 1) / turn;
    const int64_t turns_of_part = (turns + parts_wanted - 1) / parts_wanted;
    channel_blocks = static_cast<int>((channels + wide - 1) / wide);
    part_length = turns_of_part * turn;
    parts = static_cast<int>((turns + turns_of_part - 1) / turns_of_part);
  }
  dim3 grid(int batch) const {
    return grid_of(int64_t{1} * channel_blocks * parts * batch);
  }
};

template <int kChannels>
struct ColumnPlace {
  int b, c, part;
  int64_t first, end;
  bool active;

  __device__ ColumnPlace(const Columns& s, int channels, int64_t length) {
    unsigned rest = blockIdx.x;
    const int block = static_cast<int>(rest % s.channel_blocks);
    rest /= s.channel_blocks;
    part = static_cast<int>(rest % s.parts);
    b = static_cast<int>(rest / s.parts);
    c = (block * kColumnThreads + static_cast<int>(threadIdx.x) % kColumnThreads) * kChannels;
    active = c < channels;
    first = part * s.part_length + static_cast<int>(threadIdx.x) / kColumnThreads * kSteps;
    end = min(length, (part + 1) * s.part_length);
  }
};

// kChannels neighbours at one position, in one access; more than one of them need stride 1 and alignment.
template <int kChannels, class T>
__device__ __forceinline__ void load_channels(Accumulator<T> (&v)[kChannels], const T* p) {
  load_aligned<kChannels * static_cast<int>(sizeof(T))>(v, p);
}

template <int kChannels, class T>
__device__ __forceinline__ void store_channels(const Accumulator<T> (&v)[kChannels], T* p) {
  store_aligned<kChannels * static_cast<int>(sizeof(T))>(v, p);
}

template <int kWidth, int kChannels, class T>
__device__ __forceinline__ void load_input(Accumulator<T> (&v)[kChannels], const Problem<T>& p,
                                           int b, int c, int64_t t) {
  if (t >= 0 && t < p.length) return load_channels(v, p.x.at(b, c, t));
#pragma unroll
  for (int i = 0; i < kChannels; ++i) v[i] = input<kWidth>(p, b, c + i, t);
}

// --- On the host -------------------------------------------------------------------------------------

template <class T>
Signal<T> signal(const ConvSignal& s) {
  T* const data = static_cast<T*>(s.data);
  return {data, s.batch, s.channel, s.step, access_bytes(data, s.batch, s.channel, s.step)};
}

template <class T>
Problem<T> describe(const ConvProblem& p) {
  using F = Accumulator<T>;
  return {static_cast<int>(p.batch),
          static_cast<int>(p.dim),
          p.length,
          p.silu,
          signal<const T>(p.x),
          signal<const T>(p.initial_states),
          static_cast<const F*>(p.weight),
          static_cast<const F*>(p.bias),
          p.seq_idx};
}

// Whether kCount neighbouring channels can be one access to a signal of `channels` channels.
template <int kCount, class T>
bool channels_together(const Signal<T>& s, int64_t channels) {
  constexpr int64_t kBytes = kCount * sizeof(T);
  return s.channel == 1 && channels % kCount == 0 &&
         reinterpret_cast<uintptr_t>(s.data) % kBytes == 0 && s.batch % kCount == 0 &&
         s.step % kCount == 0;
}

template <class T>
bool by_columns(const Signal<T>& s) {
  return s.channel < s.step;
}

// f(std::integral_constant<int, width>) for the widths that models have.
template <class F>
cudaError_t with_width(int width, const F& f) {
  switch (width) {
    case 3:
      return f(std::integral_constant<int, 3>{});
    case 4:
      return f(std::integral_constant<int, 4>{});
    default:
      return cudaErrorInvalidValue;
  }
}

// The kernels for all other widths (cuda_wide.cu).
inline bool is_wide(int width) { return width != 3 && width != 4; }
int64_t wide_workspace(const ConvBackward& call);
cudaError_t forward_wide(const ConvForward& call, void* stream);
cudaError_t backward_wide(const ConvBackward& call, void* workspace, void* stream);
cudaError_t update_wide(const ConvUpdate& call, void* stream);

}  // namespace zoo::cuda::conv
