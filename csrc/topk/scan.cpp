#include "topk/scan.h"

#include <algorithm>

#include "cpu/dispatch.h"
#include "topk/key.h"

namespace tomfisher::topk {
namespace {

// Whole groups are tested first, in a loop without branches that any compiler turns into vector code.
constexpr size_t kGroup = 64;

template <typename Bits>
size_t scan(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes) {
  using Key = std::make_signed_t<Bits>;
  const auto* bits = static_cast<const Bits*>(data);
  const auto bound = static_cast<Key>(limit);
  auto low = static_cast<Key>(extremes[0]), high = static_cast<Key>(extremes[1]);
  size_t found = 0;
  for (size_t start = 0; start < count; start += kGroup) {
    const size_t stop = std::min(start + kGroup, count);
    Key group_high = std::numeric_limits<Key>::min();
    for (size_t i = start; i < stop; ++i) {
      const Key key = raw_key(bits[i]);
      low = std::min(low, key);
      group_high = std::max(group_high, key);
    }
    high = std::max(high, group_high);
    if (group_high <= bound) continue;
    for (size_t i = start; i < stop; ++i) {
      hits[found] = static_cast<uint32_t>(i);
      found += raw_key(bits[i]) > bound;
    }
  }
  extremes[0] = low;
  extremes[1] = high;
  return found;
}

}  // namespace

size_t scan16(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes) {
  return scan<uint16_t>(data, count, limit, hits, extremes);
}

size_t scan32(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes) {
  return scan<uint32_t>(data, count, limit, hits, extremes);
}

size_t scan64(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes) {
  return scan<uint64_t>(data, count, limit, hits, extremes);
}

Scan best_scan(size_t bytes) {
#if defined(__x86_64__)
  const cpu::Isa isa = cpu::isa();
  if (isa >= cpu::Isa::avx512) return bytes == 2 ? scan16_avx512 : bytes == 4 ? scan32_avx512 : scan64_avx512;
  if (isa >= cpu::Isa::avx2 && bytes < 8) return bytes == 2 ? scan16_avx2 : scan32_avx2;
#endif
  return bytes == 2 ? scan16 : bytes == 4 ? scan32 : scan64;
}

}  // namespace tomfisher::topk
