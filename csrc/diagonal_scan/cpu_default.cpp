#include "diagonal_scan/cpu_body.h"
