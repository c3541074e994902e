// Schemas of all ops. The list is shared with zoo/ops/_library.py, which defines the ops itself where
// this library is missing.
#include <string>

#include "common/binding.h"
#include "common/cpu_capability.h"

namespace {

std::string cpu_capability() { return zoo::cpu_capability_name(zoo::cpu_capability()); }

}  // namespace

ZOO_LIBRARY_FRAGMENT(m) {
  const char* const schemas[] = {
#include "../zoo/ops/schemas.inc"
  };
  for (const char* schema : schemas) m.def(schema);
}

ZOO_LIBRARY_IMPL(CompositeExplicitAutograd, m) { m.impl("cpu_capability", ZOO_BOX(cpu_capability)); }
