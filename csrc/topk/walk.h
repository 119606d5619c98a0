// One pass over a source by several threads: chunks, tiles, and where the first NaN or infinity is.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>
#include <vector>

#include "topk/scan.h"
#include "topk/source.h"
#include "topk/team.h"

namespace tomfisher::topk {

// The smallest index published by any thread.
class FirstBad {
 public:
  void publish(std::int64_t index) {
    std::int64_t seen = first_.load(std::memory_order_relaxed);
    while (index < seen && !first_.compare_exchange_weak(seen, index, std::memory_order_relaxed)) {
    }
  }
  // Whether nothing from `index` on can change the answer.
  bool before(std::int64_t index) const { return first_.load(std::memory_order_relaxed) < index; }
  std::int64_t index() const {
    const std::int64_t first = first_.load(std::memory_order_relaxed);
    return first == kNone ? -1 : first;
  }

 private:
  static constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  std::atomic<std::int64_t> first_{kNone};
};

// What one thread needs to scan tiles of format F.
template <Format F>
class Scanner {
 public:
  using Bits = typename Traits<F>::Bits;
  using Key = typename Traits<F>::Key;

  // Positions within the tile of keys above `limit`; notes extremes. `limit` lies in [below_all, above_all].
  std::size_t hits(const Bits* tile, std::size_t count, std::int64_t limit) {
    // raw keys tell -0.0 (-1) from 0.0 (0): "above -1" has to take both
    return scan_(tile, count, limit == -1 ? -2 : limit, positions_.data(), extremes_.data());
  }
  std::uint32_t position(std::size_t hit) const { return positions_[hit]; }

  bool finite() const { return extremes_[0] > below_all<F>() && extremes_[1] < above_all<F>(); }
  std::int64_t smallest() const { return extremes_[0] == -1 ? 0 : extremes_[0]; }
  std::int64_t largest() const { return extremes_[1] == -1 ? 0 : extremes_[1]; }

 private:
  using Raw = std::make_signed_t<Bits>;
  Scan scan_ = best_scan(sizeof(Bits));
  std::vector<std::uint32_t> positions_ = std::vector<std::uint32_t>(kTile + kHitsSlack);
  std::array<std::int64_t, 2> extremes_{std::numeric_limits<Raw>::max(), std::numeric_limits<Raw>::min()};
};

template <Format F>
std::int64_t first_bad_of(const typename Traits<F>::Bits* tile, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const std::int64_t key = raw_key(tile[i]);
    if (key >= above_all<F>() || key <= below_all<F>()) return static_cast<std::int64_t>(i);
  }
  return 0;  // overwritten since a scan saw it
}

// Calls visit(tile, count, index of its first number) for every tile of the chunk until it returns false.
template <Format F, typename Visit>
bool each_tile(const Source& source, const Chunk& chunk, std::vector<unsigned char>& buffer, const Visit& visit) {
  const auto* numbers = static_cast<const typename Traits<F>::Bits*>(source.numbers(chunk, buffer));
  for (std::int64_t start = 0; start < chunk.count; start += static_cast<std::int64_t>(kTile)) {
    const std::int64_t count = std::min<std::int64_t>(static_cast<std::int64_t>(kTile), chunk.count - start);
    if (!visit(numbers + start, static_cast<std::size_t>(count), chunk.index + start)) return false;
  }
  return true;
}

inline int lanes_for(const Source& source, const Team& team) {
  const auto chunks = static_cast<std::int64_t>(source.chunks().size());
  return static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>(team.lanes, chunks)));
}

inline void run_lanes(int lanes, const Team& team, const Body& body) {
  lanes == 1 ? body(0) : team.parallel(lanes, body);
}

}  // namespace tomfisher::topk
