#include <immintrin.h>

#include "fill/sum_rows_kernel.h"

namespace tomfisher::fill {
namespace {

#include "fill/sum_rows.h"

struct Vector {
  struct Reg {
    __m256d part[4];
  };
  static Reg zero() { return {{_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()}}; }
  static Reg add(Reg a, Reg b) {
    return {{_mm256_add_pd(a.part[0], b.part[0]), _mm256_add_pd(a.part[1], b.part[1]),
             _mm256_add_pd(a.part[2], b.part[2]), _mm256_add_pd(a.part[3], b.part[3])}};
  }
  static Reg absolute(Reg a) {
    const __m256d sign = _mm256_set1_pd(-0.0);
    return {{_mm256_andnot_pd(sign, a.part[0]), _mm256_andnot_pd(sign, a.part[1]), _mm256_andnot_pd(sign, a.part[2]),
             _mm256_andnot_pd(sign, a.part[3])}};
  }
  static void store(double* p, Reg a) {
    for (int64_t i = 0; i < 4; ++i) _mm256_storeu_pd(p + 4 * i, a.part[i]);
  }
};

Vector::Reg widen(__m256 low, __m256 high) {
  return {{_mm256_cvtps_pd(_mm256_castps256_ps128(low)), _mm256_cvtps_pd(_mm256_extractf128_ps(low, 1)),
           _mm256_cvtps_pd(_mm256_castps256_ps128(high)), _mm256_cvtps_pd(_mm256_extractf128_ps(high, 1))}};
}

#include "fill/sum_sources.h"

struct Double {
  using Element = double;
  static Vector::Reg load(const double* p) {
    return {{_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4), _mm256_loadu_pd(p + 8), _mm256_loadu_pd(p + 12)}};
  }
};

}  // namespace

SumRows sum_rows_avx2(Dtype dtype) { return choose<Vector, Half, Bfloat, Single, Double>(dtype); }

}  // namespace tomfisher::fill
