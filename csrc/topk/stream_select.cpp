// One pass: keep what exceeds a rising bound, and cut down to the k largest whenever a buffer is full.
#include <utility>

#include "topk/collector.h"
#include "topk/sample.h"
#include "topk/select.h"
#include "topk/tally.h"
#include "topk/walk.h"

namespace tomfisher::topk {

template <Format F>
bool stream_select(const Source& source, std::int64_t k, const Team& team, const Thresholds* thresholds,
                   Selection<F>& out) {
  using Key = typename Traits<F>::Key;
  const std::int64_t limit = estimate<F>(source, k) - 1;
  const int lanes = lanes_for(source, team);
  Shared shared;
  Sums<F> sums(thresholds);
  ChunkQueue queue(source);
  std::vector<Candidates<Key>> lists(static_cast<std::size_t>(lanes));
  std::atomic<bool> enough{false};
  run_lanes(lanes, team, [&](int lane) {
    Collector<F> collector(static_cast<std::size_t>(k), limit, shared);
    Tally<F> tally(thresholds);
    std::vector<unsigned char> buffer;
    const auto visit = [&](const auto* tile, std::size_t count, std::int64_t index) {
      tally.count(tile, count);
      return collector.visit(tile, count, index);
    };
    while (const Chunk* chunk = queue.next()) {
      if (shared.bad.before(chunk->index) || shared.too_many.load(std::memory_order_relaxed)) break;
      if (!each_tile<F>(source, *chunk, buffer, visit)) break;
    }
    if (collector.has_cut()) enough.store(true, std::memory_order_relaxed);
    sums.add(tally, collector.scanner());
    lists[static_cast<std::size_t>(lane)] = std::move(collector.kept());
  });
  out.first_bad = shared.bad.index();
  if (shared.too_many.load()) return false;
  if (out.first_bad >= 0) return true;
  std::size_t total = 0;
  for (const auto& list : lists) total += list.size();
  // fewer than k: the estimate was too high (a thread that has cut holds k by itself)
  if (!enough.load() && total < static_cast<std::size_t>(k)) return false;
  out.entries = merge_by_index(lists);
  std::vector<Key> scratch;
  keep_largest(out.entries, static_cast<std::size_t>(k), scratch);
  order_by_key(out.entries);
  out.summary = sums.take();
  return true;
}

#define TOMFISHER_INSTANTIATE(F) \
  template bool stream_select<F>(const Source&, std::int64_t, const Team&, const Thresholds*, Selection<F>&);
TOMFISHER_INSTANTIATE(Format::f16)
TOMFISHER_INSTANTIATE(Format::bf16)
TOMFISHER_INSTANTIATE(Format::f32)
TOMFISHER_INSTANTIATE(Format::f64)
#undef TOMFISHER_INSTANTIATE

}  // namespace tomfisher::topk
