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

#include "fill/sum_sources.h"

struct Double {
  using Element = double;
  static Vector::Reg load(const double* p) { return {_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8)}; }
};

}  // namespace

SumRows sum_rows_avx512(Dtype dtype) { return choose<Vector, Half, Bfloat, Single, Double>(dtype); }

}  // namespace tomfisher::fill
