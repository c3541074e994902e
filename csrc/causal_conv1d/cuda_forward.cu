#include "causal_conv1d/cuda.cuh"

namespace zoo::cuda {
namespace conv {
namespace {

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    forward_rows_kernel(const Problem<T> p, const Signal<T> out, const Rows rows) {
  using F = Accumulator<T>;
  const RowPlace at(rows, p.channels, p.length);
  if (!at.active || at.first >= at.end) return;
  constexpr int kBefore = kWidth - 1;
  F x[kBefore + kSteps], y[kSteps];
  load_row<kWidth, kBefore, 0>(x, p, at.b, at.c, at.first);
  Filter<kWidth, F> filter;
  filter.load(p, at.c);
#pragma unroll
  for (int i = 0; i < kSteps; ++i) y[i] = 0;
  if (p.segments) {
    int32_t ids[kBefore + kSteps];
    load_segments(ids, p, at.b, at.first - kBefore);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const unsigned taps = taps_that_count<kWidth>(ids + kBefore + i);
      if (taps & 1u) y[i] = filter.apply(x + kBefore + i, 1, taps);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) y[i] = filter.apply(x + kBefore + i, 1, kAllTaps);
  }
  if (p.silu) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) y[i] = silu(y[i]);
  }
  store_steps(y, out.at(at.b, at.c, at.first), out.step, p.length - at.first, out.bytes);
}

template <class T, int kWidth, int kChannels>
__global__ void __launch_bounds__(kThreads)
    forward_columns_kernel(const Problem<T> p, const Signal<T> out, const Columns columns) {
  using F = Accumulator<T>;
  const ColumnPlace<kChannels> at(columns, p.channels, p.length);
  if (!at.active || at.first >= at.end) return;
  constexpr int kBefore = kWidth - 1;
  F x[kBefore + kSteps][kChannels];
#pragma unroll
  for (int i = 0; i < kBefore + kSteps; ++i)
    load_input<kWidth>(x[i], p, at.b, at.c, at.first - kBefore + i);
  Filter<kWidth, F> filter[kChannels];
#pragma unroll
  for (int j = 0; j < kChannels; ++j) filter[j].load(p, at.c + j);
  int32_t ids[kBefore + kSteps];
  if (p.segments) load_segments(ids, p, at.b, at.first - kBefore);
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    if (at.first + i >= at.end) break;
    F y[kChannels];
    if (p.segments) {
      const unsigned taps = taps_that_count<kWidth>(ids + kBefore + i);
#pragma unroll
      for (int j = 0; j < kChannels; ++j)
        y[j] = taps & 1u ? filter[j].apply(&x[kBefore + i][j], kChannels, taps) : 0;
    } else {
#pragma unroll
      for (int j = 0; j < kChannels; ++j)
        y[j] = filter[j].apply(&x[kBefore + i][j], kChannels, kAllTaps);
    }
    if (p.silu) {
#pragma unroll
      for (int j = 0; j < kChannels; ++j) y[j] = silu(y[j]);
    }
    store_channels(y, out.at(at.b, at.c, at.first + i));
  }
}

template <class T, int kWidth>
cudaError_t forward(const ConvForward& call, void* stream) {
  constexpr int64_t kAsManyPartsAsPossible = int64_t{1} << 40;
  const Problem<T> p = describe<T>(call.problem);
  const Signal<T> out = signal<T>(call.out);
  if (!by_columns(p.x)) {
    const Rows rows(call.problem.batch * p.channels, p.length, kThreads, kAsManyPartsAsPossible);
    return launch(forward_rows_kernel<T, kWidth>, rows.grid(), kThreads, 0, stream, p, out, rows);
  }
  const auto run = [&](auto channels) {
    constexpr int kChannels = decltype(channels)::value;
    const Columns columns(kChannels, p.channels, p.length, kAsManyPartsAsPossible);
    return launch(forward_columns_kernel<T, kWidth, kChannels>, columns.grid(p.batch), kThreads, 0,
                  stream, p, out, columns);
  };
  constexpr int kChannels = sizeof(T) == 8 ? 2 : 4;
  const bool together =
      channels_together<kChannels>(p.x, p.channels) && channels_together<kChannels>(out, p.channels);
  return together ? run(std::integral_constant<int, kChannels>{})
                  : run(std::integral_constant<int, 1>{});
}

// A thread has one channel of one sequence: decoding brings a position or a few at a time.
template <class T, int kWidth>
__global__ void update_kernel(const Signal<const T> x, const Signal<T> state, const Signal<T> out,
                              const Accumulator<T>* weight, const Accumulator<T>* bias,
                              const int32_t* positions, int64_t items, int64_t channels,
                              int64_t length, int64_t size, bool with_silu) {
  using F = Accumulator<T>;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (item >= items) return;
  const int64_t b = item / channels, c = item % channels;
  const int64_t start = positions ? positions[b] : size;
  // Where the input of position start + t stands, if it is one of the last `size` before `start`.
  const auto column = [&](int64_t t) { return ((start + t) % size + size) % size; };

  F window[kWidth];
#pragma unroll
  for (int k = 1; k < kWidth; ++k) window[k] = widen(*state.at(b, c, column(k - kWidth)));
  for (int64_t t = 0; t < length; ++t) {
#pragma unroll
    for (int k = 1; k < kWidth; ++k) window[k - 1] = window[k];
    const T newest = *x.at(b, c, t);
    window[kWidth - 1] = widen(newest);
    F y = bias ? bias[c] : 0;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) y += weight[c * kWidth + k] * window[k];
    *out.at(b, c, t) = narrow<T>(with_silu ? silu(y) : y);
    if (positions) *state.at(b, c, column(t)) = newest;
  }
  if (positions) return;
  for (int64_t i = 0; i < size; ++i) {
    const int64_t from = i + length;
    *state.at(b, c, i) = from < size ? *state.at(b, c, from) : *x.at(b, c, from - size);
  }
}

template <class T, int kWidth>
cudaError_t update(const ConvUpdate& call, void* stream) {
  using F = Accumulator<T>;
  const int64_t items = call.batch * call.dim;
  return launch(update_kernel<T, kWidth>, blocks_for(items, kThreads), kThreads, 0, stream,
                signal<const T>(call.x), signal<T>(call.state), signal<T>(call.out),
                static_cast<const F*>(call.weight), static_cast<const F*>(call.bias),
                call.cache_seqlens, items, call.dim, call.length, call.size, call.silu);
}

}  // namespace
}  // namespace conv

const char* causal_conv1d_forward(const ConvForward& call, void* stream) {
  if (call.problem.batch == 0) return nullptr;
  if (conv::is_wide(call.problem.width)) return message(conv::forward_wide(call, stream));
  return message(with_type(call.problem.dtype, [&](auto t) {
    return conv::with_width(call.problem.width, [&](auto width) {
      return conv::forward<decltype(t), decltype(width)::value>(call, stream);
    });
  }));
}

const char* causal_conv1d_update(const ConvUpdate& call, void* stream) {
  if (call.batch == 0) return nullptr;
  if (conv::is_wide(call.width)) return message(conv::update_wide(call, stream));
  return message(with_type(call.dtype, [&](auto t) {
    return conv::with_width(call.width, [&](auto width) {
      return conv::update<decltype(t), decltype(width)::value>(call, stream);
    });
  }));
}

}  // namespace zoo::cuda
