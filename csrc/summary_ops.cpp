// torch.ops.tomfisher_cpp.{topk_summary, topk_summary_file}: a selection and a summary from one pass; k = 0 gives the
// summary alone. Python checks arguments (tomfisher/ops/summary.py, topk_summary.py); what is checked here again is
// what could read out of bounds.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "topk/select.h"
#include "topk_tensors.h"

namespace {

using namespace tomfisher::topk;

Tensor vector_of(const std::vector<int64_t>& numbers) {
  Tensor out = new_vector(static_cast<int64_t>(numbers.size()));
  std::copy(numbers.begin(), numbers.end(), static_cast<int64_t*>(out.mutable_data_ptr()));
  return out;
}

template <Format F>
Thresholds keys_of(const Tensor& thresholds) {
  STD_TORCH_CHECK(tomfisher::is_plain(thresholds) && thresholds.scalar_type() == ScalarType::Double,
                  "thresholds must be a contiguous float64 vector on the CPU.");
  const auto* numbers = static_cast<const double*>(thresholds.const_data_ptr());
  Thresholds keys;
  for (int64_t i = 0; i < thresholds.numel(); ++i) keys.push_back(key_at_most<F>(numbers[i]));
  return keys;
}

// Smallest and largest, histogram, counts above the thresholds.
using Parts = std::tuple<Tensor, Tensor, Tensor>;

template <Format F>
Parts parts_of(Selection<F>& found, ScalarType dtype, int64_t thresholds) {
  if (!found.summary) {  // NaN or infinity: shapes alone count
    found.summary.emplace();
    found.summary->above.assign(static_cast<size_t>(thresholds), 0);
  }
  Tensor extremes = new_vector(2, dtype);
  write_number<F>(found.summary->smallest, extremes, 0);
  write_number<F>(found.summary->largest, extremes, 1);
  return {extremes, vector_of(found.summary->histogram), vector_of(found.summary->above)};
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, Tensor> topk_summary(
    std::vector<Tensor> flats, std::vector<int64_t> counts, Tensor thresholds, int64_t threads) {
  STD_TORCH_CHECK(flats.size() == counts.size(), "Needs one k per vector.");
  std::vector<Tensor> indices, extremes, histograms, above;
  std::vector<int64_t> status;
  for (size_t i = 0; i < flats.size(); ++i) {
    const Source source = source_of({flats[i]});
    check_k(counts[i], source);
    indices.push_back(new_vector(counts[i]));
    with_format(source.format(), [&](auto format) {
      const Thresholds keys = keys_of<format()>(thresholds);
      auto found = select<format()>(source, counts[i], team_of(threads), &keys);
      write_indices<format()>(found, indices[i]);
      auto [extreme, histogram, larger] = parts_of<format()>(found, flats[i].scalar_type(), thresholds.numel());
      extremes.push_back(extreme);
      histograms.push_back(histogram);
      above.push_back(larger);
      status.push_back(found.first_bad);
    });
  }
  return {std::move(indices), std::move(extremes), std::move(histograms), std::move(above), vector_of(status)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> topk_summary_file(std::string path, int64_t offset,
                                                                             int64_t count, ScalarType dtype, int64_t k,
                                                                             Tensor thresholds, int64_t threads) {
  STD_TORCH_CHECK(offset >= 0, "An offset cannot be negative, got ", offset, ".");
  const Format kind = format_of(dtype);
  const File file(path);
  const Source source({{count, nullptr, &file, static_cast<uint64_t>(offset)}}, kind);
  check_k(k, source);
  Tensor values = new_vector(k, dtype), indices = new_vector(k);
  return with_format(kind, [&](auto format) -> std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> {
    const Thresholds keys = keys_of<format()>(thresholds);
    auto found = select<format()>(source, k, team_of(threads), &keys);
    write_indices<format()>(found, indices);
    write_values<format()>(found, values);
    auto [extremes, histogram, above] = parts_of<format()>(found, dtype, thresholds.numel());
    return {values, indices, extremes, histogram, above, vector_of({found.first_bad})};
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tomfisher_cpp, m) {
  m.def(
      "topk_summary(Tensor[] flats, int[] counts, Tensor thresholds, int threads) -> "
      "(Tensor[], Tensor[], Tensor[], Tensor[], Tensor)");
  m.def(
      "topk_summary_file(str path, int offset, int count, ScalarType dtype, int k, Tensor thresholds, int threads) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tomfisher_cpp, CPU, m) { m.impl("topk_summary", TORCH_BOX(&topk_summary)); }

STABLE_TORCH_LIBRARY_IMPL(tomfisher_cpp, CompositeExplicitAutograd, m) {
  m.impl("topk_summary_file", TORCH_BOX(&topk_summary_file));
}
