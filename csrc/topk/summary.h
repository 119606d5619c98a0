// What a report says about any number of numbers: extremes, a histogram, counts above thresholds.
#pragma once

#include <cstdint>
#include <vector>

#include "topk/key.h"

namespace tomfisher::topk {

template <Format F>
constexpr int mantissa_bits() {
  return F == Format::f16 ? 10 : F == Format::bf16 ? 7 : F == Format::f32 ? 23 : 52;
}

// Bins of the histogram: negative numbers, zeros of both signs, positive numbers with exponent field 0
// (subnormal), 1, 2, ... up to the largest of a finite number.
template <Format F>
constexpr std::size_t histogram_bins() {
  return (std::size_t{1} << (8 * sizeof(typename Traits<F>::Bits) - 1 - mantissa_bits<F>())) + 1;
}

template <Format F>
struct Summary {
  std::int64_t smallest = above_all<F>(), largest = below_all<F>();  // keys; as here for no entries
  std::vector<std::int64_t> histogram = std::vector<std::int64_t>(histogram_bins<F>(), 0);
  std::vector<std::int64_t> above;  // how many entries are larger than each threshold
};

// Keys as key_at_most gives them.
using Thresholds = std::vector<std::int64_t>;

// A key that exactly the finite numbers larger than `x` exceed; never -1, the raw key of -0.0. `x` is not NaN.
template <Format F>
std::int64_t key_at_most(double x);

}  // namespace tomfisher::topk
