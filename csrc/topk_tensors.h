// What the operations on ordered numbers share: tensors and files as sources, formats from dtypes, selections as
// tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
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

inline void check_k(int64_t k, const Source& source) {
  STD_TORCH_CHECK(0 <= k && k <= source.size(), "k must be between 0 and ", source.size(), ", got ", k, ".");
}

// The indices into the vector `to`; zeros where there is NaN or infinity.
template <Format F>
void write_indices(const Selection<F>& found, const Tensor& to) {
  auto* out = static_cast<int64_t*>(to.mutable_data_ptr());
  if (found.first_bad >= 0) std::fill_n(out, to.numel(), int64_t{0});
  for (size_t i = 0; i < found.entries.size(); ++i) out[i] = found.entries[i].index;
}

// The number with this key.
template <Format F>
void write_number(std::int64_t key, const Tensor& to, size_t place) {
  using Bits = typename Traits<F>::Bits;
  static_cast<Bits*>(to.mutable_data_ptr())[place] = from_key<Bits>(static_cast<std::make_signed_t<Bits>>(key));
}

// The values as a vector of the format's dtype, -0.0 as 0.0; zeros where there is NaN or infinity.
template <Format F>
void write_values(const Selection<F>& found, const Tensor& to) {
  if (found.first_bad >= 0) std::memset(to.mutable_data_ptr(), 0, static_cast<size_t>(to.numel()) * bytes_of(F));
  for (size_t i = 0; i < found.entries.size(); ++i) write_number<F>(found.entries[i].key, to, i);
}

}  // namespace tomfisher::topk
