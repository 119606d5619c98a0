#include "topk/select.h"

#include <mutex>

#include "topk/walk.h"

namespace tomfisher::topk {
namespace {

// Beyond one in this many the candidates are a noticeable part of the data, and counting is quicker.
constexpr std::int64_t kStreamingShare = 128;
constexpr std::int64_t kSmall = std::int64_t{1} << 16;

}  // namespace

template <Format F>
Selection<F> select(const Source& source, std::int64_t k, const Team& team) {
  Selection<F> out;
  if (k == 0) {
    out.first_bad = first_non_finite<F>(source, team);
    return out;
  }
  const bool streaming = k <= source.size() / kStreamingShare || source.size() <= kSmall;
  if (streaming && stream_select<F>(source, k, team, out)) {
    out.road = Road::streaming;
    return out;
  }
  return count_select<F>(source, k, team);
}

template <Format F>
std::int64_t first_non_finite(const Source& source, const Team& team) {
  return summarize<F>(source, {}, team).first_bad;
}

template <Format F>
Summary<F> summarize(const Source& source, const std::vector<std::int64_t>& thresholds, const Team& team) {
  Summary<F> out;
  out.above.assign(thresholds.size(), 0);
  FirstBad bad;
  ChunkQueue queue(source);
  std::mutex guard;
  bool any = false;
  run_lanes(lanes_for(source, team), team, [&](int) {
    Scanner<F> scanner;
    std::vector<unsigned char> buffer;
    std::vector<std::int64_t> above(thresholds.size(), 0);
    bool visited = false;
    const auto visit = [&](const auto* tile, std::size_t count, std::int64_t index) {
      scanner.hits(tile, count, above_all<F>());
      visited = true;
      if (!scanner.finite()) {
        bad.publish(index + first_bad_of<F>(tile, count));
        return false;
      }
      for (std::size_t t = 0; t < thresholds.size(); ++t) {
        std::int64_t larger = 0;
        for (std::size_t i = 0; i < count; ++i) larger += to_key(tile[i]) > thresholds[t];
        above[t] += larger;
      }
      return true;
    };
    while (const Chunk* chunk = queue.next()) {
      if (bad.before(chunk->index) || !each_tile<F>(source, *chunk, buffer, visit)) break;
    }
    if (!visited) return;
    const std::lock_guard<std::mutex> lock(guard);
    out.smallest = any ? std::min(out.smallest, scanner.smallest()) : scanner.smallest();
    out.largest = any ? std::max(out.largest, scanner.largest()) : scanner.largest();
    any = true;
    for (std::size_t t = 0; t < thresholds.size(); ++t) out.above[t] += above[t];
  });
  out.first_bad = bad.index();
  return out;
}

#define TOMFISHER_INSTANTIATE(F)                                             \
  template Selection<F> select<F>(const Source&, std::int64_t, const Team&); \
  template std::int64_t first_non_finite<F>(const Source&, const Team&);     \
  template Summary<F> summarize<F>(const Source&, const std::vector<std::int64_t>&, const Team&);
TOMFISHER_INSTANTIATE(Format::f16)
TOMFISHER_INSTANTIATE(Format::bf16)
TOMFISHER_INSTANTIATE(Format::f32)
TOMFISHER_INSTANTIATE(Format::f64)
#undef TOMFISHER_INSTANTIATE

}  // namespace tomfisher::topk
