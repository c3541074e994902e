#include "causal_conv1d/cpu_body.h"
