#include "fill/sums.h"

#include <algorithm>
#include <cstring>

#include "blocks.h"

namespace tomfisher::fill {
namespace {

constexpr std::int64_t kBlock = 128 * kRow;

SumRows choose(Dtype dtype, cpu::Isa isa) {
#if defined(__x86_64__)
  if (isa >= cpu::Isa::avx512) return sum_rows_avx512(dtype);
  if (isa >= cpu::Isa::avx2) return sum_rows_avx2(dtype);
#else
  (void)isa;
#endif
  return sum_rows_scalar(dtype);
}

// A block that holds masked entries: rows with some are copied and the masked entries zeroed.
Sums sum_around(const Array& array, const std::int64_t* masked, const std::int64_t* end, std::int64_t first,
                std::int64_t last, SumRows sum_rows) {
  Sums sums;
  alignas(64) char copy[kRow * sizeof(double)];
  const std::int64_t bytes = bytes_of(array.dtype);
  for (std::int64_t begin = first; begin < last; begin += kRow) {
    const std::int64_t length = std::min(kRow, last - begin);
    const char* row = static_cast<const char*>(array.data) + begin * bytes;
    if (masked != end && *masked < begin + length) {
      std::memcpy(copy, row, static_cast<std::size_t>(length * bytes));
      for (; masked != end && *masked < begin + length; ++masked) {
        std::memset(copy + (*masked - begin) * bytes, 0, static_cast<std::size_t>(bytes));
      }
      row = copy;
    }
    sum_rows(row, length, sums);
  }
  return sums;
}

Sums sum_block(const Array& array, std::int64_t begin, std::int64_t end, SumRows sum_rows) {
  const std::int64_t* stop = array.masked + array.masked_count;
  const std::int64_t* low = std::lower_bound(array.masked, stop, begin);
  const std::int64_t* high = std::lower_bound(low, stop, end);
  if (low != high) return sum_around(array, low, high, begin, end, sum_rows);
  Sums sums;
  sum_rows(static_cast<const char*>(array.data) + begin * bytes_of(array.dtype), end - begin, sums);
  return sums;
}

}  // namespace

std::vector<Sums> sums_of(const std::vector<Array>& arrays, cpu::Isa isa, int threads, const Parallel& parallel) {
  Blocks blocks(kBlock);
  std::int64_t total = 0;
  for (const Array& array : arrays) {
    blocks.add(array.length);
    total += array.length;
  }
  std::vector<Sums> parts(static_cast<std::size_t>(blocks.count()));
  // to wake other threads for less than one block costs more than it saves
  blocks.run(total >= kBlock ? threads : 1, parallel, [&](std::int64_t number) {
    const Block block = blocks.at(number);
    const Array& array = arrays[block.item];
    parts[static_cast<std::size_t>(number)] = sum_block(array, block.begin, block.end, choose(array.dtype, isa));
  });
  std::vector<Sums> sums(arrays.size());
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    for (std::int64_t b = blocks.first(i); b < blocks.first(i + 1); ++b) {
      sums[i].sum.add(parts[static_cast<std::size_t>(b)].sum);
      sums[i].absolute.add(parts[static_cast<std::size_t>(b)].absolute);
    }
  }
  return sums;
}

}  // namespace tomfisher::fill
