// torch.ops.tomfisher_cpp.{weight_sums, masked_fill_mean_, scatter_} and {gather, fill, put}_entries. Python checks
// arguments (tomfisher/ops, tomfisher/ops/_backends/cpp.py); what is checked here again is what could read or write out
// of bounds.
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

void check_positions(const int64_t* positions, int64_t count, int64_t size) {
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(0 <= positions[i] && positions[i] < size, "Position ", positions[i], " is outside of the weight.");
  }
}

const int64_t* positions_of(const Tensor& index) {
  STD_TORCH_CHECK(is_plain(index) && index.scalar_type() == ScalarType::Long, "Indices must be int64 on the CPU.");
  return static_cast<const int64_t*>(index.const_data_ptr());
}

const int64_t* positions_of(const Tensor& index, const Tensor& weight) {
  const int64_t* positions = positions_of(index);
  check_positions(positions, index.numel(), weight.numel());
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

const double* known_sums(const std::optional<Tensor>& sums, size_t weights) {
  if (!sums.has_value()) return nullptr;
  STD_TORCH_CHECK(
      is_plain(*sums) && dtype_of(*sums) == Dtype::float64 && sums->numel() == 2 * static_cast<int64_t>(weights),
      "sums must be float64 [n, 2], contiguous on the CPU.");
  return static_cast<const double*>(sums->const_data_ptr());
}

Tensor filled(const std::vector<fill::Fill>& fills, int64_t threads, const std::string& isa) {
  for (const fill::Fill& one : fills) {
    STD_TORCH_CHECK(one.count < one.length || one.count == 0, "A weight is masked entirely.");
  }
  const int64_t sizes[] = {static_cast<int64_t>(fills.size())};
  Tensor result = torch::stable::empty({sizes, 1}, ScalarType::Double);
  const auto means = fill::masked_fill_mean(fills, isa_of(isa), threads_of(threads), torch_parallel);
  std::copy(means.begin(), means.end(), static_cast<double*>(result.mutable_data_ptr()));
  return result;
}

Tensor masked_fill_mean_(std::vector<Tensor> weights, std::vector<Tensor> indices, std::vector<Tensor> undo,
                         std::optional<Tensor> sums, int64_t threads, std::string isa) {
  STD_TORCH_CHECK(weights.size() == indices.size() && weights.size() == undo.size(), "Lists must have one length.");
  const double* known = known_sums(sums, weights.size());
  std::vector<fill::Fill> fills;
  for (size_t i = 0; i < weights.size(); ++i) {
    check_entries(weights[i], indices[i], undo[i]);
    fills.push_back({weights[i].mutable_data_ptr(), weights[i].numel(), dtype_of(weights[i]),
                     positions_of(indices[i], weights[i]), indices[i].numel(), undo[i].mutable_data_ptr(),
                     known == nullptr ? nullptr : known + 2 * i});
  }
  return filled(fills, threads, isa);
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

// Entries of weights of one dtype, those of each weight behind those of the one before, in one index and one vector
// of values: hundreds of tensors are handed over with fewer objects.
std::vector<fill::Fill> joined(const std::vector<Tensor>& weights, const Tensor& index,
                               const std::vector<int64_t>& counts, const Tensor& values, void* first) {
  STD_TORCH_CHECK(weights.size() == counts.size() && is_plain(values) && values.numel() == index.numel(),
                  "There must be one count per weight, and one value per position, contiguous on the CPU.");
  const int64_t* positions = positions_of(index);
  int64_t left = index.numel();
  const Dtype dtype = dtype_of(values);
  auto* value = static_cast<char*>(first);
  std::vector<fill::Fill> found;
  found.reserve(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    STD_TORCH_CHECK(is_plain(weights[i]) && dtype_of(weights[i]) == dtype,
                    "Weights must be contiguous on the CPU, of the values' dtype.");
    STD_TORCH_CHECK(0 <= counts[i] && counts[i] <= left, "The counts must add up to the number of positions.");
    check_positions(positions, counts[i], weights[i].numel());
    found.push_back({weights[i].mutable_data_ptr(), weights[i].numel(), dtype, positions, counts[i], value, nullptr});
    left -= counts[i];
    positions += counts[i];
    value += counts[i] * bytes_of(dtype);
  }
  STD_TORCH_CHECK(left == 0, "The counts must add up to the number of positions.");
  return found;
}

std::vector<fill::Entries> entries_of(const std::vector<fill::Fill>& found) {
  std::vector<fill::Entries> lists;
  lists.reserve(found.size());
  for (const fill::Fill& one : found) {
    lists.push_back({one.weight, one.masked, one.count, one.undo, bytes_of(one.dtype)});
  }
  return lists;
}

void gather_entries(std::vector<Tensor> weights, Tensor index, std::vector<int64_t> counts, Tensor values,
                    int64_t threads) {
  const auto found = joined(weights, index, counts, values, values.mutable_data_ptr());
  fill::gather(entries_of(found), threads_of(threads), torch_parallel);
}

void put_entries(std::vector<Tensor> weights, Tensor index, std::vector<int64_t> counts, Tensor values,
                 int64_t threads) {
  // read only by scatter
  const auto found = joined(weights, index, counts, values, const_cast<void*>(values.const_data_ptr()));
  fill::scatter(entries_of(found), threads_of(threads), torch_parallel);
}

Tensor fill_entries(std::vector<Tensor> weights, Tensor index, std::vector<int64_t> counts, Tensor undo, Tensor sums,
                    int64_t threads) {
  const double* known = known_sums(sums, weights.size());
  auto fills = joined(weights, index, counts, undo, undo.mutable_data_ptr());
  for (size_t i = 0; i < fills.size(); ++i) fills[i].sums = known + 2 * i;
  return filled(fills, threads, "");
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tomfisher_cpp, m) {
  m.def("weight_sums(Tensor[] weights, int threads, str isa=\"\") -> Tensor");
  m.def(
      "masked_fill_mean_(Tensor(a!)[] weights, Tensor[] indices, Tensor(b!)[] undo, Tensor? sums, int threads, "
      "str isa=\"\") -> Tensor");
  m.def("scatter_(Tensor(a!)[] weights, Tensor[] indices, Tensor[] values, int threads) -> ()");
  m.def("gather_entries(Tensor[] weights, Tensor index, int[] counts, Tensor(a!) values, int threads) -> ()");
  m.def("put_entries(Tensor(a!)[] weights, Tensor index, int[] counts, Tensor values, int threads) -> ()");
  m.def(
      "fill_entries(Tensor(a!)[] weights, Tensor index, int[] counts, Tensor(b!) undo, Tensor sums, int threads) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tomfisher_cpp, CPU, m) {
  m.impl("weight_sums", TORCH_BOX(&weight_sums));
  m.impl("masked_fill_mean_", TORCH_BOX(&masked_fill_mean_));
  m.impl("scatter_", TORCH_BOX(&scatter_));
  m.impl("gather_entries", TORCH_BOX(&gather_entries));
  m.impl("put_entries", TORCH_BOX(&put_entries));
  m.impl("fill_entries", TORCH_BOX(&fill_entries));
}
