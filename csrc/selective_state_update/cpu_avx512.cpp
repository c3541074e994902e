#if defined(__x86_64__)
#define ZOO_SIMD_AVX512
#include "selective_state_update/cpu_body.h"
#endif
