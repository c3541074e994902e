// Scratch memory of a kernel: one allocation, handed out in aligned pieces.
#pragma once

#include <stdlib.h>

#include "common/simd.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace zoo::ZOO_CPU {

// Used in two rounds with the same calls of take(): the first only counts, then allocate(), then the
// second hands out.
class Arena {
 public:
  Arena() = default;
  ~Arena() { free(data_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  template <class S>
  S* take(int64_t count) {
    S* const piece = data_ ? reinterpret_cast<S*>(data_ + used_) : nullptr;
    used_ += (static_cast<size_t>(count) * sizeof(S) + kAlign - 1) / kAlign * kAlign;
#if defined(__SANITIZE_ADDRESS__)  // so that a piece cannot be left for the next one unnoticed
    if (data_) __asan_poison_memory_region(data_ + used_, kAlign);
    used_ += kAlign;
#endif
    return piece;
  }

  bool allocate() {
    data_ = static_cast<char*>(aligned_alloc(kAlign, used_ + kAlign));
    used_ = 0;
    return data_ != nullptr;
  }

 private:
  static constexpr size_t kAlign = 64;

  char* data_ = nullptr;
  size_t used_ = 0;
};

}  // namespace zoo::ZOO_CPU
