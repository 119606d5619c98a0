// F[i] += g[i]^2 for a run of numbers, over a Source; compiled for each instruction set.
// Included by the squares_*.cpp files alone, inside an anonymous namespace.

template <class Source>
void squares(float* F, const void* gradient, int64_t length) {
  constexpr int kRun = 64;
  const typename Source::Element* from = static_cast<const typename Source::Element*>(gradient);
  float run[kRun];
  int64_t i = 0;
  for (; i + kRun <= length; i += kRun) {
    Source::template copy<kRun>(from + i, nullptr, run);
    for (int j = 0; j < kRun; ++j) F[i + j] += run[j] * run[j];
  }
  for (; i < length; ++i) {
    Source::template copy<1>(from + i, nullptr, run);
    F[i] += run[0] * run[0];
  }
}

inline Squares choose(Dtype dtype) {
  if (dtype == Dtype::float16) return squares<HalfSource>;
  if (dtype == Dtype::bfloat16) return squares<BfloatSource>;
  if (dtype == Dtype::float64) return squares<DoubleSource>;
  return squares<FloatSource>;
}
