// Number formats that the cores read.
#pragma once

#include <stdint.h>

namespace tomfisher {

enum class Dtype { float16, bfloat16, float32, float64 };

inline int64_t bytes_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

}  // namespace tomfisher
