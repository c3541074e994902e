#include "tree_attention/cpu_body.h"
