// The inner loop: one look at every element, positions of the few that matter, and the extremes of all.
#pragma once

// C headers only: the files for one instruction set include this one (cpu/dispatch.h says why).
#include <stddef.h>
#include <stdint.h>

namespace tomfisher::topk {

// Elements per call; `hits` has room for all of them and kHitsSlack more that may be overwritten.
constexpr size_t kTile = 16384;
constexpr size_t kHitsSlack = 32;

// Writes the positions i, ascending, with raw_key(data[i]) > limit to `hits` and returns how many there are.
// extremes[0] and extremes[1] become the smallest and largest raw key seen, if beyond what they are.
using Scan = size_t (*)(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes);

size_t scan16(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes);
size_t scan32(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes);
size_t scan64(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes);

size_t scan16_avx2(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes);
size_t scan32_avx2(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes);

size_t scan16_avx512(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes);
size_t scan32_avx512(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes);
size_t scan64_avx512(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes);

// The fastest scan of elements of `bytes` (2, 4 or 8) that cpu::isa() allows.
Scan best_scan(size_t bytes);

}  // namespace tomfisher::topk
