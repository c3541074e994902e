// The causal convolution on the CPU where the steps of a channel are neighbours in memory: vectors go
// along the steps of one channel.
#pragma once

#include "causal_conv1d/causal_conv1d.h"
#include "common/arena.h"
#include "common/tile.h"

namespace zoo::ZOO_CPU::conv {

template <class T>
T* row_of(const ConvSignal& s, int64_t batch, int64_t channel) {
  return static_cast<T*>(s.data) + batch * s.batch + channel * s.channel;
}

// Derivative of silu.
template <class V>
ZOO_INLINE V silu_slope(V x) {
  const V s = sigmoid(x);
  return s * fma(x, V::set(1) - s, V::set(1));
}

template <class V, class T, int kWidth>
class Rows {
  using S = typename V::Scalar;
  static constexpr int W = V::kSize;
  static constexpr int kBefore = kWidth - 1;

 public:
  Rows(Arena& arena, const ConvProblem& p) : p_(p) {
    x_ = arena.take<S>(kBefore + p.length + W);
    g_ = arena.take<S>(p.length + kBefore + W);
    for (S*& mask : masks_) mask = p.seq_idx ? arena.take<S>(p.length + kBefore + W) : nullptr;
  }

  void forward(const ConvForward& call, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t b = i / p_.dim, d = i % p_.dim;
      if (i == begin || d == 0) load_masks(b);
      load_x(b, d);
      T* const out = row_of<T>(call.out, b, d);
      for_steps([&](int64_t t, int n) {
        V y = convolve(d, t);
        if (p_.silu) y = silu(y);
        if (p_.seq_idx) y = y * load(masks_[kBefore] + t);
        n == W ? store(out + t, y) : store(out + t, y, n);
      });
    }
  }

  // Channels begin to end of all batch entries; dweight and dbias of these channels are complete then.
  void backward(const ConvBackward& call, int64_t begin, int64_t end) {
    S* const dweight = static_cast<S*>(call.dweight);
    S* const dbias = static_cast<S*>(call.dbias);
    memset(dweight + begin * kWidth, 0, (end - begin) * kWidth * sizeof(S));
    if (dbias) memset(dbias + begin, 0, (end - begin) * sizeof(S));
    for (int64_t b = 0; b < p_.batch; b++) {
      load_masks(b);
      for (int64_t d = begin; d < end; d++) {
        load_x(b, d);
        load_gradient(row_of<const T>(call.dout, b, d), d);
        V sums[kWidth], bias_sum = V::set(0);
        for (V& s : sums) s = V::set(0);
        for_steps([&](int64_t t, int) {  // behind the last step the gradient is 0
          const V g = load(g_ + t);
          bias_sum += g;
          for (int k = 0; k < kWidth; k++) sums[k] = fma(masked(g, k, t), load(x_ + t + k), sums[k]);
        });
        for (int k = 0; k < kWidth; k++) dweight[d * kWidth + k] += sum(sums[k]);
        if (dbias) dbias[d] += sum(bias_sum);

        T* const dx = row_of<T>(call.dx, b, d);
        for_steps([&](int64_t t, int n) {
          const V v = transposed(d, t);
          n == W ? store(dx + t, v) : store(dx + t, v, n);
        });
        if (call.dinitial_states.data) initial_gradient(call.dinitial_states, b, d);
      }
    }
  }

 private:
  template <class F>
  void for_steps(const F& f) const {
    int64_t t = 0;
    for (; t + W <= p_.length; t += W) f(t, W);
    if (t < p_.length) f(t, static_cast<int>(p_.length - t));
  }

  S weight(int64_t d, int k) const { return static_cast<const S*>(p_.weight)[d * kWidth + k]; }

  // x_[kBefore + t] is step t; before it the initial states, behind the end zeros.
  void load_x(int64_t b, int64_t d) {
    const ConvSignal& before = p_.initial_states;
    if (before.data) {
      load_line(x_, row_of<const T>(before, b, d), before.step, kBefore);
    } else {
      memset(x_, 0, kBefore * sizeof(S));
    }
    load_line(x_ + kBefore, row_of<const T>(p_.x, b, d), 1, p_.length);
  }

  static void load_line(S* to, const T* from, int64_t stride, int64_t count) {
    for (int64_t t = 0; t < count; t += stride == 1 ? W : 1) {
      const int64_t left = count - t;
      const int n = stride != 1 ? 1 : left < W ? static_cast<int>(left) : W;
      const V v = n == W ? load(from + t) : load(from + t * stride, n);
      n == W || t + W >= count ? store(to + t, v) : store(to + t, v, n);
    }
  }

  // masks_[k][t]: 1 if step t may use its tap k; the last one: 1 unless step t is padding.
  void load_masks(int64_t b) {
    if (!p_.seq_idx) return;
    const int32_t* const id = p_.seq_idx + b * p_.length;
    for (int k = 0; k < kWidth; k++) {
      for (int64_t t = 0; t < p_.length; t++) {
        const int64_t from = t - kBefore + k;
        masks_[k][t] = from >= 0 && id[t] >= 0 && id[from] == id[t] ? 1 : 0;
      }
      memset(masks_[k] + p_.length, 0, (kBefore + W) * sizeof(S));
    }
  }

  ZOO_INLINE V masked(V v, int k, int64_t t) const {
    return p_.seq_idx ? v * load(masks_[k] + t) : v;
  }

  // Steps t to t + W before the activation.
  ZOO_INLINE V convolve(int64_t d, int64_t t) const {
    V y = p_.bias ? V::set(static_cast<const S*>(p_.bias)[d]) : V::set(0);
    for (int k = 0; k < kWidth; k++)
      y = fma(masked(V::set(weight(d, k)), k, t), load(x_ + t + k), y);
    return y;
  }

  // g_[t]: gradient of step t before the activation; zeros behind the end.
  void load_gradient(const T* dout, int64_t d) {
    for_steps([&](int64_t t, int n) {
      V g = n == W ? load(dout + t) : load(dout + t, n);
      if (p_.silu) g = g * silu_slope(convolve(d, t));
      if (p_.seq_idx) g = g * load(masks_[kBefore] + t);
      n == W ? store(g_ + t, g) : store(g_ + t, g, n);
    });
    memset(g_ + p_.length, 0, (kBefore + W) * sizeof(S));
  }

  // Gradient of steps t to t + W of x.
  ZOO_INLINE V transposed(int64_t d, int64_t t) const {
    V v = V::set(0);
    for (int k = 0; k < kWidth; k++) {
      const int64_t at = t + kBefore - k;
      v = fma(masked(V::set(weight(d, k)), k, at), load(g_ + at), v);
    }
    return v;
  }

  void initial_gradient(const ConvSignal& to, int64_t b, int64_t d) const {
    T* const row = row_of<T>(to, b, d);
    for (int j = 0; j < kBefore; j++) {
      S v = 0;
      for (int k = 0; k <= j; k++) {
        if (j - k < p_.length) v += weight(d, k) * g_[j - k];
      }
      store(row + j * to.step, V::set(v), 1);
    }
  }

  const ConvProblem& p_;
  S *x_, *g_, *masks_[kWidth];
};

}  // namespace zoo::ZOO_CPU::conv
