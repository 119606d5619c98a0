// Several passes that count: the k-th key digit by digit, then every entry straight to its place.
#include <algorithm>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "topk/select.h"
#include "topk/tally.h"
#include "topk/walk.h"

namespace tomfisher::topk {
namespace {

constexpr int kDigitBits = 16;
constexpr std::size_t kDigits = std::size_t{1} << kDigitBits;

using Counts = std::vector<std::uint64_t>;

// The passes rely on each other's counts, so every place is checked that a count decides.
[[noreturn]] void changed() { throw std::runtime_error("Cannot select: the values changed while they were read."); }

// Keys in the order of unsigned integers, of the width that lies in memory.
template <typename Bits>
Bits ordered(Bits bits) {
  return static_cast<Bits>(static_cast<Bits>(to_key(bits)) ^ (Bits{1} << (8 * sizeof(Bits) - 1)));
}

// How often each digit follows `prefix` (the digits above it); two tables, so that a run of equal digits
// does not wait for its own last increment.
template <typename Bits>
Counts count_digits(const Source& source, Bits prefix, int shift, const Team& team) {
  const int lanes = lanes_for(source, team);
  std::vector<Counts> totals(static_cast<std::size_t>(lanes));
  ChunkQueue queue(source);
  run_lanes(lanes, team, [&](int lane) {
    Counts& total = totals[static_cast<std::size_t>(lane)];
    total.assign(kDigits, 0);
    std::vector<std::uint32_t> even(kDigits), odd(kDigits);
    std::vector<unsigned char> buffer;
    const bool top = shift + kDigitBits == 8 * static_cast<int>(sizeof(Bits));
    while (const Chunk* chunk = queue.next()) {
      const auto* bits = static_cast<const Bits*>(source.numbers(*chunk, buffer));
      const auto count_one = [&](std::vector<std::uint32_t>& table, Bits number) {
        const Bits key = ordered(number);
        if (top || key >> (shift + (top ? 0 : kDigitBits)) == prefix) ++table[(key >> shift) & (kDigits - 1)];
      };
      for (std::int64_t i = 0; i + 1 < chunk->count; i += 2) {
        count_one(even, bits[i]);
        count_one(odd, bits[i + 1]);
      }
      if (chunk->count % 2 == 1) count_one(even, bits[chunk->count - 1]);
      for (std::size_t digit = 0; digit < kDigits; ++digit) total[digit] += even[digit] + odd[digit];
      std::fill(even.begin(), even.end(), 0);
      std::fill(odd.begin(), odd.end(), 0);
    }
  });
  for (std::size_t lane = 1; lane < totals.size(); ++lane) {
    if (totals[lane].empty()) continue;
    std::transform(totals[0].begin(), totals[0].end(), totals[lane].begin(), totals[0].begin(), std::plus<>());
  }
  return std::move(totals[0]);
}

// Whether any of the counted first digits belongs to NaN or infinity.
template <Format F>
bool all_finite(const Counts& counts) {
  using Bits = typename Traits<F>::Bits;
  constexpr int shift = 8 * static_cast<int>(sizeof(Bits)) - kDigitBits;
  const std::size_t high = ordered(Traits<F>::infinity) >> shift;
  const std::size_t low =
      ordered(static_cast<Bits>(Traits<F>::infinity | (Bits{1} << (8 * sizeof(Bits) - 1)))) >> shift;
  const auto begin = counts.begin();
  return std::accumulate(begin, begin + static_cast<std::ptrdiff_t>(low) + 1, std::uint64_t{0}) == 0 &&
         std::accumulate(begin + static_cast<std::ptrdiff_t>(high), counts.end(), std::uint64_t{0}) == 0;
}

// Of one chunk: how many entries exceed the k-th key, and how many equal it.
struct Share {
  std::int64_t above = 0, equal = 0;
};

template <typename Bits>
std::vector<Share> shares(const Source& source, std::int64_t least, const Team& team) {
  std::vector<Share> found(source.chunks().size());
  ChunkQueue queue(source);
  run_lanes(lanes_for(source, team), team, [&](int) {
    std::vector<unsigned char> buffer;
    while (const Chunk* chunk = queue.next()) {
      const auto* bits = static_cast<const Bits*>(source.numbers(*chunk, buffer));
      const auto bound = static_cast<std::make_signed_t<Bits>>(least);
      std::int64_t above = 0, equal = 0;
      for (std::int64_t i = 0; i < chunk->count; ++i) {
        const auto key = to_key(bits[i]);
        above += key > bound;
        equal += key == bound;
      }
      found[queue.position(chunk)] = {above, equal};
    }
  });
  return found;
}

// Entries above `least`, and the first `ties` equal to it, by ascending index; and what is counted on the side.
template <Format F>
void collect(const Source& source, std::int64_t least, std::int64_t ties, const Team& team,
             const Thresholds* thresholds, Selection<F>& out) {
  using Key = typename Traits<F>::Key;
  std::vector<Share> before = shares<typename Traits<F>::Bits>(source, least, team);
  Share sum;
  for (Share& chunk : before) {
    sum = {sum.above + std::exchange(chunk.above, sum.above), sum.equal + std::exchange(chunk.equal, sum.equal)};
  }
  before.push_back(sum);
  if (sum.above + std::min(ties, sum.equal) != static_cast<std::int64_t>(out.entries.size())) changed();
  const auto slot = [&](const Share& share) { return out.entries.data() + share.above + std::min(ties, share.equal); };
  Sums<F> sums(thresholds);
  ChunkQueue queue(source);
  run_lanes(lanes_for(source, team), team, [&](int) {
    Scanner<F> scanner;
    Tally<F> tally(thresholds);
    std::vector<unsigned char> buffer;
    while (const Chunk* chunk = queue.next()) {
      const std::size_t position = queue.position(chunk);
      std::int64_t left = std::max<std::int64_t>(0, ties - before[position].equal);
      auto* next = slot(before[position]);
      const auto* const end = slot(before[position + 1]);
      each_tile<F>(source, *chunk, buffer, [&](const auto* tile, std::size_t count, std::int64_t index) {
        tally.count(tile, count);
        const std::size_t found = scanner.hits(tile, count, left > 0 ? least - 1 : least);
        for (std::size_t hit = 0; hit < found; ++hit) {
          const std::uint32_t at = scanner.position(hit);
          const auto key = static_cast<Key>(to_key(tile[at]));
          if (key > least || (key == least && left-- > 0)) {
            if (next == end) changed();
            *next++ = {index + at, key};
          }
        }
        return true;
      });
      if (next != end || !scanner.finite()) changed();
    }
    sums.add(tally, scanner);
  });
  out.summary = sums.take();
}

}  // namespace

template <Format F>
Selection<F> count_select(const Source& source, std::int64_t k, const Team& team, const Thresholds* thresholds) {
  using Bits = typename Traits<F>::Bits;
  Selection<F> out;
  out.method = Method::counting;
  Bits prefix = 0;
  auto left = static_cast<std::uint64_t>(k);  // the k-th key is the left-th largest of those with this prefix
  for (int shift = 8 * static_cast<int>(sizeof(Bits)) - kDigitBits; shift >= 0; shift -= kDigitBits) {
    const Counts counts = count_digits(source, prefix, shift, team);
    if (prefix == 0 && shift + kDigitBits == 8 * static_cast<int>(sizeof(Bits)) && !all_finite<F>(counts)) {
      out.first_bad = first_non_finite<F>(source, team);
      if (out.first_bad < 0) changed();
      return out;
    }
    std::size_t digit = kDigits - 1;
    while (counts[digit] < left) {
      left -= counts[digit];
      if (digit-- == 0) changed();
    }
    prefix = static_cast<Bits>(shift + kDigitBits == 8 * static_cast<int>(sizeof(Bits)) ? 0 : prefix << kDigitBits);
    prefix = static_cast<Bits>(prefix | digit);
  }
  const Bits sign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  const std::int64_t least = static_cast<std::make_signed_t<Bits>>(static_cast<Bits>(prefix ^ sign));
  out.entries.resize(static_cast<std::size_t>(k));
  collect<F>(source, least, static_cast<std::int64_t>(left), team, thresholds, out);
  order_by_key(out.entries);
  return out;
}

#define TOMFISHER_INSTANTIATE(F) \
  template Selection<F> count_select<F>(const Source&, std::int64_t, const Team&, const Thresholds*);
TOMFISHER_INSTANTIATE(Format::f16)
TOMFISHER_INSTANTIATE(Format::bf16)
TOMFISHER_INSTANTIATE(Format::f32)
TOMFISHER_INSTANTIATE(Format::f64)
#undef TOMFISHER_INSTANTIATE

}  // namespace tomfisher::topk
