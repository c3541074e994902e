#if defined(__x86_64__)
#define ZOO_SIMD_AVX2
#include "selective_state_update/cpu_body.h"
#endif
