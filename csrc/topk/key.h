// Floating-point numbers as signed integers of the same order.
//
// raw_key: the sign bit of a negative number inverts all others, so integers compare as the numbers do.
// -0.0 is raw -1, next to 0.0 at 0 with nothing between; to_key makes it 0, because the two are equal.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

namespace tomfisher::topk {

enum class Format { f16 = 0, bf16 = 1, f32 = 2, f64 = 3 };

// Bits is what lies in memory; Key is what candidates carry (16-bit formats widen).
template <Format>
struct Traits;
template <>
struct Traits<Format::f16> {
  using Bits = std::uint16_t;
  using Key = std::int32_t;
  static constexpr Bits infinity = 0x7c00;
};
template <>
struct Traits<Format::bf16> {
  using Bits = std::uint16_t;
  using Key = std::int32_t;
  static constexpr Bits infinity = 0x7f80;
};
template <>
struct Traits<Format::f32> {
  using Bits = std::uint32_t;
  using Key = std::int32_t;
  static constexpr Bits infinity = 0x7f800000u;
};
template <>
struct Traits<Format::f64> {
  using Bits = std::uint64_t;
  using Key = std::int64_t;
  static constexpr Bits infinity = 0x7ff0000000000000u;
};

template <typename Bits>
constexpr std::make_signed_t<Bits> raw_key(Bits bits) {
  using Signed = std::make_signed_t<Bits>;
  const auto value = static_cast<Signed>(bits);
  return static_cast<Signed>(value < 0 ? value ^ std::numeric_limits<Signed>::max() : value);
}

template <typename Bits>
constexpr std::make_signed_t<Bits> to_key(Bits bits) {
  const auto key = raw_key(bits);
  return key == -1 ? 0 : key;
}

// The inverse of to_key, for keys that fit the format; what was -0.0 comes back as 0.0.
template <typename Bits>
constexpr Bits from_key(std::make_signed_t<Bits> key) {
  return static_cast<Bits>(raw_key(static_cast<Bits>(key)));
}

// Keys of +infinity and -infinity: a number is finite if its key lies strictly between them.
template <Format F>
constexpr std::int64_t above_all() {
  return Traits<F>::infinity;
}
template <Format F>
constexpr std::int64_t below_all() {
  return -static_cast<std::int64_t>(Traits<F>::infinity) - 1;
}

}  // namespace tomfisher::topk
