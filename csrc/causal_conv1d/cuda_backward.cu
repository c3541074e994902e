// Gradients of causal_conv1d. The sums before the activation are not kept by the forward pass but formed
// again here, kWidth - 1 positions further than a thread's own, because the gradient comes from there.
#include "causal_conv1d/cuda.cuh"

namespace zoo::cuda {
namespace conv {
namespace {

template <class T>
struct Gradients {
  using F = Accumulator<T>;
  Signal<const T> dout;
  Signal<T> dx, dinitial;  // dinitial: may be absent
  F *dweight, *dbias;      // [sequence and part, channel (, tap)], sums that are still to be added up
};

// What kSteps positions of one channel have to do with each other. Index 0 of `x` is kWidth - 1 positions
// before the first, index 0 of `g` is the first.
template <class T, int kWidth, int kStride>
struct Window {
  using F = Accumulator<T>;
  static constexpr int kBefore = kWidth - 1;
  static constexpr int kInputs = kBefore + kSteps + kBefore, kOutputs = kSteps + kBefore;

  // From gradients of the output, g, to gradients before the activation.
  static __device__ __forceinline__ void through_activation(const Problem<T>& p,
                                                            const Filter<kWidth, F>& filter,
                                                            const F* x, F* g,
                                                            const unsigned* taps) {
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      const unsigned counts = p.segments ? taps[i] : kAllTaps;
      F& own = g[i * kStride];
      if (p.silu) own *= silu_slope(filter.apply(x + (kBefore + i) * kStride, kStride, counts));
      if (!(counts & 1u)) own = 0;
    }
  }

  static __device__ __forceinline__ void weights(const Problem<T>& p, const F* x, const F* g,
                                                 const unsigned* taps, F (&dweight)[kWidth],
                                                 F& dbias) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      dbias += g[i * kStride];
#pragma unroll
      for (int back = 0; back < kWidth; ++back)
        if (!p.segments || (taps[i] >> back & 1u))
          dweight[kBefore - back] += g[i * kStride] * x[(kBefore + i - back) * kStride];
    }
  }

  // Of the input at position i, which may be negative: one of the initial states.
  static __device__ __forceinline__ F input(const Problem<T>& p, const Filter<kWidth, F>& filter,
                                            const F* g, const unsigned* taps, int i) {
    F sum = 0;
#pragma unroll
    for (int ahead = 0; ahead < kWidth; ++ahead)
      if (i + ahead >= 0 && (!p.segments || (taps[i + ahead] >> ahead & 1u)))
        sum += filter.weight[kBefore - ahead] * g[(i + ahead) * kStride];
    return sum;
  }

  static __device__ __forceinline__ void load_taps(const Problem<T>& p, int b, int64_t first,
                                                   unsigned (&taps)[kOutputs]) {
    int32_t ids[kInputs];
    load_segments(ids, p, b, first - kBefore);
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) taps[i] = taps_that_count<kWidth>(ids + kBefore + i);
  }
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    backward_rows_kernel(const Problem<T> p, const Gradients<T> d, const Rows rows) {
  using F = Accumulator<T>;
  using W = Window<T, kWidth, 1>;
  const RowPlace at(rows, p.channels, p.length);
  Filter<kWidth, F> filter;
  filter.load(p, at.c);
  F dweight[kWidth] = {}, dbias = 0;
  for (int64_t first = at.first; first < at.end; first += rows.lanes * kSteps) {
    F x[W::kInputs], g[W::kOutputs], own[kSteps];
    unsigned taps[W::kOutputs];
    load_row<kWidth, W::kBefore, W::kBefore>(x, p, at.b, at.c, first);
    load_steps(own, d.dout.at(at.b, at.c, first), d.dout.step, p.length - first, d.dout.bytes);
#pragma unroll
    for (int i = 0; i < W::kOutputs; ++i)
      g[i] = i < kSteps                ? own[i < kSteps ? i : 0]
             : first + i < p.length    ? widen(*d.dout.at(at.b, at.c, first + i))
                                       : F{0};
    if (p.segments) W::load_taps(p, at.b, first, taps);
    W::through_activation(p, filter, x, g, taps);
    W::weights(p, x, g, taps, dweight, dbias);
    if (!at.active) continue;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) own[i] = W::input(p, filter, g, taps, i);
    store_steps(own, d.dx.at(at.b, at.c, first), d.dx.step, p.length - first, d.dx.bytes);
    if (first == 0 && d.dinitial.data) {
#pragma unroll
      for (int i = 0; i < W::kBefore; ++i)
        *d.dinitial.at(at.b, at.c, i) = narrow<T>(W::input(p, filter, g, taps, i - W::kBefore));
    }
  }
  for (int flip = 1; flip < rows.lanes; flip *= 2) {
    dbias += __shfl_xor_sync(kFullWarp, dbias, flip);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) dweight[k] += __shfl_xor_sync(kFullWarp, dweight[k], flip);
  }
  if (at.active && at.lane == 0) {
    const int64_t to = static_cast<int64_t>(at.b * rows.parts + at.part) * p.channels + at.c;
    d.dbias[to] = dbias;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) d.dweight[to * kWidth + k] = dweight[k];
  }
}

template <class F, int kWidth, int kChannels>
struct Sums {
  F of[kColumnRuns][kColumnThreads * kChannels][kWidth + 1];  // the taps and the bias
};

template <class T, int kWidth, int kChannels>
__global__ void __launch_bounds__(kThreads)
    backward_columns_kernel(const Problem<T> p, const Gradients<T> d, const Columns columns) {
  using F = Accumulator<T>;
  using W = Window<T, kWidth, kChannels>;
  auto& shared = shared_memory<Sums<F, kWidth, kChannels>>();
  const ColumnPlace<kChannels> at(columns, p.channels, p.length);
  F dweight[kChannels][kWidth] = {}, dbias[kChannels] = {};
  if (at.active) {
    Filter<kWidth, F> filter[kChannels];
#pragma unroll
    for (int j = 0; j < kChannels; ++j) filter[j].load(p, at.c + j);
    for (int64_t first = at.first; first < at.end; first += kColumnRuns * kSteps) {
      F x[W::kInputs][kChannels], g[W::kOutputs][kChannels];
      unsigned taps[W::kOutputs];
#pragma unroll
      for (int i = 0; i < W::kInputs; ++i)
        load_input<kWidth>(x[i], p, at.b, at.c, first - W::kBefore + i);
#pragma unroll
      for (int i = 0; i < W::kOutputs; ++i) {
#pragma unroll
        for (int j = 0; j < kChannels; ++j) g[i][j] = 0;
        if (first + i < p.length) load_channels(g[i], d.dout.at(at.b, at.c, first + i));
      }
      if (p.segments) W::load_taps(p, at.b, first, taps);
#pragma unroll
      for (int j = 0; j < kChannels; ++j) {
        W::through_activation(p, filter[j], &x[0][j], &g[0][j], taps);
        W::weights(p, &x[0][j], &g[0][j], taps, dweight[j], dbias[j]);
      }
      F dx[kChannels];
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        if (first + i >= p.length) break;
#pragma unroll
        for (int j = 0; j < kChannels; ++j) dx[j] = W::input(p, filter[j], &g[0][j], taps, i);
        store_channels(dx, d.dx.at(at.b, at.c, first + i));
      }
      if (first == 0 && d.dinitial.data) {
#pragma unroll
        for (int i = 0; i < W::kBefore; ++i)
#pragma unroll
          for (int j = 0; j < kChannels; ++j)
            *d.dinitial.at(at.b, at.c + j, i) =
                narrow<T>(W::input(p, filter[j], &g[0][j], taps, i - W::kBefore));
      }
    }
  }
  const int run = static_cast<int>(threadIdx.x) / kColumnThreads;
  const int side = static_cast<int>(threadIdx.x) % kColumnThreads;
#pragma unroll
  for (int j = 0; j < kChannels; ++j) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) shared.of[run][side * kChannels + j][k] = dweight[j][k];
    shared.of[run][side * kChannels + j][kWidth] = dbias[j];
  }
  __syncthreads();
  constexpr int kValues = kColumnThreads * kChannels * (kWidth + 1);
  for (int e = static_cast<int>(threadIdx.x); e < kValues; e += kThreads) {
    const int channel = e / (kWidth + 1), k = e % (kWidth + 1);
    const int c = at.c - side * kChannels + channel;
    if (c >= p.channels) continue;
    F sum = 0;
#pragma unroll
    for (int r = 0; r < kColumnRuns; ++r) sum += shared.of[r][channel][k];
    const int64_t to = static_cast<int64_t>(at.b * columns.parts + at.part) * p.channels + c;
    if (k == kWidth) {
      d.dbias[to] = sum;
    } else {
      d.dweight[to * kWidth + k] = sum;
    }
  }
}

// How a call is cut up. Parts of a sequence cost scratch memory, so there are no more than fill the GPU.
struct Cut {
  bool columns;
  int64_t parts_wanted;

  explicit Cut(const ConvProblem& p) : columns(p.x.channel < p.x.step) {
    constexpr int kBlocksWanted = 8;  // for each multiprocessor
    const int64_t blocks =
        columns ? p.batch * ((p.dim + kColumnThreads - 1) / kColumnThreads) : (p.batch * p.dim + 7) / 8;
    parts_wanted = std::max<int64_t>(1, kBlocksWanted * multiprocessors() / std::max<int64_t>(blocks, 1));
  }
  Rows rows(const ConvProblem& p) const { return {p.batch * p.dim, p.length, 32, parts_wanted}; }
  int64_t parts(const ConvProblem& p) const {
    return columns ? Columns(1, p.dim, p.length, parts_wanted).parts : rows(p).parts;
  }
};

template <class T>
struct BackwardScratch {
  Accumulator<T>*dweight, *dbias;
  int64_t bytes;

  BackwardScratch(const ConvProblem& p, void* workspace) {
    Scratch scratch(workspace);
    const int64_t sums = p.batch * Cut(p).parts(p) * p.dim;
    dweight = scratch.take<Accumulator<T>>(sums * p.width);
    dbias = scratch.take<Accumulator<T>>(sums);
    bytes = scratch.size();
  }
};

template <class T, int kWidth>
cudaError_t backward(const ConvBackward& call, void* workspace, void* stream) {
  using F = Accumulator<T>;
  const Problem<T> p = describe<T>(call.problem);
  const BackwardScratch<T> scratch(call.problem, workspace);
  const Gradients<T> d{signal<const T>(call.dout), signal<T>(call.dx),
                       signal<T>(call.dinitial_states), scratch.dweight, scratch.dbias};
  const Cut cut(call.problem);
  cudaError_t error;
  if (cut.columns) {
    const auto run = [&](auto channels) {
      constexpr int kChannels = decltype(channels)::value;
      const Columns columns(kChannels, p.channels, p.length, cut.parts_wanted);
      return launch(backward_columns_kernel<T, kWidth, kChannels>, columns.grid(p.batch), kThreads,
                    sizeof(Sums<F, kWidth, kChannels>), stream, p, d, columns);
    };
    const bool together = channels_together<2>(p.x, p.channels) &&
                          channels_together<2>(d.dout, p.channels) &&
                          channels_together<2>(d.dx, p.channels);
    error = together ? run(std::integral_constant<int, 2>{}) : run(std::integral_constant<int, 1>{});
  } else {
    const Rows rows = cut.rows(call.problem);
    error =
        launch(backward_rows_kernel<T, kWidth>, rows.grid(), kThreads, 0, stream, p, d, rows);
  }
  if (error != cudaSuccess) return error;
  const int64_t sums = call.problem.batch * cut.parts(call.problem);
  error = sum_rows(d.dweight, static_cast<F*>(call.dweight), sums, p.channels * kWidth, stream);
  if (error != cudaSuccess || !call.dbias) return error;
  return sum_rows(d.dbias, static_cast<F*>(call.dbias), sums, p.channels, stream);
}

}  // namespace
}  // namespace conv

int64_t causal_conv1d_workspace(const ConvBackward& call) {
  if (conv::is_wide(call.problem.width)) return conv::wide_workspace(call);
  return with_type(call.problem.dtype, [&](auto t) {
    return conv::BackwardScratch<decltype(t)>(call.problem, nullptr).bytes;
  });
}

const char* causal_conv1d_backward(const ConvBackward& call, void* workspace, void* stream) {
  if (call.problem.batch == 0) return nullptr;
  if (conv::is_wide(call.problem.width))
    return message(conv::backward_wide(call, workspace, stream));
  return message(with_type(call.problem.dtype, [&](auto t) {
    return conv::with_width(call.problem.width, [&](auto width) {
      return conv::backward<decltype(t), decltype(width)::value>(call, workspace, stream);
    });
  }));
}

}  // namespace zoo::cuda
