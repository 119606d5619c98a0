// The threads that a pass may use.
#pragma once

#include "parallel.h"

namespace tomfisher::topk {

struct Team {
  int lanes = 1;  // at most this many threads
  Parallel parallel = serial;
};

}  // namespace tomfisher::topk
