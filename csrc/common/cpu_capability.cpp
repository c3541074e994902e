#include "common/cpu_capability.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace zoo {

namespace {

CpuCapability best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return CpuCapability::kAvx512;
  if (avx2) return CpuCapability::kAvx2;
#endif
  return CpuCapability::kDefault;
}

}  // namespace

const char* cpu_capability_name(CpuCapability capability) {
  switch (capability) {
    case CpuCapability::kAvx512: return "avx512";
    case CpuCapability::kAvx2: return "avx2";
    default: return "default";
  }
}

CpuCapability cpu_capability() {
  static const CpuCapability supported = best();
  const char* wanted = std::getenv("ZOO_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == '\0') return supported;
  for (auto capability :
       {CpuCapability::kDefault, CpuCapability::kAvx2, CpuCapability::kAvx512}) {
    if (std::strcmp(wanted, cpu_capability_name(capability)) != 0) continue;
    if (capability <= supported) return capability;
    throw std::runtime_error(std::string("ZOO_CPU_CAPABILITY=") + wanted +
                             ": this processor has no more than " +
                             cpu_capability_name(supported) + "; unset the variable");
  }
  throw std::runtime_error(std::string("ZOO_CPU_CAPABILITY=") + wanted +
                           " is unknown: use default, avx2 or avx512");
}

}  // namespace zoo
