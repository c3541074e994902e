// The selective scan for any processor.
#include "selective_scan/cpu_body.h"
