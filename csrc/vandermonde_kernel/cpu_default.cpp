#include "vandermonde_kernel/cpu_body.h"
