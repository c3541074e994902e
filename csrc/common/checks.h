// What a binding makes sure of before a kernel sees a pointer: that every argument has the shape, the dtype,
// the device and the layout that the kernel counts on. So a registered op is as safe as the Python function
// above it. A message is one line: the op, the argument, what was given and what was expected.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "common/binding.h"
#ifdef ZOO_CUDA
#include "common/binding_cuda.h"
#endif

namespace zoo {

#ifndef ZOO_CUDA
inline bool is_on_kernels_device(const Tensor& t) { return t.is_cpu(); }
#endif

using Optional = std::optional<Tensor>;

// A shape of few dimensions, without memory from the heap.
class Sizes {
 public:
  Sizes(std::initializer_list<int64_t> sizes) {
    for (const int64_t size : sizes) push_back(size);
  }
  void push_back(int64_t size) { sizes_.at(count_++) = size; }
  const int64_t* begin() const { return sizes_.data(); }
  const int64_t* end() const { return sizes_.data() + count_; }
  size_t size() const { return count_; }
  int64_t operator[](size_t i) const { return sizes_[i]; }

 private:
  std::array<int64_t, 4> sizes_;
  size_t count_ = 0;
};

constexpr int64_t kAnySize = -1;

inline std::string text_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Bool: return "bool";
    default: return "another dtype";
  }
}

template <class Range>
std::string text_of_sizes(const Range& sizes) {
  std::string text = "[";
  for (const int64_t size : sizes) {
    if (text.size() > 1) text += ", ";
    text += size == kAnySize ? "any" : std::to_string(size);
  }
  return text + "]";
}

inline std::string text_of_device(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  return (t.is_cuda() ? "cuda:" : "another device, ") + std::to_string(int{t.get_device()});
}

inline std::string text_of(const Tensor& t) {
  return text_of(t.scalar_type()) + " " + text_of_sizes(t.sizes()) + " on " + text_of_device(t);
}

inline ScalarType accumulator_of(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Bytes from the first element to behind the last.
inline int64_t extent_of(const Tensor& t) {
  if (t.numel() == 0) return 0;
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t elements = 1;
  for (size_t i = 0; i < sizes.size(); i++) elements += (sizes[i] - 1) * strides[i];
  return elements * static_cast<int64_t>(t.element_size());
}

// Storage can be taken away, and is where parameters are sharded.
inline bool has_memory(const Tensor& t) {
  return t.numel() == 0 ||
         t.storage_offset() * static_cast<int64_t>(t.element_size()) + extent_of(t) <= storage_bytes(t);
}

inline bool is_apart(const Tensor& a, const Tensor& b) {
  const char *const first = static_cast<const char*>(a.data_ptr()),
             *const second = static_cast<const char*>(b.data_ptr());
  return first + extent_of(a) <= second || second + extent_of(b) <= first;
}

// Whether each element has memory of its own. Views of one tensor pass; what as_strided can make beyond
// these may be refused although it would do.
inline bool is_without_overlap(const Tensor& t) {
  constexpr size_t kMostDims = 8;
  const auto sizes = t.sizes(), strides = t.strides();
  if (t.numel() < 2) return true;
  if (sizes.size() > kMostDims) return false;
  std::array<size_t, kMostDims> by_stride;  // dimensions of more than one element
  size_t count = 0;
  for (size_t i = 0; i < sizes.size(); i++) {
    if (sizes[i] == 1) continue;
    size_t at = count++;
    for (; at > 0 && strides[by_stride[at - 1]] > strides[i]; at--) by_stride[at] = by_stride[at - 1];
    by_stride[at] = i;
  }
  int64_t reach = 0;  // of all dimensions with smaller strides
  for (size_t i = 0; i < count; i++) {
    if (strides[by_stride[i]] <= reach) return false;
    reach += strides[by_stride[i]] * (sizes[by_stride[i]] - 1);
  }
  return true;
}

// Checks of one call. All arguments must be on the device of the one that it is made with.
class Checks {
 public:
  Checks(const char* op, const char* name, const Tensor& main) : op_(op), main_(main) {
    ZOO_CHECK(is_on_kernels_device(main), op_, ": ", name, " is on ", text_of_device(main),
              " and another argument is not; move them to one device");
    ZOO_CHECK(has_memory(main), op_, ": ", name, " has no memory behind it");
  }

  // Shape, dtype and device.
  void fits(const Tensor& t, const char* name, const Sizes& shape, ScalarType dtype) const {
    bool fits = t.dim() == static_cast<int64_t>(shape.size()) && t.scalar_type() == dtype &&
                device_type(t) == device_type(main_) && t.get_device() == main_.get_device();
    int64_t dim = 0;
    for (const int64_t size : shape) fits = fits && (size == kAnySize || t.size(dim) == size), dim++;
    ZOO_CHECK(fits, op_, ": ", name, " is ", text_of(t), ", expected ", text_of(dtype), " ",
              text_of_sizes(shape), " on ", text_of_device(main_));
    ZOO_CHECK(has_memory(t), op_, ": ", name, " has no memory behind it");
  }

  // Contiguous as well. The result is its data.
  void* plain(const Tensor& t, const char* name, const Sizes& shape, ScalarType dtype) const {
    fits(t, name, shape, dtype);
    ZOO_CHECK(t.is_contiguous(), op_, ": ", name, " must be contiguous");
    return t.data_ptr();
  }
  void* plain(const Optional& t, const char* name, const Sizes& shape, ScalarType dtype) const {
    return t ? plain(*t, name, shape, dtype) : nullptr;
  }

  // None of these dimensions may be empty.
  void not_empty(const Tensor& t, const char* name, const Sizes& dims) const {
    for (const int64_t dim : dims)
      ZOO_CHECK(t.size(dim) > 0, op_, ": ", name, " is ", text_of_sizes(t.sizes()), ", of which dimension ",
                dim, " must not be 0");
  }

  // A kernel counts them with 32 bits.
  void counts(const char* what, int64_t count) const {
    ZOO_CHECK(count <= std::numeric_limits<int32_t>::max(), op_, ": ", what, " of ", count,
              " is more than the kernels can count, 2^31 - 1");
  }

  // For what the call overwrites: no element stands for two, none is read through another argument, and
  // autograd learns that it changes.
  void will_change(const Tensor& t, const char* name,
                   std::initializer_list<const Tensor*> others) const {
    ZOO_CHECK(is_without_overlap(t), op_, ": ", name,
              " is overwritten, but some of its elements share memory (expand?); pass a copy");
    for (const Tensor* const other : others) {
      ZOO_CHECK(!other || is_apart(t, *other), op_, ": ", name,
                " is overwritten, but shares memory with another argument; pass a copy of one");
    }
    ZOO_CHECK(tell_autograd(t), op_, ": ", name,
              " requires a gradient, which overwriting it would lose; use torch.no_grad() or a copy");
  }

 private:
  const char* op_;
  const Tensor& main_;
};

inline const Tensor* address_of(const Optional& t) { return t ? &*t : nullptr; }

}  // namespace zoo
