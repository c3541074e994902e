#if defined(__x86_64__)
#define ZOO_SIMD_AVX2
#include "cauchy_kernel/cpu_body.h"
#endif
