// Where there are too few channels to fill all threads, the sequence is cut into parts that run at the
// same time. The state that enters a part is found beforehand: through each part an entering state
// h goes as factor * h + gain, and for these two nothing but a sum is needed,
//
//   gain = sum over its steps t of exp(A (delta_{t+1} + ... + delta_last)) delta_t u_t B_t,
//
// taken from the last step backwards and only until the exponential has died away, which in most models
// is soon. For the gradient it is the same with the steps the other way round and C_t dy_t.
#pragma once

#include "selective_scan/cpu_common.h"

namespace zoo::ZOO_CPU::scan {

// gain += exp2(A r_s) M_s x_s for NB states and the steps of a tile. M: [state][pitch] numbers or,
// constant, [state] vectors.
template <class V, int NB, bool kConstant>
void gather(typename V::Scalar* gain, const typename V::Scalar* A, const typename V::Scalar* M,
            int64_t pitch, const typename V::Scalar* r, const typename V::Scalar* x, int steps) {
  constexpr int W = V::kSize;
  V sum[NB], decay[NB];
  for (int j = 0; j < NB; j++) {
    sum[j] = load(gain + j * W);
    decay[j] = load(A + j * W);
  }
  for (int s = 0; s < steps; s++) {
    const V r_s = load(r + s * W), x_s = load(x + s * W);
    for (int j = 0; j < NB; j++) {
      const V m = kConstant ? load(M + j * W) : V::set(M[j * pitch + s]);
      sum[j] = fma(exp2(r_s * decay[j]), m * x_s, sum[j]);
    }
  }
  for (int j = 0; j < NB; j++) store(gain + j * W, sum[j]);
}

// kGradient: of the recurrence of the gradients, which needs `dout`.
template <class V, class T, bool kGradient>
class Links {
  using S = typename V::Scalar;
  static constexpr int W = V::kSize;
  static constexpr int kTile = 64;

 public:
  Links(const ScanProblem& p, const Grid& grid, const ScanSequence& dout)
      : p_(p), grid_(grid), dout_(dout), matrix_(kGradient ? p.C : p.B) {}

  // Memory for the result.
  void lay_out(Arena& arena) {
    const int64_t blocks = grid_.batch * grid_.groups * grid_.blocks;
    links_ = arena.take<S>(grid_.parts > 1 ? blocks * grid_.parts * 2 * p_.state * W : 0);
  }

  ScanStatus run(const Threads& threads) const {
    if (grid_.parts == 1) return ScanStatus::kDone;
    Failure failure;
    Grid grid = grid_;
    grid.cut_runs(1);
    threads(grid.tasks(), [&](int64_t begin, int64_t end) {
      Arena arena;
      Buffers(arena, *this);
      if (!arena.allocate()) return failure.add(ScanStatus::kNoMemory);
      const Buffers to(arena, *this);
      for (int64_t i = begin; i < end; i++) run(task_of(grid, p_.length, i), to);
    });
    return failure.status();
  }

  // Takes the states h [state][lane] of a block from the beginning of the sequence to that of `part`
  // (the gradients from its end to that of `part`).
  void pass(S* h, int64_t batch, int64_t group, int64_t block, int64_t part) const {
    for (int64_t i = kGradient ? grid_.parts - 1 : 0; i != part; i += kGradient ? -1 : 1) {
      const S* const gain = link(batch, group, block, i);
      const S* const factor = gain + p_.state * W;
      for (int64_t n = 0; n < p_.state * W; n += W)
        store(h + n, fma(load(factor + n), load(h + n), load(gain + n)));
    }
  }

 private:
  struct Buffers {
    S *A, *constant;  // [state][lane]
    S* M;             // [state][step]
    Inputs<V> in;
    S *dy, *z, *r;  // [step][lane]

    Buffers(Arena& arena, const Links& f) {
      const int64_t N = f.p_.state, tile = kTile * W;
      A = arena.take<S>(N * W);
      constant = arena.take<S>(f.matrix_.constant ? N * W : 0);
      M = arena.take<S>(f.matrix_.constant ? 0 : N * kTile);
      in.raw = in.delta = arena.take<S>(tile);
      in.u = arena.take<S>(tile);
      in.du = arena.take<S>(tile);
      dy = arena.take<S>(kGradient ? tile : 0);
      z = arena.take<S>(kGradient ? tile : 0);
      r = arena.take<S>(tile);
    }
  };

  S* link(int64_t batch, int64_t group, int64_t block, int64_t part) const {
    const int64_t index = ((batch * grid_.groups + group) * grid_.blocks + block) * grid_.parts;
    return links_ + (index + part) * 2 * p_.state * W;
  }

  void run(const Task& t, const Buffers& to) const {
    if (t.part == (kGradient ? 0 : grid_.parts - 1)) return;  // nothing comes after it
    const int64_t N = p_.state;
    const Block block = block_of(p_, W, t.group, t.first_block);
    S* const gain = link(t.batch, t.group, t.first_block, t.part);
    S* const factor = gain + N * W;
    load_parameters<V>(to.A, p_.A, block, N, kLog2E);
    if (matrix_.constant) load_parameters<V>(to.constant, matrix_.data, block, N);
    memset(gain, 0, N * W * sizeof(S));

    V total = V::set(0);
    const int64_t tiles = divide_up(t.end - t.begin, kTile);
    for (int64_t i = 0; i < tiles; i++) {
      const int64_t begin = t.begin + (kGradient ? i : tiles - 1 - i) * kTile;
      if (run_tile(t, to, block, begin, smaller(kTile, t.end - begin), gain, total)) {
        memset(factor, 0, N * W * sizeof(S));
        return;
      }
    }
    for (int64_t n = 0; n < N * W; n += W) store(factor + n, exp2(load(to.A + n) * total));
  }

  // Whether this was the last tile that counts.
  bool run_tile(const Task& t, const Buffers& to, const Block& block, int64_t begin, int steps,
                S* gain, V& total) const {
    load_inputs<V, T>(to.in, p_, t.batch, block, begin, steps);
    load_projection<V, T>(to.M, kTile, p_, matrix_, t, begin, begin + steps);
    if (kGradient) load_dy<V, T>(to.dy, to.z, p_, dout_, t.batch, block, begin, steps);
    // No state passes into a reset: on the way back its own step still counts, on the way on not.
    int first = 0, last = steps;
    bool reset = false;
    for_stretches(p_, t.batch, begin, steps, [&](int s, int, bool at_reset) {
      if (!at_reset || (kGradient && reset)) return;
      reset = true;
      (kGradient ? last : first) = s;
    });
    if (kGradient) {
      for (int s = first; s < last; s++) {
        total += load(to.in.delta + s * W);
        store(to.r + s * W, total);
      }
    } else {
      for (int s = last - 1; s >= first; s--) {
        store(to.r + s * W, total);
        total += load(to.in.delta + s * W);
      }
    }
    const S* const x = (kGradient ? to.dy : to.in.du) + first * W;
    for_runs_of_states<8>(p_.state, [&]<int NB>(int64_t n) {
      if (matrix_.constant) {
        gather<V, NB, true>(gain + n * W, to.A + n * W, to.constant + n * W, 0, to.r + first * W, x,
                            last - first);
      } else {
        gather<V, NB, false>(gain + n * W, to.A + n * W, to.M + n * kTile + first, kTile,
                             to.r + first * W, x, last - first);
      }
    });
    return reset || died_away(to.A, total, block.lanes);
  }

  // Beyond this, exp2 is zero even as a denormal number.
  bool died_away(const S* A, V total, int lanes) const {
    S exponents[W];
    for (int64_t n = 0; n < p_.state; n++) {
      store(exponents, load(A + n * W) * total);
      for (int c = 0; c < lanes; c++) {
        if (!(exponents[c] < S(-150))) return false;
      }
    }
    return true;
  }

  const ScanProblem& p_;
  const Grid& grid_;
  const ScanSequence& dout_;
  const ScanProjection& matrix_;
  S* links_ = nullptr;  // [batch][group][block][part][gain, factor][state][lane]
};

}  // namespace zoo::ZOO_CPU::scan
