// Attention of draft-tree nodes as plain pointers, sizes and strides. What it computes:
// zoo/ops/tree_attention.py. All strides count elements; the head dimension has stride 1.
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"
#include "common/dtype.h"
#include "common/threads.h"

namespace zoo {

// [batch (or page), head, node (or slot), dim] in the dtype of the call.
struct TreeHeads {
  void* data;
  int64_t batch, head, row;
};

struct TreeAttention {
  DType dtype;
  int64_t batch, heads, kv_heads, nodes, dim;
  int64_t slots;  // of a sequence
  int64_t words;  // of 64 bits, for each node
  double scale;
  int64_t window;  // 0: none
  TreeHeads q, k, v, out;
  const int64_t* kv_len;       // [batch]
  const int64_t* tree_start;   // [batch]
  const int64_t* anc_bits;     // [batch, nodes, words], contiguous
  const int64_t* block_table;  // [batch, pages], contiguous, optional
  int64_t pages, page_size;
  int64_t pool_pages;  // that k and v have
};

struct CommitPath {
  int64_t element_size;
  int64_t batch, heads, slots, dim, longest;
  TreeHeads cache;
  const int64_t* kv_len;      // [batch]
  const int64_t* tree_start;  // [batch]
  const int64_t* path;        // [batch, longest], contiguous
  const int64_t* count;       // [batch]
};

// False if there is no memory. All slots that a query sees, and those of a path, must exist (values.h).
ZOO_CPU_DECLARE(
  bool tree_attention(const TreeAttention& call, const Threads& threads);
)

namespace cpu {
void commit_path(const CommitPath& call);
}

#ifdef ZOO_CUDA
namespace cuda {
// Enqueue on a CUDA stream. The result is null, or what went wrong. Slots and pages that do not exist are
// neither read nor written.
const char* tree_attention(const TreeAttention& call, void* stream);
const char* commit_path(const CommitPath& call, void* stream);
}  // namespace cuda
#endif

}  // namespace zoo
