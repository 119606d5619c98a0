// torch.ops.tomfisher_cpp.{packed_fill_mean_, packed_scatter_}: fills of the same entries over and over.
//
// What never changes between calls is packed once, by tomfisher/ops/cpp/fill_table.py: all positions in one
// vector, all old values in one log, and one row of a table per weight. The weights themselves still come as
// tensors, so they cannot be freed meanwhile; one that is no longer what its row says is reported, not written.
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
#include "stable_parallel.h"
#include "tensors.h"

namespace {

using namespace tomfisher;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Row {
  int64_t address, length, dtype;  // dtype: the position in `Dtype`
  int64_t begin, end;              // of the weight's masked positions in the vector of all
  int64_t slot;                    // where its old values begin in the log, in bytes; a multiple of 8
};

// What the operations return: kNone, the weight without a finite mean, or -2 - the weight that is elsewhere. In
// the last two cases nothing was written.
constexpr int64_t kNone = -1;
constexpr int64_t kFetched = 4096;  // lines that certainly stay in a second-level cache

int64_t elsewhere(int64_t weight) { return -2 - weight; }

const Row* rows_of(const Tensor& table, size_t weights) {
  STD_TORCH_CHECK(is_plain(table) && table.scalar_type() == ScalarType::Long &&
                      table.numel() * sizeof(int64_t) == weights * sizeof(Row),
                  "The table must be int64 [weights, 6], contiguous on the CPU.");
  return static_cast<const Row*>(table.const_data_ptr());
}

const int64_t* vector_of(const Tensor& values) {
  STD_TORCH_CHECK(is_plain(values) && values.scalar_type() == ScalarType::Long,
                  "Positions and logs must be int64, contiguous on the CPU.");
  return static_cast<const int64_t*>(values.const_data_ptr());
}

// The first weight that is not what its row says, or kNone.
int64_t moved(const std::vector<Tensor>& weights, const Row* rows) {
  for (size_t i = 0; i < weights.size(); ++i) {
    const Tensor& weight = weights[i];
    const bool same = is_plain(weight) && weight.numel() == rows[i].length &&
                      static_cast<int64_t>(dtype_of(weight)) == rows[i].dtype &&
                      reinterpret_cast<int64_t>(weight.const_data_ptr()) == rows[i].address;
    if (!same) return static_cast<int64_t>(i);
  }
  return kNone;
}

// Entries of every weight, with the places of their values in a log; checked against all bounds.
std::vector<fill::Entries> entries_of(const std::vector<Tensor>& weights, const Row* rows, const Tensor& positions,
                                      const Tensor& log) {
  const int64_t* all = vector_of(positions);
  char* values = const_cast<char*>(reinterpret_cast<const char*>(vector_of(log)));
  const int64_t count = positions.numel(), capacity = log.numel() * 8;
  std::vector<fill::Entries> entries;
  entries.reserve(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const Row& row = rows[i];
    const int64_t bytes = bytes_of(static_cast<Dtype>(row.dtype));
    STD_TORCH_CHECK(0 <= row.begin && row.begin <= row.end && row.end <= count && 0 <= row.slot && row.slot % 8 == 0 &&
                        row.slot <= capacity && (row.end - row.begin) * bytes <= capacity - row.slot,
                    "Row ", i, " of the table reaches out of the positions or the log.");
    for (int64_t j = row.begin; j < row.end; ++j) {
      STD_TORCH_CHECK(0 <= all[j] && all[j] < row.length, "Position ", all[j], " is outside of the weight.");
    }
    entries.push_back(
        {reinterpret_cast<void*>(row.address), all + row.begin, row.end - row.begin, values + row.slot, bytes});
  }
  return entries;
}

// Asks for the memory of all entries while the arguments are still being checked. A prefetch never faults, so it
// does not matter whether the addresses still hold.
void prefetch(const Row* rows, size_t weights, const Tensor& positions) {
#if defined(__GNUC__)
  const int64_t* all = vector_of(positions);
  const int64_t count = std::min(positions.numel(), kFetched);
  for (size_t i = 0; i < weights; ++i) {
    const int64_t bytes = bytes_of(static_cast<Dtype>(rows[i].dtype));
    for (int64_t j = std::max<int64_t>(rows[i].begin, 0); j < std::min(rows[i].end, count); ++j) {
      const uint64_t offset = static_cast<uint64_t>(all[j]) * static_cast<uint64_t>(bytes);
      __builtin_prefetch(reinterpret_cast<const void*>(static_cast<uint64_t>(rows[i].address) + offset), 1);
    }
  }
#else
  (void)rows, (void)weights, (void)positions;
#endif
}

int64_t packed_fill_mean_(std::vector<Tensor> weights, Tensor table, Tensor positions, Tensor log, Tensor sums,
                          int64_t threads, std::string isa) {
  const Row* rows = rows_of(table, weights.size());
  prefetch(rows, weights.size(), positions);
  if (const int64_t at = moved(weights, rows); at != kNone) return elsewhere(at);
  STD_TORCH_CHECK(is_plain(sums) && sums.scalar_type() == ScalarType::Double &&
                      sums.numel() == 2 * static_cast<int64_t>(weights.size()),
                  "sums must be float64 [n, 2], contiguous on the CPU.");
  const auto* known = static_cast<const double*>(sums.const_data_ptr());
  std::vector<fill::Fill> fills;
  fills.reserve(weights.size());
  for (const fill::Entries& entries : entries_of(weights, rows, positions, log)) {
    const Row& row = rows[fills.size()];
    STD_TORCH_CHECK(entries.count < row.length || entries.count == 0, "A weight is masked entirely.");
    fills.push_back({entries.array, row.length, static_cast<Dtype>(row.dtype), entries.positions, entries.count,
                     entries.values, known + 2 * fills.size()});
  }
  return fill::masked_fill_mean(fills, isa_of(isa), threads_of(threads), torch_parallel);
}

int64_t packed_scatter_(std::vector<Tensor> weights, Tensor table, Tensor positions, Tensor values,
                        std::optional<Tensor> old, int64_t threads) {
  const Row* rows = rows_of(table, weights.size());
  prefetch(rows, weights.size(), positions);
  if (const int64_t at = moved(weights, rows); at != kNone) return elsewhere(at);
  const auto entries = entries_of(weights, rows, positions, values);
  if (old.has_value()) {
    fill::gather(entries_of(weights, rows, positions, *old), threads_of(threads), torch_parallel);
  }
  fill::scatter(entries, threads_of(threads), torch_parallel);
  return kNone;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tomfisher_cpp, m) {
  m.def(
      "packed_fill_mean_(Tensor(a!)[] weights, Tensor table, Tensor positions, Tensor(b!) log, Tensor sums, "
      "int threads, str isa=\"\") -> int");
  m.def(
      "packed_scatter_(Tensor(a!)[] weights, Tensor table, Tensor positions, Tensor values, Tensor(b!)? old, "
      "int threads) -> int");
}

// For every device, so that a weight that was moved to another one is reported like any other that is elsewhere.
STABLE_TORCH_LIBRARY_IMPL(tomfisher_cpp, CompositeExplicitAutograd, m) {
  m.impl("packed_fill_mean_", TORCH_BOX(&packed_fill_mean_));
  m.impl("packed_scatter_", TORCH_BOX(&packed_scatter_));
}
