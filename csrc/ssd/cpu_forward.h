// The forward pass of Mamba-2's scan on the CPU.
#pragma once

#include "ssd/cpu_chunk.h"

namespace zoo::ZOO_CPU::ssd {

template <class V, class T>
class Forward {
  using S = typename V::Scalar;

 public:
  Forward(const SsdForward& call, int64_t threads)
      : call_(call), p_(call.problem), shape_(p_),
        grid_(grid_of(p_, kStates / (shape_.states * shape_.padded), threads)) {}

  bool run(const Threads& threads) const {
    bool done = true;
    threads(grid_.tasks(), [&](int64_t begin, int64_t end) {
      Arena arena;
      Buffers(arena, *this);
      if (!arena.allocate()) {
        __atomic_store_n(&done, false, __ATOMIC_RELAXED);
        return;
      }
      const Buffers to(arena, *this);
      for (int64_t i = begin; i < end; i++) run(task_of(grid_, i), to);
    });
    return done;
  }

 private:
  static constexpr int64_t kStates = 1 << 16;  // numbers that the states of a run of heads may have

  struct Buffers {
    Shared<V> shared;
    S* states;      // [head][state][channel]
    S *x, *y, *z;   // [step][channel]
    S* mixed;       // [step][step]

    Buffers(Arena& arena, const Forward& f) {
      shared.lay_out(arena, f.shape_);
      const int64_t tile = kMost * f.shape_.padded;
      states = arena.take<S>(f.grid_.run_heads * f.shape_.states * f.shape_.padded);
      x = arena.take<S>(tile);
      y = arena.take<S>(tile);
      z = arena.take<S>(f.p_.z.data ? tile : 0);
      mixed = arena.take<S>(kMost * kMost);
    }
  };

  void run(const Task& task, const Buffers& to) const {
    const int64_t size = shape_.states * shape_.padded;
    for (int64_t h = 0; h < task.heads; h++)
      load_state(to.states + h * size, p_.initial_state, p_, shape_, task.batch, task.first_head + h);
    for (int64_t begin = 0; begin < p_.length; begin += shape_.chunk) {
      const Steps steps = Steps::of<V>(begin, smaller(shape_.chunk, p_.length - begin));
      to.shared.template fill<T>(p_, shape_, steps, task.batch, task.group);
      for (int64_t h = 0; h < task.heads; h++) {
        S* const state = to.states + h * size;
        if (call_.borders.data && begin % call_.borders.span == 0)
          store_border(state, task.batch, begin, task.first_head + h);
        run_chunk(to, state, steps, task.batch, task.first_head + h);
      }
    }
    for (int64_t h = 0; h < task.heads; h++)
      store_state(to.states + h * size, call_.last_state, p_, shape_, task.batch, task.first_head + h);
  }

  void store_border(const S* state, int64_t batch, int64_t step, int64_t head) const {
    S* const border = border_of(call_.borders, p_, shape_, batch, step, head);
    for (int64_t n = 0; n < shape_.states; n++) {
      for_vectors<V>(shape_.channels, [&](int64_t c, int count) {
        store_some<V>(border + n * shape_.channels + c, load(state + n * shape_.padded + c), count);
      });
    }
  }

  void run_chunk(const Buffers& to, S* state, const Steps& steps, int64_t batch, int64_t head) const {
    Decays<V> decays;
    decays.fill(p_, steps, batch, head);
    load_signal<V, T>(to.x, p_, p_.x, shape_, steps, batch, head);
    scale_rows(to.x, to.x, decays.dt, shape_, steps);
    mix(to.mixed, static_cast<S*>(nullptr), to.shared.scores, decays, steps);
    outputs(to.y, to.shared, state, to.mixed, to.x, decays, shape_, steps);
    finish(to, steps, batch, head);
    scale_rows(to.x, to.x, decays.leave, shape_, steps);
    pass_state(state, to.shared, to.x, decays, shape_, steps);
  }

  // Skip and gate, and out it goes.
  void finish(const Buffers& to, const Steps& steps, int64_t batch, int64_t head) const {
    if (p_.z.data) load_signal<V, T>(to.z, p_, p_.z, shape_, steps, batch, head);
    const S* const D = static_cast<const S*>(p_.D) + (p_.D ? head * p_.D_head : 0);
    for (int64_t s = 0; s < steps.count; s++) {
      const T* const x = row_of<const T>(p_, p_.x, batch, steps.begin + s, head);
      T* const out = row_of<T>(p_, call_.out, batch, steps.begin + s, head);
      for_vectors<V>(shape_.channels, [&](int64_t c, int n) {
        V y = load(to.y + s * shape_.padded + c);
        if (p_.D) {
          const V skip = p_.D_channel == 0 ? V::set(*D) : load_some<V>(D + c, n);
          y = fma(skip, load_some<V>(x + c, n), y);
        }
        if (p_.z.data) y = y * silu(load(to.z + s * shape_.padded + c));
        store_some<V>(out + c, y, n);
      });
    }
  }

  const SsdForward& call_;
  const SsdProblem& p_;
  Shape<V> shape_;
  Grid grid_;
};

}  // namespace zoo::ZOO_CPU::ssd
