// The causal convolution as plain pointers, sizes and strides. What it computes:
// zoo/ops/causal_conv1d.py. "Accumulator" is float32, and float64 where the signal is. All strides count
// elements. A null pointer stands for an optional tensor that is absent.
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"
#include "common/dtype.h"
#include "common/threads.h"

namespace zoo {

constexpr int kConvMostTaps = 64;  // MAX_WIDTH in Python

// [batch, channel, step] in the dtype of the problem.
struct ConvSignal {
  void* data;
  int64_t batch, channel, step;
};

struct ConvProblem {
  DType dtype;
  int64_t batch, dim, length;
  int width;  // 1 to kConvMostTaps
  bool silu;
  ConvSignal x;             // stride 1 along steps or along channels
  const void* weight;       // [dim, width], accumulator, contiguous
  const void* bias;         // [dim], accumulator, optional
  const int32_t* seq_idx;   // [batch, length], contiguous, optional; negative: padding
  ConvSignal initial_states;  // width - 1 steps, optional
};

struct ConvForward {
  ConvProblem problem;
  ConvSignal out;  // stride 1 where x has it
};

struct ConvBackward {
  ConvProblem problem;
  ConvSignal dout, dx;         // stride 1 where x has it
  ConvSignal dinitial_states;  // where the problem has them
  void* dweight;               // [dim, width], accumulator, contiguous
  void* dbias;                 // [dim], accumulator, where the problem has one
};

struct ConvUpdate {
  DType dtype;
  int64_t batch, dim, length, size;  // size: steps that the state holds, width - 1 or more
  int width;
  bool silu;
  ConvSignal x, state, out;
  const void* weight;            // as above
  const void* bias;
  const int32_t* cache_seqlens;  // [batch], optional
};

// False if there is no memory.
ZOO_CPU_DECLARE(
  bool causal_conv1d_forward(const ConvForward& call, const Threads& threads);
  bool causal_conv1d_backward(const ConvBackward& call, const Threads& threads);
  bool causal_conv1d_update(const ConvUpdate& call, const Threads& threads);
)

#ifdef ZOO_CUDA
namespace cuda {

// Bytes of scratch memory that a call needs; `workspace` is where it then is.
int64_t causal_conv1d_workspace(const ConvBackward& call);
// Enqueue on a CUDA stream. The result is null, or what went wrong. Here all signals may have any strides.
const char* causal_conv1d_forward(const ConvForward& call, void* stream);
const char* causal_conv1d_backward(const ConvBackward& call, void* workspace, void* stream);
const char* causal_conv1d_update(const ConvUpdate& call, void* stream);

}  // namespace cuda
#endif

}  // namespace zoo
