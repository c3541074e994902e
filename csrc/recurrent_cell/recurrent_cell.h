// Recurrent networks with one recurrent matrix a head, as plain pointers and sizes. What they compute:
// zoo/ops/recurrent_cell.py.
//
// Everything is contiguous, in float32 or in float64.
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"
#include "common/dtype.h"
#include "common/threads.h"

namespace zoo {

enum class Cell { kElman, kLstm, kGru, kSlstm };

struct CellSizes {
  int inputs, recurrent, biases, kept, states;  // gates of Wx, R, b and of what is kept; states
};

constexpr CellSizes kCellSizes[] = {{1, 1, 1, 1, 1}, {4, 4, 4, 4, 2}, {3, 3, 4, 4, 1}, {4, 4, 4, 4, 4}};
constexpr int kCells = 4;

struct CellProblem {
  DType dtype;
  Cell cell;
  int64_t batch, length, heads, channels;  // at least 1 but batch
  const void* R;               // [recurrent gates, heads, channels (out), channels (in)]
  const void* initial_states;  // [states, batch, heads, channels]

  const CellSizes& sizes() const { return kCellSizes[static_cast<int>(cell)]; }
};

struct CellForward {
  CellProblem problem;
  const void* Wx;  // [batch, length, input gates, heads, channels]
  const void* b;   // [biases, heads, channels]
  void* states;    // [states, batch, length, heads, channels]
  void* gates;     // [batch, length, kept gates, heads, channels], before activation; optional
};

struct CellBackward {
  CellProblem problem;
  const void* dstates;  // as states
  const void* states;
  const void* gates;
  void* dgates;           // as gates
  void* dR;               // as R
  void* db;               // [kept gates, heads, channels]: there are as many biases
  void* dinitial_states;  // as initial_states
};

// False if there is no memory.
ZOO_CPU_DECLARE(
  bool cell_forward(const CellForward& call, const Threads& threads);
  bool cell_backward(const CellBackward& call, const Threads& threads);
)

#ifdef ZOO_CUDA
namespace cuda {

// Enqueue on a CUDA stream. The result is null, or what went wrong.
const char* cell_forward(const CellForward& call, void* stream);
const char* cell_backward(const CellBackward& call, void* stream);

}  // namespace cuda
#endif

}  // namespace zoo
