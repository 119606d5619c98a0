#include "fill/masked_fill.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

#include "fill/entries.h"
#include "fill/round.h"
#include "fill/sums.h"

namespace tomfisher::fill {
namespace {

// Old values of all arrays, one after another, until it is sure that everything can be written.
struct Log {
  std::vector<char> memory;
  std::vector<Entries> entries;

  explicit Log(const std::vector<Fill>& fills) {
    std::int64_t size = 0;
    for (const Fill& fill : fills) size += slot(fill);
    memory.resize(static_cast<std::size_t>(size));
    char* at = memory.data();
    entries.reserve(fills.size());
    for (const Fill& fill : fills) {
      entries.push_back({fill.weight, fill.masked, fill.count, at, bytes_of(fill.dtype)});
      at += slot(fill);
    }
  }

  // whole multiples of eight bytes keep every array's values aligned
  static std::int64_t slot(const Fill& fill) { return (fill.count * bytes_of(fill.dtype) + 7) / 8 * 8; }
};

// Whether a difference of two sums, each off by at most 2^-47 of the absolute sum, is good to a quarter of a
// unit in the last place of the format. Where they cancel, where a masked entry dwarfs the others or is not
// finite, the answer is no; for float64 it is yes only for an array of zeros.
bool trusted(double difference, double absolute, Dtype dtype) {
  const int digits = dtype == Dtype::float16 ? 11 : dtype == Dtype::bfloat16 ? 8 : dtype == Dtype::float32 ? 24 : 53;
  return std::isfinite(difference) && absolute * 0x1p-46 <= std::ldexp(std::fabs(difference), -(digits + 2));
}

// Sums of the unmasked entries as differences; NaN where that is not good enough, or nothing is known.
std::vector<double> differences(const std::vector<Fill>& fills, const Log& log, cpu::Isa isa, int threads,
                                const Parallel& parallel) {
  std::vector<Array> old;
  old.reserve(fills.size());
  for (std::size_t i = 0; i < fills.size(); ++i) {
    old.push_back({log.entries[i].values, fills[i].sums == nullptr ? 0 : fills[i].count, fills[i].dtype});
  }
  const std::vector<Sums> masked = sums_of(old, isa, threads, parallel);
  std::vector<double> result(fills.size(), std::numeric_limits<double>::quiet_NaN());
  for (std::size_t i = 0; i < fills.size(); ++i) {
    if (fills[i].sums == nullptr) continue;
    const double difference = fills[i].sums[0] - masked[i].sum.value();
    if (trusted(difference, fills[i].sums[1], fills[i].dtype)) result[i] = difference;
  }
  return result;
}

// Replaces what is NaN by a sum of the unmasked entries alone.
void read_unmasked(const std::vector<Fill>& fills, std::vector<double>& totals, cpu::Isa isa, int threads,
                   const Parallel& parallel) {
  std::vector<std::size_t> which;
  std::vector<Array> arrays;
  std::vector<std::vector<std::int64_t>> rising;
  rising.reserve(fills.size());
  for (std::size_t i = 0; i < fills.size(); ++i) {
    const Fill& fill = fills[i];
    if (fill.count == 0 || !std::isnan(totals[i])) continue;
    const std::int64_t* masked = fill.masked;
    if (!std::is_sorted(masked, masked + fill.count)) {
      rising.emplace_back(masked, masked + fill.count);
      std::sort(rising.back().begin(), rising.back().end());
      masked = rising.back().data();
    }
    which.push_back(i);
    arrays.push_back({fill.weight, fill.length, fill.dtype, masked, fill.count});
  }
  const std::vector<Sums> sums = sums_of(arrays, isa, threads, parallel);
  for (std::size_t j = 0; j < which.size(); ++j) totals[which[j]] = sums[j].sum.value();
}

}  // namespace

std::vector<double> masked_fill_mean(const std::vector<Fill>& fills, cpu::Isa isa, int threads,
                                     const Parallel& parallel) {
  Log log(fills);
  gather(log.entries, threads, parallel);
  std::vector<double> means = differences(fills, log, isa, threads, parallel);
  read_unmasked(fills, means, isa, threads, parallel);
  for (std::size_t i = 0; i < fills.size(); ++i) {
    const auto left = static_cast<double>(fills[i].length - fills[i].count);
    means[i] = fills[i].count == 0 ? 0.0 : means[i] / left;
  }
  if (!std::all_of(means.begin(), means.end(), [](double mean) { return std::isfinite(mean); })) return means;
  for (std::size_t i = 0; i < fills.size(); ++i) {
    const Entries& entries = log.entries[i];
    if (entries.count == 0) continue;
    std::memcpy(fills[i].undo, entries.values, static_cast<std::size_t>(entries.count * entries.bytes));
    // the low bytes come first, so the first entry of any width is the mean
    const std::uint64_t mean = round_once(means[i], fills[i].dtype);
    std::memcpy(entries.values, &mean, static_cast<std::size_t>(entries.bytes));
  }
  fill(log.entries, threads, parallel);
  return means;
}

}  // namespace tomfisher::fill
