// What an instruction set provides for `square_accumulate_`.
#pragma once

#include <stdint.h>

#include "dtype.h"

namespace tomfisher::fisher {

// F[i] += g[i]^2; F and gradient may be the same memory.
using Squares = void (*)(float* F, const void* gradient, int64_t length);

Squares squares_scalar(Dtype dtype);
Squares squares_avx2(Dtype dtype);

}  // namespace tomfisher::fisher
