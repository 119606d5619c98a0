// What an instruction set provides for `squared_gradient_`: packing of operands, and the inner tile.
//
// Tokens of one sample are packed into panels, so that the inner loop reads both operands with stride one:
// an output panel holds `rows` columns of grad_output, an input panel `columns` columns of the input, one
// packed row per `fold` tokens (two where an instruction multiplies pairs of 16-bit numbers).
#pragma once

#include <stdint.h>

#include "dtype.h"

namespace tomfisher::fisher {

// A run of tokens of one sample that is packed in one go; long samples are cut into several.
struct Piece {
  int64_t begin;  // first token, a row of the operands
  int64_t tokens;
  int64_t packed;    // packed rows that it takes: tokens / fold, rounded up
  bool first, last;  // of its sample
};

// One inner tile: `height` x `width` entries of F, and the pieces that add to it.
struct Tile {
  const Piece* pieces;
  int64_t count;
  const float* y;  // output panel, [packed rows][Kernel::rows]
  const float* x;  // input panel, [packed rows][Kernel::columns]
  float* F;
  int64_t stride;  // of F, in entries
  int height, width;
  float* carry;  // [Kernel::rows][Kernel::columns]: a cut sample's gradient so far
};

// Columns of an operand and the panels that they are copied to.
struct Packing {
  const void* source;  // first token, first column
  int64_t stride;      // between tokens, in entries
  int64_t tokens, width;
  float* packed;         // first row of the first panel
  int64_t panel_stride;  // between panels, in floats
};

struct Kernel {
  int rows, columns, fold;
  void (*pack_rows)(const Packing&);     // columns of grad_output into panels of `rows`
  void (*pack_columns)(const Packing&);  // columns of the input into panels of `columns`
  void (*tile)(const Tile&);             // F += square of each sample's sum over its pieces
};

// float16, bfloat16 or float32
Kernel kernel_scalar(Dtype dtype);
Kernel kernel_avx2(Dtype dtype);
Kernel kernel_avx512(Dtype dtype);
Kernel kernel_avx512bf16();  // bfloat16 only: two tokens per multiply-add

}  // namespace tomfisher::fisher
