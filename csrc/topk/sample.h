// A look at a small part of the data before the pass: a first bound that only speed depends on.
#pragma once

#include <cstdint>

#include "topk/source.h"

namespace tomfisher::topk {

// A sample is `runs` runs of `run` neighbours each, one run in each of as many equal stretches of the data.
struct SamplePlan {
  std::int64_t runs = 0, run = 0;  // no runs: not worth it
};
SamplePlan plan_sample(const Source& source);

// Index of the first entry of run `i`: somewhere in its stretch, so that no period of the data (rows of a
// matrix) is always met at the same place, and at the same place in every call.
std::int64_t sample_start(std::int64_t i, std::int64_t stretch, std::int64_t run);

// A key that about k entries, rather more, reach; below_all + 1 where there is no sample.
template <Format F>
std::int64_t estimate(const Source& source, std::int64_t k);

}  // namespace tomfisher::topk
