#include "delta_rule/cpu_body.h"
