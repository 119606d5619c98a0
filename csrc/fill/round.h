// A float64 rounded once, to nearest and ties to even, to a number format: its bits.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace tomfisher::fill {

// `value` is finite and no larger than the format's largest number.
std::uint64_t round_once(double value, Dtype dtype);

}  // namespace tomfisher::fill
