// float16 without instructions for it.
#pragma once

#include <stdint.h>
#include <string.h>

namespace tomfisher {

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 0x1F, fraction = half & 0x3FF;
  uint32_t bits = 0;
  if (exponent == 0x1F) {
    bits = sign | 0x7F800000u | fraction << 13;
  } else if (exponent != 0) {
    bits = sign | (exponent + 112) << 23 | fraction << 13;
  } else {
    const float subnormal = static_cast<float>(fraction) * 0x1p-24f;
    memcpy(&bits, &subnormal, sizeof bits);
    bits |= sign;
  }
  float value = 0.0f;
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace tomfisher
