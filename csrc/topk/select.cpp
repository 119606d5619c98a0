#include "topk/select.h"

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
  FirstBad bad;
  ChunkQueue queue(source);
  run_lanes(lanes_for(source, team), team, [&](int) {
    Scanner<F> scanner;
    std::vector<unsigned char> buffer;
    const auto visit = [&](const auto* tile, std::size_t count, std::int64_t index) {
      scanner.hits(tile, count, above_all<F>());
      if (!scanner.finite()) bad.publish(index + first_bad_of<F>(tile, count));
      return scanner.finite();
    };
    while (const Chunk* chunk = queue.next()) {
      if (bad.before(chunk->index) || !each_tile<F>(source, *chunk, buffer, visit)) break;
    }
  });
  return bad.index();
}

#define TOMFISHER_INSTANTIATE(F)                                             \
  template Selection<F> select<F>(const Source&, std::int64_t, const Team&); \
  template std::int64_t first_non_finite<F>(const Source&, const Team&);
TOMFISHER_INSTANTIATE(Format::f16)
TOMFISHER_INSTANTIATE(Format::bf16)
TOMFISHER_INSTANTIATE(Format::f32)
TOMFISHER_INSTANTIATE(Format::f64)
#undef TOMFISHER_INSTANTIATE

}  // namespace tomfisher::topk
