// The selective scan as plain pointers, sizes and strides. What it computes: zoo/ops/selective_scan.py.
//
// "Accumulator" is float32, and float64 where the sequences are float64. All strides count elements.
// Accumulator tensors are contiguous. A null pointer stands for an optional tensor that is absent.
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"
#include "common/dtype.h"
#include "common/threads.h"

namespace zoo {

// [batch, channel, step] in the dtype of the problem.
struct ScanSequence {
  void* data;
  int64_t batch, channel, step;
};

// B, C and their gradients. Variable: [batch, group, state, step] in the dtype of the problem with these
// strides. Constant: [channel, state], accumulator.
struct ScanProjection {
  void* data;
  bool constant;
  int64_t batch, group, state, step;
};

struct ScanProblem {
  DType dtype;
  int64_t batch, dim, length, state, groups;  // groups divides dim; all are at least 1 but batch
  bool softplus;  // of delta, after the bias
  bool reverse;   // from the last step to the first
  bool negative;  // the state's factors are 2 exp(delta A) - 1
  ScanSequence u, delta, z;    // z: optional
  const void* A;               // [dim, state], accumulator
  ScanProjection B, C;
  const void* D;               // [dim], accumulator, optional
  const void* delta_bias;      // [dim], accumulator, optional
  const void* initial_state;   // [batch, dim, state], accumulator, optional
  const uint8_t* reset;        // [batch, length], contiguous, optional; 0: none
};

// The states at chunk borders, which the forward pass leaves for the backward pass: accumulator
// [batch, chunks, dim, state] where chunks = ceil(length / chunk). How they are ordered inside is the
// kernels' own affair.
struct ScanBorders {
  void* data;
  int64_t chunk;
};

constexpr int64_t kScanLongestChunk = 4096;

struct ScanForward {
  ScanProblem problem;
  ScanSequence out;
  void* last_state;     // [batch, dim, state], accumulator
  ScanBorders borders;  // optional
};

struct ScanBackward {
  ScanProblem problem;
  ScanBorders borders;
  ScanSequence dout;        // optional
  const void* dlast_state;  // [batch, dim, state], accumulator, optional
  ScanSequence du, ddelta, dz;  // dz: where the problem has z
  ScanProjection dB, dC;        // constant where B, C are
  void* dA;                     // [dim, state], accumulator
  void *dD, *ddelta_bias;       // [dim], accumulator; where the problem has them
  void* dinitial_state;         // [batch, dim, state], accumulator; where the problem has one
};

enum class ScanStatus { kDone, kDeltaNotFinite, kNoMemory };

ZOO_CPU_DECLARE(
  ScanStatus selective_scan_forward(const ScanForward& call, const Threads& threads);
  ScanStatus selective_scan_backward(const ScanBackward& call, const Threads& threads);
)

#ifdef ZOO_CUDA
namespace cuda {

// The chunk that ScanBorders must have.
constexpr int64_t kScanChunk = 64;
// Bytes of scratch memory that a call needs; the borders and `workspace` may still be missing in it.
int64_t selective_scan_workspace(const ScanForward& call);
int64_t selective_scan_workspace(const ScanBackward& call);
// Enqueue on a CUDA stream. dB and dC, where not constant, are contiguous. The result is null, or what
// went wrong. NaN and infinity in delta are not looked for.
const char* selective_scan_forward(const ScanForward& call, void* workspace, void* stream);
const char* selective_scan_backward(const ScanBackward& call, void* workspace, void* stream);

}  // namespace cuda
#endif

}  // namespace zoo
