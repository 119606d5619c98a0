// The k largest of any number of numbers, exactly: csrc/README.md has the method and the proof.
#pragma once

#include <cstdint>
#include <optional>

#include "topk/candidate.h"
#include "topk/source.h"
#include "topk/summary.h"
#include "topk/team.h"

namespace tomfisher::topk {

template <Format F>
using Found = Candidates<typename Traits<F>::Key>;

// How a selection went; for tests and measurements.
enum class Method { nothing, streaming, counting };

template <Format F>
struct Selection {
  Found<F> entries;             // by descending key, then ascending index; empty where first_bad is not -1
  std::int64_t first_bad = -1;  // index of the first NaN or infinity
  Method method = Method::nothing;
  std::optional<Summary<F>> summary;  // of all entries, if asked for and first_bad is -1
};

// Needs 0 <= k <= source.size() and a source of format F. With `thresholds` the pass counts for a summary as well:
// k = 0 gives the summary alone.
template <Format F>
Selection<F> select(const Source& source, std::int64_t k, const Team& team, const Thresholds* thresholds = nullptr);

// select by one streaming pass. False if it gave up (an estimate that was too high, or too many hits to be
// quick): then `out` is unspecified and count_select has the answer. Needs k > 0.
template <Format F>
bool stream_select(const Source& source, std::int64_t k, const Team& team, const Thresholds* thresholds,
                   Selection<F>& out);

// select by counting digits of the keys: several passes whose time does not depend on the values; the last of them
// counts for the summary. Needs k > 0.
template <Format F>
Selection<F> count_select(const Source& source, std::int64_t k, const Team& team,
                          const Thresholds* thresholds = nullptr);

// Index of the first NaN or infinity, -1 without any.
template <Format F>
std::int64_t first_non_finite(const Source& source, const Team& team);

}  // namespace tomfisher::topk
