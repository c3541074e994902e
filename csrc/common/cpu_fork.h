#pragma once

namespace zoo {

// Whether this process is a child that fork has made of one with several threads. The child has one thread
// only, but OpenMP, which PyTorch uses, still believes in those that have worked before, and waits for them.
bool are_threads_lost();

}  // namespace zoo
