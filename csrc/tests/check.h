// The few lines of test harness that the stand-alone tests need, so that they build without torch.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "parallel.h"

#define CHECK(condition)                                                                                    \
  do {                                                                                                      \
    if (!(condition)) {                                                                                     \
      static_cast<void>(std::fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition)); \
      std::exit(1);                                                                                         \
    }                                                                                                       \
  } while (false)

namespace tomfisher {

// One thread per lane: the most that a race could want.
inline void threads(int lanes, const Body& body) {
  std::vector<std::thread> all;
  all.reserve(static_cast<std::size_t>(lanes));
  for (int lane = 0; lane < lanes; ++lane) all.emplace_back([&body, lane] { body(lane); });
  for (auto& thread : all) thread.join();
}

}  // namespace tomfisher
