// What the registered operations read off their arguments.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "cpu/dispatch.h"
#include "dtype.h"

namespace tomfisher {

inline Dtype dtype_of(const torch::stable::Tensor& tensor) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return Dtype::float16;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Double: return Dtype::float64;
    default: STD_TORCH_CHECK(false, "Tensors must be float16, bfloat16, float32 or float64.");
  }
}

inline bool is_plain(const torch::stable::Tensor& tensor) { return tensor.is_cpu() && tensor.is_contiguous(); }

inline int threads_of(int64_t threads) { return static_cast<int>(std::clamp<int64_t>(threads, 1, 1024)); }

// The instruction set named, or the processor's best if the name is empty.
inline cpu::Isa isa_of(const std::string& name) { return name.empty() ? cpu::isa() : cpu::isa_limited(name.c_str()); }

}  // namespace tomfisher
