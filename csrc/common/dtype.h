// The number types of tensors, as the kernels are told them.
#pragma once

namespace zoo {

enum class DType { kFloat32, kBFloat16, kFloat16, kFloat64 };

}  // namespace zoo
