// How a pass of any kind counts entries for a summary on the side, tile by tile while they are in the cache.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "topk/summary.h"
#include "topk/walk.h"

namespace tomfisher::topk {

// What one thread counts: everything of a summary but the extremes, which its Scanner notes.
template <Format F>
class Tally {
 public:
  using Bits = typename Traits<F>::Bits;

  // Null thresholds: no summary is wanted, and `count` does nothing.
  explicit Tally(const Thresholds* thresholds) : thresholds_(thresholds) {
    if (thresholds == nullptr) return;
    above_.assign(thresholds->size(), 0);
    for (auto& table : tables_) table.assign(kFields, 0);
  }

  // Numbers of any kind; what comes of NaN and infinity means nothing.
  void count(const Bits* tile, std::size_t count) {
    if (thresholds_ == nullptr) return;
    const std::int64_t before = tiny();
    count_fields(tile, count);
    if (tiny() != before) {
      zeros_ += equal(tile, count, 0);
      minus_zeros_ += equal(tile, count, kMinusZero);
    }
    for (std::size_t t = 0; t < above_.size(); ++t) above_[t] += larger(tile, count, (*thresholds_)[t]);
  }

  void add_to(Summary<F>& out) const {
    std::transform(above_.begin(), above_.end(), out.above.begin(), out.above.begin(), std::plus<>());
    out.histogram[0] -= minus_zeros_;
    out.histogram[1] += zeros_ + minus_zeros_;
    out.histogram[2] -= zeros_;
    for (const auto& table : tables_) {
      for (std::size_t field = 0; field < kFields; ++field) {
        // fields of NaN and infinity, the last of either sign, hold nothing
        const std::size_t bin = field >= kFields / 2 ? 0 : std::min(field + 2, histogram_bins<F>() - 1);
        out.histogram[bin] += table[field];
      }
    }
  }

 private:
  static constexpr Bits kMinusZero = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  // Values of sign and exponent together.
  static constexpr std::size_t kFields = std::size_t{1} << (8 * sizeof(Bits) - mantissa_bits<F>());
  // Tables that take turns, so that a run of equal exponents does not wait for its own last increment.
  static constexpr std::size_t kTables = 4;

  void count_fields(const Bits* tile, std::size_t count) {
    constexpr int shift = mantissa_bits<F>();
    std::int64_t *a = tables_[0].data(), *b = tables_[1].data(), *c = tables_[2].data(), *d = tables_[3].data();
    std::size_t i = 0;
    for (; i + kTables <= count; i += kTables) {
      ++a[tile[i] >> shift];
      ++b[tile[i + 1] >> shift];
      ++c[tile[i + 2] >> shift];
      ++d[tile[i + 3] >> shift];
    }
    for (; i < count; ++i) ++a[tile[i] >> shift];
  }

  // Zeros and subnormal numbers counted so far.
  std::int64_t tiny() const {
    std::int64_t found = 0;
    for (const auto& table : tables_) found += table[0] + table[kFields / 2];
    return found;
  }

  static std::int64_t larger(const Bits* tile, std::size_t count, std::int64_t threshold) {
    // raw keys do: no threshold is -1, the raw key of -0.0
    const auto bound = static_cast<std::make_signed_t<Bits>>(threshold);
    std::uint32_t found = 0;
    for (std::size_t i = 0; i < count; ++i) found += raw_key(tile[i]) > bound;
    return found;
  }

  static std::int64_t equal(const Bits* tile, std::size_t count, Bits bits) {
    std::uint32_t found = 0;
    for (std::size_t i = 0; i < count; ++i) found += tile[i] == bits;
    return found;
  }

  const Thresholds* thresholds_;
  std::vector<std::int64_t> above_;
  std::array<std::vector<std::int64_t>, kTables> tables_;
  std::int64_t zeros_ = 0, minus_zeros_ = 0;
};

// What the threads of one pass add up.
template <Format F>
class Sums {
 public:
  explicit Sums(const Thresholds* thresholds) {
    if (thresholds == nullptr) return;
    total_.emplace();
    total_->above.assign(thresholds->size(), 0);
  }

  // What one thread counted, and the scanner that saw the same tiles.
  void add(const Tally<F>& tally, const Scanner<F>& scanner) {
    if (!total_) return;
    const std::lock_guard<std::mutex> lock(guard_);
    tally.add_to(*total_);
    total_->smallest = std::min(total_->smallest, scanner.smallest());
    total_->largest = std::max(total_->largest, scanner.largest());
  }

  // The summary, if one is wanted; once.
  std::optional<Summary<F>> take() { return std::move(total_); }

 private:
  std::optional<Summary<F>> total_;
  std::mutex guard_;
};

}  // namespace tomfisher::topk
