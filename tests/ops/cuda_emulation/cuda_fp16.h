// float16 for the CUDA emulation: rounded to nearest, ties to even.
#pragma once

#include <stdint.h>

#include <cmath>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half x) {
  const int exponent = (x.bits >> 10) & 31, fraction = x.bits & 1023;
  float f;
  if (exponent == 31) {
    f = fraction ? NAN : INFINITY;
  } else if (exponent == 0) {
    f = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    f = std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  }
  return x.bits & 0x8000 ? -f : f;
}

inline __half __float2half_rn(float f) {
  const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
  if (f != f) return {static_cast<uint16_t>(sign | 0x7e00)};
  const float magnitude = std::fabs(f);
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  // In units of the last place, which below 2^-14 no longer gets smaller.
  const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
  const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return {static_cast<uint16_t>(sign | (units + ((exponent + 14) << 10)))};
}
