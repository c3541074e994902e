#include "recurrent_cell/cpu_body.h"
