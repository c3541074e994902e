#if defined(__x86_64__)
#define ZOO_SIMD_AVX2
#include "diagonal_scan/cpu_body.h"
#endif
