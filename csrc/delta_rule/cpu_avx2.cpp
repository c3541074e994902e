#if defined(__x86_64__)
#define ZOO_SIMD_AVX2
#include "delta_rule/cpu_body.h"
#endif
