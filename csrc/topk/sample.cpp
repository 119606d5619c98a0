#include "topk/sample.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace tomfisher::topk {
namespace {

// In memory neighbours cost nothing once a cache line is there.
constexpr std::int64_t kRunInMemory = 8;
constexpr std::int64_t kRunsInMemory = 8192;
constexpr std::int64_t kWorthSampling = 16 * kRunInMemory * kRunsInMemory;
// In a file a page is read whole; one per so many bytes is quick next to reading them all, from a disk too.
constexpr std::int64_t kPage = 4096;
constexpr std::int64_t kBytesPerPage = std::int64_t{1} << 20;
constexpr std::int64_t kFewestPages = 64;
constexpr std::int64_t kMostPages = 256;
// Standard deviations between what is expected and what is asked of the sample.
constexpr double kMargin = 6;

template <typename Key>
struct Sampled {
  Key key;
  std::uint32_t run;
};

template <Format F>
using Sample = std::vector<Sampled<typename Traits<F>::Key>>;

template <Format F>
Sample<F> take(const Source& source, const SamplePlan& plan) {
  Sample<F> sample;
  sample.reserve(static_cast<std::size_t>(plan.runs * plan.run));
  const std::int64_t stretch = source.size() / plan.runs;
  std::vector<unsigned char> buffer;
  auto chunk = source.chunks().begin();
  for (std::int64_t i = 0; i < plan.runs; ++i) {
    const std::int64_t start = sample_start(i, stretch, plan.run);
    while (start >= chunk->index + chunk->count) ++chunk;
    const std::int64_t skip = start - chunk->index, count = std::min(plan.run, chunk->count - skip);
    const auto* bits = static_cast<const typename Traits<F>::Bits*>(source.numbers(*chunk, buffer, skip, count));
    for (std::int64_t j = 0; j < count; ++j) {
      sample.push_back({static_cast<typename Traits<F>::Key>(to_key(bits[j])), static_cast<std::uint32_t>(i)});
    }
  }
  return sample;
}

// How many of the sample to ask for where `expected` are needed and every hit stands for `alike` hits.
double rank_for(double expected, double alike) { return expected + kMargin * std::sqrt(expected * alike) + 2 * alike; }

// The first key, going down, with enough of the sample at or above it. Neighbours are often alike, so the
// variance of a count is taken from how unevenly the runs hold what has been passed.
template <typename Key>
Key walk_down(const std::vector<Sampled<Key>>& top, const SamplePlan& plan, double expected) {
  std::vector<std::uint32_t> counts(static_cast<std::size_t>(plan.runs), 0);
  double passed = 0, squares = 0;
  for (const auto& one : top) {
    squares += 2 * counts[one.run]++ + 1;
    ++passed;
    const double alike = std::max(1.0, (squares - passed * passed / static_cast<double>(plan.runs)) / passed);
    if (passed >= rank_for(expected, alike)) return one.key;
  }
  return top.back().key;
}

}  // namespace

SamplePlan plan_sample(const Source& source) {
  if (source.in_memory()) {
    return source.size() < kWorthSampling ? SamplePlan{} : SamplePlan{kRunsInMemory, kRunInMemory};
  }
  const auto bytes = static_cast<std::int64_t>(bytes_of(source.format()));
  const std::int64_t pages = std::min(kMostPages, source.size() / (kBytesPerPage / bytes));
  return pages < kFewestPages ? SamplePlan{} : SamplePlan{pages, kPage / bytes};
}

std::int64_t sample_start(std::int64_t i, std::int64_t stretch, std::int64_t run) {
  // the finalizer of splitmix64: neighbouring i give unrelated places
  auto mixed = static_cast<std::uint64_t>(i) + 0x9e3779b97f4a7c15u;
  mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
  mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
  mixed ^= mixed >> 31;
  return i * stretch + static_cast<std::int64_t>(mixed % static_cast<std::uint64_t>(stretch - run + 1));
}

template <Format F>
std::int64_t estimate(const Source& source, std::int64_t k) {
  using Key = typename Traits<F>::Key;
  const SamplePlan plan = plan_sample(source);
  if (plan.runs == 0) return below_all<F>() + 1;
  Sample<F> sample = take<F>(source, plan);
  const double share = static_cast<double>(sample.size()) / static_cast<double>(source.size());
  const double expected = static_cast<double>(k) * share;
  // no more are needed even if the members of a run are all alike
  const double most = rank_for(expected, static_cast<double>(plan.run));
  if (most >= static_cast<double>(sample.size())) return below_all<F>() + 1;
  const auto larger = [](const Sampled<Key>& a, const Sampled<Key>& b) { return a.key > b.key; };
  const auto end = sample.begin() + static_cast<std::ptrdiff_t>(most) + 1;
  std::nth_element(sample.begin(), end - 1, sample.end(), larger);
  sample.erase(end, sample.end());
  std::sort(sample.begin(), sample.end(), larger);
  return std::clamp<std::int64_t>(walk_down(sample, plan, expected), below_all<F>() + 1, above_all<F>() - 1);
}

template std::int64_t estimate<Format::f16>(const Source&, std::int64_t);
template std::int64_t estimate<Format::bf16>(const Source&, std::int64_t);
template std::int64_t estimate<Format::f32>(const Source&, std::int64_t);
template std::int64_t estimate<Format::f64>(const Source&, std::int64_t);

}  // namespace tomfisher::topk
