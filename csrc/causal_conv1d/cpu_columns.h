// The causal convolution on the CPU where the channels of a step are neighbours in memory: vectors go
// along channels.
#pragma once

#include "causal_conv1d/cpu_rows.h"

namespace zoo::ZOO_CPU::conv {

template <class V, class T, int kWidth>
class Columns : Width<kWidth> {
  using S = typename V::Scalar;
  using Width<kWidth>::kMost, Width<kWidth>::width, Width<kWidth>::before;
  static constexpr int W = V::kSize;

 public:
  Columns(Arena& arena, const ConvProblem& p)
      : Width<kWidth>(p.width), p_(p), padded_((p.dim + W - 1) / W * W) {
    weight_ = arena.take<S>(width() * padded_);
    bias_ = arena.take<S>(padded_);
    initial_ = arena.take<S>(before() * padded_);
    ring_ = arena.take<S>(width() * padded_);
    line_ = arena.take<S>(width() * W);
  }

  // Scratch for the sums that a part of the backward pass leaves: [width + 1][padded].
  int64_t sums_size() const { return (width() + 1) * padded_; }

  // Steps begin to end, counted through all batch entries.
  void forward(const ConvForward& call, int64_t begin, int64_t end) {
    load_parameters();
    for_entries(begin, end, [&](int64_t b, int64_t first, int64_t last) {
      load_initial(b);
      for (int64_t t = first; t < last; t++) {
        T* const out = column<T>(call.out, b, t);
        const Taps taps = taps_of(b, t);
        const bool padding = p_.seq_idx && p_.seq_idx[b * p_.length + t] < 0;
        for_channels([&](int64_t c, int n) {
          V y = convolve(taps, c, n);
          if (p_.silu) y = silu(y);
          if (padding) y = V::set(0);
          n == W ? store(out + c, y) : store(out + c, y, n);
        });
      }
    });
  }

  void backward(const ConvBackward& call, int64_t begin, int64_t end, S* sums) {
    load_parameters();
    memset(sums, 0, sums_size() * sizeof(S));
    for_entries(begin, end, [&](int64_t b, int64_t first, int64_t last) {
      load_initial(b);
      memset(ring_, 0, width() * padded_ * sizeof(S));
      // The gradient of step t before the activation reaches back to the input of step t - before().
      for (int64_t t = first; t < last + before(); t++) {
        gradient(call, b, t, t < last ? sums : nullptr);
        const int64_t s = t - before();
        if (s >= first) {
          input_gradient(call.dx, b, s, s);
        } else if (first == 0 && call.dinitial_states.data) {
          input_gradient(call.dinitial_states, b, s, s + before());
        }
      }
    });
  }

  // Adds up what the parts have left and writes it.
  void finish(const ConvBackward& call, S* sums, int64_t parts) const {
    S* const dweight = static_cast<S*>(call.dweight);
    for (int64_t part = 1; part < parts; part++) {
      for (int64_t i = 0; i < sums_size(); i++) sums[i] += sums[part * sums_size() + i];
    }
    for (int k = 0; k < width(); k++) {
      for (int64_t c = 0; c < p_.dim; c++) dweight[c * width() + k] = sums[k * padded_ + c];
    }
    if (call.dbias) memcpy(call.dbias, sums + width() * padded_, p_.dim * sizeof(S));
  }

 private:
  // Inputs of one output: from x, from the initial states, or none.
  struct Taps {
    const T* x[kMost];
    const S* initial[kMost];
    bool all_x;
  };

  template <class F>
  void for_entries(int64_t begin, int64_t end, const F& f) const {
    while (begin < end) {
      const int64_t b = begin / p_.length, first = begin % p_.length;
      const int64_t left = end - begin, here = p_.length - first;
      const int64_t count = left < here ? left : here;
      f(b, first, first + count);
      begin += count;
    }
  }

  template <class F>
  void for_channels(const F& f) const {
    int64_t c = 0;
    for (; c + W <= p_.dim; c += W) f(c, W);
    if (c < p_.dim) f(c, static_cast<int>(p_.dim - c));
  }

  template <class P>
  static P* column(const ConvSignal& s, int64_t b, int64_t t) {
    return static_cast<P*>(s.data) + b * s.batch + t * s.step;
  }

  void load_parameters() {
    for_channels([&](int64_t c, int n) {
      load_tile<V>(line_, static_cast<const S*>(p_.weight) + c * width(), width(), 1, n, width());
      for (int k = 0; k < width(); k++) store(weight_ + k * padded_ + c, load(line_ + k * W));
      store(bias_ + c, p_.bias ? load(static_cast<const S*>(p_.bias) + c, n) : V::set(0));
    });
  }

  void load_initial(int64_t b) {
    const ConvSignal& from = p_.initial_states;
    if (!from.data) return;
    for_channels([&](int64_t c, int n) {
      load_tile<V>(line_, static_cast<const T*>(from.data) + b * from.batch + c * from.channel,
                   from.channel, from.step, n, before());
      for (int k = 0; k < before(); k++) store(initial_ + k * padded_ + c, load(line_ + k * W));
    });
  }

  // Whether the output of step t uses the input of step `from`.
  bool connected(int64_t b, int64_t t, int64_t from) const {
    if (!p_.seq_idx) return true;
    const int32_t* const id = p_.seq_idx + b * p_.length;
    return from >= 0 && id[t] >= 0 && id[from] == id[t];
  }

  Taps taps_of(int64_t b, int64_t t) const {
    Taps taps;
    taps.all_x = true;
    for (int k = 0; k < width(); k++) {
      taps.x[k] = nullptr;
      taps.initial[k] = nullptr;
      const int64_t from = t - before() + k;
      if (connected(b, t, from)) {
        if (from >= 0) {
          taps.x[k] = column<const T>(p_.x, b, from);
        } else if (p_.initial_states.data) {
          taps.initial[k] = initial_ + (from + before()) * padded_;
        }
      }
      taps.all_x = taps.all_x && taps.x[k];
    }
    return taps;
  }

  static ZOO_INLINE V input(const Taps& taps, int k, int64_t c, int n) {
    if (taps.x[k]) return n == W ? load(taps.x[k] + c) : load(taps.x[k] + c, n);
    return taps.initial[k] ? load(taps.initial[k] + c) : V::set(0);
  }

  ZOO_INLINE V convolve(const Taps& taps, int64_t c, int n) const {
    V y = load(bias_ + c);
    if (taps.all_x && n == W) {
      for (int k = 0; k < width(); k++) y = fma(load(weight_ + k * padded_ + c), load(taps.x[k] + c), y);
    } else {
      for (int k = 0; k < width(); k++)
        y = fma(load(weight_ + k * padded_ + c), input(taps, k, c, n), y);
    }
    return y;
  }

  S* ring(int64_t t) const { return ring_ + (t + width()) % width() * padded_; }

  // Gradient of step t before the activation, into the ring; its part of the sums, if wanted.
  void gradient(const ConvBackward& call, int64_t b, int64_t t, S* sums) {
    S* const g = ring(t);
    if (t >= p_.length || (p_.seq_idx && p_.seq_idx[b * p_.length + t] < 0)) {
      memset(g, 0, padded_ * sizeof(S));
      return;
    }
    const Taps taps = taps_of(b, t);
    const T* const dout = column<const T>(call.dout, b, t);
    for_channels([&](int64_t c, int n) {
      V v = n == W ? load(dout + c) : load(dout + c, n);
      if (p_.silu) v = v * silu_slope(convolve(taps, c, n));
      store(g + c, v);
      if (!sums) return;
      for (int k = 0; k < width(); k++) {
        S* const sum = sums + k * padded_ + c;
        store(sum, fma(v, input(taps, k, c, n), load(sum)));
      }
      S* const sum = sums + width() * padded_ + c;
      store(sum, load(sum) + v);
    });
  }

  // Gradient of the input of step s (negative: an initial state), from the ring to step `at` of `to`.
  void input_gradient(const ConvSignal& to, int64_t b, int64_t s, int64_t at) const {
    const S* g[kMost];  // null where a tap is not used
    for (int k = 0; k < width(); k++) {
      const int64_t t = s + before() - k;
      g[k] = t >= 0 && t < p_.length && connected(b, t, s) ? ring(t) : nullptr;
    }
    T* const row = static_cast<T*>(to.data) + b * to.batch + at * to.step;
    for_channels([&](int64_t c, int n) {
      V v = V::set(0);
      for (int k = 0; k < width(); k++) {
        if (g[k]) v = fma(load(weight_ + k * padded_ + c), load(g[k] + c), v);
      }
      if (to.channel == 1) {
        n == W ? store(row + c, v) : store(row + c, v, n);
      } else {
        store(line_, v);
        store_tile<V>(line_, row + c * to.channel, to.channel, 0, n, 1);
      }
    });
  }

  const ConvProblem& p_;
  int64_t padded_;
  S *weight_, *bias_, *initial_, *ring_, *line_;
};

}  // namespace zoo::ZOO_CPU::conv
