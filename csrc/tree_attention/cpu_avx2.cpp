#if defined(__x86_64__)
#define ZOO_SIMD_AVX2
#include "tree_attention/cpu_body.h"
#endif
