// Entry points of the CPU kernels; compiled once for each capability.
#pragma once

#include "ssd/cpu_backward.h"
#include "ssd/cpu_forward.h"

namespace zoo::ZOO_CPU {

namespace ssd {

// f.template operator()<V, T>() for the number type of the problem.
template <class F>
bool with_types(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat64: return f.template operator()<VecD, double>();
    case DType::kBFloat16: return f.template operator()<Vec, BFloat16>();
    case DType::kFloat16: return f.template operator()<Vec, Float16>();
    default: return f.template operator()<Vec, float>();
  }
}

}  // namespace ssd

bool ssd_forward(const SsdForward& call, const Threads& threads) {
  return ssd::with_types(call.problem.dtype, [&]<class V, class T>() {
    return ssd::Forward<V, T>(call, threads.count).run(threads);
  });
}

bool ssd_backward(const SsdBackward& call, const Threads& threads) {
  return ssd::with_types(call.problem.dtype, [&]<class V, class T>() {
    return ssd::Backward<V, T>(call, threads.count).run(threads);
  });
}

}  // namespace zoo::ZOO_CPU
