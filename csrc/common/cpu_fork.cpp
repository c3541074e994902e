#include "common/cpu_fork.h"

#if defined(__unix__) || defined(__APPLE__)
#include <dirent.h>
#include <pthread.h>
#define ZOO_HAS_FORK
#endif

namespace zoo {

namespace {

bool had_threads = false, lost_threads = false;

#ifdef ZOO_HAS_FORK

// Whether this process has more than the one thread that asks. If nobody can tell, it has.
bool has_threads() {
  DIR* const threads = opendir("/proc/self/task");
  if (threads == nullptr) return true;
  int entries = 0;  // with "." and ".."
  while (readdir(threads) != nullptr) entries++;
  closedir(threads);
  return entries > 3;
}

[[maybe_unused]] const int registered =
    pthread_atfork([] { had_threads = has_threads(); }, nullptr,
                   [] { lost_threads = lost_threads || had_threads; });

#endif

}  // namespace

bool are_threads_lost() { return lost_threads; }

}  // namespace zoo
