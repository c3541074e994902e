// The scan of a diagonal recurrence as plain pointers, sizes and strides. What it computes:
// zoo/ops/diagonal_scan.py. Complex numbers are pairs in memory; `width` counts real numbers, two for a complex
// one. All strides count real numbers. A null pointer stands for an optional tensor that is absent.
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"
#include "common/threads.h"

namespace zoo {

struct DiagonalScan {
  // [batch, step, width], with stride 1 in the last dimension.
  struct Rows {
    void* data;
    int64_t batch, step;
  };

  bool is_double, is_complex, reverse;
  int64_t batch, length, width;
  Rows a;  // strides 0 where one row is for all
  Rows b, x;
  const void* initial_state;  // [batch, width], contiguous; optional
  const bool* reset;          // [batch, length], contiguous; optional
};

// `scan` as in the forward pass, which has written x. Gradients are contiguous.
struct DiagonalScanBackward {
  DiagonalScan scan;  // without b
  DiagonalScan::Rows dx;
  bool a_is_constant;    // along the steps: da has one row for each sequence
  void* da;              // [batch, length or 1, width]
  void* db;              // [batch, length, width]
  void* dinitial_state;  // [batch, width]; optional
};

ZOO_CPU_DECLARE(
  void diagonal_scan(const DiagonalScan& call, const Threads& threads);
  void diagonal_scan_backward(const DiagonalScanBackward& call, const Threads& threads);
)

#ifdef ZOO_CUDA
namespace cuda {

// Steps that one thread takes before it hands its state on.
constexpr int64_t kDiagonalScanPart = 64;

// Numbers of scratch memory that a call needs, in the dtype of the states.
inline int64_t diagonal_scan_scratch(const DiagonalScan& call) {
  const int64_t parts = (call.length + kDiagonalScanPart - 1) / kDiagonalScanPart;
  return parts < 2 ? 0 : 2 * call.batch * parts * call.width;
}

// Enqueue on a CUDA stream. The result is null, or what went wrong.
const char* diagonal_scan(const DiagonalScan& call, void* scratch, void* stream);
const char* diagonal_scan_backward(const DiagonalScanBackward& call, void* scratch, void* stream);

}  // namespace cuda
#endif

}  // namespace zoo
