#include "fill/entries.h"

#include <algorithm>

#include "blocks.h"

namespace tomfisher::fill {
namespace {

constexpr std::int64_t kBlock = 4096;
constexpr std::int64_t kAhead = 16;  // entries whose memory is asked for before they are needed

// Whether waking other threads pays for so few entries.
bool worth(std::int64_t total) { return total >= kBlock; }

template <class Bits, class Function>
void each(const Entries& list, std::int64_t begin, std::int64_t end, const Function& body) {
  // one body writes to the array, another to the values
  // NOLINTNEXTLINE(misc-const-correctness)
  Bits *array = static_cast<Bits*>(list.array), *values = static_cast<Bits*>(list.values);
  const std::int64_t last = end - 1;
  for (std::int64_t i = begin; i < end; ++i) {
#if defined(__GNUC__)
    __builtin_prefetch(array + list.positions[std::min(i + kAhead, last)], 1);
#endif
    body(array[list.positions[i]], values, i);
  }
}

// body(entry, values, i) for every entry of every list
template <class Function>
void each(const std::vector<Entries>& lists, int threads, const Parallel& parallel, const Function& body) {
  Blocks blocks(kBlock);
  std::int64_t total = 0;
  for (const Entries& list : lists) {
    blocks.add(list.count);
    total += list.count;
  }
  blocks.run(worth(total) ? threads : 1, parallel, [&](std::int64_t number) {
    const Block block = blocks.at(number);
    const Entries& list = lists[block.item];
    if (list.bytes == 2) {
      each<std::uint16_t>(list, block.begin, block.end, body);
    } else if (list.bytes == 4) {
      each<std::uint32_t>(list, block.begin, block.end, body);
    } else {
      each<std::uint64_t>(list, block.begin, block.end, body);
    }
  });
}

}  // namespace

void gather(const std::vector<Entries>& lists, int threads, const Parallel& parallel) {
  each(lists, threads, parallel, [](const auto& entry, auto* values, std::int64_t i) { values[i] = entry; });
}

void scatter(const std::vector<Entries>& lists, int threads, const Parallel& parallel) {
  each(lists, threads, parallel, [](auto& entry, const auto* values, std::int64_t i) { entry = values[i]; });
}

void fill(const std::vector<Entries>& lists, int threads, const Parallel& parallel) {
  each(lists, threads, parallel, [](auto& entry, const auto* values, std::int64_t) { entry = values[0]; });
}

}  // namespace tomfisher::fill
