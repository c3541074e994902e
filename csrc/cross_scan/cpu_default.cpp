#include "cross_scan/cpu_body.h"
