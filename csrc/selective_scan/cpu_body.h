// Entry points of the CPU kernels; compiled once for each capability.
#pragma once

#include "selective_scan/cpu_backward.h"
#include "selective_scan/cpu_forward.h"

namespace zoo::ZOO_CPU {

namespace scan {

// f.template operator()<V, T>() for the number type of the problem.
template <class F>
ScanStatus with_types(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat64: return f.template operator()<VecD, double>();
    case DType::kBFloat16: return f.template operator()<Vec, BFloat16>();
    case DType::kFloat16: return f.template operator()<Vec, Float16>();
    default: return f.template operator()<Vec, float>();
  }
}

}  // namespace scan

ScanStatus selective_scan_forward(const ScanForward& call, const Threads& threads) {
  return scan::with_types(call.problem.dtype, [&]<class V, class T>() {
    return scan::Forward<V, T>(call, threads.count).run(threads);
  });
}

ScanStatus selective_scan_backward(const ScanBackward& call, const Threads& threads) {
  return scan::with_types(call.problem.dtype, [&]<class V, class T>() {
    return scan::Backward<V, T>(call, threads.count).run(threads);
  });
}

}  // namespace zoo::ZOO_CPU
