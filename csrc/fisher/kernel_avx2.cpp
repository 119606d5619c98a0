#include <immintrin.h>

#include "fisher/kernel.h"

namespace tomfisher::fisher {
namespace {

#include "fisher/half_source.h"
#include "fisher/micro_kernel.h"
#include "fisher/sources.h"

// 6 x 2 accumulators, two vectors of the input and one broadcast number: 15 of 16 registers.
struct Vector {
  using Reg = __m256;
  static constexpr int kLanes = 8, kRows = 6, kVectors = 2;
  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Reg a) { _mm256_storeu_ps(p, a); }
  static Reg broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg multiply_add(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg dot(Reg a, Reg b, Reg c) { return multiply_add(a, b, c); }
};

}  // namespace

Kernel kernel_avx2(Dtype dtype) {
  if (dtype == Dtype::float16) return make_kernel<Vector, HalfSource>();
  if (dtype == Dtype::bfloat16) return make_kernel<Vector, BfloatSource>();
  return make_kernel<Vector, FloatSource>();
}

}  // namespace tomfisher::fisher
