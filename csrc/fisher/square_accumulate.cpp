#include "fisher/square_accumulate.h"

#include "blocks.h"
#include "fisher/squares_kernel.h"

namespace tomfisher::fisher {
namespace {

constexpr std::int64_t kBlock = 1 << 15;

Squares choose(Dtype dtype, cpu::Isa isa) {
#if defined(__x86_64__)
  if (isa >= cpu::Isa::avx2) return squares_avx2(dtype);
#else
  (void)isa;
#endif
  return squares_scalar(dtype);
}

}  // namespace

void square_accumulate(const std::vector<Pair>& pairs, cpu::Isa isa, int threads, const Parallel& parallel) {
  Blocks blocks(kBlock);
  for (const Pair& pair : pairs) blocks.add(pair.length);
  blocks.run(threads, parallel, [&](std::int64_t number) {
    const Block block = blocks.at(number);
    const Pair& pair = pairs[block.item];
    const char* gradient = static_cast<const char*>(pair.gradient) + block.begin * bytes_of(pair.dtype);
    choose(pair.dtype, isa)(pair.F + block.begin, gradient, block.end - block.begin);
  });
}

}  // namespace tomfisher::fisher
