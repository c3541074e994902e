// The delta rule on the CPU, for one head of one sequence and a block of its columns.
//
// Columns of the state do not see each other: that of channel p holds what k is to find of v's channel p. So
// a block of few vectors of them, all N rows, stays in the first-level cache while the steps go by. A step
//
//   r = S^T k,  u = beta (v - a r),  S <- a S + k u^T,  o = S^T q
//
// passes over the block twice, which costs less than the triangular systems of a chunked form would, and it
// is as exact for beta near 2 and for decays that are 0 or negative.
//
// Going back, the states of one span are computed again from its border and kept; G is the gradient of S:
//
//   G += q do^T,  dq = S do,  du = G^T k,  w = beta du = dv,  dbeta = du . (v - a r),
//   dk = G u - a S' w,  da = G : S' - r . w,  G' = a (G - k w^T),  S' being the state before the step.
#pragma once

#include "common/arena.h"
#include "delta_rule/delta_rule.h"

namespace zoo::ZOO_CPU::delta {

// f(i) for vector i of a block; the last one may have fewer elements than a vector.
template <class V, int NV>
struct Columns {
  using S = typename V::Scalar;
  static constexpr int W = V::kSize, kWidth = NV * W;
  int64_t first, count;

  ZOO_INLINE int left(int i) const {
    const int64_t rest = count - i * W;
    return rest >= W ? W : rest > 0 ? static_cast<int>(rest) : 0;
  }
  ZOO_INLINE void read(V (&x)[NV], const S* row) const {
    for (int i = 0; i < NV; i++) {
      const int n = left(i);
      x[i] = n == W ? load(row + first + i * W) : n ? load(row + first + i * W, n) : V::set(0);
    }
  }
  ZOO_INLINE void write(S* row, const V (&x)[NV]) const {
    for (int i = 0; i < NV; i++) {
      const int n = left(i);
      if (n == W) {
        store(row + first + i * W, x[i]);
      } else if (n) {
        store(row + first + i * W, x[i], n);
      }
    }
  }
};

template <class V, int NV>
ZOO_INLINE void load_row(V (&x)[NV], const typename V::Scalar* p) {
  for (int i = 0; i < NV; i++) x[i] = load(p + i * V::kSize);
}

template <class V, int NV>
ZOO_INLINE void store_row(typename V::Scalar* p, const V (&x)[NV]) {
  for (int i = 0; i < NV; i++) store(p + i * V::kSize, x[i]);
}

template <class V, int NV>
ZOO_INLINE void set_all(V (&x)[NV], double value) {
  for (int i = 0; i < NV; i++) x[i] = V::set(static_cast<typename V::Scalar>(value));
}

// p[i] += the sum over the elements of x[i].
template <class V>
ZOO_INLINE void add_sums(typename V::Scalar* p, const V (&x)[4]) {
  if constexpr (V::kSize >= 4) {
    add_fold4(p, reduce4(x[0], x[1], x[2], x[3]));
  } else {
    for (int i = 0; i < 4; i++) p[i] += sum(x[i]);
  }
}

template <class V, int NV>
ZOO_INLINE typename V::Scalar sum_all(const V (&x)[NV]) {
  V total = x[0];
  for (int i = 1; i < NV; i++) total += x[i];
  return sum(total);
}

template <class V, int NV, bool kBeta, bool kDecay>
class Block {
  using S = typename V::Scalar;
  using Row = V[NV];
  static constexpr int W = V::kSize, kWidth = NV * W;

 public:
  Block(const DeltaProblem& p, int64_t batch, int64_t head, int64_t first)
      : p_(p), batch_(batch), head_(head), columns_{first, p.head_dim - first} {}

  // Numbers of scratch memory.
  static int64_t forward_size(const DeltaProblem& p) { return p.state * kWidth; }
  static int64_t backward_size(const DeltaProblem& p) {
    return p.state * kWidth * (kDeltaSpan + 2) + kDeltaSpan * kWidth;
  }

  void forward(const DeltaForward& call, S* state) const {
    load_state(state, p_.initial_state, matrix());
    for (int64_t t = 0; t < p_.length; t++) {
      if (call.borders && t % kDeltaSpan == 0) store_state(call.borders, state, border(t));
      Row u, r, o;
      columns_.read(u, at<const S>(p_.v, t, p_.head_dim));
      set_all(o, 0);
      step<true>(state, state, t, u, r, o);
      columns_.write(at<S>(call.out, t, p_.head_dim), o);
    }
    store_state(call.last_state, state, matrix());
  }

  void backward(const DeltaBackward& call, S* memory) const {
    const int64_t size = p_.state * kWidth;
    S *const states = memory, *const G = states + size * (kDeltaSpan + 1), *const held = G + size;
    if (call.dlast_state) {
      load_state(G, call.dlast_state, matrix());
    } else {
      memset(G, 0, size * sizeof(S));
    }
    for (int64_t end = p_.length; end > 0;) {
      const int64_t begin = (end - 1) / kDeltaSpan * kDeltaSpan;
      load_state(states, call.borders, border(begin));
      for (int64_t t = begin; t < end; t++) {
        Row u, r, none;
        columns_.read(u, at<const S>(p_.v, t, p_.head_dim));
        S* const from = states + (t - begin) * size;
        step<false>(from, from + size, t, u, r, none);
        if (kBeta) store_row(held + (t - begin) * kWidth, r);
      }
      for (int64_t t = end - 1; t >= begin; t--)
        step_back(call, t, states + (t - begin) * size, held + (t - begin) * kWidth, G);
      end = begin;
    }
    if (call.dinitial_state) store_state(call.dinitial_state, G, matrix());
  }

 private:
  // The numbers of step t, `size` of them, in a tensor [batch, length, heads, size].
  template <class T>
  ZOO_INLINE T* at(const void* data, int64_t t, int64_t size) const {
    S* const start = static_cast<S*>(const_cast<void*>(data));
    return start + ((batch_ * p_.length + t) * p_.heads + head_) * size;
  }

  ZOO_INLINE int64_t matrix() const { return (batch_ * p_.heads + head_) * p_.state * p_.head_dim; }
  ZOO_INLINE int64_t border(int64_t t) const {
    const int64_t spans = (p_.length + kDeltaSpan - 1) / kDeltaSpan;
    return ((batch_ * spans + t / kDeltaSpan) * p_.heads + head_) * p_.state * p_.head_dim;
  }

  void load_state(S* state, const void* from, int64_t start) const {
    for (int64_t n = 0; n < p_.state; n++) {
      Row row;
      if (from) {
        columns_.read(row, static_cast<const S*>(from) + start + n * p_.head_dim);
      } else {
        set_all(row, 0);
      }
      store_row(state + n * kWidth, row);
    }
  }

  void store_state(void* to, const S* state, int64_t start) const {
    for (int64_t n = 0; n < p_.state; n++) {
      Row row;
      load_row(row, state + n * kWidth);
      columns_.write(static_cast<S*>(to) + start + n * p_.head_dim, row);
    }
  }

  ZOO_INLINE S decay_at(int64_t t) const { return kDecay ? *at<const S>(p_.decay, t, 1) : S(1); }

  // u: v before, what is written after; r: what k finds; o += what q finds.
  template <bool kOut>
  ZOO_INLINE void step(const S* from, S* to, int64_t t, Row& u, Row& r, Row& o) const {
    const S *const k = at<const S>(p_.k, t, p_.state), *const q = at<const S>(p_.q, t, p_.state);
    const V a = V::set(decay_at(t));
    if constexpr (kBeta) {
      find(r, from, k);
      const V beta = V::set(*at<const S>(p_.beta, t, 1));
      for (int i = 0; i < NV; i++) u[i] = beta * (u[i] - (kDecay ? a * r[i] : r[i]));
    }
    for (int64_t n = 0; n < p_.state; n++) {
      const V kn = V::set(k[n]), qn = V::set(q[n]);
      for (int i = 0; i < NV; i++) {
        V s = load(from + n * kWidth + i * W);
        s = fma(kn, u[i], kDecay ? a * s : s);
        store(to + n * kWidth + i * W, s);
        if (kOut) o[i] = fma(qn, s, o[i]);
      }
    }
  }

  // r = S^T k, in two sums so that they need not wait for each other.
  ZOO_INLINE void find(Row& r, const S* state, const S* k) const {
    Row other;
    set_all(r, 0);
    set_all(other, 0);
    int64_t n = 0;
    for (; n + 2 <= p_.state; n += 2) {
      const V even = V::set(k[n]), odd = V::set(k[n + 1]);
      for (int i = 0; i < NV; i++) {
        r[i] = fma(even, load(state + n * kWidth + i * W), r[i]);
        other[i] = fma(odd, load(state + (n + 1) * kWidth + i * W), other[i]);
      }
    }
    if (n < p_.state) {
      const V last = V::set(k[n]);
      for (int i = 0; i < NV; i++) r[i] = fma(last, load(state + n * kWidth + i * W), r[i]);
    }
    for (int i = 0; i < NV; i++) r[i] += other[i];
  }

  // before: the state before the step, behind it the one after.
  void step_back(const DeltaBackward& call, int64_t t, const S* before, const S* held, S* G) const {
    const S *const k = at<const S>(p_.k, t, p_.state), *const q = at<const S>(p_.q, t, p_.state);
    S *const dk = at<S>(call.dk, t, p_.state), *const dq = at<S>(call.dq, t, p_.state);
    const S* const after = before + p_.state * kWidth;
    Row dout, du;
    if (call.dout) {
      columns_.read(dout, at<const S>(call.dout, t, p_.head_dim));
    } else {
      set_all(dout, 0);
    }
    set_all(du, 0);
    rows(
        [&](int64_t n) {
          const V kn = V::set(k[n]), qn = V::set(q[n]);
          V found = V::set(0);
          for (int i = 0; i < NV; i++) {
            const V g = fma(qn, dout[i], load(G + n * kWidth + i * W));
            store(G + n * kWidth + i * W, g);
            du[i] = fma(kn, g, du[i]);
            found = fma(load(after + n * kWidth + i * W), dout[i], found);
          }
          return found;
        },
        dq);

    Row u, w, r, da;
    const S a = decay_at(t);
    const V decay = V::set(a);
    columns_.read(u, at<const S>(p_.v, t, p_.head_dim));
    set_all(da, 0);
    if constexpr (kBeta) {
      load_row(r, held);
      const V beta = V::set(*at<const S>(p_.beta, t, 1));
      V dbeta = V::set(0);
      for (int i = 0; i < NV; i++) {
        const V error = u[i] - (kDecay ? decay * r[i] : r[i]);
        dbeta = fma(du[i], error, dbeta);
        u[i] = beta * error;
        w[i] = beta * du[i];
        if (kDecay) da[i] = -(r[i] * w[i]);
      }
      *at<S>(call.dbeta, t, 1) += sum(dbeta);
    } else {
      for (int i = 0; i < NV; i++) w[i] = du[i];
    }
    columns_.write(at<S>(call.dv, t, p_.head_dim), w);
    rows(
        [&](int64_t n) {
          const V kn = V::set(k[n]);
          V found = V::set(0);
          for (int i = 0; i < NV; i++) {
            V g = load(G + n * kWidth + i * W);
            found = fma(g, u[i], found);
            if (kBeta || kDecay) {
              V s = load(before + n * kWidth + i * W);
              if (kDecay) da[i] = fma(g, s, da[i]);
              if (kBeta) {
                if (kDecay) s = decay * s;
                found = found - s * w[i];
                g = g - kn * w[i];
              }
              if (kDecay) g = decay * g;
              store(G + n * kWidth + i * W, g);
            }
          }
          return found;
        },
        dk);
    if (kDecay) *at<S>(call.ddecay, t, 1) += sum_all(da);
  }

  // to[n] += the sum over f(n), which is a vector, for each row of the state.
  template <class F>
  ZOO_INLINE void rows(const F& f, S* to) const {
    int64_t n = 0;
    for (; n + 4 <= p_.state; n += 4) {
      const V x[4] = {f(n), f(n + 1), f(n + 2), f(n + 3)};
      add_sums(to + n, x);
    }
    for (; n < p_.state; n++) to[n] += sum(f(n));
  }

  const DeltaProblem& p_;
  int64_t batch_, head_;
  Columns<V, NV> columns_;
};

}  // namespace zoo::ZOO_CPU::delta
