#if defined(__x86_64__)
#define ZOO_SIMD_AVX512
#include "diagonal_scan/cpu_body.h"
#endif
