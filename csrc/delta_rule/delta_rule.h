// The delta rule and linear attention as plain pointers and sizes. What they compute: zoo/ops/delta_rule.py,
// with queries that are scaled already.
//
// Everything is contiguous, in float32 or in float64. A null pointer stands for an optional tensor that is
// absent. Without beta it is linear attention, without decay the state keeps all it has.
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"
#include "common/dtype.h"
#include "common/threads.h"

namespace zoo {

// Steps between the states that the forward pass leaves for the backward pass.
constexpr int64_t kDeltaSpan = 32;

struct DeltaProblem {
  DType dtype;
  int64_t batch, length, heads, state, head_dim;  // at least 1 but batch
  const void *q, *k;          // [batch, length, heads, state]
  const void* v;              // [batch, length, heads, head_dim]
  const void *beta, *decay;   // [batch, length, heads], optional
  const void* initial_state;  // [batch, heads, state, head_dim], optional
};

struct DeltaForward {
  DeltaProblem problem;
  void* out;         // [batch, length, heads, head_dim]
  void* last_state;  // [batch, heads, state, head_dim]
  void* borders;     // [batch, ceil(length / kDeltaSpan), heads, state, head_dim], optional: states before
};

struct DeltaBackward {
  DeltaProblem problem;
  const void* borders;
  const void* dout;         // optional
  const void* dlast_state;  // optional
  void *dq, *dk, *dv;       // of the shapes of the problem
  void *dbeta, *ddecay;     // where the problem has them
  void* dinitial_state;     // where the problem has one
};

// False if there is no memory.
ZOO_CPU_DECLARE(
  bool delta_forward(const DeltaForward& call, const Threads& threads);
  bool delta_backward(const DeltaBackward& call, const Threads& threads);
)

#ifdef ZOO_CUDA
namespace cuda {

// Bytes of scratch memory that a call needs; `workspace` may still be missing in it.
int64_t delta_workspace(const DeltaBackward& call);
// Enqueue on a CUDA stream. The result is null, or what went wrong.
const char* delta_forward(const DeltaForward& call, void* stream);
const char* delta_backward(const DeltaBackward& call, void* workspace, void* stream);

}  // namespace cuda
#endif

}  // namespace zoo
