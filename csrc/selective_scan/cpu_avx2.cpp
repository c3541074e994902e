// The selective scan for processors with AVX2, FMA and F16C.
#if defined(__x86_64__)
#define ZOO_SIMD_AVX2
#include "selective_scan/cpu_body.h"
#endif
