// Selection against a full sort, summaries against counts of the numbers: formats, distributions, k, thread counts,
// pieces, files, damage.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>

#include "check.h"
#include "topk/collector.h"
#include "topk/sample.h"
#include "topk/select.h"

namespace tomfisher::topk {
namespace {

template <Format F>
using Vector = std::vector<typename Traits<F>::Bits>;

// Key of a finite number of the format that is at or below the fraction `x` of the largest.
template <Format F>
typename Traits<F>::Bits number(double x) {
  using Bits = typename Traits<F>::Bits;
  const auto key = static_cast<std::make_signed_t<Bits>>(x * static_cast<double>(above_all<F>() - 2));
  return from_key<Bits>(key);
}

template <Format F>
struct Case {
  std::string name;
  std::function<typename Traits<F>::Bits(std::int64_t i, std::int64_t n, std::mt19937_64& random)> at;
};

template <Format F>
std::vector<Case<F>> cases() {
  using Bits = typename Traits<F>::Bits;
  const Bits minus_zero = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  const auto fraction = [](std::int64_t i, std::int64_t n) {
    return n > 1 ? static_cast<double>(i) / static_cast<double>(n) : 0.0;
  };
  const auto uniform = [](std::mt19937_64& random) { return std::uniform_real_distribution<double>(-1, 1)(random); };
  return {
      {"random", [=](auto, auto, auto& random) { return number<F>(uniform(random)); }},
      {"positive", [=](auto, auto, auto& random) { return number<F>(std::abs(uniform(random))); }},
      {"negative", [=](auto, auto, auto& random) { return number<F>(-std::abs(uniform(random))); }},
      {"equal", [=](auto, auto, auto&) { return number<F>(0.5); }},
      {"few values", [=](auto, auto, auto& random) { return number<F>(static_cast<double>(random() % 5) / 8 - 0.2); }},
      {"ascending", [=](auto i, auto n, auto&) { return number<F>(fraction(i, n)); }},
      {"descending", [=](auto i, auto n, auto&) { return number<F>(-fraction(i, n)); }},
      {"denormal", [=](auto, auto, auto& random) { return static_cast<Bits>(random() % 7); }},
      {"zeros of both signs", [=](auto, auto, auto& random) { return random() % 2 ? minus_zero : Bits{0}; }},
      {"zeros and negatives",
       [=](auto, auto, auto& random) { return random() % 3 ? minus_zero : number<F>(-std::abs(uniform(random))); }},
      {"planted", [=](auto i, auto n, auto&) { return i % (n / 7 + 1) == 3 ? number<F>(0.9) : Bits{0}; }},
  };
}

// The number itself, by arithmetic that shares nothing with the keys.
template <Format F>
double value_of(typename Traits<F>::Bits bits) {
  constexpr int mantissa = F == Format::f16 ? 10 : F == Format::bf16 ? 7 : F == Format::f32 ? 23 : 52;
  constexpr int width = 8 * sizeof(bits), bias = (1 << (width - mantissa - 2)) - 1;
  const auto wide = static_cast<std::uint64_t>(bits);
  const int exponent = static_cast<int>(wide >> mantissa & ((std::uint64_t{1} << (width - mantissa - 1)) - 1));
  const auto fraction = static_cast<double>(wide & ((std::uint64_t{1} << mantissa) - 1));
  const double one = std::ldexp(1.0, mantissa);
  const double size =
      exponent == 0 ? std::ldexp(fraction / one, 1 - bias) : std::ldexp(1 + fraction / one, exponent - bias);
  return wide >> (width - 1) ? -size : size;
}

template <Format F>
std::vector<std::int64_t> oracle(const Vector<F>& numbers) {
  std::vector<std::int64_t> order(numbers.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return value_of<F>(numbers[static_cast<std::size_t>(a)]) > value_of<F>(numbers[static_cast<std::size_t>(b)]);
  });
  return order;
}

template <Format F>
void check_selection(const Selection<F>& found, const Vector<F>& numbers, const std::vector<std::int64_t>& order,
                     std::int64_t k) {
  CHECK(found.first_bad == -1);
  CHECK(found.entries.size() == static_cast<std::size_t>(k));
  for (std::size_t i = 0; i < found.entries.size(); ++i) {
    CHECK(found.entries[i].index == order[i]);
    using Bits = typename Traits<F>::Bits;
    const Bits bits = from_key<Bits>(static_cast<std::make_signed_t<Bits>>(found.entries[i].key));
    CHECK(value_of<F>(bits) == value_of<F>(numbers[static_cast<std::size_t>(order[i])]));
  }
}

// The summary by the numbers' own values. Thresholds are keys of the format.
template <Format F>
Summary<F> counted(const Vector<F>& numbers, const Thresholds& thresholds) {
  using Bits = typename Traits<F>::Bits;
  Summary<F> out;
  for (const std::int64_t key : thresholds) {
    const double bound = value_of<F>(from_key<Bits>(static_cast<std::make_signed_t<Bits>>(key)));
    out.above.push_back(std::count_if(numbers.begin(), numbers.end(), [&](Bits x) { return value_of<F>(x) > bound; }));
  }
  const double normal = value_of<F>(static_cast<Bits>(Bits{1} << mantissa_bits<F>()));
  for (const Bits bits : numbers) {
    const double value = value_of<F>(bits);
    const int bin = value < 0 ? 0 : value == 0 ? 1 : value < normal ? 2 : 3 + std::ilogb(value) - std::ilogb(normal);
    ++out.histogram[static_cast<std::size_t>(bin)];
    out.smallest = std::min<std::int64_t>(out.smallest, to_key(bits));
    out.largest = std::max<std::int64_t>(out.largest, to_key(bits));
  }
  return out;
}

template <Format F>
void check_summary(const Selection<F>& found, const Summary<F>& expected) {
  CHECK(found.first_bad == -1 && found.summary.has_value());
  CHECK(found.summary->smallest == expected.smallest && found.summary->largest == expected.largest);
  CHECK(found.summary->histogram == expected.histogram && found.summary->above == expected.above);
}

template <Format F>
Source whole(const Vector<F>& numbers) {
  return Source({{static_cast<std::int64_t>(numbers.size()), numbers.data(), nullptr, 0}}, F);
}

template <Format F>
void test_against_a_sort(std::int64_t n, const std::vector<int>& lane_counts) {
  std::mt19937_64 random(static_cast<std::uint64_t>(n));
  for (const auto& one : cases<F>()) {
    Vector<F> numbers(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) numbers[static_cast<std::size_t>(i)] = one.at(i, n, random);
    const Source source = whole<F>(numbers);
    const auto order = oracle<F>(numbers);
    Thresholds thresholds{0, -2, 3, below_all<F>() + 1, above_all<F>() - 1};
    if (n > 0) thresholds.push_back(to_key(numbers[static_cast<std::size_t>(order[order.size() / 3])]));
    const Summary<F> expected = counted<F>(numbers, thresholds);
    const auto check_both = [&](const Selection<F>& found, std::int64_t k) {
      check_selection<F>(found, numbers, order, k);
      check_summary<F>(found, expected);
    };
    for (std::int64_t k : {std::int64_t{0}, std::int64_t{1}, n / 1000, n / 2, n}) {
      if (k > n) continue;
      for (const int lanes : lane_counts) {
        const Team team{lanes, threads};
        const auto alone = select<F>(source, k, team);
        check_selection<F>(alone, numbers, order, k);
        CHECK(!alone.summary);
        check_both(select<F>(source, k, team, &thresholds), k);
        if (k == 0) continue;
        check_both(count_select<F>(source, k, team, &thresholds), k);
        Selection<F> streamed;
        if (stream_select<F>(source, k, team, &thresholds, streamed)) check_both(streamed, k);
      }
    }
  }
}

template <Format F>
void test_non_finite() {
  using Bits = typename Traits<F>::Bits;
  const Bits infinity = Traits<F>::infinity, nan = static_cast<Bits>(infinity + 1);
  const Bits sign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  for (std::int64_t n : {1, 100, 40'000, 2'500'000}) {
    for (const Bits bad : {infinity, nan, static_cast<Bits>(infinity | sign), static_cast<Bits>(nan | sign)}) {
      Vector<F> numbers(static_cast<std::size_t>(n), number<F>(0.25));
      const std::int64_t first = n * 2 / 3;
      numbers[static_cast<std::size_t>(first)] = numbers.back() = bad;
      for (std::int64_t k : {std::int64_t{0}, n / 1000, n / 2, n}) {
        for (const int lanes : {1, 3}) {
          CHECK(select<F>(whole<F>(numbers), k, {lanes, threads}).first_bad == first);
          const Thresholds thresholds{0};
          const auto found = select<F>(whole<F>(numbers), k, {lanes, threads}, &thresholds);
          CHECK(found.first_bad == first && !found.summary);
        }
      }
    }
  }
}

struct TemporaryFile {
  explicit TemporaryFile(const std::string& bytes) {
    const int descriptor = ::mkstemp(path.data());
    CHECK(descriptor >= 0 && ::write(descriptor, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
    ::close(descriptor);
  }
  ~TemporaryFile() { ::unlink(path.c_str()); }
  std::string path = "/tmp/tomfisher_topk_XXXXXX";
};

void test_methods() {
  std::mt19937_64 random(1);
  const std::int64_t n = 3'000'000;
  Vector<Format::f32> numbers(static_cast<std::size_t>(n));
  for (auto& each : numbers) each = number<Format::f32>(std::uniform_real_distribution<double>(0, 1)(random));
  CHECK(select<Format::f32>(whole<Format::f32>(numbers), 300, {2, threads}).method == Method::streaming);
  CHECK(select<Format::f32>(whole<Format::f32>(numbers), n / 3, {2, threads}).method == Method::counting);
}

// The whole sample lies high and everything else low: the estimate is wrong and has to be found out.
void check_a_misleading_sample(Vector<Format::f32>& numbers, const Source& source, const std::vector<std::int64_t>& ks,
                               const std::function<void()>& store) {
  const SamplePlan plan = plan_sample(source);
  const std::int64_t stretch = source.size() / plan.runs;
  CHECK(plan.runs > 0 && source.size() == static_cast<std::int64_t>(numbers.size()));
  std::int64_t last = 0;
  for (std::int64_t i = 0; i < plan.runs; ++i) {
    const std::int64_t start = sample_start(i, stretch, plan.run);
    CHECK(last <= start && i * stretch <= start && start + plan.run <= (i + 1) * stretch);
    last = start + plan.run;
    for (std::int64_t j = start; j < last; ++j) {
      numbers[static_cast<std::size_t>(j)] = number<Format::f32>(0.5) + static_cast<std::uint32_t>(j % 97);
    }
  }
  store();
  const auto order = oracle<Format::f32>(numbers);
  const Thresholds thresholds{0, to_key(number<Format::f32>(0.5)) + 50};
  const auto expected = counted<Format::f32>(numbers, thresholds);
  Selection<Format::f32> unused;
  for (std::int64_t k : ks) {
    CHECK(!stream_select<Format::f32>(source, k, {2, threads}, &thresholds, unused) && !unused.summary);
    const auto found = select<Format::f32>(source, k, {2, threads}, &thresholds);
    check_selection<Format::f32>(found, numbers, order, k);
    check_summary<Format::f32>(found, expected);  // what the void pass counted is forgotten
  }
}

void test_a_misleading_sample() {
  Vector<Format::f32> numbers(11'000'000, 0);
  check_a_misleading_sample(numbers, whole<Format::f32>(numbers), {66'000, 80'000}, [] {});
}

void test_a_misleading_sample_of_a_file() {
  Vector<Format::f32> numbers(17'000'003, 0);
  const auto bytes = [&] {
    return std::string(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(numbers[0]));
  };
  const TemporaryFile temporary("x" + bytes());
  const File file(temporary.path);
  const Source source({{static_cast<std::int64_t>(numbers.size()), nullptr, &file, 1}}, Format::f32);
  check_a_misleading_sample(numbers, source, {70'000, 120'000},
                            [&] { std::ofstream(temporary.path, std::ios::binary) << "x" << bytes(); });
}

// A bound from the sample of a file: few more entries are kept than asked for.
void test_a_file_is_sampled() {
  std::mt19937_64 random(3);
  Vector<Format::f32> numbers(17'000'000);
  for (auto& each : numbers) each = number<Format::f32>(std::uniform_real_distribution<double>(0, 1)(random));
  const TemporaryFile temporary(
      std::string(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(numbers[0])));
  const File file(temporary.path);
  const Source source({{static_cast<std::int64_t>(numbers.size()), nullptr, &file, 0}}, Format::f32);
  const std::int64_t k = 17'000, limit = estimate<Format::f32>(source, k);
  const auto reached = std::count_if(numbers.begin(), numbers.end(), [&](auto bits) { return to_key(bits) >= limit; });
  CHECK(k <= reached && reached < 3 * k);
}

void test_the_first_bad_index_is_the_lowest() {
  FirstBad bad;
  CHECK(bad.index() == -1 && !bad.before(1000));
  for (const std::int64_t index : {7, 9, 3, 5}) bad.publish(index);
  CHECK(bad.index() == 3 && bad.before(4) && !bad.before(3));
}

// One thread's bound must not cost another thread an equal entry of lower index.
void test_equal_entries_of_a_slower_thread_are_kept() {
  constexpr Format F = Format::f32;
  const std::uint32_t minus_zero = 0x80000000u;
  for (const std::uint32_t value : {number<F>(0.5), std::uint32_t{0}, number<F>(-0.5)}) {
    const Vector<F> equal(kTile, value), smaller(kTile, number<F>(-0.75));
    const Vector<F> slower(kTile, value == 0 ? minus_zero : value);
    Shared shared;
    Collector<F> fast(3, below_all<F>(), shared), slow(3, below_all<F>(), shared);
    std::int64_t index = 10 * static_cast<std::int64_t>(kTile);
    for (; !fast.has_cut(); index += static_cast<std::int64_t>(kTile)) CHECK(fast.visit(equal.data(), kTile, index));
    CHECK(fast.kept().size() == 3 && fast.kept()[2].index == 10 * static_cast<std::int64_t>(kTile) + 2);
    CHECK(fast.visit(equal.data(), kTile, index) && fast.kept().size() == 3);
    CHECK(slow.visit(smaller.data(), kTile, 0) && slow.kept().empty());
    CHECK(slow.visit(slower.data(), kTile, static_cast<std::int64_t>(kTile)) && slow.kept().size() == kTile);
  }
}

template <Format F>
void test_summary() {
  using Bits = typename Traits<F>::Bits;
  Vector<F> numbers(20'000);
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const auto key = static_cast<std::make_signed_t<Bits>>(static_cast<int>(i) - 10'000);
    numbers[i] = from_key<Bits>(key);  // key -1 is -0.0
  }
  const Thresholds thresholds{-10'001, 0, 9'998, 9'999};
  const auto found = select<F>(whole<F>(numbers), 0, {2, threads}, &thresholds);
  check_summary<F>(found, counted<F>(numbers, thresholds));
  CHECK(found.summary.has_value());
  CHECK(found.summary->smallest == -10'000 && found.summary->largest == 9'999);
  CHECK((found.summary->above == std::vector<std::int64_t>{20'000, 9'999, 1, 0}));
  for (const Bits bits : {numbers[0], numbers[9'999], numbers[10'000], numbers[10'001], number<F>(0.5)}) {
    const double value = value_of<F>(bits);
    CHECK(key_at_most<F>(value) == to_key(bits));
    CHECK(key_at_most<F>(std::nextafter(value, -HUGE_VAL)) == (value == 0 ? -2 : to_key(bits) - 1));
    CHECK(key_at_most<F>(std::nextafter(value, HUGE_VAL)) == to_key(bits) + (F == Format::f64));
  }
  CHECK(key_at_most<F>(-HUGE_VAL) == below_all<F>() && key_at_most<F>(HUGE_VAL) >= above_all<F>() - 1);
  const Thresholds zero{0};
  check_summary<F>(select<F>(whole<F>({}), 0, {1, serial}, &zero), counted<F>({}, zero));
}

template <typename Error, typename Call>
bool throws(const Call& call) {
  try {
    call();
  } catch (const Error&) {
    return true;
  }
  return false;
}

void test_files_and_pieces() {
  constexpr Format F = Format::bf16;
  std::mt19937_64 random(2);
  Vector<F> numbers(1'300'001);
  for (auto& each : numbers) each = number<F>(static_cast<double>(random() % 1000) / 1001);
  const auto order = oracle<F>(numbers);
  const Thresholds thresholds{0, to_key(numbers[17])};
  const Summary<F> expected = counted<F>(numbers, thresholds);
  const std::size_t bytes = numbers.size() * 2;
  std::string content(3, 'x');
  content.append(reinterpret_cast<const char*>(numbers.data()), bytes);
  const TemporaryFile temporary(content);
  const File file(temporary.path);
  const std::int64_t n = static_cast<std::int64_t>(numbers.size());
  const Source on_disk({{700'000, nullptr, &file, 3}, {n - 700'000, nullptr, &file, 3 + 1'400'000}}, F);
  const Source in_pieces({{0, nullptr}, {5, numbers.data()}, {n - 5, numbers.data() + 5}, {0, nullptr}}, F);
  for (std::int64_t k : {std::int64_t{0}, std::int64_t{100}, std::int64_t{300'000}, n}) {
    for (const Source* source : {&on_disk, &in_pieces}) {
      const auto found = select<F>(*source, k, {3, threads}, &thresholds);
      check_selection<F>(found, numbers, order, k);
      check_summary<F>(found, expected);
    }
  }
  const auto size = file.size();
  CHECK(throws<std::invalid_argument>([&] { Source({{n + 1, nullptr, &file, 3}}, F); }));
  CHECK(throws<std::invalid_argument>([&] { Source({{1, nullptr, &file, size}}, F); }));
  CHECK(throws<std::invalid_argument>([&] { Source({{1, nullptr, &file, ~std::uint64_t{0} - 1}}, F); }));
  CHECK(throws<std::invalid_argument>([&] { Source({{std::int64_t{1} << 62, nullptr, &file, 3}}, F); }));
  CHECK(throws<std::invalid_argument>([&] { Source({{-1, nullptr, &file, 3}}, F); }));
  CHECK(throws<std::runtime_error>([] { File("/nonexistent/file"); }));
  CHECK(throws<std::runtime_error>([] { File("/tmp"); }));
  CHECK(::truncate(temporary.path.c_str(), 1000) == 0);
  CHECK(throws<std::runtime_error>([&] { select<F>(on_disk, 100, {1, serial}); }));
}

// Another thread may write the values while they are selected: a refusal or some k entries, nothing out of bounds.
void test_values_that_change_between_the_passes() {
  constexpr Format F = Format::f32;
  constexpr std::int64_t n = 600'000, k = 50'000;  // three chunks
  const Vector<F> low(n, number<F>(-0.5)), high(n, number<F>(0.5));
  const Vector<F> bad(n, static_cast<std::uint32_t>(Traits<F>::infinity));
  Vector<F> ramp(n);
  for (std::int64_t i = 0; i < n; ++i) ramp[static_cast<std::size_t>(i)] = number<F>(static_cast<double>(i) / n);
  const Vector<F>& rising = ramp;
  int refused = 0;
  for (const Vector<F>* before : {&low, &rising, &high}) {
    for (const Vector<F>* after : {&low, &rising, &high, &bad}) {
      for (int turn = 0; turn < 6; ++turn) {
        Vector<F> numbers = *before;
        int passes = 0;
        const Team team{2, [&](int lanes, const Body& body) {
                          if (passes++ == turn) numbers = *after;
                          serial(lanes, body);
                        }};
        try {
          const auto found = select<F>(whole<F>(numbers), k, team);
          CHECK(found.first_bad >= 0 || found.entries.size() == static_cast<std::size_t>(k));
        } catch (const std::runtime_error&) {
          ++refused;
        }
      }
    }
  }
  CHECK(refused > 0);
}

template <Format F>
void test_format() {
  for (std::int64_t n : {0, 1, 2, 17, 1000}) test_against_a_sort<F>(n, {1});
  test_against_a_sort<F>(40'001, {3});
  test_non_finite<F>();
  test_summary<F>();
}

}  // namespace
}  // namespace tomfisher::topk

int main() {
  using namespace tomfisher::topk;
  test_format<Format::f16>();
  test_format<Format::bf16>();
  test_format<Format::f32>();
  test_format<Format::f64>();
  test_against_a_sort<Format::f32>(1'100'000, {8});
  test_methods();
  test_the_first_bad_index_is_the_lowest();
  test_a_misleading_sample();
  test_a_misleading_sample_of_a_file();
  test_a_file_is_sampled();
  test_equal_entries_of_a_slower_thread_are_kept();
  test_files_and_pieces();
  test_values_that_change_between_the_passes();
  std::puts("topk: all checks hold");
}
