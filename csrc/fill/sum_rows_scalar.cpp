#include <string.h>

#include "cpu/half.h"
#include "fill/sum_rows_kernel.h"

namespace tomfisher::fill {
namespace {

#include "fill/sum_rows.h"

// Pairs of doubles: what the baseline of every usual processor has.
struct Vector {
  using Two = double __attribute__((vector_size(16)));
  struct Reg {
    Two part[8];
  };
  static Reg zero() { return {}; }
  static Reg add(Reg a, const Reg& b) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) a.part[i] += b.part[i];
    return a;
  }
  static Reg absolute(Reg a) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) a.part[i] = Two{__builtin_fabs(a.part[i][0]), __builtin_fabs(a.part[i][1])};
    return a;
  }
  static void store(double* p, const Reg& a) { memcpy(p, a.part, sizeof a.part); }
};

float half(uint16_t x) { return half_to_float(x); }

float bfloat(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value = 0.0f;
  memcpy(&value, &bits, sizeof value);
  return value;
}

float single(float x) { return x; }

double twice(double x) { return x; }

template <class E, auto convert>
struct Load {
  using Element = E;
  static Vector::Reg load(const E* p) {
    Vector::Reg x;
#pragma GCC unroll 8
    for (int64_t i = 0; i < 8; ++i) x.part[i] = Vector::Two{convert(p[2 * i]), convert(p[2 * i + 1])};
    return x;
  }
};

}  // namespace

SumRows sum_rows_scalar(Dtype dtype) {
  return choose<Vector, Load<uint16_t, half>, Load<uint16_t, bfloat>, Load<float, single>, Load<double, twice>>(dtype);
}

}  // namespace tomfisher::fill
