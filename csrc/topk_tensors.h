// What the operations on ordered numbers share: tensors and files as sources, formats from dtypes.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <utility>
#include <vector>

#include "stable_parallel.h"
#include "tensors.h"
#include "topk/select.h"

namespace tomfisher::topk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Format format_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half: return Format::f16;
    case ScalarType::BFloat16: return Format::bf16;
    case ScalarType::Float: return Format::f32;
    case ScalarType::Double: return Format::f64;
    default: STD_TORCH_CHECK(false, "values must be float16, bfloat16, float32 or float64.");
  }
}

// Calls `body` with the format as a compile-time constant.
template <typename Body>
auto with_format(Format format, const Body& body) {
  switch (format) {
    case Format::f16: return body(std::integral_constant<Format, Format::f16>());
    case Format::bf16: return body(std::integral_constant<Format, Format::bf16>());
    case Format::f32: return body(std::integral_constant<Format, Format::f32>());
    default: return body(std::integral_constant<Format, Format::f64>());
  }
}

inline Team team_of(int64_t threads) { return {tomfisher::threads_of(threads), tomfisher::torch_parallel}; }

inline Piece piece_of(const Tensor& flat) {
  STD_TORCH_CHECK(tomfisher::is_plain(flat), "values must be contiguous tensors on the CPU.");
  return {flat.numel(), flat.const_data_ptr(), nullptr, 0};
}

inline Source source_of(const std::vector<Tensor>& flats) {
  std::vector<Piece> pieces;
  for (const Tensor& flat : flats) {
    STD_TORCH_CHECK(flat.scalar_type() == flats[0].scalar_type(), "All values must have one dtype.");
    pieces.push_back(piece_of(flat));
  }
  return Source(std::move(pieces), flats.empty() ? Format::f32 : format_of(flats[0].scalar_type()));
}

inline Tensor new_vector(int64_t size, ScalarType dtype = ScalarType::Long) {
  const int64_t sizes[] = {size};
  return torch::stable::empty({sizes, 1}, dtype);
}

}  // namespace tomfisher::topk
