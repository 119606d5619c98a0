#include "cpu/half.h"
#include "fisher/squares_kernel.h"

namespace tomfisher::fisher {
namespace {

#include "fisher/half_source_scalar.h"
#include "fisher/sources.h"
#include "fisher/squares.h"

}  // namespace

Squares squares_scalar(Dtype dtype) { return choose(dtype); }

}  // namespace tomfisher::fisher
