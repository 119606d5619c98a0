// F[o, i] += sum over samples n of (sum over tokens t of n of grad_output[t, o] * input[t, i])^2.
//
// No sample's gradient is ever in memory: it exists in registers, one tile at a time, and is squared into F
// from there. Every entry of F is a fixed sequence of operations, whatever the number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/dispatch.h"
#include "fisher/kernel.h"
#include "parallel.h"

namespace tomfisher::fisher {

struct Segment {
  int64_t start, stop;  // rows of the operands: the tokens of one sample
  int64_t target;       // slice of F that it adds to
};

struct Problem {
  float* F;  // [slices, d_out, d_in], contiguous
  int64_t d_out, d_in;
  const void *grad_output, *input;  // [tokens, d_out] and [tokens, d_in], columns contiguous
  int64_t grad_output_stride, input_stride;
  Dtype dtype;                    // float16, bfloat16 or float32
  std::vector<Segment> segments;  // with 0 <= start <= stop, in any order
};

// Adds every segment, in the order given for each slice. Throws std::bad_alloc before the first write.
void squared_gradient(const Problem& problem, cpu::Isa isa, int threads, const Parallel& parallel);

}  // namespace tomfisher::fisher
