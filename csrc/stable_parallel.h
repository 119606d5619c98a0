// `Parallel` (parallel.h) on the threads that torch already has, through the stable ABI.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <exception>
#include <mutex>

#include "parallel.h"

namespace tomfisher {

// An exception of a lane must not cross the C boundary of the stable ABI: the first is kept and thrown here.
inline void torch_parallel(int lanes, const Body& body) {
  std::exception_ptr failure;
  std::mutex guard;
  torch::stable::parallel_for(0, lanes, 1, [&](std::int64_t begin, std::int64_t end) {
    try {
      for (std::int64_t lane = begin; lane < end; ++lane) body(static_cast<int>(lane));
    } catch (...) {
      const std::lock_guard<std::mutex> lock(guard);
      if (!failure) failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace tomfisher
