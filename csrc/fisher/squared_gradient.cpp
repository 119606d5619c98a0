#include "fisher/squared_gradient.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <new>

namespace tomfisher::fisher {
namespace {

// A block of F is what one thread works on. Its packed columns of grad_output stay in the second-level cache,
// those of the input in the first, one panel after another.
constexpr int64_t kBlockRows = 336, kBlockColumns = 1024;
constexpr int64_t kPackedRows = 128;  // in one pass over a block: a panel of each operand in the first-level cache

// Pieces that are packed together.
struct Pass {
  std::vector<Piece> pieces;
  int64_t packed = 0;
};

// A slice of F and all that adds to it.
struct Slice {
  int64_t target;
  std::vector<Pass> passes;
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void append(std::vector<Pass>& passes, const Piece& piece) {
  if (passes.empty() || passes.back().packed + piece.packed > kPackedRows) passes.emplace_back();
  passes.back().pieces.push_back(piece);
  passes.back().packed += piece.packed;
}

// Cuts long samples into pieces of about one size.
void append(std::vector<Pass>& passes, const Segment& segment, int fold) {
  const int64_t tokens = segment.stop - segment.start;
  if (tokens == 0) return;
  const int64_t cuts = ceil_div(tokens, kPackedRows * fold);
  const int64_t size = ceil_div(ceil_div(tokens, cuts), fold) * fold;
  for (int64_t begin = 0; begin < tokens; begin += size) {
    const int64_t length = std::min(size, tokens - begin);
    append(passes, {segment.start + begin, length, ceil_div(length, fold), begin == 0, begin + length == tokens});
  }
}

std::vector<Slice> schedule(const std::vector<Segment>& segments, int fold) {
  std::vector<const Segment*> ordered;
  ordered.reserve(segments.size());
  for (const Segment& segment : segments) ordered.push_back(&segment);
  std::stable_sort(ordered.begin(), ordered.end(),
                   [](const Segment* a, const Segment* b) { return a->target < b->target; });
  std::vector<Slice> slices;
  for (const Segment* segment : ordered) {
    if (slices.empty() || slices.back().target != segment->target) slices.push_back({segment->target, {}});
    append(slices.back().passes, *segment, fold);
  }
  return slices;
}

// How F is divided: panels of the kernel's height and width, shared out evenly among blocks.
struct Grid {
  int64_t row_panels, column_panels, row_blocks, column_blocks;

  Grid(const Problem& problem, const Kernel& kernel, int64_t slices, int threads)
      : row_panels(ceil_div(problem.d_out, kernel.rows)), column_panels(ceil_div(problem.d_in, kernel.columns)) {
    row_blocks = ceil_div(row_panels, std::max<int64_t>(1, kBlockRows / kernel.rows));
    column_blocks = ceil_div(column_panels, std::max<int64_t>(1, kBlockColumns / kernel.columns));
    while (threads > 1 && slices * row_blocks * column_blocks < int64_t{4} * threads) {
      if (row_blocks * 2 <= row_panels && row_blocks <= column_blocks * 2) {
        row_blocks *= 2;
      } else if (column_blocks * 2 <= column_panels) {
        column_blocks *= 2;
      } else {
        break;
      }
    }
  }

  int64_t count() const { return row_blocks * column_blocks; }
  int64_t rows_of_block() const { return ceil_div(row_panels, row_blocks); }
  int64_t columns_of_block() const { return ceil_div(column_panels, column_blocks); }
};

// One thread's memory: packed operands of a block, and the gradients of a sample that has been cut.
struct Scratch {
  int64_t rows, columns, carry;

  Scratch(const Grid& grid, const Kernel& kernel, const std::vector<Slice>& slices) : carry(0) {
    int64_t packed = 0;
    for (const Slice& slice : slices) {
      for (const Pass& pass : slice.passes) {
        packed = std::max(packed, pass.packed);
        for (const Piece& piece : pass.pieces) {
          if (!piece.last) carry = grid.rows_of_block() * kernel.rows * grid.columns_of_block() * kernel.columns;
        }
      }
    }
    rows = round(packed * grid.rows_of_block() * kernel.rows);
    columns = round(packed * kernel.columns);
  }

  int64_t size() const { return rows + columns + carry; }

  // to whole cache lines
  static int64_t round(int64_t floats) { return ceil_div(floats, 16) * 16; }
};

// Grows and stays: fresh pages at every call would cost more than small layers do.
float* workspace(int64_t floats) {
  struct Free {
    void operator()(float* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  static thread_local std::unique_ptr<float, Free> memory;
  static thread_local int64_t held = 0;
  if (floats > held) {
    memory.reset();
    held = 0;
    memory.reset(
        static_cast<float*>(::operator new(sizeof(float) * static_cast<size_t>(floats), std::align_val_t(64))));
    held = floats;
  }
  return memory.get();
}

struct Work {
  const Problem& problem;
  const Kernel& kernel;
  const Grid& grid;
  const Scratch& scratch;

  // Panels [row0, row1) x [column0, column1) of one slice of F, all its passes in order.
  void block(const Slice& slice, int64_t index, float* memory) const {
    const int64_t r = index / grid.column_blocks, c = index % grid.column_blocks;
    const int64_t row0 = r * grid.row_panels / grid.row_blocks, row1 = (r + 1) * grid.row_panels / grid.row_blocks;
    const int64_t column0 = c * grid.column_panels / grid.column_blocks;
    const int64_t column1 = (c + 1) * grid.column_panels / grid.column_blocks;
    float* rows = memory;
    float* columns = rows + scratch.rows;
    for (const Pass& pass : slice.passes) {
      float* carry = columns + scratch.columns;
      pack(pass, kernel.pack_rows, problem.grad_output, problem.grad_output_stride, problem.d_out, kernel.rows, row0,
           row1, rows);
      for (int64_t j = column0; j < column1; ++j) {
        pack(pass, kernel.pack_columns, problem.input, problem.input_stride, problem.d_in, kernel.columns, j, j + 1,
             columns);
        for (int64_t i = row0; i < row1; ++i) {
          const int64_t o = i * kernel.rows, n = j * kernel.columns;
          kernel.tile({pass.pieces.data(), static_cast<int64_t>(pass.pieces.size()),
                       rows + (i - row0) * pass.packed * kernel.rows, columns,
                       problem.F + (slice.target * problem.d_out + o) * problem.d_in + n, problem.d_in,
                       static_cast<int>(std::min<int64_t>(kernel.rows, problem.d_out - o)),
                       static_cast<int>(std::min<int64_t>(kernel.columns, problem.d_in - n)), carry});
          if (scratch.carry > 0) carry += int64_t{kernel.rows} * kernel.columns;
        }
      }
    }
  }

  void pack(const Pass& pass, void (*copy)(const Packing&), const void* operand, int64_t stride, int64_t width,
            int panel, int64_t panel0, int64_t panel1, float* packed) const {
    const int64_t bytes = bytes_of(problem.dtype);
    const int64_t first = panel0 * panel, last = std::min(width, panel1 * panel);
    for (const Piece& piece : pass.pieces) {
      const char* source = static_cast<const char*>(operand) + (piece.begin * stride + first) * bytes;
      copy({source, stride, piece.tokens, last - first, packed, pass.packed * panel});
      packed += piece.packed * panel;
    }
  }
};

Kernel choose(Dtype dtype, cpu::Isa isa) {
#if defined(__x86_64__)
  if (isa >= cpu::Isa::avx512bf16 && dtype == Dtype::bfloat16) return kernel_avx512bf16();
  if (isa >= cpu::Isa::avx512) return kernel_avx512(dtype);
  if (isa >= cpu::Isa::avx2) return kernel_avx2(dtype);
#else
  (void)isa;
#endif
  return kernel_scalar(dtype);
}

}  // namespace

void squared_gradient(const Problem& problem, cpu::Isa isa, int threads, const Parallel& parallel) {
  if (problem.d_out == 0 || problem.d_in == 0) return;
  const Kernel kernel = choose(problem.dtype, isa);
  const std::vector<Slice> slices = schedule(problem.segments, kernel.fold);
  if (slices.empty()) return;
  const Grid grid(problem, kernel, static_cast<int64_t>(slices.size()), threads);
  const Scratch scratch(grid, kernel, slices);
  const int64_t blocks = static_cast<int64_t>(slices.size()) * grid.count();
  const int lanes = static_cast<int>(std::clamp<int64_t>(threads, 1, blocks));
  float* memory = workspace(lanes * scratch.size());
  const Work work{problem, kernel, grid, scratch};
  std::atomic<int64_t> next{0};
  parallel(lanes, [&](int lane) {
    for (int64_t b = next++; b < blocks; b = next++) {
      work.block(slices[static_cast<size_t>(b / grid.count())], b % grid.count(), memory + lane * scratch.size());
    }
  });
}

}  // namespace tomfisher::fisher
