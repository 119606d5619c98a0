// Work on many arrays, cut into blocks of one size that threads take one after another.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace tomfisher {

struct Block {
  std::size_t item;         // which array
  std::int64_t begin, end;  // which of its entries
};

// Blocks never reach over the end of an array, so what is in one does not depend on the others.
class Blocks {
 public:
  explicit Blocks(std::int64_t size) : size_(size) {}

  void add(std::int64_t length) {
    lengths_.push_back(length);
    first_.push_back(first_.back() + (length + size_ - 1) / size_);
  }

  std::int64_t count() const { return first_.back(); }

  // Number of the array's first block.
  std::int64_t first(std::size_t item) const { return first_[item]; }

  Block at(std::int64_t block) const {
    const auto after = std::upper_bound(first_.begin(), first_.end(), block);
    const std::size_t item = static_cast<std::size_t>(after - first_.begin()) - 1;
    const std::int64_t begin = (block - first_[item]) * size_;
    return {item, begin, std::min(begin + size_, lengths_[item])};
  }

  // `body(number)` for every block, each once, on up to `threads` threads.
  template <class Function>
  void run(int threads, const Parallel& parallel, const Function& body) const {
    const int lanes = static_cast<int>(std::clamp<std::int64_t>(threads, 1, std::max<std::int64_t>(1, count())));
    std::atomic<std::int64_t> next{0};
    parallel(lanes, [&](int) {
      for (std::int64_t block = next++; block < count(); block = next++) body(block);
    });
  }

 private:
  std::int64_t size_;
  std::vector<std::int64_t> lengths_;
  std::vector<std::int64_t> first_{0};
};

}  // namespace tomfisher
