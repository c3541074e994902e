#include <cstring>

#include "tree_attention/tree_attention.h"

namespace zoo::cpu {

// A path ascends, so that slots which move down can go one after the other, and those which move up, where a
// tree starts inside of the prefix, the other way round: neither overwrites what is still to be read.
void commit_path(const CommitPath& call) {
  const int64_t size = call.element_size;
  char* const data = static_cast<char*>(call.cache.data);
  for (int64_t b = 0; b < call.batch; b++) {
    const int64_t count = call.count[b], first = call.kv_len[b];
    const auto source = [&](int64_t j) { return call.tree_start[b] + call.path[b * call.longest + j]; };
    for (int64_t h = 0; h < call.heads; h++) {
      char* const row = data + (b * call.cache.batch + h * call.cache.head) * size;
      const auto move = [&](int64_t from, int64_t to) {
        std::memcpy(row + to * call.cache.row * size, row + from * call.cache.row * size,
                    static_cast<size_t>(call.dim * size));
      };
      for (int64_t j = count - 1; j >= 0; j--)
        if (source(j) < first + j) move(source(j), first + j);
      for (int64_t j = 0; j < count; j++)
        if (source(j) > first + j) move(source(j), first + j);
    }
  }
}

}  // namespace zoo::cpu
