#include <immintrin.h>

#include "topk/scan.h"

namespace tomfisher::topk {
namespace {

constexpr int kUnroll = 4;

struct Lanes16 {
  static constexpr size_t width = 16;
  static constexpr int bits_per_lane = 2;
  static __m256i fill(int64_t x) { return _mm256_set1_epi16(static_cast<short>(x)); }
  static __m256i key(__m256i x) {
    return _mm256_xor_si256(x, _mm256_and_si256(_mm256_srai_epi16(x, 15), _mm256_set1_epi16(0x7fff)));
  }
  static __m256i greater(__m256i a, __m256i b) { return _mm256_cmpgt_epi16(a, b); }
  static __m256i min(__m256i a, __m256i b) { return _mm256_min_epi16(a, b); }
  static __m256i max(__m256i a, __m256i b) { return _mm256_max_epi16(a, b); }
};

struct Lanes32 {
  static constexpr size_t width = 8;
  static constexpr int bits_per_lane = 4;
  static __m256i fill(int64_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static __m256i key(__m256i x) {
    return _mm256_xor_si256(x, _mm256_and_si256(_mm256_srai_epi32(x, 31), _mm256_set1_epi32(0x7fffffff)));
  }
  static __m256i greater(__m256i a, __m256i b) { return _mm256_cmpgt_epi32(a, b); }
  static __m256i min(__m256i a, __m256i b) { return _mm256_min_epi32(a, b); }
  static __m256i max(__m256i a, __m256i b) { return _mm256_max_epi32(a, b); }
};

template <typename Lanes>
size_t emit(__m256i greater, size_t start, uint32_t* hits) {
  // one byte of the mask per byte of the vector: a lane is 2 or 4 equal bits
  auto mask = static_cast<uint32_t>(_mm256_movemask_epi8(greater));
  constexpr uint32_t lane = (1u << Lanes::bits_per_lane) - 1;
  size_t found = 0;
  while (mask != 0) {
    const int bit = __builtin_ctz(mask);
    hits[found++] = static_cast<uint32_t>(start + static_cast<size_t>(bit / Lanes::bits_per_lane));
    mask &= ~(lane << bit);
  }
  return found;
}

template <typename Signed>
void widen(__m256i low, __m256i high, int64_t* extremes) {
  constexpr size_t width = sizeof(__m256i) / sizeof(Signed);
  alignas(32) Signed lows[width], highs[width];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lows), low);
  _mm256_store_si256(reinterpret_cast<__m256i*>(highs), high);
  for (size_t i = 0; i < width; ++i) {
    extremes[0] = lows[i] < extremes[0] ? lows[i] : extremes[0];
    extremes[1] = highs[i] > extremes[1] ? highs[i] : extremes[1];
  }
}

template <typename Lanes, typename Signed>
size_t scan(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes, size_t* done) {
  const auto* numbers = static_cast<const Signed*>(data);
  const __m256i bound = Lanes::fill(limit);
  __m256i low = Lanes::fill(extremes[0]), high = Lanes::fill(extremes[1]);
  size_t found = 0, i = 0;
  for (; i + kUnroll * Lanes::width <= count; i += kUnroll * Lanes::width) {
    __m256i greater[kUnroll], any = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int part = 0; part < kUnroll; ++part) {
      const auto* from = reinterpret_cast<const __m256i*>(numbers + i + part * Lanes::width);
      const __m256i key = Lanes::key(_mm256_loadu_si256(from));
      low = Lanes::min(low, key);
      high = Lanes::max(high, key);
      greater[part] = Lanes::greater(key, bound);
      any = _mm256_or_si256(any, greater[part]);
    }
    if (__builtin_expect(_mm256_testz_si256(any, any), 1)) continue;
    for (int part = 0; part < kUnroll; ++part) {
      found += emit<Lanes>(greater[part], i + part * Lanes::width, hits + found);
    }
  }
  widen<Signed>(low, high, extremes);
  *done = i;
  return found;
}

// The last few elements, fewer than one group, by the baseline code.
size_t finish(Scan tail, const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes, size_t done,
              size_t found) {
  const size_t more = tail(data, count - done, limit, hits + found, extremes);
  for (size_t i = found; i < found + more; ++i) hits[i] += static_cast<uint32_t>(done);
  return found + more;
}

}  // namespace

size_t scan16_avx2(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes) {
  size_t done = 0;
  const size_t found = scan<Lanes16, int16_t>(data, count, limit, hits, extremes, &done);
  return finish(scan16, static_cast<const uint16_t*>(data) + done, count, limit, hits, extremes, done, found);
}

size_t scan32_avx2(const void* data, size_t count, int64_t limit, uint32_t* hits, int64_t* extremes) {
  size_t done = 0;
  const size_t found = scan<Lanes32, int32_t>(data, count, limit, hits, extremes, &done);
  return finish(scan32, static_cast<const uint32_t*>(data) + done, count, limit, hits, extremes, done, found);
}

}  // namespace tomfisher::topk
