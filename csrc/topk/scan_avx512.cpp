#include <immintrin.h>

#include "topk/scan.h"

namespace tomfisher::topk {
namespace {

// Truth table of x ^ (sign & mask) for vpternlog with operands x, sign, mask.
constexpr int kXorAnd = 0x78;
// Eight vectors share one branch: hits are rare.
constexpr int kUnroll = 8;

struct Lanes16 {
  static constexpr size_t width = 32;
  static __m512i fill(int64_t x) { return _mm512_set1_epi16(static_cast<short>(x)); }
  static __m512i key(__m512i x) {
    return _mm512_ternarylogic_epi64(x, _mm512_srai_epi16(x, 15), _mm512_set1_epi16(0x7fff), kXorAnd);
  }
  static __m512i load(const uint16_t* from) { return _mm512_loadu_si512(from); }
  static __m512i load(const uint16_t* from, size_t count, __m512i other) {
    return _mm512_mask_loadu_epi16(other, static_cast<__mmask32>((uint64_t{1} << count) - 1), from);
  }
  static uint32_t greater(__m512i a, __m512i b) { return _mm512_cmpgt_epi16_mask(a, b); }
  static __m512i min(__m512i a, __m512i b) { return _mm512_min_epi16(a, b); }
  static __m512i max(__m512i a, __m512i b) { return _mm512_max_epi16(a, b); }
  static int64_t at(__m512i x, int i) {
    alignas(64) int16_t all[width];
    _mm512_store_si512(all, x);
    return all[i];
  }
  static size_t emit(uint32_t mask, uint32_t start, uint32_t* hits) {
    size_t found = 0;
    for (; mask != 0; mask &= mask - 1) hits[found++] = start + static_cast<uint32_t>(__builtin_ctz(mask));
    return found;
  }
};

struct Lanes32 {
  static constexpr size_t width = 16;
  static __m512i fill(int64_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static __m512i key(__m512i x) {
    return _mm512_ternarylogic_epi64(x, _mm512_srai_epi32(x, 31), _mm512_set1_epi32(0x7fffffff), kXorAnd);
  }
  static __m512i load(const uint32_t* from) { return _mm512_loadu_si512(from); }
  static __m512i load(const uint32_t* from, size_t count, __m512i other) {
    return _mm512_mask_loadu_epi32(other, static_cast<__mmask16>((1u << count) - 1), from);
  }
  static uint32_t greater(__m512i a, __m512i b) { return _mm512_cmpgt_epi32_mask(a, b); }
  static __m512i min(__m512i a, __m512i b) { return _mm512_min_epi32(a, b); }
  static __m512i max(__m512i a, __m512i b) { return _mm512_max_epi32(a, b); }
  static int64_t at(__m512i x, int i) {
    alignas(64) int32_t all[width];
    _mm512_store_si512(all, x);
    return all[i];
  }
  // compress in the register, then store: compressing into memory is microcoded on some processors
  static size_t emit(uint32_t mask, uint32_t start, uint32_t* hits) {
    const __m512i iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i position = _mm512_add_epi32(iota, _mm512_set1_epi32(static_cast<int>(start)));
    _mm512_storeu_si512(hits, _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), position));
    return static_cast<size_t>(__builtin_popcount(mask));
  }
};

struct Lanes64 {
  static constexpr size_t width = 8;
  static __m512i fill(int64_t x) { return _mm512_set1_epi64(x); }
  static __m512i key(__m512i x) {
    const __m512i mask = _mm512_set1_epi64(0x7fffffffffffffff);
    return _mm512_ternarylogic_epi64(x, _mm512_srai_epi64(x, 63), mask, kXorAnd);
  }
  static __m512i load(const uint64_t* from) { return _mm512_loadu_si512(from); }
  static __m512i load(const uint64_t* from, size_t count, __m512i other) {
    return _mm512_mask_loadu_epi64(other, static_cast<__mmask8>((1u << count) - 1), from);
  }
  static uint32_t greater(__m512i a, __m512i b) { return _mm512_cmpgt_epi64_mask(a, b); }
  static __m512i min(__m512i a, __m512i b) { return _mm512_min_epi64(a, b); }
  static __m512i max(__m512i a, __m512i b) { return _mm512_max_epi64(a, b); }
  static int64_t at(__m512i x, int i) {
    alignas(64) int64_t all[width];
    _mm512_store_si512(all, x);
    return all[i];
  }
  static size_t emit(uint32_t mask, uint32_t start, uint32_t* hits) { return Lanes32::emit(mask, start, hits); }
};

template <typename Lanes>
struct Extremes {
  __m512i low, high;

  explicit Extremes(const int64_t* at) : low(Lanes::fill(at[0])), high(Lanes::fill(at[1])) {}

  void see(__m512i key) {
    low = Lanes::min(low, key);
    high = Lanes::max(high, key);
  }

  void store(int64_t* to) const {
    for (size_t i = 0; i < Lanes::width; ++i) {
      const int64_t smaller = Lanes::at(low, static_cast<int>(i)), larger = Lanes::at(high, static_cast<int>(i));
      to[0] = smaller < to[0] ? smaller : to[0];
      to[1] = larger > to[1] ? larger : to[1];
    }
  }
};

template <typename Lanes, typename Bits>
size_t scan(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes) {
  const auto* bits = static_cast<const Bits*>(data);
  const __m512i bound = Lanes::fill(limit);
  Extremes<Lanes> seen(extremes);
  size_t found = 0, i = 0;
  for (; i + kUnroll * Lanes::width <= count; i += kUnroll * Lanes::width) {
    uint32_t masks[kUnroll], any = 0;
#pragma GCC unroll 8
    for (int part = 0; part < kUnroll; ++part) {
      const __m512i key = Lanes::key(Lanes::load(bits + i + part * Lanes::width));
      seen.see(key);
      masks[part] = Lanes::greater(key, bound);
      any |= masks[part];
    }
    if (__builtin_expect(any == 0, 1)) continue;
    for (int part = 0; part < kUnroll; ++part) {
      found += Lanes::emit(masks[part], static_cast<uint32_t>(i + part * Lanes::width), hits + found);
    }
  }
  for (; i < count; i += Lanes::width) {
    // lanes beyond the end repeat the first element, which the extremes may see again
    const size_t rest = count - i < Lanes::width ? count - i : Lanes::width;
    const __m512i first = Lanes::fill(static_cast<int64_t>(bits[i]));
    const __m512i key = Lanes::key(rest == Lanes::width ? Lanes::load(bits + i) : Lanes::load(bits + i, rest, first));
    seen.see(key);
    const uint32_t inside = static_cast<uint32_t>((uint64_t{1} << rest) - 1);
    found += Lanes::emit(Lanes::greater(key, bound) & inside, static_cast<uint32_t>(i), hits + found);
  }
  seen.store(extremes);
  return found;
}

}  // namespace

size_t scan16_avx512(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes) {
  return scan<Lanes16, uint16_t>(data, count, limit, hits, extremes);
}

size_t scan32_avx512(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes) {
  return scan<Lanes32, uint32_t>(data, count, limit, hits, extremes);
}

size_t scan64_avx512(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes) {
  return scan<Lanes64, uint64_t>(data, count, limit, hits, extremes);
}

}  // namespace tomfisher::topk
