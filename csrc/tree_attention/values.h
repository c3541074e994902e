// Whether the numbers in the index tensors of tree attention stay inside the cache. These tensors must be
// in the memory of the CPU.
#pragma once

#include <string>

#include "tree_attention/tree_attention.h"

namespace zoo {

// The nodes of a tree that any query of a sequence sees: bit j % 64 of word j / 64.
inline uint64_t seen_word(const TreeAttention& call, int64_t batch, int64_t word) {
  uint64_t seen = 0;
  for (int64_t node = 0; node < call.nodes; node++)
    seen |= static_cast<uint64_t>(call.anc_bits[(batch * call.nodes + node) * call.words + word]);
  return seen;
}

// What is wrong, or nothing.
inline std::string wrong_values(const TreeAttention& call) {
  const auto range = [](const char* what, int64_t value, int64_t batch, int64_t end) {
    return std::string(what) + " of sequence " + std::to_string(batch) + " is " +
           std::to_string(value) + ", outside of 0 to " + std::to_string(end);
  };
  for (int64_t b = 0; b < call.batch; b++) {
    const int64_t prefix = call.kv_len[b], start = call.tree_start[b];
    if (prefix < 0 || prefix > call.slots) return range("kv_len", prefix, b, call.slots);
    const auto page_is_wrong = [&](int64_t page) {
      const int64_t at = call.block_table[b * call.pages + page];
      return at < 0 || at >= call.pool_pages;
    };
    const auto wrong_page = [&](int64_t page) {
      return range("block_table", call.block_table[b * call.pages + page], b, call.pool_pages - 1) +
             ", the last page";
    };
    for (int64_t page = 0; call.block_table && page * call.page_size < prefix; page++)
      if (page_is_wrong(page)) return wrong_page(page);
    for (int64_t w = 0; w < call.words; w++) {
      for (uint64_t left = seen_word(call, b, w); left; left &= left - 1) {
        const int64_t node = w * 64 + __builtin_ctzll(left);
        if (start < -node || start >= call.slots - node)
          return "tree_start of sequence " + std::to_string(b) + " is " + std::to_string(start) +
                 ", which puts node " + std::to_string(node) + " outside of the " +
                 std::to_string(call.slots) + " slots";
        if (call.block_table && page_is_wrong((start + node) / call.page_size))
          return wrong_page((start + node) / call.page_size);
      }
    }
  }
  return {};
}

inline std::string wrong_values(const CommitPath& call) {
  const auto at = [](int64_t batch) { return " of sequence " + std::to_string(batch) + " is "; };
  for (int64_t b = 0; b < call.batch; b++) {
    const int64_t count = call.count[b], length = call.kv_len[b], start = call.tree_start[b];
    if (count < 0 || count > call.longest)
      return "n" + at(b) + std::to_string(count) + ", but a path has " + std::to_string(call.longest) +
             " places";
    if (count == 0) continue;
    if (length < 0 || length > call.slots - count)
      return "kv_len" + at(b) + std::to_string(length) + ", behind which there is no room for " +
             std::to_string(count) + " of " + std::to_string(call.slots) + " slots";
    for (int64_t j = 0; j < count; j++) {
      const int64_t* const path = call.path + b * call.longest;
      if (path[j] < 0 || path[j] >= call.slots || start < -path[j] || start >= call.slots - path[j])
        return "path" + at(b) + std::to_string(path[j]) + " in place " + std::to_string(j) +
               ", which from tree_start " + std::to_string(start) + " on is outside of the " +
               std::to_string(call.slots) + " slots";
      if (j > 0 && path[j] <= path[j - 1])
        return "path" + at(b) + std::to_string(path[j]) + " after " + std::to_string(path[j - 1]) +
               ", but must ascend";
    }
  }
  return {};
}

}  // namespace zoo
