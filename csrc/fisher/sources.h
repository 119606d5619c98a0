// Copies of a run of numbers as float, by format. A source whose packed numbers hold more than one token's gives
// kFold, and its copy reads the second token from the second pointer.
// Included by the kernel_*.cpp and squares_*.cpp files alone, inside an anonymous namespace.

struct FloatSource {
  using Element = float;
  static constexpr int kFold = 1;
  template <int kCount>
  static void copy(const float* from, const float*, float* to) {
    for (int i = 0; i < kCount; ++i) to[i] = from[i];
  }
};

struct BfloatSource {
  using Element = uint16_t;
  static constexpr int kFold = 1;
  template <int kCount>
  static void copy(const uint16_t* from, const uint16_t*, float* to) {
    for (int i = 0; i < kCount; ++i) {
      const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
      __builtin_memcpy(to + i, &bits, sizeof bits);
    }
  }
};

struct DoubleSource {
  using Element = double;
  static constexpr int kFold = 1;
  template <int kCount>
  static void copy(const double* from, const double*, float* to) {
    for (int i = 0; i < kCount; ++i) to[i] = static_cast<float>(from[i]);
  }
};
