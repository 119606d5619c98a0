// torch.ops.tomfisher_cpp.{summary, summary_file}. Python checks arguments (tomfisher/ops/summary.py); what is
// checked here again is what could read out of bounds.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "topk/summary.h"
#include "topk_tensors.h"

namespace {

using namespace tomfisher::topk;

// Smallest and largest, histogram, counts above the thresholds, first NaN or infinity.
using Parts = std::tuple<Tensor, Tensor, Tensor, int64_t>;

Tensor vector_of(const std::vector<int64_t>& numbers) {
  Tensor out = new_vector(static_cast<int64_t>(numbers.size()));
  std::copy(numbers.begin(), numbers.end(), static_cast<int64_t*>(out.mutable_data_ptr()));
  return out;
}

Parts summary_of(const Source& source, ScalarType dtype, const Tensor& thresholds, int64_t threads) {
  STD_TORCH_CHECK(tomfisher::is_plain(thresholds) && thresholds.scalar_type() == ScalarType::Double,
                  "thresholds must be a contiguous float64 vector on the CPU.");
  const auto* numbers = static_cast<const double*>(thresholds.const_data_ptr());
  return with_format(source.format(), [&](auto format) -> Parts {
    using Bits = typename Traits<format()>::Bits;
    std::vector<int64_t> keys;
    for (int64_t i = 0; i < thresholds.numel(); ++i) keys.push_back(key_at_most<format()>(numbers[i]));
    const auto found = summarize<format()>(source, keys, team_of(threads));
    Tensor extremes = new_vector(2, dtype);
    auto* bits = static_cast<Bits*>(extremes.mutable_data_ptr());
    bits[0] = from_key<Bits>(static_cast<std::make_signed_t<Bits>>(found.smallest));
    bits[1] = from_key<Bits>(static_cast<std::make_signed_t<Bits>>(found.largest));
    return {extremes, vector_of(found.histogram), vector_of(found.above), found.first_bad};
  });
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, Tensor> summary(std::vector<Tensor> flats,
                                                                                          Tensor thresholds,
                                                                                          int64_t threads) {
  std::vector<Tensor> extremes, histograms, above;
  std::vector<int64_t> status;
  for (const Tensor& flat : flats) {
    const Source source = source_of({flat});
    auto parts = summary_of(source, flat.scalar_type(), thresholds, threads);
    extremes.push_back(std::get<0>(parts));
    histograms.push_back(std::get<1>(parts));
    above.push_back(std::get<2>(parts));
    status.push_back(std::get<3>(parts));
  }
  return {std::move(extremes), std::move(histograms), std::move(above), vector_of(status)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> summary_file(std::string path, int64_t offset, int64_t count,
                                                        ScalarType dtype, Tensor thresholds, int64_t threads) {
  STD_TORCH_CHECK(offset >= 0, "An offset cannot be negative, got ", offset, ".");
  const Format kind = format_of(dtype);
  const File file(path);
  const Source source({{count, nullptr, &file, static_cast<uint64_t>(offset)}}, kind);
  auto [extremes, histogram, above, first] = summary_of(source, dtype, thresholds, threads);
  return {extremes, histogram, above, vector_of({first})};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tomfisher_cpp, m) {
  m.def("summary(Tensor[] flats, Tensor thresholds, int threads) -> (Tensor[], Tensor[], Tensor[], Tensor)");
  m.def(
      "summary_file(str path, int offset, int count, ScalarType dtype, Tensor thresholds, int threads) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tomfisher_cpp, CPU, m) { m.impl("summary", TORCH_BOX(&summary)); }

STABLE_TORCH_LIBRARY_IMPL(tomfisher_cpp, CompositeExplicitAutograd, m) {
  m.impl("summary_file", TORCH_BOX(&summary_file));
}
