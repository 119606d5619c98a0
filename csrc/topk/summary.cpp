#include "topk/summary.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <mutex>

#include "topk/walk.h"

namespace tomfisher::topk {
namespace {

// Tables that take turns, so that a run of equal exponents does not wait for its own last increment.
constexpr std::size_t kTables = 4;

template <typename Bits>
constexpr Bits kMinusZero = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));

std::int64_t key_of(double x) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof(bits));
  return to_key(bits);
}

// The float64 key of the number that the finite key `key` of a narrower format stands for. By integers and
// powers of two: the processor may be set to take subnormal numbers for zeros.
template <Format F>
std::int64_t widened(std::int64_t key) {
  using Bits = typename Traits<F>::Bits;
  constexpr int mantissa = mantissa_bits<F>();
  constexpr int bias = static_cast<int>(Traits<F>::infinity >> mantissa) / 2;
  const Bits bits = from_key<Bits>(static_cast<std::make_signed_t<Bits>>(key));
  const auto size = static_cast<Bits>(bits & ~kMinusZero<Bits>);
  const int exponent = static_cast<int>(size >> mantissa);
  auto digits = static_cast<std::int64_t>(size & ((Bits{1} << mantissa) - 1));
  if (exponent > 0) digits += std::int64_t{1} << mantissa;
  const double value = std::ldexp(static_cast<double>(digits), std::max(exponent, 1) - bias - mantissa);
  return key_of(bits == size ? value : -value);
}

// What one thread counts.
template <Format F>
class Tally {
 public:
  using Bits = typename Traits<F>::Bits;

  explicit Tally(const std::vector<std::int64_t>& thresholds) : thresholds_(thresholds) {
    above_.assign(thresholds.size(), 0);
    for (auto& table : tables_) table.assign(kFields, 0);
  }

  // False at NaN or infinity.
  bool visit(const Bits* tile, std::size_t count) {
    scanner_.hits(tile, count, above_all<F>());
    if (!scanner_.finite()) return false;
    for (std::size_t t = 0; t < thresholds_.size(); ++t) above_[t] += larger(tile, count, thresholds_[t]);
    zeros_ += equal(tile, count, 0);
    minus_zeros_ += equal(tile, count, kMinusZero<Bits>);
    count_fields(tile, count);
    return true;
  }

  void add_to(Summary<F>& out) const {
    out.smallest = std::min(out.smallest, scanner_.smallest());
    out.largest = std::max(out.largest, scanner_.largest());
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
  static constexpr std::size_t kFields = std::size_t{1} << (8 * sizeof(Bits) - mantissa_bits<F>());

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

  const std::vector<std::int64_t>& thresholds_;
  Scanner<F> scanner_;
  std::vector<std::int64_t> above_;
  std::array<std::vector<std::int64_t>, kTables> tables_;
  std::int64_t zeros_ = 0, minus_zeros_ = 0;
};

}  // namespace

template <Format F>
std::int64_t key_at_most(double x) {
  if constexpr (F == Format::f64) return std::clamp(key_of(x), below_all<F>(), above_all<F>());
  std::int64_t low = below_all<F>(), high = above_all<F>();  // the answer lies in [low, high)
  while (high - low > 1) {
    const std::int64_t middle = low + (high - low) / 2;
    (widened<F>(middle) <= key_of(x) ? low : high) = middle;
  }
  return low;
}

template <Format F>
Summary<F> summarize(const Source& source, const std::vector<std::int64_t>& thresholds, const Team& team) {
  Summary<F> out;
  out.above.assign(thresholds.size(), 0);
  FirstBad bad;
  ChunkQueue queue(source);
  std::mutex guard;
  run_lanes(lanes_for(source, team), team, [&](int) {
    Tally<F> tally(thresholds);
    std::vector<unsigned char> buffer;
    const auto visit = [&](const auto* tile, std::size_t count, std::int64_t index) {
      if (tally.visit(tile, count)) return true;
      bad.publish(index + first_bad_of<F>(tile, count));
      return false;
    };
    while (const Chunk* chunk = queue.next()) {
      if (bad.before(chunk->index) || !each_tile<F>(source, *chunk, buffer, visit)) break;
    }
    const std::lock_guard<std::mutex> lock(guard);
    tally.add_to(out);
  });
  out.first_bad = bad.index();
  return out;
}

#define TOMFISHER_INSTANTIATE(F)                \
  template std::int64_t key_at_most<F>(double); \
  template Summary<F> summarize<F>(const Source&, const std::vector<std::int64_t>&, const Team&);
TOMFISHER_INSTANTIATE(Format::f16)
TOMFISHER_INSTANTIATE(Format::bf16)
TOMFISHER_INSTANTIATE(Format::f32)
TOMFISHER_INSTANTIATE(Format::f64)
#undef TOMFISHER_INSTANTIATE

}  // namespace tomfisher::topk
