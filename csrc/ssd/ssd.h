// The scan of Mamba-2 as plain pointers, sizes and strides. What it computes: zoo/ops/ssd.py, with step
// sizes as they are after bias, softplus and limits.
//
// "Accumulator" is float32, and float64 where the signals are float64. All strides count elements and may
// be zero in what is read. Accumulator tensors are contiguous, but D. A null pointer stands for an optional
// tensor that is absent.
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"
#include "common/dtype.h"
#include "common/threads.h"

namespace zoo {

// [batch, step, head or group, channel or state] in the dtype of the problem; stride 1 in the last.
struct SsdSignal {
  void* data;
  int64_t batch, step, head;
};

struct SsdProblem {
  DType dtype;
  int64_t batch, length, heads, head_dim, groups, state;  // groups divides heads; at least 1 but batch
  bool reverse;                                            // from the last step to the first
  SsdSignal x, B, C, z;       // z: optional
  const void* dt;             // [batch, length, heads], accumulator
  const void* A;              // [heads], accumulator
  const void* D;              // [heads, head_dim], accumulator, optional, with these strides,
  int64_t D_head, D_channel;  // the second of which is 0 or 1
  const void* initial_state;  // [batch, heads, head_dim, state], accumulator, optional
  const int32_t* seq_idx;     // [batch, length], contiguous, optional
};

// The states at the borders of spans, which the forward pass leaves for the backward pass: accumulator
// [batch, spans, heads, head_dim * state] where spans = ceil(length / span). How they are ordered inside is
// the kernels' own affair.
struct SsdBorders {
  void* data;
  int64_t span;
};

struct SsdForward {
  SsdProblem problem;
  SsdSignal out;
  void* last_state;    // [batch, heads, head_dim, state], accumulator
  SsdBorders borders;  // optional
};

struct SsdBackward {
  SsdProblem problem;
  SsdBorders borders;
  SsdSignal dout;           // optional
  const void* dlast_state;  // [batch, heads, head_dim, state], accumulator, optional
  SsdSignal dx, dB, dC, dz;  // dz: where the problem has z
  void* ddt;                 // [batch, length, heads], accumulator
  void* dA;                  // [heads], accumulator
  void* dD;                  // [heads, head_dim], accumulator, contiguous; where the problem has D
  void* dinitial_state;      // [batch, heads, head_dim, state], accumulator; where the problem has one
};

// The span that SsdBorders must have.
#ifdef ZOO_CUDA
constexpr int64_t kSsdSpan = 64;
#else
constexpr int64_t kSsdSpan = 256;
#endif

// False if there is no memory.
ZOO_CPU_DECLARE(
  bool ssd_forward(const SsdForward& call, const Threads& threads);
  bool ssd_backward(const SsdBackward& call, const Threads& threads);
)

#ifdef ZOO_CUDA
namespace cuda {

// Bytes of scratch memory that a call needs; the borders and `workspace` may still be missing in it.
int64_t ssd_workspace(const SsdForward& call);
int64_t ssd_workspace(const SsdBackward& call);
// Enqueue on a CUDA stream. The result is null, or what went wrong.
const char* ssd_forward(const SsdForward& call, void* workspace, void* stream);
const char* ssd_backward(const SsdBackward& call, void* workspace, void* stream);

}  // namespace cuda
#endif

}  // namespace zoo
