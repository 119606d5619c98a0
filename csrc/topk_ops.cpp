// torch.ops.tomfisher_cpp.{topk, topk_across, topk_file}: tensors in, tensors out. Python checks arguments
// (tomfisher/ops/topk.py, tomfisher/ops/cpp); what is checked here again is what could read out of bounds.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "topk/select.h"
#include "topk_tensors.h"

namespace {

using namespace tomfisher::topk;

std::tuple<std::vector<Tensor>, Tensor> topk(std::vector<Tensor> flats, std::vector<int64_t> counts, int64_t threads) {
  STD_TORCH_CHECK(flats.size() == counts.size(), "Needs one k per vector.");
  std::vector<Tensor> indices;
  Tensor status = new_vector(static_cast<int64_t>(flats.size()));
  for (size_t i = 0; i < flats.size(); ++i) {
    const Source source = source_of({flats[i]});
    check_k(counts[i], source);
    indices.push_back(new_vector(counts[i]));
    with_format(source.format(), [&](auto format) {
      const auto found = select<format()>(source, counts[i], team_of(threads));
      write_indices<format()>(found, indices[i]);
      static_cast<int64_t*>(status.mutable_data_ptr())[i] = found.first_bad;
    });
  }
  return {std::move(indices), std::move(status)};
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

std::tuple<Tensor, Tensor, Tensor> topk_across(std::vector<Tensor> flats, int64_t k, int64_t threads) {
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

std::tuple<Tensor, Tensor, Tensor> topk_file(std::string path, int64_t offset, int64_t count, ScalarType dtype,
                                             int64_t k, int64_t threads) {
  STD_TORCH_CHECK(offset >= 0, "An offset cannot be negative, got ", offset, ".");
  const Format kind = format_of(dtype);
  const File file(path);
  const Source source({{count, nullptr, &file, static_cast<uint64_t>(offset)}}, kind);
  check_k(k, source);
  Tensor values = new_vector(k, dtype), indices = new_vector(k), status = new_vector(1);
  with_format(kind, [&](auto format) {
    const auto found = select<format()>(source, k, team_of(threads));
    write_indices<format()>(found, indices);
    write_values<format()>(found, values);
    static_cast<int64_t*>(status.mutable_data_ptr())[0] = found.first_bad;
  });
  return {std::move(values), std::move(indices), std::move(status)};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tomfisher_cpp, m) {
  m.def("topk(Tensor[] flats, int[] counts, int threads) -> (Tensor[], Tensor)");
  m.def("topk_across(Tensor[] flats, int k, int threads) -> (Tensor, Tensor, Tensor)");
  m.def("topk_file(str path, int offset, int count, ScalarType dtype, int k, int threads) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tomfisher_cpp, CPU, m) {
  m.impl("topk", TORCH_BOX(&topk));
  m.impl("topk_across", TORCH_BOX(&topk_across));
}

STABLE_TORCH_LIBRARY_IMPL(tomfisher_cpp, CompositeExplicitAutograd, m) { m.impl("topk_file", TORCH_BOX(&topk_file)); }
