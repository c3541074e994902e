// Entry points of the CPU kernels; compiled once for each capability.
#pragma once

#include "delta_rule/cpu_block.h"

namespace zoo::ZOO_CPU {

namespace delta {

// f.template operator()<V, kBeta, kDecay>() for the kind of the problem.
template <class F>
bool with_kind(const DeltaProblem& p, const F& f) {
  const auto with_scalar = [&]<class V>() {
    if (p.beta && p.decay) return f.template operator()<V, true, true>();
    if (p.beta) return f.template operator()<V, true, false>();
    if (p.decay) return f.template operator()<V, false, true>();
    return f.template operator()<V, false, false>();
  };
  if (p.dtype == DType::kFloat64) return with_scalar.template operator()<VecD>();
  return with_scalar.template operator()<Vec>();
}

// Vectors in a row of the widest block.
constexpr int kWidest = 4;

// f.template operator()<NV>(first column) for blocks that cover all columns; the last ones are narrower.
template <class V, class F>
void for_blocks(int64_t columns, const F& f) {
  constexpr int64_t W = V::kSize;
  int64_t first = 0;
  for (; columns - first > 2 * W; first += kWidest * W) f.template operator()<kWidest>(first);
  if (columns - first > W) {
    f.template operator()<2>(first);
  } else if (columns - first > 0) {
    f.template operator()<1>(first);
  }
}

// run(task, scratch) for tasks 0 ... tasks - 1, each thread with so many numbers of scratch memory.
template <class S, class Run>
bool with_scratch(int64_t tasks, int64_t size, const Threads& threads, const Run& run) {
  bool done = true;
  threads(tasks, [&](int64_t begin, int64_t end) {
    Arena arena;
    arena.take<S>(size);
    if (!arena.allocate()) {
      __atomic_store_n(&done, false, __ATOMIC_RELAXED);
      return;
    }
    S* const scratch = arena.take<S>(size);
    for (int64_t task = begin; task < end; task++) run(task, scratch);
  });
  return done;
}

}  // namespace delta

bool delta_forward(const DeltaForward& call, const Threads& threads) {
  const DeltaProblem& p = call.problem;
  return delta::with_kind(p, [&]<class V, bool kBeta, bool kDecay>() {
    using S = typename V::Scalar;
    const int64_t size = delta::Block<V, delta::kWidest, kBeta, kDecay>::forward_size(p);
    return delta::with_scratch<S>(p.batch * p.heads, size, threads, [&](int64_t task, S* scratch) {
      delta::for_blocks<V>(p.head_dim, [&]<int NV>(int64_t first) {
        delta::Block<V, NV, kBeta, kDecay>(p, task / p.heads, task % p.heads, first)
            .forward(call, scratch);
      });
    });
  });
}

bool delta_backward(const DeltaBackward& call, const Threads& threads) {
  const DeltaProblem& p = call.problem;
  return delta::with_kind(p, [&]<class V, bool kBeta, bool kDecay>() {
    using S = typename V::Scalar;
    const int64_t size = delta::Block<V, delta::kWidest, kBeta, kDecay>::backward_size(p);
    return delta::with_scratch<S>(p.batch * p.heads, size, threads, [&](int64_t task, S* scratch) {
      const int64_t batch = task / p.heads, head = task % p.heads;
      for (int64_t t = 0; t < p.length; t++) {  // blocks add up in these
        const int64_t row = (batch * p.length + t) * p.heads + head;
        memset(static_cast<S*>(call.dq) + row * p.state, 0, p.state * sizeof(S));
        memset(static_cast<S*>(call.dk) + row * p.state, 0, p.state * sizeof(S));
        if (kBeta) static_cast<S*>(call.dbeta)[row] = 0;
        if (kDecay) static_cast<S*>(call.ddecay)[row] = 0;
      }
      delta::for_blocks<V>(p.head_dim, [&]<int NV>(int64_t first) {
        delta::Block<V, NV, kBeta, kDecay>(p, batch, head, first).backward(call, scratch);
      });
    });
  });
}

}  // namespace zoo::ZOO_CPU
