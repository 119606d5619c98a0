// Sums, masked fills and scatters on arrays of exactly the size that they may touch: for the sanitizers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "check.h"
#include "fill/entries.h"
#include "fill/masked_fill.h"
#include "fill/round.h"
#include "fill/sums.h"

namespace tomfisher::fill {
namespace {

std::vector<float> numbers(std::int64_t count, std::mt19937& random) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = static_cast<float>(random() % 1000) / 64.0f;
  return values;
}

void test_sums(cpu::Isa isa, std::mt19937& random) {
  std::vector<std::vector<float>> arrays;
  std::vector<Array> list;
  for (std::int64_t length : {0, 1, 15, 16, 17, 511, 512, 513, 65'535, 65'536, 200'000}) {
    arrays.push_back(numbers(length, random));
  }
  list.reserve(arrays.size());
  for (const auto& array : arrays)
    list.push_back({array.data(), static_cast<std::int64_t>(array.size()), Dtype::float32});
  const auto sums = sums_of(list, isa, 3, threads);
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    CHECK(sums[i].sum.value() == std::accumulate(arrays[i].begin(), arrays[i].end(), 0.0));
    // the same bytes as pairs of 16-bit numbers: only that they are read within bounds
    const Array narrow{arrays[i].data(), 2 * static_cast<std::int64_t>(arrays[i].size()), Dtype::bfloat16};
    sums_of({narrow}, isa, 1, serial);
  }
}

// How many means there are before the first that is not finite.
std::size_t finite(const std::vector<double>& means) {
  const auto bad = std::find_if_not(means.begin(), means.end(), [](double mean) { return std::isfinite(mean); });
  return static_cast<std::size_t>(bad - means.begin());
}

void test_fill(cpu::Isa isa, std::mt19937& random, bool known) {
  std::vector<std::vector<float>> weights, undo;
  std::vector<std::vector<std::int64_t>> masked;
  for (std::int64_t length : {1, 2, 700, 70'000, 150'000}) {
    weights.push_back(numbers(length, random));
    std::vector<std::int64_t> positions(static_cast<std::size_t>(length));
    std::iota(positions.begin(), positions.end(), 0);
    std::shuffle(positions.begin(), positions.end(), random);
    positions.resize(static_cast<std::size_t>(length / 2));
    masked.push_back(positions);
    undo.emplace_back(positions.size());
  }
  std::vector<Array> list;
  list.reserve(weights.size());
  for (const auto& weight : weights)
    list.push_back({weight.data(), static_cast<std::int64_t>(weight.size()), Dtype::float32});
  const auto sums = sums_of(list, isa, 1, serial);
  std::vector<double> totals;
  for (const Sums& sum : sums) totals.insert(totals.end(), {sum.sum.value(), sum.absolute.value()});
  const auto before = weights;
  std::vector<Fill> fills;
  fills.reserve(weights.size());
  for (std::size_t i = 0; i < weights.size(); ++i) {
    fills.push_back({weights[i].data(), static_cast<std::int64_t>(weights[i].size()), Dtype::float32, masked[i].data(),
                     static_cast<std::int64_t>(masked[i].size()), undo[i].data(), known ? &totals[2 * i] : nullptr});
  }
  CHECK(finite(masked_fill_mean(fills, isa, 3, threads)) == 5);
  std::vector<Entries> entries;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    double sum = std::accumulate(before[i].begin(), before[i].end(), 0.0);
    for (std::size_t j = 0; j < masked[i].size(); ++j) {
      const auto at = static_cast<std::size_t>(masked[i][j]);
      CHECK(undo[i][j] == before[i][at]);
      sum -= undo[i][j];
    }
    const auto mean = static_cast<float>(sum / static_cast<double>(weights[i].size() - masked[i].size()));
    for (std::int64_t at : masked[i]) CHECK(weights[i][static_cast<std::size_t>(at)] == mean);
    entries.push_back(
        {weights[i].data(), masked[i].data(), static_cast<std::int64_t>(masked[i].size()), undo[i].data(), 4});
  }
  scatter(entries, 3, threads);
  CHECK(weights == before);
  weights[2][static_cast<std::size_t>(masked[2][0])] = std::numeric_limits<float>::infinity();
  CHECK(finite(masked_fill_mean({fills.begin() + 2, fills.begin() + 3}, isa, 2, threads)) == 1);
  scatter({entries[2]}, 1, serial);
  for (float& value : weights[2]) value = std::numeric_limits<float>::quiet_NaN();
  CHECK(finite(masked_fill_mean(fills, isa, 2, threads)) == 2);
}

void test_rounding() {
  CHECK(round_once(0.0, Dtype::float16) == 0 && round_once(-0.0, Dtype::bfloat16) == 0x8000);
  CHECK(round_once(65504.0, Dtype::float16) == 0x7BFF && round_once(-1.0, Dtype::float16) == 0xBC00);
  CHECK(round_once(0x1p-24, Dtype::float16) == 1 && round_once(0x1p-25, Dtype::float16) == 0);
  CHECK(round_once(0x1.8p-24, Dtype::float16) == 2 && round_once(0x1.FFCp-15, Dtype::float16) == 0x0400);
  CHECK(round_once(1.0 + 0x1p-11, Dtype::float16) == 0x3C00);
  CHECK(round_once(1.0 + 0x1p-11 + 0x1p-50, Dtype::float16) == 0x3C01);
  CHECK(round_once(0x1p-133, Dtype::bfloat16) == 1 && round_once(1e-300, Dtype::bfloat16) == 0);
  CHECK(round_once(1.0 + 0x1p-8, Dtype::bfloat16) == 0x3F80 && round_once(1.0 + 0x1.8p-7, Dtype::bfloat16) == 0x3F82);
  CHECK(round_once(1.0, Dtype::float32) == 0x3F800000u && round_once(1.0, Dtype::float64) == 0x3FF0000000000000u);
}

}  // namespace
}  // namespace tomfisher::fill

int main() {
  using namespace tomfisher;
  std::mt19937 random(1);
  for (const cpu::Isa level : {cpu::Isa::scalar, cpu::Isa::avx2, cpu::Isa::avx512}) {
    const cpu::Isa isa = cpu::isa_limited(cpu::name(level));
    fill::test_sums(isa, random);
    for (const bool known : {false, true}) fill::test_fill(isa, random, known);
  }
  fill::test_rounding();
  std::puts("fill: all checks hold");
}
