// Which build of the CPU kernels to run. A kernel is written once, in a body that includes simd.h, and
// compiled once for each capability by a file that defines ZOO_SIMD_AVX512, ZOO_SIMD_AVX2 or neither.
#pragma once

namespace zoo {

enum class CpuCapability { kDefault, kAvx2, kAvx512 };

// The best that this processor has, or what the environment variable ZOO_CPU_CAPABILITY asks for
// (default, avx2, avx512; read anew at each call). Throws std::runtime_error if that is unknown or
// beyond the processor.
CpuCapability cpu_capability();

const char* cpu_capability_name(CpuCapability capability);

// ZOO_CPU_DECLARE(functions) declares them in the namespace of every capability; in namespace zoo,
// ZOO_CPU_SELECT(function) is a pointer to the one to call.
#if defined(__x86_64__)
#define ZOO_CPU_DECLARE(...)              \
  namespace cpu_default { __VA_ARGS__ }   \
  namespace cpu_avx2 { __VA_ARGS__ }      \
  namespace cpu_avx512 { __VA_ARGS__ }
#define ZOO_CPU_SELECT(function)                                    \
  (::zoo::cpu_capability() == ::zoo::CpuCapability::kAvx512         \
       ? &::zoo::cpu_avx512::function                               \
       : ::zoo::cpu_capability() == ::zoo::CpuCapability::kAvx2     \
             ? &::zoo::cpu_avx2::function                           \
             : &::zoo::cpu_default::function)
#else
#define ZOO_CPU_DECLARE(...) namespace cpu_default { __VA_ARGS__ }
#define ZOO_CPU_SELECT(function) (::zoo::cpu_capability(), &::zoo::cpu_default::function)
#endif

}  // namespace zoo
