// torch.ops.tomfisher_cpp.{select, select_file, select_across}: selections and summaries from one pass; k = 0 gives the
// summary alone, and without thresholds there is none. Python checks arguments (tomfisher/ops/select.py); what is
// checked here again is what could read out of bounds.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "stable_parallel.h"
#include "tensors.h"
#include "topk/select.h"

namespace {

using namespace tomfisher::topk;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Format format_of(ScalarType dtype) {
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

Team team_of(int64_t threads) { return {tomfisher::threads_of(threads), tomfisher::torch_parallel}; }

Source source_of(const std::vector<Tensor>& flats) {
  std::vector<Piece> pieces;
  for (const Tensor& flat : flats) {
    STD_TORCH_CHECK(tomfisher::is_plain(flat), "values must be contiguous tensors on the CPU.");
    STD_TORCH_CHECK(flat.scalar_type() == flats[0].scalar_type(), "All values must have one dtype.");
    pieces.push_back({flat.numel(), flat.const_data_ptr(), nullptr, 0});
  }
  return Source(std::move(pieces), flats.empty() ? Format::f32 : format_of(flats[0].scalar_type()));
}

void check_k(int64_t k, const Source& source) {
  STD_TORCH_CHECK(0 <= k && k <= source.size(), "k must be between 0 and ", source.size(), ", got ", k, ".");
}

Tensor new_vector(int64_t size, ScalarType dtype = ScalarType::Long) {
  const int64_t sizes[] = {size};
  return torch::stable::empty({sizes, 1}, dtype);
}

Tensor vector_of(const std::vector<int64_t>& numbers) {
  Tensor out = new_vector(static_cast<int64_t>(numbers.size()));
  std::copy(numbers.begin(), numbers.end(), static_cast<int64_t*>(out.mutable_data_ptr()));
  return out;
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

// One pass over a source.
struct Pass {
  Tensor indices;
  std::optional<Parts> parts;  // with thresholds
  int64_t first_bad;
};

template <Format F>
Parts parts_of(const Summary<F>& summary, ScalarType dtype) {
  Tensor extremes = new_vector(2, dtype);
  write_number<F>(summary.smallest, extremes, 0);
  write_number<F>(summary.largest, extremes, 1);
  return {extremes, vector_of(summary.histogram), vector_of(summary.above)};
}

// Needs a k that fits; writes the selected values to `values` unless that is null.
Pass pass(const Source& source, ScalarType dtype, int64_t k, const std::optional<Tensor>& thresholds, int64_t threads,
          const Tensor* values = nullptr) {
  const Tensor indices = new_vector(k);
  return with_format(source.format(), [&](auto format) -> Pass {
    std::optional<Thresholds> keys;
    if (thresholds) keys = keys_of<format()>(*thresholds);
    auto found = select<format()>(source, k, team_of(threads), keys ? &*keys : nullptr);
    write_indices<format()>(found, indices);
    if (values != nullptr) write_values<format()>(found, *values);
    if (!keys) return {indices, std::nullopt, found.first_bad};
    if (!found.summary) {  // NaN or infinity: shapes alone count
      found.summary.emplace();
      found.summary->above.assign(keys->size(), 0);
    }
    return {indices, parts_of<format()>(*found.summary, dtype), found.first_bad};
  });
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>, Tensor> select_each(
    std::vector<Tensor> flats, std::vector<int64_t> counts, std::optional<Tensor> thresholds, int64_t threads) {
  STD_TORCH_CHECK(flats.size() == counts.size(), "Needs one k per vector.");
  std::vector<Tensor> indices, extremes, histograms, above;
  std::vector<int64_t> status;
  for (size_t i = 0; i < flats.size(); ++i) {
    const Source source = source_of({flats[i]});
    check_k(counts[i], source);
    const Pass found = pass(source, flats[i].scalar_type(), counts[i], thresholds, threads);
    indices.push_back(found.indices);
    status.push_back(found.first_bad);
    if (!found.parts) continue;
    extremes.push_back(std::get<0>(*found.parts));
    histograms.push_back(std::get<1>(*found.parts));
    above.push_back(std::get<2>(*found.parts));
  }
  return {std::move(indices), std::move(extremes), std::move(histograms), std::move(above), vector_of(status)};
}

// For each index over all pieces the piece that it lies in; `position` becomes the index within it.
void locate(const std::vector<Tensor>& flats, int64_t k, int64_t* position, int64_t* owner) {
  std::vector<int64_t> ends;
  int64_t end = 0;
  for (const Tensor& flat : flats) ends.push_back(end += flat.numel());
  for (int64_t i = 0; i < k; ++i) {
    const auto at = std::upper_bound(ends.begin(), ends.end(), position[i]) - ends.begin();
    owner[i] = at;
    if (at > 0) position[i] -= ends[static_cast<size_t>(at - 1)];
  }
}

std::tuple<Tensor, Tensor, Tensor> select_across(std::vector<Tensor> flats, int64_t k, int64_t threads) {
  const Source source = source_of(flats);
  check_k(k, source);
  Tensor owners = new_vector(k), indices = new_vector(k), status = new_vector(static_cast<int64_t>(flats.size()));
  auto* bad = static_cast<int64_t*>(status.mutable_data_ptr());
  std::fill_n(bad, flats.size(), int64_t{-1});
  with_format(source.format(), [&](auto format) {
    const auto found = select<format()>(source, k, team_of(threads));
    write_indices<format()>(found, indices);
    if (found.first_bad < 0) return;
    int64_t position = found.first_bad, first = 0;
    locate(flats, 1, &position, &first);
    bad[first] = position;
    for (auto i = static_cast<size_t>(first) + 1; i < flats.size(); ++i) {
      bad[i] = first_non_finite<format()>(source_of({flats[i]}), team_of(threads));
    }
  });
  locate(flats, k, static_cast<int64_t*>(indices.mutable_data_ptr()), static_cast<int64_t*>(owners.mutable_data_ptr()));
  return {std::move(owners), std::move(indices), std::move(status)};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>, int64_t> select_file(std::string path, int64_t offset, int64_t count,
                                                                     ScalarType dtype, int64_t k,
                                                                     std::optional<Tensor> thresholds,
                                                                     int64_t threads) {
  STD_TORCH_CHECK(offset >= 0, "An offset cannot be negative, got ", offset, ".");
  const File file(path);
  const Source source({{count, nullptr, &file, static_cast<uint64_t>(offset)}}, format_of(dtype));
  check_k(k, source);
  const Tensor values = new_vector(k, dtype);
  const Pass found = pass(source, dtype, k, thresholds, threads, &values);
  std::vector<Tensor> parts;
  if (found.parts) parts = {std::get<0>(*found.parts), std::get<1>(*found.parts), std::get<2>(*found.parts)};
  return {values, found.indices, std::move(parts), found.first_bad};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tomfisher_cpp, m) {
  m.def(
      "select(Tensor[] flats, int[] counts, Tensor? thresholds, int threads) -> "
      "(Tensor[], Tensor[], Tensor[], Tensor[], Tensor)");
  m.def("select_across(Tensor[] flats, int k, int threads) -> (Tensor, Tensor, Tensor)");
  m.def(
      "select_file(str path, int offset, int count, ScalarType dtype, int k, Tensor? thresholds, int threads) -> "
      "(Tensor, Tensor, Tensor[], int)");
}

STABLE_TORCH_LIBRARY_IMPL(tomfisher_cpp, CPU, m) {
  m.impl("select", TORCH_BOX(&select_each));
  m.impl("select_across", TORCH_BOX(&select_across));
}

STABLE_TORCH_LIBRARY_IMPL(tomfisher_cpp, CompositeExplicitAutograd, m) {
  m.impl("select_file", TORCH_BOX(&select_file));
}
