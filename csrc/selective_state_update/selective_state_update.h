// One step of the selective scan as plain pointers, sizes and strides. What it computes:
// zoo/ops/selective_state_update.py, in the form with heads; that without has one head for each group. All
// strides count elements and may be zero. A null pointer stands for an optional tensor that is absent.
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"
#include "common/dtype.h"
#include "common/threads.h"

namespace zoo {

struct StateUpdate {
  // [batch, head, channel] in the dtype of the signals.
  struct Signal {
    void* data;
    int64_t batch, head, channel;
  };
  // [batch, group, state] in the dtype of the signals.
  struct Projection {
    const void* data;
    int64_t batch, group, state;
  };
  // [head, channel, state], or without the last; accumulator (float64 where the signals are, else float32).
  struct Parameter {
    const void* data;
    int64_t head, channel, state;
  };

  DType dtype;        // of the signals
  DType state_dtype;  // of the states: as the signals, or float32, or any if the signals are float32
  int64_t batch, heads, head_dim, state, groups;  // groups divides heads
  bool softplus;                                  // of dt, after the bias
  bool negative;                                  // the states' factors are 2 exp(dt A) - 1
  void* states;  // [batch, head, channel, state], overwritten
  int64_t states_batch, states_head, states_channel, states_state;
  Signal x, dt, z, out;  // z: optional
  Projection B, C;
  Parameter A, D, dt_bias;  // D, dt_bias: optional
};

ZOO_CPU_DECLARE(void selective_state_update(const StateUpdate& call, const Threads& threads);)

#ifdef ZOO_CUDA
namespace cuda {

// Enqueues on a CUDA stream. The result is null, or what went wrong.
const char* selective_state_update(const StateUpdate& call, void* stream);

}  // namespace cuda
#endif

}  // namespace zoo
