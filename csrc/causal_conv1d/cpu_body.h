// The causal convolution on the CPU: choice of number type, width and layout, and the step for decoding.
#pragma once

#include "causal_conv1d/cpu_columns.h"
#include "causal_conv1d/cpu_rows.h"

namespace zoo::ZOO_CPU {

namespace conv {

// f.operator()<V, T, kWidth>(): the widths that models have are compiled apart for the types that they
// compute in, all else takes the width as it comes (kWidth 0).
template <class F>
bool dispatch(DType dtype, int width, const F& f) {
  const auto by_width = [&]<class V, class T>() {
    switch (width) {
      case 3: return f.template operator()<V, T, 3>();
      case 4: return f.template operator()<V, T, 4>();
      default: return f.template operator()<V, T, 0>();
    }
  };
  switch (dtype) {
    case DType::kFloat32: return by_width.template operator()<Vec, float>();
    case DType::kBFloat16: return by_width.template operator()<Vec, BFloat16>();
    case DType::kFloat16: return f.template operator()<Vec, Float16, 0>();
    default: return f.template operator()<VecD, double, 0>();
  }
}

// run(kernel, begin, end) on all threads, each with a Kernel and scratch memory of its own.
template <class Kernel, class F>
bool on_threads(const ConvProblem& p, const Threads& threads, int64_t tasks, const F& run) {
  bool done = true;
  threads(tasks, [&](int64_t begin, int64_t end) {
    Arena arena;
    Kernel(arena, p);
    if (!arena.allocate()) {
      __atomic_store_n(&done, false, __ATOMIC_RELAXED);
      return;
    }
    Kernel kernel(arena, p);
    run(kernel, begin, end);
  });
  return done;
}

template <class V, class T, int kWidth>
bool backward_by_columns(const ConvBackward& call, const Threads& threads) {
  using Kernel = Columns<V, T, kWidth>;
  using S = typename V::Scalar;
  const ConvProblem& p = call.problem;
  const int64_t steps = p.batch * p.length;
  const int64_t parts = threads.count < steps ? threads.count : steps;
  Arena nothing, arena;
  const Kernel plan(nothing, p);
  const int64_t size = plan.sums_size();
  arena.take<S>(parts * size);
  if (!arena.allocate()) return false;
  S* const sums = arena.take<S>(parts * size);
  const bool done =
      on_threads<Kernel>(p, threads, parts, [&](Kernel& kernel, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++)
          kernel.backward(call, steps * i / parts, steps * (i + 1) / parts, sums + i * size);
      });
  if (done) plan.finish(call, sums, parts);
  return done;
}

// One vector of channels of one batch entry.
template <class V, class T, int kWidth>
void update(const ConvUpdate& call, int64_t b, int64_t c, int lanes, typename V::Scalar* scratch) {
  using S = typename V::Scalar;
  constexpr int W = V::kSize;
  const Width<kWidth> taps(call.width);
  const int width = taps.width(), before = taps.before();
  const int64_t size = call.size, length = call.length;
  S *const weight = scratch, *const line = weight + width * W, *const state = line + before * W,
    *const out = state + (size + length) * W;
  const auto at = [&](const ConvSignal& s) {
    return static_cast<T*>(s.data) + b * s.batch + c * s.channel;
  };
  load_tile<V>(weight, static_cast<const S*>(call.weight) + c * width, width, 1, lanes, width);
  // The inputs in the order of time: `size` old ones, then x.
  load_tile<V>(state, at(call.state), call.state.channel, call.state.step, lanes,
               static_cast<int>(size));
  load_tile<V>(state + size * W, at(call.x), call.x.channel, call.x.step, lanes,
               static_cast<int>(length));
  const int64_t start = call.cache_seqlens ? call.cache_seqlens[b] : 0;
  const auto slot = [&](int64_t t) { return ((start + t) % size + size) % size; };
  if (call.cache_seqlens) {
    for (int j = 0; j < before; j++) store(line + j * W, load(state + slot(j - before) * W));
  }
  const V bias = call.bias ? load(static_cast<const S*>(call.bias) + c, lanes) : V::set(0);
  for (int64_t t = 0; t < length; t++) {
    V y = bias;
    for (int k = 0; k < width; k++) {
      const int64_t from = t - before + k;
      const S* const input = from < 0 && call.cache_seqlens ? line + (from + before) * W
                                                            : state + (size + from) * W;
      y = fma(load(weight + k * W), load(input), y);
    }
    store(out + t * W, call.silu ? silu(y) : y);
  }
  store_tile<V>(out, at(call.out), call.out.channel, call.out.step, lanes, static_cast<int>(length));
  if (!call.cache_seqlens) {
    store_tile<V>(state + length * W, at(call.state), call.state.channel, call.state.step, lanes,
                  static_cast<int>(size));
    return;
  }
  for (int64_t t = length > size ? length - size : 0; t < length; t++)
    store_tile<V>(state + (size + t) * W, at(call.state) + slot(t) * call.state.step,
                  call.state.channel, 0, lanes, 1);
}

}  // namespace conv

bool causal_conv1d_forward(const ConvForward& call, const Threads& threads) {
  const ConvProblem& p = call.problem;
  return conv::dispatch(p.dtype, p.width, [&]<class V, class T, int kWidth>() {
    const auto run = [&](auto& kernel, int64_t begin, int64_t end) {
      kernel.forward(call, begin, end);
    };
    return p.x.step == 1
               ? conv::on_threads<conv::Rows<V, T, kWidth>>(p, threads, p.batch * p.dim, run)
               : conv::on_threads<conv::Columns<V, T, kWidth>>(p, threads, p.batch * p.length, run);
  });
}

bool causal_conv1d_backward(const ConvBackward& call, const Threads& threads) {
  const ConvProblem& p = call.problem;
  return conv::dispatch(p.dtype, p.width, [&]<class V, class T, int kWidth>() {
    if (p.x.step != 1) return conv::backward_by_columns<V, T, kWidth>(call, threads);
    return conv::on_threads<conv::Rows<V, T, kWidth>>(
        p, threads, p.dim,
        [&](auto& kernel, int64_t begin, int64_t end) { kernel.backward(call, begin, end); });
  });
}

bool causal_conv1d_update(const ConvUpdate& call, const Threads& threads) {
  return conv::dispatch(call.dtype, call.width, [&]<class V, class T, int kWidth>() {
    using S = typename V::Scalar;
    constexpr int W = V::kSize;
    const int64_t blocks = (call.dim + W - 1) / W;
    bool done = true;
    threads(call.batch * blocks, [&](int64_t begin, int64_t end) {
      const int64_t steps = 2 * call.width + call.size + 2 * call.length;
      Arena arena;
      arena.take<S>(steps * W);
      if (!arena.allocate()) {
        __atomic_store_n(&done, false, __ATOMIC_RELAXED);
        return;
      }
      S* const scratch = arena.take<S>(steps * W);
      for (int64_t i = begin; i < end; i++) {
        const int64_t c = i % blocks * W, left = call.dim - c;
        conv::update<V, T, kWidth>(call, i / blocks, c, static_cast<int>(left < W ? left : W),
                                   scratch);
      }
    });
    return done;
  });
}

}  // namespace zoo::ZOO_CPU
