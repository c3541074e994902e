#if defined(__x86_64__)
#define ZOO_SIMD_AVX512
#include "cauchy_kernel/cpu_body.h"
#endif
