// Reading and writing single entries of arrays by their positions, as bit patterns.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel.h"

namespace tomfisher::fill {

// Entries of one array: `array[position[i]]` belongs to `value[i]`. Positions are in range, none twice.
struct Entries {
  void* array;
  const std::int64_t* positions;
  std::int64_t count;
  void* values;
  std::int64_t bytes;  // of an entry: 2, 4 or 8
};

// values[i] = array[positions[i]]
void gather(const std::vector<Entries>& lists, int threads, const Parallel& parallel);

// array[positions[i]] = values[i]; no entry may be written twice, in arrays that share memory either
void scatter(const std::vector<Entries>& lists, int threads, const Parallel& parallel);

// array[positions[i]] = values[0]
void fill(const std::vector<Entries>& lists, int threads, const Parallel& parallel);

}  // namespace tomfisher::fill
