#if defined(__x86_64__)
#define ZOO_SIMD_AVX512
#include "causal_conv1d/cpu_body.h"
#endif
