// torch.ops.tomfisher_cpp.{weight_sums, masked_fill_mean_, scatter_}. Python checks arguments (tomfisher/ops,
// tomfisher/ops/_backends/cpp.py); what is checked here again is what could read or write out of bounds.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "fill/entries.h"
#include "fill/masked_fill.h"
#include "fill/sums.h"
#include "stable_parallel.h"
#include "tensors.h"

namespace {

using namespace tomfisher;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const int64_t* positions_of(const Tensor& index, const Tensor& weight) {
  STD_TORCH_CHECK(is_plain(index) && index.scalar_type() == ScalarType::Long, "Indices must be int64 on the CPU.");
  const auto* positions = static_cast<const int64_t*>(index.const_data_ptr());
  const int64_t count = index.numel(), size = weight.numel();
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(0 <= positions[i] && positions[i] < size, "Position ", positions[i], " is outside of the weight.");
  }
  return positions;
}

void check_entries(const Tensor& weight, const Tensor& index, const Tensor& values) {
  STD_TORCH_CHECK(
      is_plain(weight) && is_plain(values) && dtype_of(weight) == dtype_of(values) && index.numel() == values.numel(),
      "Weights and values must be contiguous on the CPU, of one dtype, with one value per index.");
}

Tensor weight_sums(std::vector<Tensor> weights, int64_t threads, std::string isa) {
  std::vector<fill::Array> arrays;
  for (const Tensor& weight : weights) {
    STD_TORCH_CHECK(is_plain(weight), "Weights must be contiguous on the CPU.");
    arrays.push_back({weight.const_data_ptr(), weight.numel(), dtype_of(weight)});
  }
  const auto sums = fill::sums_of(arrays, isa_of(isa), threads_of(threads), torch_parallel);
  const int64_t sizes[] = {static_cast<int64_t>(weights.size()), 2};
  Tensor result = torch::stable::empty({sizes, 2}, ScalarType::Double);
  auto* out = static_cast<double*>(result.mutable_data_ptr());
  for (const fill::Sums& sum : sums) {
    *out++ = sum.sum.value();
    *out++ = sum.absolute.value();
  }
  return result;
}

Tensor masked_fill_mean_(std::vector<Tensor> weights, std::vector<Tensor> indices, std::vector<Tensor> undo,
                         std::optional<Tensor> sums, int64_t threads, std::string isa) {
  STD_TORCH_CHECK(weights.size() == indices.size() && weights.size() == undo.size(), "Lists must have one length.");
  const double* known = nullptr;
  if (sums.has_value()) {
    STD_TORCH_CHECK(is_plain(*sums) && dtype_of(*sums) == Dtype::float64 &&
                        sums->numel() == 2 * static_cast<int64_t>(weights.size()),
                    "sums must be float64 [n, 2], contiguous on the CPU.");
    known = static_cast<const double*>(sums->const_data_ptr());
  }
  const int64_t sizes[] = {static_cast<int64_t>(weights.size())};
  Tensor result = torch::stable::empty({sizes, 1}, ScalarType::Double);
  std::vector<fill::Fill> fills;
  for (size_t i = 0; i < weights.size(); ++i) {
    check_entries(weights[i], indices[i], undo[i]);
    const int64_t count = indices[i].numel();
    STD_TORCH_CHECK(count < weights[i].numel() || count == 0, "A weight is masked entirely.");
    fills.push_back({weights[i].mutable_data_ptr(), weights[i].numel(), dtype_of(weights[i]),
                     positions_of(indices[i], weights[i]), count, undo[i].mutable_data_ptr(),
                     known == nullptr ? nullptr : known + 2 * i});
  }
  const auto means = fill::masked_fill_mean(fills, isa_of(isa), threads_of(threads), torch_parallel);
  std::copy(means.begin(), means.end(), static_cast<double*>(result.mutable_data_ptr()));
  return result;
}

void scatter_(std::vector<Tensor> weights, std::vector<Tensor> indices, std::vector<Tensor> values, int64_t threads) {
  STD_TORCH_CHECK(weights.size() == indices.size() && weights.size() == values.size(), "Lists must have one length.");
  std::vector<fill::Entries> lists;
  for (size_t i = 0; i < weights.size(); ++i) {
    check_entries(weights[i], indices[i], values[i]);
    // read only by scatter
    void* from = const_cast<void*>(values[i].const_data_ptr());
    lists.push_back({weights[i].mutable_data_ptr(), positions_of(indices[i], weights[i]), indices[i].numel(), from,
                     bytes_of(dtype_of(weights[i]))});
  }
  fill::scatter(lists, threads_of(threads), torch_parallel);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tomfisher_cpp, m) {
  m.def("weight_sums(Tensor[] weights, int threads, str isa=\"\") -> Tensor");
  m.def(
      "masked_fill_mean_(Tensor(a!)[] weights, Tensor[] indices, Tensor(b!)[] undo, Tensor? sums, int threads, "
      "str isa=\"\") -> Tensor");
  m.def("scatter_(Tensor(a!)[] weights, Tensor[] indices, Tensor[] values, int threads) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(tomfisher_cpp, CPU, m) {
  m.impl("weight_sums", TORCH_BOX(&weight_sums));
  m.impl("masked_fill_mean_", TORCH_BOX(&masked_fill_mean_));
  m.impl("scatter_", TORCH_BOX(&scatter_));
}
