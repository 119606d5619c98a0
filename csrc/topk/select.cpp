#include "topk/select.h"

#include "topk/tally.h"
#include "topk/walk.h"

namespace tomfisher::topk {
namespace {

// Beyond one in this many the candidates are a noticeable part of the data, and counting is quicker.
constexpr std::int64_t kStreamingShare = 128;
constexpr std::int64_t kSmall = std::int64_t{1} << 16;

// A pass that selects nothing: where the first NaN or infinity is, and the summary if one is wanted.
template <Format F>
Selection<F> look(const Source& source, const Team& team, const Thresholds* thresholds) {
  FirstBad bad;
  Sums<F> sums(thresholds);
  ChunkQueue queue(source);
  run_lanes(lanes_for(source, team), team, [&](int) {
    Scanner<F> scanner;
    Tally<F> tally(thresholds);
    std::vector<unsigned char> buffer;
    const auto visit = [&](const auto* tile, std::size_t count, std::int64_t index) {
      tally.count(tile, count);
      scanner.hits(tile, count, above_all<F>());
      if (!scanner.finite()) bad.publish(index + first_bad_of<F>(tile, count));
      return scanner.finite();
    };
    while (const Chunk* chunk = queue.next()) {
      if (bad.before(chunk->index) || !each_tile<F>(source, *chunk, buffer, visit)) break;
    }
    sums.add(tally, scanner);
  });
  Selection<F> out;
  out.first_bad = bad.index();
  if (out.first_bad < 0) out.summary = sums.take();
  return out;
}

}  // namespace

template <Format F>
Selection<F> select(const Source& source, std::int64_t k, const Team& team, const Thresholds* thresholds) {
  if (k == 0) return look<F>(source, team, thresholds);
  Selection<F> out;
  const bool streaming = k <= source.size() / kStreamingShare || source.size() <= kSmall;
  if (streaming && stream_select<F>(source, k, team, thresholds, out)) {
    out.method = Method::streaming;
    return out;
  }
  return count_select<F>(source, k, team, thresholds);
}

template <Format F>
std::int64_t first_non_finite(const Source& source, const Team& team) {
  return look<F>(source, team, nullptr).first_bad;
}

#define TOMFISHER_INSTANTIATE(F)                                                                \
  template Selection<F> select<F>(const Source&, std::int64_t, const Team&, const Thresholds*); \
  template std::int64_t first_non_finite<F>(const Source&, const Team&);
TOMFISHER_INSTANTIATE(Format::f16)
TOMFISHER_INSTANTIATE(Format::bf16)
TOMFISHER_INSTANTIATE(Format::f32)
TOMFISHER_INSTANTIATE(Format::f64)
#undef TOMFISHER_INSTANTIATE

}  // namespace tomfisher::topk
