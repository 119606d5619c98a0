// float16 with the conversion instructions that every processor with AVX2 has.
// Included by the *_avx2.cpp and *_avx512.cpp files alone, inside an anonymous namespace.

struct HalfSource {
  using Element = uint16_t;
  static constexpr int kFold = 1;
  template <int kCount>
  static void copy(const uint16_t* from, const uint16_t*, float* to) {
    int i = 0;
    for (; i + 8 <= kCount; i += 8) {
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
    }
    for (; i < kCount; ++i) to[i] = _cvtsh_ss(from[i]);
  }
};
