#include "selective_state_update/cpu_body.h"
