// Sums of conjugate pairs of poles on the CPU. Lanes are points, a block of which stands in the cache with
// real and imaginary parts apart.
#pragma once

#include "cauchy_kernel/cauchy_kernel.h"
#include "common/arena.h"

namespace zoo::ZOO_CPU {

namespace {

constexpr int64_t kPoints = 256;  // of a block; a multiple of all vectors
constexpr int kRows = 4;          // that share the quotients

// 1 / ((z - w)(z - w*)); the square of the imaginary distance as a product, as its parts are close where the
// quotient is large.
template <class V>
ZOO_INLINE void quotient(V z_re, V z_im, V w_re, V w_im, V& re, V& im) {
  const V a = z_re - w_re;
  const V d_re = fma(a, a, (w_im - z_im) * (w_im + z_im)), d_im = (a + a) * z_im;
  const V scale = V::set(1) / fma(d_re, d_re, d_im * d_im);
  re = d_re * scale;
  im = -(d_im * scale);
}

template <class V>
class CauchyWork {
  using F = typename V::Scalar;
  static constexpr int W = V::kSize;

 public:
  explicit CauchyWork(const Cauchy& call) : p_(call), blocks_((call.points + kPoints - 1) / kPoints) {}

  int64_t forward_tasks() const { return p_.features * blocks_; }
  int64_t backward_tasks() const { return p_.features; }

  void forward(int64_t task) const {
    const int64_t h = task / blocks_, start = task % blocks_ * kPoints;
    const int64_t points = p_.points - start < kPoints ? p_.points - start : kPoints;
    F z[2][kPoints], out[2][kPoints];
    split(static_cast<const F*>(p_.z) + start * 2, points, z);
    for (int64_t row = 0; row < p_.rows;) {
      const int64_t left = p_.rows - row;
      const int rows = left >= 4 ? 4 : left >= 2 ? 2 : 1;
      for (int64_t l = 0; l < points; l += W) {
        if (rows == 4) sum_poles<4>(h, row, z, l, out, start, points);
        else if (rows == 2) sum_poles<2>(h, row, z, l, out, start, points);
        else sum_poles<1>(h, row, z, l, out, start, points);
      }
      row += rows;
    }
  }

  struct Buffers {
    double *dc, *dq;  // [pole][row][c1, c0], [pole][with z, without]
    F *g, *gz;        // [row][re, im][point]: conj(dout), times z

    Buffers(Arena& arena, const Cauchy& p) {
      dc = arena.take<double>(p.poles * p.rows * 2);
      dq = arena.take<double>(p.poles * 2);
      g = arena.take<F>(p.rows * 2 * kPoints);
      gz = arena.take<F>(p.rows * 2 * kPoints);
    }
  };

  // dv of one feature, and its part of dw.
  void backward(int64_t h, const Buffers& to) const {
    memset(to.dc, 0, p_.poles * p_.rows * 2 * sizeof(double));
    memset(to.dq, 0, p_.poles * 2 * sizeof(double));
    F z[2][kPoints];
    for (int64_t start = 0; start < p_.points; start += kPoints) {
      const int64_t points = p_.points - start < kPoints ? p_.points - start : kPoints;
      split(static_cast<const F*>(p_.z) + start * 2, points, z);
      for (int64_t row = 0; row < p_.rows; row++) load_cotangent(h, row, start, points, z, to);
      for (int64_t n = 0; n < p_.poles; n++)
        for (int64_t row = 0; row < p_.rows;) {
          const int64_t left = p_.rows - row;
          if (left >= 4) add_gradient<4>(h, n, row, z, points, to), row += 4;
          else if (left >= 2) add_gradient<2>(h, n, row, z, points, to), row += 2;
          else add_gradient<1>(h, n, row, z, points, to), row += 1;
        }
    }
    for (int64_t n = 0; n < p_.poles; n++) finish(h, n, to);
  }

 private:
  // Pairs to two arrays; what is behind the end is 1, which is no pole's business.
  static void split(const F* pairs, int64_t points, F (&parts)[2][kPoints]) {
    for (int64_t i = 0; i < points; i++) {
      parts[0][i] = pairs[2 * i];
      parts[1][i] = pairs[2 * i + 1];
    }
    for (int64_t i = points; i < kPoints; i++) parts[0][i] = parts[1][i] = 1;
  }

  const F* pole(int64_t h, int64_t n) const {
    return static_cast<const F*>(p_.w) + (h * p_.poles + n) * 2;
  }
  const F* weight(int64_t row, int64_t h, int64_t n) const {
    return static_cast<const F*>(p_.v) + ((row * p_.features + h) * p_.poles + n) * 2;
  }

  template <int R>
  void sum_poles(int64_t h, int64_t row, const F (&z)[2][kPoints], int64_t l, F (&out)[2][kPoints],
                 int64_t start, int64_t points) const {
    const V z_re = load(z[0] + l), z_im = load(z[1] + l);
    V s1_re[R], s1_im[R], s0_re[R], s0_im[R];
    for (int r = 0; r < R; r++) s1_re[r] = s1_im[r] = s0_re[r] = s0_im[r] = V::set(0);
    for (int64_t n = 0; n < p_.poles; n++) {
      const F* const w = pole(h, n);
      V q_re, q_im;
      quotient(z_re, z_im, V::set(w[0]), V::set(w[1]), q_re, q_im);
      for (int r = 0; r < R; r++) {
        const F* const v = weight(row + r, h, n);
        const V c1 = V::set(2 * v[0]), c0 = V::set(2 * (v[0] * w[0] + v[1] * w[1]));
        s1_re[r] = fma(c1, q_re, s1_re[r]);
        s1_im[r] = fma(c1, q_im, s1_im[r]);
        s0_re[r] = fma(c0, q_re, s0_re[r]);
        s0_im[r] = fma(c0, q_im, s0_im[r]);
      }
    }
    const int64_t count = points - l < W ? points - l : W;
    for (int r = 0; r < R; r++) {
      store(out[0], z_re * s1_re[r] - z_im * s1_im[r] - s0_re[r]);
      store(out[1], fma(z_re, s1_im[r], z_im * s1_re[r]) - s0_im[r]);
      F* const to = static_cast<F*>(p_.out) + (((row + r) * p_.features + h) * p_.points + start + l) * 2;
      for (int64_t i = 0; i < count; i++) {
        to[2 * i] = out[0][i];
        to[2 * i + 1] = out[1][i];
      }
    }
  }

  void load_cotangent(int64_t h, int64_t row, int64_t start, int64_t points, const F (&z)[2][kPoints],
                      const Buffers& to) const {
    const F* const from =
        static_cast<const F*>(p_.dout) + ((row * p_.features + h) * p_.points + start) * 2;
    F *const g = to.g + row * 2 * kPoints, *const gz = to.gz + row * 2 * kPoints;
    for (int64_t i = 0; i < kPoints; i++) {
      const F re = i < points ? from[2 * i] : 0, im = i < points ? -from[2 * i + 1] : 0;
      g[i] = re;
      g[kPoints + i] = im;
      gz[i] = re * z[0][i] - im * z[1][i];
      gz[kPoints + i] = re * z[1][i] + im * z[0][i];
    }
  }

  template <int R>
  void add_gradient(int64_t h, int64_t n, int64_t row, const F (&z)[2][kPoints], int64_t points,
                    const Buffers& to) const {
    const F* const w = pole(h, n);
    const V w_re = V::set(w[0]), w_im = V::set(w[1]), zero = V::set(0);
    V c1[R], c0[R], dc1[R], dc0[R], with_z = zero, without = zero;
    for (int r = 0; r < R; r++) {
      const F* const v = weight(row + r, h, n);
      c1[r] = V::set(2 * v[0]);
      c0[r] = V::set(2 * (v[0] * w[0] + v[1] * w[1]));
      dc1[r] = dc0[r] = zero;
    }
    for (int64_t l = 0; l < points; l += W) {
      const V z_re = load(z[0] + l), z_im = load(z[1] + l);
      V q_re, q_im, m_re = zero, m_im = zero;  // m: what the quotient's own change counts for
      quotient(z_re, z_im, w_re, w_im, q_re, q_im);
      for (int r = 0; r < R; r++) {
        const F *const g = to.g + (row + r) * 2 * kPoints + l, *const gz = to.gz + (row + r) * 2 * kPoints + l;
        const V g_re = load(g), g_im = load(g + kPoints), gz_re = load(gz), gz_im = load(gz + kPoints);
        const V p_re = g_re * q_re - g_im * q_im, p_im = fma(g_re, q_im, g_im * q_re);
        const V pz_re = gz_re * q_re - gz_im * q_im, pz_im = fma(gz_re, q_im, gz_im * q_re);
        dc1[r] += pz_re;
        dc0[r] = dc0[r] - p_re;
        m_re = fma(c1[r], pz_re, m_re - c0[r] * p_re);
        m_im = fma(c1[r], pz_im, m_im - c0[r] * p_im);
      }
      const V t_re = m_re * q_re - m_im * q_im, t_im = fma(m_re, q_im, m_im * q_re);
      without += t_re;
      with_z = fma(t_re, z_re, with_z - t_im * z_im);
    }
    for (int r = 0; r < R; r++) {
      to.dc[(n * p_.rows + row + r) * 2] += sum(dc1[r]);
      to.dc[(n * p_.rows + row + r) * 2 + 1] += sum(dc0[r]);
    }
    to.dq[n * 2] += sum(with_z);
    to.dq[n * 2 + 1] += sum(without);
  }

  // d q / d Re w = 2 (z - Re w) q^2, d q / d Im w = -2 Im w q^2, and c0 depends on w too.
  void finish(int64_t h, int64_t n, const Buffers& to) const {
    const F* const w = pole(h, n);
    const double re = w[0], im = w[1], *const dq = to.dq + n * 2;
    double dw_re = 2 * (dq[0] - re * dq[1]), dw_im = -2 * im * dq[1];
    for (int64_t row = 0; row < p_.rows; row++) {
      const F* const v = weight(row, h, n);
      const double *const dc = to.dc + (n * p_.rows + row) * 2;
      F* const dv = static_cast<F*>(p_.dv) + ((row * p_.features + h) * p_.poles + n) * 2;
      dv[0] = static_cast<F>(2 * (dc[0] + re * dc[1]));
      dv[1] = static_cast<F>(2 * im * dc[1]);
      dw_re += 2 * v[0] * dc[1];
      dw_im += 2 * v[1] * dc[1];
    }
    F* const dw = static_cast<F*>(p_.dw) + (h * p_.poles + n) * 2;
    dw[0] = static_cast<F>(dw_re);
    dw[1] = static_cast<F>(dw_im);
  }

  const Cauchy& p_;
  int64_t blocks_;
};

// Products of poles and points below which waking threads would take longer.
constexpr int64_t kTooFewPairs = 1 << 14;

bool is_small(const Cauchy& call) {
  return call.rows * call.features * call.poles * call.points < kTooFewPairs;
}

template <class V>
void cauchy_typed(const Cauchy& call, const Threads& threads) {
  const CauchyWork<V> work(call);
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) work.forward(task);
  };
  if (is_small(call)) run(0, work.forward_tasks());
  else threads(work.forward_tasks(), run);
}

template <class V>
bool cauchy_backward_typed(const Cauchy& call, const Threads& threads) {
  const CauchyWork<V> work(call);
  bool done = true;
  const auto run = [&](int64_t begin, int64_t end) {
    Arena arena;
    typename CauchyWork<V>::Buffers(arena, call);
    if (!arena.allocate()) return __atomic_store_n(&done, false, __ATOMIC_RELAXED);
    const typename CauchyWork<V>::Buffers to(arena, call);
    for (int64_t h = begin; h < end; h++) work.backward(h, to);
  };
  if (is_small(call)) run(0, work.backward_tasks());
  else threads(work.backward_tasks(), run);
  return done;
}

}  // namespace

void cauchy_kernel(const Cauchy& call, const Threads& threads) {
  call.dtype == DType::kFloat64 ? cauchy_typed<VecD>(call, threads) : cauchy_typed<Vec>(call, threads);
}

bool cauchy_kernel_backward(const Cauchy& call, const Threads& threads) {
  return call.dtype == DType::kFloat64 ? cauchy_backward_typed<VecD>(call, threads)
                                       : cauchy_backward_typed<Vec>(call, threads);
}

}  // namespace zoo::ZOO_CPU
