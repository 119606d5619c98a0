// F += g^2 elementwise in float32, for many pairs of arrays.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/dispatch.h"
#include "dtype.h"
#include "parallel.h"

namespace tomfisher::fisher {

struct Pair {
  float* F;
  const void* gradient;
  std::int64_t length;
  Dtype dtype;  // of the gradient; float64 is rounded to float32 first
};

// No F may share memory with another pair's arrays.
void square_accumulate(const std::vector<Pair>& pairs, cpu::Isa isa, int threads, const Parallel& parallel);

}  // namespace tomfisher::fisher
