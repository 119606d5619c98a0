// squared_gradient and square_accumulate on arrays of exactly the size that they may touch: for the sanitizers.
#include <cmath>
#include <cstring>
#include <random>

#include "check.h"
#include "fisher/square_accumulate.h"
#include "fisher/squared_gradient.h"

namespace tomfisher::fisher {
namespace {

constexpr cpu::Isa kLevels[] = {cpu::Isa::scalar, cpu::Isa::avx2, cpu::Isa::avx512, cpu::Isa::avx512bf16};
constexpr Dtype kDtypes[] = {Dtype::float16, Dtype::bfloat16, Dtype::float32, Dtype::float64};

// Multiples of 1/8 between -1 and 1: exact in every format.
std::vector<float> numbers(std::int64_t count, std::mt19937& random) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = static_cast<float>(static_cast<int>(random() % 17) - 8) / 8.0f;
  return values;
}

std::uint16_t half_bits(float eighths) {
  if (eighths == 0.0f) return 0;
  int exponent = 0;
  const float fraction = std::frexp(std::fabs(eighths), &exponent);
  const int bits = (exponent + 14) << 10 | (static_cast<int>(fraction * 2048.0f) & 1023);
  return static_cast<std::uint16_t>(bits | (eighths < 0.0f ? 0x8000 : 0));
}

std::vector<char> encode(const std::vector<float>& values, Dtype dtype) {
  const std::size_t bytes = static_cast<std::size_t>(bytes_of(dtype));
  std::vector<char> memory(values.size() * bytes);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double wide = values[i];
    std::uint32_t single = 0;
    std::memcpy(&single, &values[i], sizeof single);
    const std::uint16_t narrow =
        dtype == Dtype::float16 ? half_bits(values[i]) : static_cast<std::uint16_t>(single >> 16);
    const void* from = bytes == 8   ? static_cast<const void*>(&wide)
                       : bytes == 4 ? &single
                                    : static_cast<const void*>(&narrow);
    std::memcpy(memory.data() + i * bytes, from, bytes);
  }
  return memory;
}

// Sums of eighths are exact in float32 here, so every order of additions gives the same bits.
void test_squared_gradient(cpu::Isa isa, Dtype dtype, std::mt19937& random) {
  const std::int64_t lengths[] = {1, 0, 7, 2, 530, 1, 64};
  const std::int64_t d_out = 1 + static_cast<std::int64_t>(random() % 45),
                     d_in = 1 + static_cast<std::int64_t>(random() % 70);
  std::vector<Segment> segments;
  std::int64_t tokens = 0;
  for (std::int64_t length : lengths) {
    segments.push_back({tokens, tokens + length, static_cast<std::int64_t>(random() % 3)});
    tokens += length;
  }
  const auto Y = numbers(tokens * d_out, random), X = numbers(tokens * d_in, random);
  std::vector<double> expected(static_cast<std::size_t>(3 * d_out * d_in), 1.0);
  for (const Segment& segment : segments) {
    for (std::int64_t o = 0; o < d_out; ++o) {
      for (std::int64_t i = 0; i < d_in; ++i) {
        double sum = 0.0;
        for (std::int64_t t = segment.start; t < segment.stop; ++t) {
          sum += static_cast<double>(Y[static_cast<std::size_t>(t * d_out + o)]) *
                 X[static_cast<std::size_t>(t * d_in + i)];
        }
        expected[static_cast<std::size_t>((segment.target * d_out + o) * d_in + i)] += sum * sum;
      }
    }
  }
  const auto y = encode(Y, dtype), x = encode(X, dtype);
  for (const int lanes : {1, 2, 5}) {
    std::vector<float> F(expected.size(), 1.0f);
    squared_gradient({F.data(), d_out, d_in, y.data(), x.data(), d_out, d_in, dtype, segments}, isa, lanes, threads);
    for (std::size_t i = 0; i < F.size(); ++i) CHECK(std::fabs(F[i] - expected[i]) <= 1e-6 * expected[i]);
  }
}

void test_square_accumulate(cpu::Isa isa, Dtype dtype, std::mt19937& random) {
  std::vector<std::vector<float>> F, values;
  std::vector<std::vector<char>> gradients;
  std::vector<Pair> pairs;
  for (std::int64_t length : {0, 1, 63, 64, 65, 70'000}) {
    values.push_back(numbers(length, random));
    F.emplace_back(values.back().size(), 1.0f);
    gradients.push_back(encode(values.back(), dtype));
  }
  pairs.reserve(F.size());
  for (std::size_t i = 0; i < F.size(); ++i) {
    pairs.push_back({F[i].data(), gradients[i].data(), static_cast<std::int64_t>(F[i].size()), dtype});
  }
  square_accumulate(pairs, isa, 3, threads);
  for (std::size_t i = 0; i < F.size(); ++i) {
    for (std::size_t j = 0; j < F[i].size(); ++j) CHECK(F[i][j] == 1.0f + values[i][j] * values[i][j]);
  }
}

}  // namespace
}  // namespace tomfisher::fisher

int main() {
  using namespace tomfisher;
  std::mt19937 random(1);
  for (const cpu::Isa level : fisher::kLevels) {
    const cpu::Isa isa = cpu::isa_limited(cpu::name(level));
    for (const Dtype dtype : fisher::kDtypes) {
      for (int round = 0; round < 4 && dtype != Dtype::float64; ++round) {
        fisher::test_squared_gradient(isa, dtype, random);
      }
      fisher::test_square_accumulate(isa, dtype, random);
    }
  }
  std::puts("fisher: all checks hold");
}
