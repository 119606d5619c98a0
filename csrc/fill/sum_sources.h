// Sixteen entries as doubles, by format: `widen` makes a Vector::Reg of two halves of eight floats.
// Included by sum_rows_avx2.cpp and sum_rows_avx512.cpp alone, inside an anonymous namespace.

struct Half {
  using Element = uint16_t;
  static Vector::Reg load(const uint16_t* p) {
    return widen(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
                 _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8))));
  }
};

struct Bfloat {
  using Element = uint16_t;
  static __m256 eight(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  static Vector::Reg load(const uint16_t* p) { return widen(eight(p), eight(p + 8)); }
};

struct Single {
  using Element = float;
  static Vector::Reg load(const float* p) { return widen(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
};
