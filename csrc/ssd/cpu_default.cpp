#include "ssd/cpu_body.h"
