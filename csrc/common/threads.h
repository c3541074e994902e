// How a kernel that knows nothing of PyTorch gets its threads. binding.h fills the struct in.
#pragma once

#include <cstdint>

namespace zoo {

struct Threads {
  using Body = void (*)(const void* context, int64_t begin, int64_t end);

  int64_t count;
  void (*run)(int64_t tasks, Body body, const void* context);

  // f(begin, end) on parts of [0, tasks) that cover it, one part for each thread.
  template <class F>
  void operator()(int64_t tasks, const F& f) const {
    run(tasks,
        [](const void* context, int64_t begin, int64_t end) {
          (*static_cast<const F*>(context))(begin, end);
        },
        &f);
  }
};

}  // namespace zoo
