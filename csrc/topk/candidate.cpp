#include "topk/candidate.h"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <type_traits>
#include <utility>

namespace tomfisher::topk {
namespace {

constexpr int kDigitBits = 11;
constexpr std::size_t kDigits = std::size_t{1} << kDigitBits;
// Below this many, comparing beats counting digits.
constexpr std::size_t kFew = 4096;

// Descending keys as ascending unsigned integers.
template <typename Key>
std::make_unsigned_t<Key> descending(Key key) {
  using Unsigned = std::make_unsigned_t<Key>;
  return static_cast<Unsigned>(std::numeric_limits<Key>::max()) - static_cast<Unsigned>(key);
}

}  // namespace

template <typename Key>
Key keep_largest(Candidates<Key>& list, std::size_t k, std::vector<Key>& scratch) {
  scratch.resize(list.size());
  for (std::size_t i = 0; i < list.size(); ++i) scratch[i] = list[i].key;
  const auto nth = scratch.begin() + static_cast<std::ptrdiff_t>(k - 1);
  std::nth_element(scratch.begin(), nth, scratch.end(), std::greater<Key>());
  const Key least = *nth;
  // what nth_element put before the k-th is at least as large: the rest of the k are ties, lowest index first
  auto ties =
      static_cast<std::ptrdiff_t>(k) - std::count_if(scratch.begin(), nth, [&](Key key) { return key > least; });
  std::size_t kept = 0;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const Candidate<Key> entry = list[i];
    if (entry.key > least || (entry.key == least && ties-- > 0)) list[kept++] = entry;
  }
  list.resize(kept);
  return least;
}

template <typename Key>
Candidates<Key> merge_by_index(std::vector<Candidates<Key>>& lists) {
  const auto lower = [](const Candidate<Key>& a, const Candidate<Key>& b) { return a.index < b.index; };
  while (lists.size() > 1) {
    std::vector<Candidates<Key>> merged;
    for (std::size_t i = 0; i + 1 < lists.size(); i += 2) {
      Candidates<Key> both(lists[i].size() + lists[i + 1].size());
      std::merge(lists[i].begin(), lists[i].end(), lists[i + 1].begin(), lists[i + 1].end(), both.begin(), lower);
      merged.push_back(std::move(both));
      Candidates<Key>().swap(lists[i]);
      Candidates<Key>().swap(lists[i + 1]);
    }
    if (lists.size() % 2 == 1) merged.push_back(std::move(lists.back()));
    lists = std::move(merged);
  }
  return lists.empty() ? Candidates<Key>() : std::move(lists.front());
}

template <typename Key>
void order_by_key(Candidates<Key>& list) {
  if (list.size() < kFew) {
    std::stable_sort(list.begin(), list.end(), [](const auto& a, const auto& b) { return a.key > b.key; });
    return;
  }
  constexpr int passes = (std::numeric_limits<std::make_unsigned_t<Key>>::digits + kDigitBits - 1) / kDigitBits;
  const auto digit = [](Key key, int pass) {
    return static_cast<std::size_t>(descending(key) >> (pass * kDigitBits)) & (kDigits - 1);
  };
  std::vector<std::array<std::size_t, kDigits>> counts(passes);
  for (auto& table : counts) table.fill(0);
  for (const auto& entry : list) {
    for (int pass = 0; pass < passes; ++pass) ++counts[static_cast<std::size_t>(pass)][digit(entry.key, pass)];
  }
  Candidates<Key> other;
  for (int pass = 0; pass < passes; ++pass) {
    auto& table = counts[static_cast<std::size_t>(pass)];
    if (table[digit(list.front().key, pass)] == list.size()) continue;  // all share this digit
    other.resize(list.size());
    std::size_t next = 0;
    for (auto& count : table) next += std::exchange(count, next);
    for (const auto& entry : list) other[table[digit(entry.key, pass)]++] = entry;
    list.swap(other);
  }
}

template std::int32_t keep_largest(Candidates<std::int32_t>&, std::size_t, std::vector<std::int32_t>&);
template std::int64_t keep_largest(Candidates<std::int64_t>&, std::size_t, std::vector<std::int64_t>&);
template Candidates<std::int32_t> merge_by_index(std::vector<Candidates<std::int32_t>>&);
template Candidates<std::int64_t> merge_by_index(std::vector<Candidates<std::int64_t>>&);
template void order_by_key(Candidates<std::int32_t>&);
template void order_by_key(Candidates<std::int64_t>&);

}  // namespace tomfisher::topk
