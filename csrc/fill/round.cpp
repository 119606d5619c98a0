#include "fill/round.h"

#include <cmath>
#include <cstring>

namespace tomfisher::fill {
namespace {

// With `fraction` bits after the leading one and `least` the exponent of the smallest normal number.
std::uint64_t round_16(double value, int fraction, int least) {
  int exponent = 0;
  std::frexp(value, &exponent);
  exponent = value == 0.0 || exponent - 1 < least ? least : exponent - 1;
  // an integer of units in the last place, at most 2^(fraction + 1): scaling is exact, nearbyint rounds
  const double units = std::nearbyint(std::ldexp(std::fabs(value), fraction - exponent));
  // a carry into the next power of two, and a subnormal that becomes normal, add up to the right exponent
  const std::uint64_t bits =
      static_cast<std::uint64_t>(units) + (static_cast<std::uint64_t>(exponent - least) << fraction);
  return bits | (std::signbit(value) ? 0x8000u : 0u);
}

}  // namespace

std::uint64_t round_once(double value, Dtype dtype) {
  if (dtype == Dtype::float16) return round_16(value, 10, -14);
  if (dtype == Dtype::bfloat16) return round_16(value, 7, -126);
  if (dtype == Dtype::float32) {
    const float single = static_cast<float>(value);
    std::uint32_t bits = 0;
    std::memcpy(&bits, &single, sizeof bits);
    return bits;
  }
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

}  // namespace tomfisher::fill
