// The backward pass of Mamba-2's scan on the CPU.
//
// With dy the gradient of y, G that of the state which leaves a chunk, and l_t = dt_t A,
//
//   v_j = sum over t >= j of scores_jt exp(p_t - p_j) dy_t + exp(p_Q - p_j) B_j G        [channel]
//   dx_j = dt_j v_j        ddt_j = x_j . v_j + A dl_j        dA = sum of dt_j dl_j
//   dscores_jt = exp(p_t - p_j) dt_j x_j . dy_t, summed over the heads of the group
//   dC_t = sum_j dscores_jt B_j + exp(p_t) S dy_t      dB_j = sum_t dscores_jt C_t + exp(p_Q - p_j) G dt_j x_j
//   dS = exp(p_Q) G + sum_t exp(p_t) C_t dy_t
//
// and dl_i, the gradient of l_i, is the sum of all that passes from before step i to step i or behind it:
// of m_jt = scores_jt exp(p_t - p_j) dt_j x_j . dy_t over j < i <= t, of exp(p_t) C_t S dy_t over t >= i, of
// exp(p_Q - p_j) dt_j x_j . B_j G over j < i, and exp(p_Q) S . G. It is added up in this way, and not from
// the differences of what comes and goes at each step, in which small numbers would drown.
//
// Spans are taken from the last to the first. In each one the states before its chunks are computed anew
// from the border that the forward pass has left.
#pragma once

#include "ssd/cpu_chunk.h"

namespace zoo::ZOO_CPU::ssd {

template <class V, class T>
class Backward {
  using S = typename V::Scalar;
  static constexpr int W = V::kSize;

 public:
  Backward(const SsdBackward& call, int64_t threads)
      : call_(call), p_(call.problem), shape_(p_),
        grid_(grid_of(p_, kStates / (shape_.states * shape_.padded), threads)) {}

  bool run(const Threads& threads) {
    Arena arena;
    lay_out(arena);
    if (!arena.allocate()) return false;
    lay_out(arena);
    bool done = true;
    threads(grid_.tasks(), [&](int64_t begin, int64_t end) {
      Arena own;
      Buffers(own, *this);
      if (!own.allocate()) {
        __atomic_store_n(&done, false, __ATOMIC_RELAXED);
        return;
      }
      const Buffers to(own, *this);
      for (int64_t i = begin; i < end; i++) run(task_of(grid_, i), to);
    });
    if (!done) return false;
    threads(p_.batch * p_.length * p_.groups, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        add_up_runs(call_.dB, runs_dB_, i);
        add_up_runs(call_.dC, runs_dC_, i);
      }
    });
    add_up_batch(static_cast<S*>(call_.dA), batch_dA_, p_.heads);
    if (call_.dD) add_up_batch(static_cast<S*>(call_.dD), batch_dD_, p_.heads * p_.head_dim);
    return true;
  }

 private:
  static constexpr int64_t kStates = 1 << 16;  // numbers that the states of a run of heads may have

  // Of one chunk of a span, over all heads of a run.
  struct Chunk {
    Shared<V> shared;
    S* dscores;  // [j][t]
    S *dB, *dC;  // [state][step]
  };

  struct Buffers {
    Chunk chunks[kSsdSpan / kFew];
    S* states;                               // [chunk][state][channel], of one head
    S* gradients;                            // [head][state][channel]
    S *x, *left_x, *dy, *entered_dy, *v, *dz;  // [step][channel]
    S *x_turned, *dy_turned;                 // [channel][step]
    S *mixed, *decay, *products;             // [step][step]
    S* z;                                    // [state][step]
    S *dA, *dD;                              // [head], [head][channel]

    Buffers(Arena& arena, const Backward& f) {
      const Shape<V>& shape = f.shape_;
      const int64_t state = shape.states * shape.padded, tile = kMost * shape.padded;
      for (int64_t i = 0; i < kSsdSpan / shape.chunk; i++) {
        chunks[i].shared.lay_out(arena, shape);
        chunks[i].dscores = arena.take<S>(kMost * kMost);
        chunks[i].dB = arena.take<S>(shape.states * kMost);
        chunks[i].dC = arena.take<S>(shape.states * kMost);
      }
      states = arena.take<S>(kSsdSpan / shape.chunk * state);
      gradients = arena.take<S>(f.grid_.run_heads * state);
      x = arena.take<S>(tile);
      left_x = arena.take<S>(tile);
      dy = arena.take<S>(tile);
      entered_dy = arena.take<S>(tile);
      v = arena.take<S>(tile);
      dz = arena.take<S>(f.p_.z.data ? tile : 0);
      x_turned = arena.take<S>(tile);
      dy_turned = arena.take<S>(tile);
      mixed = arena.take<S>(kMost * kMost);
      decay = arena.take<S>(kMost * kMost);
      products = arena.take<S>(kMost * kMost);
      z = arena.take<S>(shape.states * kMost);
      dA = arena.take<S>(f.grid_.run_heads);
      dD = arena.take<S>(f.grid_.run_heads * shape.padded);
    }
  };

  void lay_out(Arena& arena) {
    const int64_t projection = grid_.runs * p_.batch * p_.length * p_.groups * p_.state;
    runs_dB_ = arena.take<S>(projection);
    runs_dC_ = arena.take<S>(projection);
    batch_dA_ = arena.take<S>(p_.batch * p_.heads);
    batch_dD_ = arena.take<S>(call_.dD ? p_.batch * p_.heads * p_.head_dim : 0);
  }

  void run(const Task& task, const Buffers& to) const {
    const int64_t size = shape_.states * shape_.padded;
    for (int64_t h = 0; h < task.heads; h++)
      load_state(to.gradients + h * size, call_.dlast_state, p_, shape_, task.batch,
                 task.first_head + h);
    clear<V>(to.dA, task.heads);
    clear<V>(to.dD, task.heads * shape_.padded);
    for (int64_t end = p_.length; end > 0;) {
      const int64_t begin = (end - 1) / kSsdSpan * kSsdSpan;
      run_span(task, to, begin, end);
      end = begin;
    }
    for (int64_t h = 0; h < task.heads; h++) {
      const int64_t head = task.first_head + h, row = task.batch * p_.heads + head;
      batch_dA_[row] = to.dA[h];
      if (call_.dD)
        memcpy(batch_dD_ + row * p_.head_dim, to.dD + h * shape_.padded, p_.head_dim * sizeof(S));
      if (call_.dinitial_state)
        store_state(to.gradients + h * size, call_.dinitial_state, p_, shape_, task.batch, head);
    }
  }

  Steps chunk_at(int64_t span, int64_t end, int64_t i) const {
    const int64_t begin = span + i * shape_.chunk;
    return Steps::of<V>(begin, smaller(shape_.chunk, end - begin));
  }

  void run_span(const Task& task, const Buffers& to, int64_t begin, int64_t end) const {
    const int64_t chunks = divide_up(end - begin, shape_.chunk), size = shape_.states * shape_.padded;
    for (int64_t i = 0; i < chunks; i++) {
      const Chunk& chunk = to.chunks[i];
      chunk.shared.template fill<T>(p_, shape_, chunk_at(begin, end, i), task.batch, task.group);
      clear<V>(chunk.dscores, kMost * kMost);
      clear<V>(chunk.dB, shape_.states * kMost);
      clear<V>(chunk.dC, shape_.states * kMost);
    }
    for (int64_t h = 0; h < task.heads; h++) {
      const int64_t head = task.first_head + h;
      replay(to, task.batch, head, begin, end, chunks);
      for (int64_t i = chunks - 1; i >= 0; i--)
        run_chunk(to, to.chunks[i], to.states + i * size, to.gradients + h * size, to.dA + h,
                  to.dD + h * shape_.padded, chunk_at(begin, end, i), task.batch, head);
    }
    for (int64_t i = 0; i < chunks; i++) complete(task, to, to.chunks[i], chunk_at(begin, end, i));
  }

  // The states before the chunks of a span.
  void replay(const Buffers& to, int64_t batch, int64_t head, int64_t begin, int64_t end,
              int64_t chunks) const {
    const int64_t size = shape_.states * shape_.padded;
    const S* const border = border_of(call_.borders, p_, shape_, batch, begin, head);
    for (int64_t n = 0; n < shape_.states; n++) {
      for_vectors<V>(shape_.channels, [&](int64_t c, int count) {
        store(to.states + n * shape_.padded + c,
              load_some<V>(border + n * shape_.channels + c, count));
      });
    }
    for (int64_t i = 0; i + 1 < chunks; i++) {
      const Steps steps = chunk_at(begin, end, i);
      S* const next = to.states + (i + 1) * size;
      memcpy(next, to.states + i * size, size * sizeof(S));
      Decays<V> decays;
      decays.fill(p_, steps, batch, head);
      load_signal<V, T>(to.x, p_, p_.x, shape_, steps, batch, head);
      scale_rows(to.x, to.x, decays.dt, shape_, steps);
      scale_rows(to.x, to.x, decays.leave, shape_, steps);
      pass_state(next, to.chunks[i].shared, to.x, decays, shape_, steps);
    }
  }

  void run_chunk(const Buffers& to, const Chunk& chunk, const S* state, S* gradient, S* dA, S* dD,
                 const Steps& steps, int64_t batch, int64_t head) const {
    const int64_t P = shape_.padded;
    Decays<V> decays;
    decays.fill(p_, steps, batch, head);
    load_signal<V, T>(to.x, p_, p_.x, shape_, steps, batch, head);
    scale_rows(to.x, to.x, decays.dt, shape_, steps);
    mix(to.mixed, to.decay, chunk.shared.scores, decays, steps);
    load_dy(to, chunk, state, decays, steps, batch, head);

    Flow flow;
    flow.through = decays.keep * dot(state, gradient, shape_.states * P);
    // v, first of what leaves the chunk alone
    product<V>(steps.count, P, shape_.states, {chunk.shared.B, 1, kMost}, gradient, P, to.v, P, {});
    for (int64_t j = 0; j < steps.count; j++)
      flow.leaving[j] = decays.leave[j] * dot(to.x + j * P, to.v + j * P, P);
    product<V>(steps.count, P, {to.mixed, kMost, 1}, to.dy, P, to.v, P, {decays.leave, 1},
               [&](int64_t j, int64_t) { return Need{j, steps.count, 0}; });

    gradient_of_scores(to, chunk, flow, steps);
    gradient_of_C(to, chunk, state, decays, flow, steps);
    scale_rows(to.left_x, to.x, decays.leave, shape_, steps);
    transpose_tile<V>(to.x_turned, kMost, to.left_x, P, steps.padded, P);
    product<V>(shape_.states, steps.padded, P, {gradient, P, 1}, to.x_turned, kMost, chunk.dB, kMost,
               {&kOne, 0});
    product<V>(shape_.states, P, steps.count, {chunk.shared.C, kMost, 1}, to.entered_dy, P, gradient, P,
               {&decays.keep, 0});
    finish(to, decays, flow, dA, dD, steps, batch, head);
  }

  // dy, and dz where there is a gate.
  void load_dy(const Buffers& to, const Chunk& chunk, const S* state, const Decays<V>& decays,
               const Steps& steps, int64_t batch, int64_t head) const {
    const int64_t P = shape_.padded;
    if (call_.dout.data) {
      load_signal<V, T>(to.dy, p_, call_.dout, shape_, steps, batch, head);
    } else {
      clear<V>(to.dy, steps.padded * P);
    }
    if (p_.z.data == nullptr) return;
    outputs(to.v, chunk.shared, state, to.mixed, to.x, decays, shape_, steps);
    load_signal<V, T>(to.dz, p_, p_.z, shape_, steps, batch, head);
    const V one = V::set(1);
    for (int64_t s = 0; s < steps.count; s++) {
      const T* const x = row_of<const T>(p_, p_.x, batch, steps.begin + s, head);
      for_vectors<V>(shape_.channels, [&](int64_t c, int n) {
        const int64_t at = s * P + c;
        const V y = fma(skip(head, c, n), load_some<V>(x + c, n), load(to.v + at));
        const V gate = load(to.dz + at), open = sigmoid(gate), d = load(to.dy + at);
        store(to.dy + at, d * gate * open);
        store(to.dz + at, d * y * open * fma(gate, one - open, one));
      });
    }
    store_signal<V, T>(to.dz, p_, call_.dz, shape_, steps, batch, head);
  }

  V skip(int64_t head, int64_t c, int n) const {
    if (p_.D == nullptr) return V::set(0);
    const S* const D = static_cast<const S*>(p_.D) + head * p_.D_head;
    return p_.D_channel == 0 ? V::set(*D) : load_some<V>(D + c, n);
  }

  // What dl is made of: from inside to inside across step i, from the entering state to step t, from step j
  // to the leaving state, and from the one state to the other.
  struct Flow {
    S within[kMost], entering[kMost], leaving[kMost];
    S through;
  };

  void gradient_of_scores(const Buffers& to, const Chunk& chunk, Flow& flow, const Steps& steps) const {
    const int64_t P = shape_.padded;
    transpose_tile<V>(to.dy_turned, kMost, to.dy, P, steps.padded, P);
    product<V>(steps.count, steps.padded, {to.x, P, 1}, to.dy_turned, kMost, to.products, kMost, {},
               [&](int64_t j, int64_t) { return Need{0, shape_.channels, j / W * W}; });
    S before[kMost + W];  // at t: the sum of m_jt over j < i; 0 for t < i
    clear<V>(before, kMost + W);
    for (int64_t i = 0; i < steps.count; i++) {
      V across = V::set(0);
      for (int64_t t = i / W * W; t < steps.padded; t += W) across += load(before + t);
      flow.within[i] = sum(across);
      for (int64_t t = i / W * W; t < steps.padded; t += W) {
        const int64_t at = i * kMost + t;
        const V product = load(to.products + at);
        store(chunk.dscores + at, fma(product, load(to.decay + at), load(chunk.dscores + at)));
        store(before + t, fma(product, load(to.mixed + at), load(before + t)));
      }
      before[i] = 0;
    }
  }

  // What the entering state has of dC.
  void gradient_of_C(const Buffers& to, const Chunk& chunk, const S* state, const Decays<V>& decays,
                     Flow& flow, const Steps& steps) const {
    const int64_t P = shape_.padded;
    scale_rows(to.entered_dy, to.dy, decays.enter, shape_, steps);
    product<V>(shape_.states, steps.padded, P, {state, P, 1}, to.dy_turned, kMost, to.z, kMost, {});
    for (int64_t t = 0; t < steps.padded; t += W) {
      const V enter = load(decays.enter + t);
      V sum = V::set(0);
      for (int64_t n = 0; n < shape_.states; n++) {
        const int64_t at = n * kMost + t;
        const V z = enter * load(to.z + at);
        store(chunk.dC + at, load(chunk.dC + at) + z);
        sum = fma(z, load(chunk.shared.C + at), sum);
      }
      store(flow.entering + t, sum);
    }
  }

  static S dot(const S* a, const S* b, int64_t count) {
    V total = V::set(0);
    for (int64_t i = 0; i < count; i += W) total = fma(load(a + i), load(b + i), total);
    return sum(total);
  }

  // From v to the gradients of x, dt, A and D.
  void finish(const Buffers& to, const Decays<V>& decays, const Flow& flow, S* dA, S* dD,
              const Steps& steps, int64_t batch, int64_t head) const {
    const int64_t P = shape_.padded;
    S* const ddt = static_cast<S*>(call_.ddt) + batch * p_.length * p_.heads + head;
    const double rate = static_cast<const S*>(p_.A)[head];
    double out_of[kMost + 1], sum_dA = 0;  // before step i, to the leaving state
    out_of[0] = flow.through;
    for (int64_t j = 0; j < steps.count; j++) out_of[j + 1] = out_of[j] + flow.leaving[j];
    double into = 0;  // from the entering state, to step i and behind
    for (int64_t s = steps.count - 1; s >= 0; s--) {
      const T* const x = row_of<const T>(p_, p_.x, batch, steps.begin + s, head);
      T* const dx = row_of<T>(p_, call_.dx, batch, steps.begin + s, head);
      const V dt = V::set(decays.dt[s]);
      V direct = V::set(0);
      for_vectors<V>(shape_.channels, [&](int64_t c, int n) {
        const V value = load_some<V>(x + c, n), v = load(to.v + s * P + c), dy = load(to.dy + s * P + c);
        direct = fma(value, v, direct);
        store(dD + c, fma(value, dy, load(dD + c)));
        store_some<V>(dx + c, fma(skip(head, c, n), dy, dt * v), n);
      });
      into += flow.entering[s];
      const double dl = flow.within[s] + into + out_of[s];
      sum_dA += decays.dt[s] * dl;
      ddt[Decays<V>::position(p_, steps.begin + s) * p_.heads] = static_cast<S>(sum(direct) + rate * dl);
    }
    *dA += static_cast<S>(sum_dA);
  }

  // dB and dC of a chunk, over all heads of the run.
  void complete(const Task& task, const Buffers& to, const Chunk& chunk, const Steps& steps) const {
    product<V>(shape_.states, steps.padded, {chunk.shared.B, kMost, 1}, chunk.dscores, kMost, chunk.dC,
               kMost, {&kOne, 0}, [&](int64_t, int64_t) { return Need{0, steps.count, 0}; });
    transpose_tile<V>(to.products, kMost, chunk.dscores, kMost, steps.padded, steps.count);
    product<V>(shape_.states, steps.padded, {chunk.shared.C, kMost, 1}, to.products, kMost, chunk.dB,
               kMost, {&kOne, 0}, [&](int64_t, int64_t) { return Need{0, steps.count, 0}; });
    put(runs_dB_, chunk.dB, task, steps);
    put(runs_dC_, chunk.dC, task, steps);
  }

  void put(S* all, const S* from, const Task& task, const Steps& steps) const {
    S* const to = all + run_at(task.run, (task.batch * p_.length + steps.begin) * p_.groups + task.group);
    for (int64_t s = 0; s < steps.count; s++) {
      for (int64_t n = 0; n < shape_.states; n++)
        to[s * p_.groups * p_.state + n] = from[n * kMost + s];
    }
  }

  // Where the run has row i of [batch][step][group].
  int64_t run_at(int64_t run, int64_t i) const {
    return (run * p_.batch * p_.length * p_.groups + i) * p_.state;
  }

  void add_up_runs(const SsdSignal& to, const S* all, int64_t i) const {
    const int64_t group = i % p_.groups, step = i / p_.groups % p_.length;
    T* const row = row_of<T>(p_, to, i / p_.groups / p_.length, step, group);
    for_vectors<V>(p_.state, [&](int64_t n, int count) {
      V total = V::set(0);
      for (int64_t run = 0; run < grid_.runs; run++)
        total += load_some<V>(all + run_at(run, i) + n, count);
      store_some<V>(row + n, total, count);
    });
  }

  void add_up_batch(S* to, const S* from, int64_t count) const {
    for (int64_t i = 0; i < count; i++) {
      to[i] = 0;
      for (int64_t b = 0; b < p_.batch; b++) to[i] += from[b * count + i];
    }
  }

  static constexpr S kOne = 1;

  const SsdBackward& call_;
  const SsdProblem& p_;
  Shape<V> shape_;
  Grid grid_;
  S *runs_dB_ = nullptr, *runs_dC_ = nullptr;    // [run][batch][step][group][state]
  S *batch_dA_ = nullptr, *batch_dD_ = nullptr;  // [batch][head], [batch][head][channel]
};

}  // namespace zoo::ZOO_CPU::ssd
