// How the cores below run on several threads: `body(lane)` once for every lane in [0, lanes).
//
// The cores know no thread library. The extension passes torch's pool (csrc/stable_parallel.h), the
// stand-alone tests pass std::thread, and `serial` runs the lanes one after another. A lane may run before,
// after or beside any other; results must not depend on that, nor on the number of lanes.
#pragma once

#include <functional>

namespace tomfisher {

using Body = std::function<void(int lane)>;
using Parallel = std::function<void(int lanes, const Body& body)>;

inline void serial(int lanes, const Body& body) {
  for (int lane = 0; lane < lanes; ++lane) body(lane);
}

}  // namespace tomfisher
