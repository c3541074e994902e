#if defined(__x86_64__)
#define ZOO_SIMD_AVX2
#include "vandermonde_kernel/cpu_body.h"
#endif
