// Sums of the entries of arrays in float64: of all, or of those that are not masked.
//
// The order of additions is fixed by the array alone: neither threads, nor instruction sets, nor the other
// arrays of a call change a bit. An entry passes through at most 40 roundings.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/dispatch.h"
#include "dtype.h"
#include "fill/sum_rows_kernel.h"
#include "parallel.h"

namespace tomfisher::fill {

struct Array {
  const void* data;
  std::int64_t length;
  Dtype dtype;
  const std::int64_t* masked = nullptr;  // positions that count as zero, rising
  std::int64_t masked_count = 0;
};

// One result per array, from one read of each.
std::vector<Sums> sums_of(const std::vector<Array>& arrays, cpu::Isa isa, int threads, const Parallel& parallel);

}  // namespace tomfisher::fill
