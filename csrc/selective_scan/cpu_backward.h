// The backward pass of the selective scan on the CPU.
//
// With dy = dout silu(z) and g_t the gradient of the state after step t,
//
//   g_t = C_t dy_t + a_{t+1} g_{t+1}            a_t = exp(delta_t A), 0 at a reset
//   dC_t = sum over channels of h_t dy_t        dB_t = sum over channels of delta_t u_t g_t
//   du_t = D dy_t + delta_t sum_n B_t g_t       dA = sum over t of delta_t a_t h_{t-1} g_t
//   ddelta_t = u_t sum_n B_t g_t + sum_n A a_t h_{t-1} g_t, then times the derivative of softplus
//
// Where a_t = 2 exp(delta_t A) - 1, dA and ddelta have a_t + 1 for a_t (0 at a reset): its "slope".
//
// Chunks are taken from the last to the first. In each one the states are computed anew from the border
// that the forward pass has left, a few at a time, and kept with their decays for the way back.
#pragma once

#include "selective_scan/cpu_retrace.h"

namespace zoo::ZOO_CPU::scan {

template <class V, class T>
class Backward {
  using S = typename V::Scalar;
  static constexpr int W = V::kSize;
  static constexpr int kMostBlocks = 4;  // that share a tile of B and C, and of their gradients
  static constexpr int kStates = W >= 4 ? 4 : 1;  // at a time

 public:
  Backward(const ScanBackward& call, int64_t threads)
      : call_(call), p_(call.problem), chunk_(call.borders.chunk),
        stretch_(stretch_of(p_, chunk_)), grid_(grid_of(p_, W, chunk_, threads)),
        links_(p_, grid_, call.dout) {
    // Each run has dB and dC of its own, to be added up in a fixed order: as few as make equal shares.
    const int64_t each = grid_.batch * grid_.groups * grid_.parts;
    int64_t runs = 1;
    while (runs * each % threads != 0 && runs < grid_.blocks) runs++;
    grid_.cut_runs(divide_up(grid_.blocks, runs));
  }

  ScanStatus run(const Threads& threads) {
    Arena arena;
    lay_out(arena);
    if (!arena.allocate()) return ScanStatus::kNoMemory;
    lay_out(arena);
    const ScanStatus linked = links_.run(threads);
    if (linked != ScanStatus::kDone) return linked;
    Failure failure;
    threads(grid_.tasks(), [&](int64_t begin, int64_t end) { failure.add(run(begin, end)); });
    if (failure.status() != ScanStatus::kDone) return failure.status();
    const int64_t tiles = divide_up(p_.length, kTile);
    threads(p_.batch * p_.groups * tiles, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t entry = i / tiles, tile = i % tiles;
        if (!p_.B.constant) add_up_projection(call_.dB, runs_dB_, entry, tile * kTile);
        if (!p_.C.constant) add_up_projection(call_.dC, runs_dC_, entry, tile * kTile);
      }
    });
    threads(divide_up(p_.dim, W), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) add_up_parameters(i * W);
    });
    return ScanStatus::kDone;
  }

 private:
  static constexpr int64_t kTile = 64;

  struct Buffers {
    S *A, *constant_B, *constant_C, *g, *dA, *constant_dB, *constant_dC;  // [block][state][lane]
    S *dD, *dbias;                                                       // [block][lane]
    S *B, *C;                                                            // [state][step]
    S *dB, *dC;                                                          // [run of states][step][lane]
    Inputs<V> in;
    S *dy, *z, *y, *gB, *gA;  // [step][lane]; z becomes dz
    S *h, *a, *slope;                // [step][state][lane]

    Buffers(Arena& arena, const Backward& f) {
      const bool b = f.p_.B.constant, c = f.p_.C.constant, gated = f.wants_output();
      const int64_t N = f.p_.state, blocks = smaller(kMostBlocks, f.grid_.run_blocks);
      const int64_t states = blocks * N * W, tile = f.chunk_ * W;
      const int64_t collected = (N / kStates + N % kStates) * f.stretch_ * W;
      A = arena.take<S>(states);
      g = arena.take<S>(states);
      dA = arena.take<S>(states);
      constant_B = arena.take<S>(b ? states : 0);
      constant_C = arena.take<S>(c ? states : 0);
      constant_dB = arena.take<S>(b ? states : 0);
      constant_dC = arena.take<S>(c ? states : 0);
      dD = arena.take<S>(blocks * W);
      dbias = arena.take<S>(blocks * W);
      B = arena.take<S>(b ? 0 : N * f.stretch_);
      C = arena.take<S>(c ? 0 : N * f.stretch_);
      dB = arena.take<S>(b ? 0 : collected);
      dC = arena.take<S>(c ? 0 : collected);
      in.raw = arena.take<S>(tile);
      in.delta = f.p_.softplus ? arena.take<S>(tile) : in.raw;
      in.u = arena.take<S>(tile);
      in.du = arena.take<S>(tile);
      dy = arena.take<S>(tile);
      z = arena.take<S>(gated ? tile : 0);
      y = arena.take<S>(gated ? tile : 0);
      gB = arena.take<S>(tile);
      gA = arena.take<S>(tile);
      h = arena.take<S>(tile * kStates + kStates * W);
      a = arena.take<S>(tile * kStates);
      slope = arena.take<S>(f.p_.negative ? tile * kStates : 0);
    }
  };

  void lay_out(Arena& arena) {
    links_.lay_out(arena);
    const int64_t projection = grid_.batch * grid_.groups * grid_.runs * p_.length * p_.state;
    runs_dB_ = arena.take<S>(p_.B.constant ? 0 : projection);
    runs_dC_ = arena.take<S>(p_.C.constant ? 0 : projection);
    parameters_ = arena.take<S>(grid_.batch * grid_.parts * rows() * p_.dim);
  }

  // Whether the states' sums are computed anew: for dz. One kernel serves all negative factors.
  bool wants_output() const { return p_.z.data || p_.negative; }

  // dA, constant dB and dC, dD, ddelta_bias, all [row][channel].
  int64_t rows() const { return p_.state * (1 + p_.B.constant + p_.C.constant) + 2; }

  ScanStatus run(int64_t begin, int64_t end) const {
    Arena arena;
    Buffers(arena, *this);
    if (!arena.allocate()) return ScanStatus::kNoMemory;
    const Buffers to(arena, *this);
    V bad = V::set(0);
    for (int64_t i = begin; i < end; i++) {
      const Task task = task_of(grid_, p_.length, i);
      const int64_t first_row = task.begin * p_.state;
      const size_t rows = (task.end - task.begin) * p_.state * sizeof(S);
      if (!p_.B.constant) memset(run_of(runs_dB_, task) + first_row, 0, rows);
      if (!p_.C.constant) memset(run_of(runs_dC_, task) + first_row, 0, rows);
      for (int64_t first = 0; first < task.blocks; first += kMostBlocks) {
        Task some = task;
        some.first_block += first;
        some.blocks = smaller(kMostBlocks, task.blocks - first);
        bad += run(some, to);
      }
    }
    return sum(bad) == 0 ? ScanStatus::kDone : ScanStatus::kDeltaNotFinite;
  }

  // [step][state], steps in the order of the scan.
  S* run_of(S* all, const Task& t) const {
    const int64_t index = (t.batch * grid_.groups + t.group) * grid_.runs + t.run;
    return all + index * p_.length * p_.state;
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
      load_parameters<V>(to.g + at, of_batch<const S>(p_, call_.dlast_state, t.batch), b, N);
      links_.pass(to.g + at, t.batch, t.group, t.first_block + k, t.part);
    }
    const size_t states = t.blocks * N * W * sizeof(S);
    memset(to.dA, 0, states);
    if (p_.B.constant) memset(to.constant_dB, 0, states);
    if (p_.C.constant) memset(to.constant_dC, 0, states);
    memset(to.dD, 0, t.blocks * W * sizeof(S));
    memset(to.dbias, 0, t.blocks * W * sizeof(S));

    V bad = V::set(0);
    for (int64_t end = t.end; end > t.begin;) {
      const int64_t begin = t.begin + (end - 1 - t.begin) / stretch_ * stretch_;
      load_projection<V, T>(to.B, stretch_, p_, p_.B, t, begin, end);
      load_projection<V, T>(to.C, stretch_, p_, p_.C, t, begin, end);
      const size_t collected = (N / kStates + N % kStates) * stretch_ * W * sizeof(S);
      if (!p_.B.constant) memset(to.dB, 0, collected);
      if (!p_.C.constant) memset(to.dC, 0, collected);
      for (int k = 0; k < t.blocks; k++) {
        for (int64_t s = begin + (end - 1 - begin) / chunk_ * chunk_; s >= begin; s -= chunk_)
          bad += run_chunk(to, k, t.batch, blocks[k], begin, s, smaller(chunk_, end - s));
      }
      if (!p_.B.constant) complete_all(run_of(runs_dB_, t) + begin * N, to.dB, end - begin);
      if (!p_.C.constant) complete_all(run_of(runs_dC_, t) + begin * N, to.dC, end - begin);
      end = begin;
    }

    for (int k = 0; k < t.blocks; k++) {
      const int64_t at = k * N * W;
      if (call_.dinitial_state && t.begin == 0)
        store_parameters<V>(to.g + at, of_batch<S>(p_, call_.dinitial_state, t.batch), blocks[k], N);
      S* row = parameters_ + (t.batch * grid_.parts + t.part) * rows() * p_.dim + blocks[k].channel;
      const auto put = [&](const S* from, int64_t count) {
        for (int64_t n = 0; n < count; n++, row += p_.dim)
          store(row, load(from + n * W), blocks[k].lanes);
      };
      put(to.dA + at, N);
      if (p_.B.constant) put(to.constant_dB + at, N);
      if (p_.C.constant) put(to.constant_dC + at, N);
      put(to.dD + k * W, 1);
      put(to.dbias + k * W, 1);
    }
    return bad;
  }

  // `stretch`: the first step of to.B, to.C, to.dB and to.dC.
  V run_chunk(const Buffers& to, int k, int64_t batch, const Block& block, int64_t stretch,
              int64_t begin, int steps) const {
    const V bad = load_inputs<V, T>(to.in, p_, batch, block, begin, steps);
    const V skip = load_vector<V>(p_.D, block);
    const int count = steps * W;
    load_dy<V, T>(to.dy, to.z, p_, call_.dout, batch, block, begin, steps);
    if (wants_output()) {
      for (int i = 0; i < count; i += W) store(to.y + i, skip * load(to.in.u + i));
    }
    memset(to.gB, 0, count * sizeof(S));
    memset(to.gA, 0, count * sizeof(S));
    int64_t n = 0;
    for (; n + kStates <= p_.state; n += kStates)
      run_states<kStates>(to, k, batch, block, stretch, begin, steps, n, n / kStates);
    for (; n < p_.state; n++)
      run_states<1>(to, k, batch, block, stretch, begin, steps, n, p_.state / kStates + n % kStates);
    finish(to, k, batch, block, begin, steps, skip);
    return bad;
  }

  template <int NB>
  void run_states(const Buffers& to, int k, int64_t batch, const Block& block, int64_t stretch,
                  int64_t begin, int steps, int64_t n, int64_t run) const {
    const bool b = p_.B.constant, c = p_.C.constant;
    const int64_t at = (k * p_.state + n) * W, tile = begin - stretch;
    Span<V> x;
    x.A = to.A + at;
    x.B = b ? to.constant_B + at : to.B + n * stretch_ + tile;
    x.C = c ? to.constant_C + at : to.C + n * stretch_ + tile;
    x.pitch = stretch_;
    x.delta = to.in.delta;
    x.du = to.in.du;
    x.dy = to.dy;
    x.h = to.h;
    x.a = to.a;
    x.slope = to.slope;
    x.y = to.y;
    x.g = to.g + at;
    x.dA = to.dA + at;
    x.gB = to.gB;
    x.gA = to.gA;
    x.dB = b ? to.constant_dB + at : to.dB + (run * stretch_ + tile) * W;
    x.dC = c ? to.constant_dC + at : to.dC + (run * stretch_ + tile) * W;
    const S* const border = border_of<const S>(p_, call_.borders, batch, begin) + block.channel;
    for (int j = 0; j < NB; j++) store(x.h + j * W, load(border + (n + j) * p_.dim, block.lanes));
    const auto pick = [&]<bool kB, bool kC>() {
      for_stretches(p_, batch, begin, steps, [&](int first, int length, bool reset) {
        const auto f = p_.negative      ? replay<V, NB, kB, kC, true, true>
                       : wants_output() ? replay<V, NB, kB, kC, true, false>
                                        : replay<V, NB, kB, kC, false, false>;
        f(x, first, length, reset);
      });
      (p_.negative ? retrace<V, NB, kB, kC, true> : retrace<V, NB, kB, kC, false>)(x, steps);
    };
    if (b) {
      c ? pick.template operator()<true, true>() : pick.template operator()<true, false>();
    } else {
      c ? pick.template operator()<false, true>() : pick.template operator()<false, false>();
    }
  }

  // From the sums over the states to the gradients of u, delta, z, D and delta_bias.
  void finish(const Buffers& to, int k, int64_t batch, const Block& block, int64_t begin, int steps,
              V skip) const {
    const V ln2 = V::set(static_cast<S>(1 / kLog2E));
    V dD = V::set(0), dbias = V::set(0);
    for (int i = 0; i < steps * W; i += W) {
      const V u = load(to.in.u + i), dy = load(to.dy + i), gB = load(to.gB + i);
      dD = fma(u, dy, dD);
      V ddelta = fma(u, gB, load(to.gA + i) * ln2);
      if (p_.softplus) ddelta = ddelta * sigmoid(load(to.in.raw + i));
      dbias += ddelta;
      store(to.gA + i, ddelta);
      store(to.gB + i, fma(load(to.in.delta + i), gB, skip * dy));  // du
      if (p_.z.data) store(to.z + i, load(to.z + i) * load(to.y + i));  // dz
    }
    store(to.dD + k * W, load(to.dD + k * W) + dD);
    store(to.dbias + k * W, load(to.dbias + k * W) + dbias);
    store_steps<V, T>(to.gB, p_, call_.du, batch, block, begin, steps);
    store_steps<V, T>(to.gA, p_, call_.ddelta, batch, block, begin, steps);
    if (p_.z.data) store_steps<V, T>(to.z, p_, call_.dz, batch, block, begin, steps);
  }

  void complete_all(S* to, const S* collected, int64_t steps) const {
    const int64_t N = p_.state;
    int64_t n = 0;
    for (; n + kStates <= N; n += kStates, collected += stretch_ * W)
      for (int64_t s = 0; s < steps; s++) complete<V, kStates>(to + s * N + n, collected + s * W);
    for (; n < N; n++, collected += stretch_ * W)
      for (int64_t s = 0; s < steps; s++) complete<V, 1>(to + s * N + n, collected + s * W);
  }

  void add_up_projection(const ScanProjection& m, const S* all, int64_t entry, int64_t begin) const {
    const int64_t N = p_.state;
    const int steps = static_cast<int>(smaller(kTile, p_.length - begin));
    const auto rows = rows_of<T>(p_, m, entry / p_.groups, entry % p_.groups);
    S tile[kTile * W];
    for (int64_t n = 0; n < N; n += W) {
      const int states = static_cast<int>(smaller(W, N - n));
      for (int s = 0; s < steps; s++) {
        V total = V::set(0);
        for (int64_t run = 0; run < grid_.runs; run++) {
          const int64_t row = (entry * grid_.runs + run) * p_.length + begin + s;
          total += load(all + row * N + n, states);
        }
        store(tile + s * W, total);
      }
      store_tile<V>(tile, rows.at(n, begin), rows.channel, rows.step, states, steps);
    }
  }

  void add_up_parameters(int64_t channel) const {
    const Block block = {channel, static_cast<int>(smaller(W, p_.dim - channel))};
    int64_t row = 0;
    const auto take = [&] {
      V total = V::set(0);
      for (int64_t i = 0; i < grid_.batch * grid_.parts; i++)
        total += load(parameters_ + (i * rows() + row) * p_.dim + channel, block.lanes);
      row++;
      return total;
    };
    const auto matrix = [&](void* to) {  // [dim, state]
      for (int64_t n = 0; n < p_.state; n++) {
        S lanes[W];
        store(lanes, take());
        for (int c = 0; c < block.lanes; c++)
          static_cast<S*>(to)[(channel + c) * p_.state + n] = lanes[c];
      }
    };
    const auto vector = [&](void* to) {
      const V total = take();
      if (to) store(static_cast<S*>(to) + channel, total, block.lanes);
    };
    matrix(call_.dA);
    if (p_.B.constant) matrix(call_.dB.data);
    if (p_.C.constant) matrix(call_.dC.data);
    vector(call_.dD);
    vector(call_.ddelta_bias);
  }

  const ScanBackward& call_;
  const ScanProblem& p_;
  int64_t chunk_, stretch_;
  Grid grid_;
  Links<V, T, true> links_;
  S *runs_dB_ = nullptr, *runs_dC_ = nullptr;  // [batch][group][run][step][state]
  S* parameters_ = nullptr;                    // [batch][part][row][channel]
};

}  // namespace zoo::ZOO_CPU::scan
