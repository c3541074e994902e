// The forward pass of the selective scan on the CPU.
#pragma once

#include "selective_scan/cpu_links.h"

namespace zoo::ZOO_CPU::scan {

// NB states over successive steps of a tile; y += C h. B and C are [state][pitch] numbers or, constant,
// [state] vectors.
template <class V, int NB, bool kConstantB, bool kConstantC, bool kNegative>
void advance(typename V::Scalar* h, const typename V::Scalar* A, const typename V::Scalar* B,
             const typename V::Scalar* C, int64_t pitch, const typename V::Scalar* delta,
             const typename V::Scalar* du, typename V::Scalar* y, int steps) {
  constexpr int W = V::kSize;
  V state[NB], decay[NB];
  for (int j = 0; j < NB; j++) {
    state[j] = load(h + j * W);
    decay[j] = load(A + j * W);
  }
  for (int s = 0; s < steps; s++) {
    const V d = load(delta + s * W), x = load(du + s * W);
    V sum = load(y + s * W);
    for (int j = 0; j < NB; j++) {
      const V b = kConstantB ? load(B + j * W) : V::set(B[j * pitch + s]);
      const V c = kConstantC ? load(C + j * W) : V::set(C[j * pitch + s]);
      state[j] = fma(factor<kNegative>(exp2(d * decay[j])), state[j], b * x);
      sum = fma(c, state[j], sum);
    }
    store(y + s * W, sum);
  }
  for (int j = 0; j < NB; j++) store(h + j * W, state[j]);
}

template <class V, class T>
class Forward {
  using S = typename V::Scalar;
  static constexpr int W = V::kSize;
  static constexpr int kMostBlocks = 4;  // that share a tile of B and C
  static constexpr int64_t kTile = 64;

 public:
  Forward(const ScanForward& call, int64_t threads)
      : call_(call), p_(call.problem), chunk_(call.borders.data ? call.borders.chunk : kTile),
        tile_(chunk_ % kTile == 0 ? kTile : kTile / 2), stretch_(stretch_of(p_, chunk_)),
        grid_(grid_of(p_, W, chunk_, threads)), links_(p_, grid_, {}) {
    // Long runs share more, short ones are spread more evenly.
    grid_.cut_runs(smaller(kMostBlocks, grid_.tasks() / (8 * threads)));
  }

  ScanStatus run(const Threads& threads) {
    Arena arena;
    links_.lay_out(arena);
    if (!arena.allocate()) return ScanStatus::kNoMemory;
    links_.lay_out(arena);
    const ScanStatus linked = links_.run(threads);
    if (linked != ScanStatus::kDone) return linked;
    Failure failure;
    threads(grid_.tasks(), [&](int64_t begin, int64_t end) { failure.add(run(begin, end)); });
    return failure.status();
  }

 private:
  struct Buffers {
    S *h, *A, *constant_B, *constant_C;  // [block][state][lane]
    S *B, *C;                            // [state][step]
    Inputs<V> in;
    S *y, *z;

    Buffers(Arena& arena, const Forward& f) {
      const int64_t states = f.grid_.run_blocks * f.p_.state * W, tile = f.tile_ * W;
      h = arena.take<S>(states);
      A = arena.take<S>(states);
      constant_B = arena.take<S>(f.p_.B.constant ? states : 0);
      constant_C = arena.take<S>(f.p_.C.constant ? states : 0);
      B = arena.take<S>(f.p_.B.constant ? 0 : f.p_.state * f.stretch_);
      C = arena.take<S>(f.p_.C.constant ? 0 : f.p_.state * f.stretch_);
      in.raw = in.delta = arena.take<S>(tile);
      in.u = arena.take<S>(tile);
      in.du = arena.take<S>(tile);
      y = arena.take<S>(tile);
      z = arena.take<S>(f.p_.z.data ? tile : 0);
    }
  };

  ScanStatus run(int64_t begin, int64_t end) const {
    Arena arena;
    Buffers(arena, *this);
    if (!arena.allocate()) return ScanStatus::kNoMemory;
    const Buffers to(arena, *this);
    V bad = V::set(0);
    for (int64_t i = begin; i < end; i++) bad += run(task_of(grid_, p_.length, i), to);
    return sum(bad) == 0 ? ScanStatus::kDone : ScanStatus::kDeltaNotFinite;
  }

  V run(const Task& t, const Buffers& to) const {
    const int64_t N = p_.state;
    Block blocks[kMostBlocks];
    for (int k = 0; k < t.blocks; k++) {
      const Block& b = blocks[k] = block_of(p_, W, t.group, t.first_block + k);
      const int64_t at = k * N * W;
      load_parameters<V>(to.A + at, p_.A, b, N, kLog2E);
      if (p_.B.constant) load_parameters<V>(to.constant_B + at, p_.B.data, b, N);
      if (p_.C.constant) load_parameters<V>(to.constant_C + at, p_.C.data, b, N);
      load_parameters<V>(to.h + at, of_batch<const S>(p_, p_.initial_state, t.batch), b, N);
      links_.pass(to.h + at, t.batch, t.group, t.first_block + k, t.part);
    }
    V bad = V::set(0);
    for (int64_t begin = t.begin; begin < t.end; begin += stretch_) {
      const int64_t end = smaller(begin + stretch_, t.end);
      load_projection<V, T>(to.B, stretch_, p_, p_.B, t, begin, end);
      load_projection<V, T>(to.C, stretch_, p_, p_.C, t, begin, end);
      for (int k = 0; k < t.blocks; k++) {
        for (int64_t s = begin; s < end; s += tile_) {
          if (call_.borders.data && s % chunk_ == 0) {
            S* const border = border_of<S>(p_, call_.borders, t.batch, s) + blocks[k].channel;
            for (int64_t n = 0; n < N; n++)
              store(border + n * p_.dim, load(to.h + (k * N + n) * W), blocks[k].lanes);
          }
          bad += run_tile(to, k, t.batch, blocks[k], begin, s, smaller(tile_, end - s));
        }
      }
    }
    if (t.end == p_.length) {
      S* const last = of_batch<S>(p_, call_.last_state, t.batch);
      for (int k = 0; k < t.blocks; k++) store_parameters<V>(to.h + k * N * W, last, blocks[k], N);
    }
    return bad;
  }

  // `stretch`: the first step of to.B and to.C.
  V run_tile(const Buffers& to, int k, int64_t batch, const Block& block, int64_t stretch,
             int64_t begin, int steps) const {
    const V bad = load_inputs<V, T>(to.in, p_, batch, block, begin, steps);
    const V skip = load_vector<V>(p_.D, block);
    for (int i = 0; i < steps * W; i += W) store(to.y + i, skip * load(to.in.u + i));
    for_stretches(p_, batch, begin, steps, [&](int first, int count, bool reset) {
      if (reset) memset(to.h + k * p_.state * W, 0, p_.state * W * sizeof(S));
      advance_all(to, k, begin - stretch, first, count);
    });
    if (p_.z.data) {
      load_steps<V, T>(to.z, p_, p_.z, batch, block, begin, steps);
      for (int i = 0; i < steps * W; i += W) store(to.y + i, load(to.y + i) * silu(load(to.z + i)));
    }
    store_steps<V, T>(to.y, p_, call_.out, batch, block, begin, steps);
    return bad;
  }

  void advance_all(const Buffers& to, int k, int64_t tile, int first, int steps) const {
    p_.negative ? advance_all<true>(to, k, tile, first, steps)
                : advance_all<false>(to, k, tile, first, steps);
  }

  template <bool kNegative>
  void advance_all(const Buffers& to, int k, int64_t tile, int first, int steps) const {
    const bool b = p_.B.constant, c = p_.C.constant;
    for_runs_of_states<8>(p_.state, [&]<int NB>(int64_t n) {
      const int64_t at = (k * p_.state + n) * W;
      const S* const B = b ? to.constant_B + at : to.B + n * stretch_ + tile + first;
      const S* const C = c ? to.constant_C + at : to.C + n * stretch_ + tile + first;
      const auto f =
          b ? (c ? advance<V, NB, true, true, kNegative> : advance<V, NB, true, false, kNegative>)
            : (c ? advance<V, NB, false, true, kNegative> : advance<V, NB, false, false, kNegative>);
      f(to.h + at, to.A + at, B, C, stretch_, to.in.delta + first * W, to.in.du + first * W,
        to.y + first * W, steps);
    });
  }

  const ScanForward& call_;
  const ScanProblem& p_;
  int64_t chunk_, tile_, stretch_;
  Grid grid_;
  Links<V, T, false> links_;
};

}  // namespace zoo::ZOO_CPU::scan
