#if defined(__x86_64__)
#define ZOO_SIMD_AVX2
#include "recurrent_cell/cpu_body.h"
#endif
