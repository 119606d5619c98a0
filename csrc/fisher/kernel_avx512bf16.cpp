#include <immintrin.h>

#include "fisher/kernel.h"

namespace tomfisher::fisher {
namespace {

#include "fisher/micro_kernel.h"
#include "fisher/vector_avx512.h"

// A packed number is a pair of bfloat16: the same column of two tokens that follow each other.
struct PairSource {
  using Element = uint16_t;
  static constexpr int kFold = 2;
  template <int kCount>
  static void copy(const uint16_t* from, const uint16_t* partner, float* to) {
    for (int i = 0; i < kCount; ++i) {
      const uint32_t upper = partner == nullptr ? 0 : static_cast<uint32_t>(partner[i]) << 16;
      const uint32_t bits = upper | from[i];
      __builtin_memcpy(to + i, &bits, sizeof bits);
    }
  }
};

struct PairVector : Vector {
  static Reg dot(Reg a, Reg b, Reg c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};

}  // namespace

Kernel kernel_avx512bf16() { return make_kernel<PairVector, PairSource>(); }

}  // namespace tomfisher::fisher
