// For any processor: the compiler turns vectors of four floats into whatever the platform's baseline has.
#include "cpu/half.h"
#include "fisher/kernel.h"

namespace tomfisher::fisher {
namespace {

#include "fisher/half_source_scalar.h"
#include "fisher/micro_kernel.h"
#include "fisher/sources.h"

struct Vector {
  using Reg = float __attribute__((vector_size(16)));
  static constexpr int kLanes = 4, kRows = 4, kVectors = 2;
  static Reg zero() { return Reg{}; }
  static Reg load(const float* p) {
    Reg a;
    __builtin_memcpy(&a, p, sizeof a);
    return a;
  }
  static void store(float* p, Reg a) { __builtin_memcpy(p, &a, sizeof a); }
  static Reg broadcast(const float* p) { return Reg{*p, *p, *p, *p}; }
  static Reg add(Reg a, Reg b) { return a + b; }
  static Reg multiply_add(Reg a, Reg b, Reg c) { return a * b + c; }
  static Reg dot(Reg a, Reg b, Reg c) { return multiply_add(a, b, c); }
};

}  // namespace

Kernel kernel_scalar(Dtype dtype) {
  if (dtype == Dtype::float16) return make_kernel<Vector, HalfSource>();
  if (dtype == Dtype::bfloat16) return make_kernel<Vector, BfloatSource>();
  return make_kernel<Vector, FloatSource>();
}

}  // namespace tomfisher::fisher
