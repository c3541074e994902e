// cross_scan and cross_merge as plain pointers, sizes and strides. What they compute:
// zoo/ops/cross_scan.py. All strides count elements.
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"
#include "common/dtype.h"
#include "common/threads.h"

namespace zoo {

// The map [batch, channel, row, column] and the sequences [batch, way, channel, step]; cross_scan writes
// the sequences from the map, cross_merge the map from the sequences.
struct CrossScan {
  DType dtype;
  bool atrous;
  int64_t batch, channels, height, width;
  void* map;
  int64_t map_batch, map_channel, map_row, map_column;
  void* sequences;
  int64_t sequences_batch, sequences_way, sequences_channel, sequences_step;

  int64_t ways() const { return atrous ? 4 : 2; }
  // Rows and columns of the part of the map that one way goes over.
  int64_t way_height() const { return atrous ? (height + 1) / 2 : height; }
  int64_t way_width() const { return atrous ? (width + 1) / 2 : width; }
};

// False if there is no memory.
ZOO_CPU_DECLARE(
  bool cross_scan(const CrossScan& call, const Threads& threads);
  bool cross_merge(const CrossScan& call, const Threads& threads);
)

#ifdef ZOO_CUDA
namespace cuda {

// Enqueue on a CUDA stream. The result is null, or what went wrong.
const char* cross_scan(const CrossScan& call, void* stream);
const char* cross_merge(const CrossScan& call, void* stream);

}  // namespace cuda
#endif

}  // namespace zoo
