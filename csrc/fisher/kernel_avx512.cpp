#include <immintrin.h>

#include "fisher/kernel.h"

namespace tomfisher::fisher {
namespace {

#include "fisher/half_source.h"
#include "fisher/micro_kernel.h"
#include "fisher/sources.h"
#include "fisher/vector_avx512.h"
}  // namespace

Kernel kernel_avx512(Dtype dtype) {
  if (dtype == Dtype::float16) return make_kernel<Vector, HalfSource>();
  if (dtype == Dtype::bfloat16) return make_kernel<Vector, BfloatSource>();
  return make_kernel<Vector, FloatSource>();
}

}  // namespace tomfisher::fisher
