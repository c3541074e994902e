#include "cauchy_kernel/cpu_body.h"
