// What one thread of a streaming pass keeps, and the bound that it shares with the others.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <vector>

#include "topk/candidate.h"
#include "topk/walk.h"

namespace tomfisher::topk {

// Room beyond 2k, so that a cut is paid for by many entries.
constexpr std::size_t kSlack = std::size_t{1} << 16;

// What the threads of one pass share.
struct Shared {
  // Some thread holds k entries at or above it, so an entry below it is never wanted. (One equal to it may
  // be: its index may be lower than theirs.)
  std::atomic<std::int64_t> proven{std::numeric_limits<std::int64_t>::min()};
  std::atomic<bool> too_many{false};
  FirstBad bad;

  void raise(std::int64_t key) {
    std::int64_t seen = proven.load(std::memory_order_relaxed);
    while (key > seen && !proven.compare_exchange_weak(seen, key, std::memory_order_relaxed)) {
    }
  }
};

// The entries one thread keeps: at most `capacity`, by ascending index because chunks come in that order.
template <Format F>
class Collector {
 public:
  using Key = typename Traits<F>::Key;

  Collector(std::size_t k, std::int64_t limit, Shared& shared)
      : k_(k), capacity_(2 * k + kSlack), limit_(limit), shared_(shared) {
    kept_.reserve(capacity_ + kTile);  // address space alone, until there are hits
  }

  bool visit(const typename Traits<F>::Bits* tile, std::size_t count, std::int64_t index) {
    const std::int64_t proven = shared_.proven.load(std::memory_order_relaxed);
    const std::size_t found = scanner_.hits(tile, count, std::max(limit_, std::max(proven, below_all<F>() + 1) - 1));
    if (!scanner_.finite()) {
      shared_.bad.publish(index + first_bad_of<F>(tile, count));
      return false;
    }
    for (std::size_t hit = 0; hit < found; ++hit) {
      const std::uint32_t at = scanner_.position(hit);
      kept_.push_back({index + at, static_cast<Key>(to_key(tile[at]))});
    }
    seen_ += static_cast<std::int64_t>(count);
    if (!holds_k_ && kept_.size() >= k_) {
      holds_k_ = true;
      ++limit_;  // k entries above the old limit: a later one equal to the new one comes after them
    }
    if (kept_.size() >= capacity_) cut();
    return true;
  }

  Candidates<Key>& kept() { return kept_; }
  const Scanner<F>& scanner() const { return scanner_; }
  bool has_cut() const { return cuts_ > 0; }

 private:
  void cut() {
    const Key least = keep_largest(kept_, k_, scratch_);
    // all later entries of this thread have higher indices, so one equal to the k-th comes after k others
    limit_ = std::max<std::int64_t>(limit_, least);
    shared_.raise(least);
    // a bound that keeps rising this often means data in ascending order: counting is quicker there
    const auto taken = static_cast<std::int64_t>(++cuts_ * (capacity_ - k_));
    if (cuts_ > 8 && taken > seen_ / 4) shared_.too_many.store(true, std::memory_order_relaxed);
  }

  std::size_t k_, capacity_;
  std::int64_t limit_;
  Shared& shared_;
  Scanner<F> scanner_;
  Candidates<Key> kept_;
  std::vector<Key> scratch_;
  bool holds_k_ = false;
  std::size_t cuts_ = 0;
  std::int64_t seen_ = 0;
};

}  // namespace tomfisher::topk
