// The recurrent cells on the CPU; compiled once for each capability.
//
// A task is one head of a few sequences and walks through all steps: its recurrent matrix, packed once so
// that all gates of a channel stand in one row, stays in the cache; a step is one small matrix product and
// one pass over vectors of channels.
#pragma once

#include "common/arena.h"
#include "common/product.h"
#include "recurrent_cell/recurrent_cell.h"
#define ZOO_CELL ZOO_INLINE
#include "recurrent_cell/cells.h"

namespace zoo::ZOO_CPU {

namespace cell {

template <class V>
struct Math {
  using Number = V;
  static constexpr double kHuge = sizeof(typename V::Scalar) == 8 ? 1e300 : 1e37;
  static constexpr double kMostExponent = sizeof(typename V::Scalar) == 8 ? 700 : 80;

  static ZOO_INLINE V set(double x) { return V::set(static_cast<typename V::Scalar>(x)); }
  static ZOO_INLINE V max(V a, V b) { return ZOO_CPU::max(a, b); }
  static ZOO_INLINE V min(V a, V b) { return ZOO_CPU::min(a, b); }
  static ZOO_INLINE V exp(V x) { return ZOO_CPU::exp(x); }
  static ZOO_INLINE V sigmoid(V x) { return ZOO_CPU::sigmoid(x); }
  static ZOO_INLINE V softplus(V x) { return ZOO_CPU::softplus(x); }
};

constexpr int64_t kMostRows = 24;   // sequences of a task: a few register tiles of the product
constexpr int64_t kHeldRows = 48;   // steps times sequences whose part of dR is added at once

template <class V, template <class> class Kind>
class Walk {
  using S = typename V::Scalar;
  using C = Kind<Math<V>>;
  static constexpr int W = V::kSize, kStates = C::kStates, kGates = C::kGates;
  static constexpr int kRecurrent = C::kRecurrent;

 public:
  Walk(const CellProblem& p, int64_t threads)
      : p_(p), width_((p.channels + W - 1) / W * W), rows_(rows_of(p, threads)),
        tiles_((p.batch + rows_ - 1) / rows_) {}

  bool forward(const CellForward& call, const Threads& threads) const {
    bool done = true;
    threads(tiles_ * p_.heads, [&](int64_t begin, int64_t end) {
      Arena arena;
      ForwardMemory(arena, *this);
      if (!arena.allocate()) {
        __atomic_store_n(&done, false, __ATOMIC_RELAXED);
        return;
      }
      const ForwardMemory memory(arena, *this);
      for (int64_t i = begin; i < end; i++) forward(call, task(i), memory);
    });
    return done;
  }

  bool backward(const CellBackward& call, const Threads& threads) const {
    Arena sums;  // of dR and db, of each task
    const int64_t tasks = tiles_ * p_.heads, size = (kRecurrent * width_ + kGates) * width_;
    sums.take<S>(tasks * size);
    if (!sums.allocate()) return false;
    S* const parts = sums.take<S>(tasks * size);
    bool done = true;
    threads(tasks, [&](int64_t begin, int64_t end) {
      Arena arena;
      BackwardMemory(arena, *this);
      if (!arena.allocate()) {
        __atomic_store_n(&done, false, __ATOMIC_RELAXED);
        return;
      }
      const BackwardMemory memory(arena, *this);
      for (int64_t i = begin; i < end; i++) backward(call, task(i), memory, parts + i * size);
    });
    if (done) {
      threads(p_.heads, [&](int64_t begin, int64_t end) {
        for (int64_t head = begin; head < end; head++) add_up(call, head, parts, size);
      });
    }
    return done;
  }

 private:
  struct Task {
    int64_t head, first, rows;  // sequences first ... first + rows - 1
  };

  static int64_t rows_of(const CellProblem& p, int64_t threads) {
    int64_t tiles = (p.batch + kMostRows - 1) / kMostRows;
    while (tiles * p.heads < threads && tiles < p.batch) tiles++;
    return (p.batch + tiles - 1) / tiles;
  }

  // Tiles of one head are neighbours.
  Task task(int64_t i) const {
    const int64_t first = i % tiles_ * rows_, rest = p_.batch - first;
    return {i / tiles_, first, rest < rows_ ? rest : rows_};
  }

  struct ForwardMemory {
    S *R, *raw, *states, *bias;  // [in][gate, out]; [row][gate, channel]; [state][row][channel]

    ForwardMemory(Arena& arena, const Walk& w) {
      R = arena.take<S>(w.p_.channels * kRecurrent * w.width_);
      raw = arena.take<S>(w.rows_ * kGates * w.width_);
      states = arena.take<S>(kStates * w.rows_ * w.width_);
      bias = arena.take<S>(kGates * w.width_);
    }
  };

  struct BackwardMemory {
    S *R, *raw, *h, *d;  // [gate, out][in]; of several steps: [step, row][gate, channel], [channel]

    BackwardMemory(Arena& arena, const Walk& w) {
      const int64_t held = w.held_steps() * w.rows_;
      R = arena.take<S>(kRecurrent * w.width_ * w.width_);
      raw = arena.take<S>(held * kGates * w.width_);
      h = arena.take<S>(held * w.width_);
      d = arena.take<S>(kStates * w.rows_ * w.width_);
    }
  };

  int64_t held_steps() const { return rows_ < kHeldRows ? kHeldRows / rows_ : 1; }

  // f(first channel, how many of them) for each vector.
  template <class F>
  ZOO_INLINE void vectors(const F& f) const {
    for (int64_t c = 0; c < p_.channels; c += W) {
      const int64_t left = p_.channels - c;
      f(c, left < W ? static_cast<int>(left) : W);
    }
  }

  static ZOO_INLINE V read(const S* p, int n) { return n == W ? load(p) : load(p, n); }
  static ZOO_INLINE void write(S* p, V x, int n) { n == W ? store(p, x) : store(p, x, n); }

  // Where the channels of a head stand in tensors [batch, length, gates, heads, channels],
  // [states, batch, length, heads, channels] and [states, batch, heads, channels].
  ZOO_INLINE int64_t gate_at(int64_t row, int64_t t, int gates, int gate, int64_t head) const {
    return (((row * p_.length + t) * gates + gate) * p_.heads + head) * p_.channels;
  }
  ZOO_INLINE int64_t state_at(int state, int64_t row, int64_t t, int64_t head) const {
    return (((state * p_.batch + row) * p_.length + t) * p_.heads + head) * p_.channels;
  }
  ZOO_INLINE int64_t first_at(int state, int64_t row, int64_t head) const {
    return ((state * p_.batch + row) * p_.heads + head) * p_.channels;
  }

  void forward(const CellForward& call, const Task& task, const ForwardMemory& to) const {
    const int64_t columns = kRecurrent * width_, row_size = kGates * width_;
    pack_for_forward(task.head, to.R);
    memset(to.bias, 0, row_size * sizeof(S));
    for (int g = 0; g < kGates; g++) {
      memcpy(to.bias + g * width_,
             static_cast<const S*>(call.b) + (g * p_.heads + task.head) * p_.channels,
             p_.channels * sizeof(S));
    }
    memset(to.states, 0, kStates * rows_ * width_ * sizeof(S));
    for (int s = 0; s < kStates; s++) {
      for (int64_t m = 0; m < task.rows; m++) {
        memcpy(to.states + (s * rows_ + m) * width_,
               static_cast<const S*>(p_.initial_states) + first_at(s, task.first + m, task.head),
               p_.channels * sizeof(S));
      }
    }
    const S one = 1;
    for (int64_t t = 0; t < p_.length; t++) {
      for (int64_t m = 0; m < task.rows; m++) add_inputs(call, task, t, m, to);
      product<V>(task.rows, columns, p_.channels, Left<S>{to.states, width_, 1}, to.R, columns, to.raw,
                 row_size, Factor<S>{&one, 0});
      for (int64_t m = 0; m < task.rows; m++) take_step(call, task, t, m, to);
    }
  }

  void add_inputs(const CellForward& call, const Task& task, int64_t t, int64_t m,
                  const ForwardMemory& to) const {
    S* const raw = to.raw + m * kGates * width_;
    for (int g = 0; g < kGates; g++) {
      const int input = C::input(g);
      const S* const wx = static_cast<const S*>(call.Wx) +
                          gate_at(task.first + m, t, C::kInputs, input < 0 ? 0 : input, task.head);
      vectors([&](int64_t c, int n) {
        const V bias = load(to.bias + g * width_ + c);
        store(raw + g * width_ + c, input < 0 ? bias : bias + read(wx + c, n));
      });
    }
  }

  void take_step(const CellForward& call, const Task& task, int64_t t, int64_t m,
                 const ForwardMemory& to) const {
    vectors([&](int64_t c, int n) {
      V raw[kGates], s[kStates];
      for (int g = 0; g < kGates; g++) {
        raw[g] = load(to.raw + (m * kGates + g) * width_ + c);
        if (call.gates)
          write(static_cast<S*>(call.gates) + gate_at(task.first + m, t, kGates, g, task.head) + c,
                raw[g], n);
      }
      for (int i = 0; i < kStates; i++) s[i] = load(to.states + (i * rows_ + m) * width_ + c);
      C::forward(raw, s);
      for (int i = 0; i < kStates; i++) {
        store(to.states + (i * rows_ + m) * width_ + c, s[i]);
        write(static_cast<S*>(call.states) + state_at(i, task.first + m, t, task.head) + c, s[i], n);
      }
    });
  }

  const S* matrix(int gate, int64_t head) const {
    return static_cast<const S*>(p_.R) + (gate * p_.heads + head) * p_.channels * p_.channels;
  }

  void pack_for_forward(int64_t head, S* to) const {
    memset(to, 0, p_.channels * kRecurrent * width_ * sizeof(S));
    for (int g = 0; g < kRecurrent; g++) {
      const S* const from = matrix(g, head);
      for (int64_t out = 0; out < p_.channels; out++)
        for (int64_t in = 0; in < p_.channels; in++)
          to[(in * kRecurrent + g) * width_ + out] = from[out * p_.channels + in];
    }
  }

  void pack_for_backward(int64_t head, S* to) const {
    memset(to, 0, kRecurrent * width_ * width_ * sizeof(S));
    for (int g = 0; g < kRecurrent; g++) {
      for (int64_t out = 0; out < p_.channels; out++)
        memcpy(to + (g * width_ + out) * width_, matrix(g, head) + out * p_.channels,
               p_.channels * sizeof(S));
    }
  }

  void backward(const CellBackward& call, const Task& task, const BackwardMemory& to, S* sums) const {
    const int64_t columns = kRecurrent * width_, row_size = kGates * width_;
    S *const dR = sums, *const db = sums + columns * width_;
    memset(sums, 0, (columns * width_ + row_size) * sizeof(S));
    pack_for_backward(task.head, to.R);
    memset(to.raw, 0, held_steps() * rows_ * row_size * sizeof(S));
    memset(to.h, 0, held_steps() * rows_ * width_ * sizeof(S));
    memset(to.d, 0, kStates * rows_ * width_ * sizeof(S));
    const S one = 1;
    int64_t held = 0;  // rows whose part is not in dR yet
    for (int64_t t = p_.length - 1; t >= 0; t--) {
      S* const raw = to.raw + held * row_size;
      for (int64_t m = 0; m < task.rows; m++)
        go_back(call, task, t, m, raw + m * row_size, to.h + (held + m) * width_, to, db);
      product<V>(task.rows, width_, columns, Left<S>{raw, row_size, 1}, to.R, width_, to.d, width_,
                 Factor<S>{&one, 0});
      held += task.rows;
      if (t == 0 || held + task.rows > held_steps() * rows_) {
        product<V>(columns, width_, held, Left<S>{to.raw, 1, row_size}, to.h, width_, dR, width_,
                   Factor<S>{&one, 0});
        held = 0;
      }
    }
    for (int s = 0; s < kStates; s++) {
      for (int64_t m = 0; m < task.rows; m++) {
        memcpy(static_cast<S*>(call.dinitial_states) + first_at(s, task.first + m, task.head),
               to.d + (s * rows_ + m) * width_, p_.channels * sizeof(S));
      }
    }
  }

  // raw: takes the gradients of the gates; h: the state before the step.
  void go_back(const CellBackward& call, const Task& task, int64_t t, int64_t m, S* raw, S* h,
               const BackwardMemory& to, S* db) const {
    const int64_t row = task.first + m;
    vectors([&](int64_t c, int n) {
      V gates[kGates], before[kStates], after[kStates], d[kStates];
      for (int g = 0; g < kGates; g++)
        gates[g] = read(
            static_cast<const S*>(call.gates) + gate_at(row, t, kGates, g, task.head) + c, n);
      for (int s = 0; s < kStates; s++) {
        const S* const states = static_cast<const S*>(call.states);
        const S* const earlier =
            t > 0 ? states + state_at(s, row, t - 1, task.head)
                  : static_cast<const S*>(p_.initial_states) + first_at(s, row, task.head);
        const int64_t here = state_at(s, row, t, task.head) + c;
        before[s] = read(earlier + c, n);
        after[s] = read(states + here, n);
        d[s] = load(to.d + (s * rows_ + m) * width_ + c) +
               read(static_cast<const S*>(call.dstates) + here, n);
      }
      store(h + c, before[0]);
      C::backward(gates, before, after, d);
      // Lanes without a channel hold anything now: they are not written, and stay 0.
      for (int s = 0; s < kStates; s++) write(to.d + (s * rows_ + m) * width_ + c, d[s], n);
      for (int g = 0; g < kGates; g++) {
        write(static_cast<S*>(call.dgates) + gate_at(row, t, kGates, g, task.head) + c, gates[g], n);
        write(raw + g * width_ + c, gates[g], n);
        write(db + g * width_ + c, load(db + g * width_ + c) + gates[g], n);
      }
    });
  }

  void add_up(const CellBackward& call, int64_t head, const S* parts, int64_t size) const {
    for (int64_t tile = 0; tile < tiles_; tile++) {
      const S* const dR = parts + (head * tiles_ + tile) * size;
      const S* const db = dR + kRecurrent * width_ * width_;
      for (int g = 0; g < kRecurrent; g++) {
        S* const to = static_cast<S*>(call.dR) + (g * p_.heads + head) * p_.channels * p_.channels;
        for (int64_t out = 0; out < p_.channels; out++)
          for (int64_t in = 0; in < p_.channels; in++)
            to[out * p_.channels + in] = (tile ? to[out * p_.channels + in] : 0) +
                                         dR[(g * width_ + out) * width_ + in];
      }
      for (int g = 0; g < kGates; g++) {
        S* const to = static_cast<S*>(call.db) + (g * p_.heads + head) * p_.channels;
        for (int64_t c = 0; c < p_.channels; c++) to[c] = (tile ? to[c] : 0) + db[g * width_ + c];
      }
    }
  }

  const CellProblem& p_;
  int64_t width_;  // channels, up to whole vectors
  int64_t rows_, tiles_;
};

// f.template operator()<Walk>() for the kind of the problem.
template <class V, class F>
bool with_cell(Cell cell, const F& f) {
  switch (cell) {
    case Cell::kElman: return f.template operator()<Walk<V, cells::Elman>>();
    case Cell::kLstm: return f.template operator()<Walk<V, cells::Lstm>>();
    case Cell::kGru: return f.template operator()<Walk<V, cells::Gru>>();
    default: return f.template operator()<Walk<V, cells::Slstm>>();
  }
}

template <class F>
bool with_kind(const CellProblem& p, const F& f) {
  return p.dtype == DType::kFloat64 ? with_cell<VecD>(p.cell, f) : with_cell<Vec>(p.cell, f);
}

}  // namespace cell

bool cell_forward(const CellForward& call, const Threads& threads) {
  return cell::with_kind(call.problem, [&]<class Walk>() {
    return Walk(call.problem, threads.count).forward(call, threads);
  });
}

bool cell_backward(const CellBackward& call, const Threads& threads) {
  return cell::with_kind(call.problem, [&]<class Walk>() {
    return Walk(call.problem, threads.count).backward(call, threads);
  });
}

}  // namespace zoo::ZOO_CPU
