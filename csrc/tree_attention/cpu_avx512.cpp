#if defined(__x86_64__)
#define ZOO_SIMD_AVX512
#include "tree_attention/cpu_body.h"
#endif
