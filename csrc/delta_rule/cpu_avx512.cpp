#if defined(__x86_64__)
#define ZOO_SIMD_AVX512
#include "delta_rule/cpu_body.h"
#endif
