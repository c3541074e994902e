// Schemas of all ops. The list is shared with zoo/ops/_library.py, which defines the ops itself where
// this library is missing.
#include "common/binding.h"

ZOO_LIBRARY_FRAGMENT(m) {
  const char* const schemas[] = {
#include "../zoo/ops/schemas.inc"
  };
  for (const char* schema : schemas) m.def(schema);
}
