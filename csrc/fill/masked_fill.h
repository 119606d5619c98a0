// The masked entries of each array become the mean of its unmasked entries.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/dispatch.h"
#include "dtype.h"
#include "parallel.h"

namespace tomfisher::fill {

struct Fill {
  void* weight;
  std::int64_t length;
  Dtype dtype;
  const std::int64_t* masked;  // positions in any order, in range, none twice
  std::int64_t count;          // less than `length`, or both 0
  void* undo;                  // receives the old values
  const double* sums;          // sum and sum of absolute values of all entries, or nullptr: they are read
};

// Returns the means before they are rounded, 0 where nothing is masked. If one is not finite, nothing was written.
std::vector<double> masked_fill_mean(const std::vector<Fill>& fills, cpu::Isa isa, int threads,
                                     const Parallel& parallel);

}  // namespace tomfisher::fill
