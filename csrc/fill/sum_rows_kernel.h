// What an instruction set provides for sums: rows of a fixed length, added up in a fixed order.
#pragma once

#include <stdint.h>

#include "dtype.h"

namespace tomfisher::fill {

constexpr int64_t kRow = 512;  // entries

// A sum that remembers what rounding cut off (Knuth's two-sum), so that any number of summands costs one
// rounding in the end. Not finite once a summand is not.
struct Total {
  double high = 0.0, low = 0.0;

  __attribute__((always_inline)) void add(double x) {
    const double sum = high + x, part = sum - high;
    low += (high - (sum - part)) + (x - part);
    high = sum;
  }
  __attribute__((always_inline)) void add(const Total& other) {
    add(other.high);
    low += other.low;
  }
  __attribute__((always_inline)) double value() const { return high + low; }
};

// Of the entries, and of their absolute values.
struct Sums {
  Total sum, absolute;
};

// Adds `n` entries to `sums`, row by row; the bits are the same for every instruction set.
using SumRows = void (*)(const void* data, int64_t n, Sums& sums);

SumRows sum_rows_scalar(Dtype dtype);
SumRows sum_rows_avx2(Dtype dtype);
SumRows sum_rows_avx512(Dtype dtype);

}  // namespace tomfisher::fill
