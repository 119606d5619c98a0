// Sixteen floats. Included by the kernel_avx512*.cpp files alone, inside an anonymous namespace.

// 14 x 2 accumulators, two vectors of the input and one broadcast number: 31 of 32 registers.
struct Vector {
  using Reg = __m512;
  static constexpr int kLanes = 16, kRows = 14, kVectors = 2;
  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Reg a) { _mm512_storeu_ps(p, a); }
  static Reg broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg multiply_add(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg dot(Reg a, Reg b, Reg c) { return multiply_add(a, b, c); }
};
