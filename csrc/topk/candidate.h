// Entries that may be among the k largest, and the three things done with them.
//
// A list of candidates is kept by ascending index throughout, so "the first of equals" is a matter of position.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace tomfisher::topk {

template <typename Key>
struct Candidate {
  std::int64_t index;
  Key key;
};

template <typename Key>
using Candidates = std::vector<Candidate<Key>>;

// Keeps the `k` largest, the lower index first among equals, in their order; `scratch` is memory to reuse.
// Returns the smallest key kept. Needs 0 < k <= list.size().
template <typename Key>
Key keep_largest(Candidates<Key>& list, std::size_t k, std::vector<Key>& scratch);

// One list by ascending index from several such lists, which are emptied.
template <typename Key>
Candidates<Key> merge_by_index(std::vector<Candidates<Key>>& lists);

// From ascending index to descending key, equal keys left as they are: a stable radix sort.
template <typename Key>
void order_by_key(Candidates<Key>& list);

}  // namespace tomfisher::topk
