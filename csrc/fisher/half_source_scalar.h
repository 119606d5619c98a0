// float16 without instructions for it.
// Included by kernel_scalar.cpp and squares_scalar.cpp, inside an anonymous namespace.

struct HalfSource {
  using Element = uint16_t;
  static constexpr int kFold = 1;
  template <int kCount>
  static void copy(const uint16_t* from, const uint16_t*, float* to) {
    for (int i = 0; i < kCount; ++i) to[i] = half_to_float(from[i]);
  }
};
