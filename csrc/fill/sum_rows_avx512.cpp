#include <immintrin.h>

#include "fill/sum_rows_kernel.h"

namespace tomfisher::fill {
namespace {

#include "fill/sum_rows.h"

struct Vector {
  struct Reg {
    __m512d low, high;
  };
  static Reg zero() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
  static Reg add(Reg a, Reg b) { return {_mm512_add_pd(a.low, b.low), _mm512_add_pd(a.high, b.high)}; }
  static Reg absolute(Reg a) { return {_mm512_abs_pd(a.low), _mm512_abs_pd(a.high)}; }
  static void store(double* p, Reg a) {
    _mm512_storeu_pd(p, a.low);
    _mm512_storeu_pd(p + 8, a.high);
  }
};

// with a mask of ones: GCC 12 warns of its own header's undefined register in the plain form
Vector::Reg widen(__m256 low, __m256 high) {
  return {_mm512_maskz_cvtps_pd(0xFF, low), _mm512_maskz_cvtps_pd(0xFF, high)};
}

struct Half {
  using Element = uint16_t;
  static Vector::Reg load(const uint16_t* p) {
    return widen(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
                 _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8))));
  }
};

struct Bfloat {
  using Element = uint16_t;
  static __m256 eight(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static Vector::Reg load(const uint16_t* p) { return widen(eight(p), eight(p + 8)); }
};

struct Single {
  using Element = float;
  static Vector::Reg load(const float* p) { return widen(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
};

struct Double {
  using Element = double;
  static Vector::Reg load(const double* p) { return {_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8)}; }
};

}  // namespace

SumRows sum_rows_avx512(Dtype dtype) { return choose<Vector, Half, Bfloat, Single, Double>(dtype); }

}  // namespace tomfisher::fill
