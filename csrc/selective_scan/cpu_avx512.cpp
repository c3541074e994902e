// The selective scan for processors with AVX-512.
#if defined(__x86_64__)
#define ZOO_SIMD_AVX512
#include "selective_scan/cpu_body.h"
#endif
