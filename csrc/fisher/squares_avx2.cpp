#include <immintrin.h>

#include "fisher/squares_kernel.h"

namespace tomfisher::fisher {
namespace {

#include "fisher/half_source.h"
#include "fisher/sources.h"
#include "fisher/squares.h"

}  // namespace

Squares squares_avx2(Dtype dtype) { return choose(dtype); }

}  // namespace tomfisher::fisher
