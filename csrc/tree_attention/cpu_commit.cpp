#include <cstring>

#include "tree_attention/tree_attention.h"

namespace zoo::cpu {

// A path ascends, so a slot is read before it is written.
void commit_path(const CommitPath& call) {
  const int64_t size = call.element_size;
  char* const data = static_cast<char*>(call.cache.data);
  for (int64_t b = 0; b < call.batch; b++) {
    for (int64_t h = 0; h < call.heads; h++) {
      char* const row = data + (b * call.cache.batch + h * call.cache.head) * size;
      for (int64_t j = 0; j < call.count[b]; j++) {
        const int64_t from = call.tree_start[b] + call.path[b * call.longest + j];
        const int64_t to = call.kv_len[b] + j;
        if (from == to) continue;
        std::memcpy(row + to * call.cache.row * size, row + from * call.cache.row * size,
                    static_cast<size_t>(call.dim * size));
      }
    }
  }
}

}  // namespace zoo::cpu
