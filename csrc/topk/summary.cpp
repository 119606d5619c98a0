#include "topk/summary.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace tomfisher::topk {
namespace {

std::int64_t key_of(double x) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof(bits));
  return to_key(bits);
}

// The float64 key of the number that the finite key `key` of a narrower format stands for. By integers and
// powers of two: the processor may be set to take subnormal numbers for zeros.
template <Format F>
std::int64_t widened(std::int64_t key) {
  using Bits = typename Traits<F>::Bits;
  constexpr int mantissa = mantissa_bits<F>();
  constexpr int bias = static_cast<int>(Traits<F>::infinity >> mantissa) / 2;
  constexpr Bits minus_zero = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  const Bits bits = from_key<Bits>(static_cast<std::make_signed_t<Bits>>(key));
  const auto size = static_cast<Bits>(bits & ~minus_zero);
  const int exponent = static_cast<int>(size >> mantissa);
  auto digits = static_cast<std::int64_t>(size & ((Bits{1} << mantissa) - 1));
  if (exponent > 0) digits += std::int64_t{1} << mantissa;
  const double value = std::ldexp(static_cast<double>(digits), std::max(exponent, 1) - bias - mantissa);
  return key_of(bits == size ? value : -value);
}

}  // namespace

template <Format F>
std::int64_t key_at_most(double x) {
  if constexpr (F == Format::f64) return std::clamp(key_of(x), below_all<F>(), above_all<F>());
  std::int64_t low = below_all<F>(), high = above_all<F>();  // the answer lies in [low, high)
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (widened<F>(middle) <= key_of(x) ? low : high) = middle;
  }
  return low;
}

template std::int64_t key_at_most<Format::f16>(double);
template std::int64_t key_at_most<Format::bf16>(double);
template std::int64_t key_at_most<Format::f32>(double);
template std::int64_t key_at_most<Format::f64>(double);

}  // namespace tomfisher::topk
