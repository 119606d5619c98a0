#include "cpu/dispatch.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tomfisher::cpu {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx"};

#if defined(__x86_64__)

// Linux gives a process the AMX tile registers only after it has asked for them.
bool amx_granted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Asks for all that the flags in setup.py let the compiler use (-mavx2 brings popcnt with it, and what every processor
// with AVX2 has). The built-in says yes only where the operating system saves the registers, too.
Isa detect() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("popcnt");
  if (!avx2) return Isa::scalar;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!avx512) return Isa::avx2;
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::avx512;
  const bool amx = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16");
  return amx && amx_granted() ? Isa::amx : Isa::avx512bf16;
}

#else

Isa detect() { return Isa::scalar; }

#endif

}  // namespace

const char* name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa isa_limited(const char* limit) {
  static const Isa here = detect();
  if (limit == nullptr || *limit == '\0') return here;
  for (int level = 0; level <= static_cast<int>(Isa::amx); ++level) {
    if (std::strcmp(limit, kNames[level]) == 0) {
      return level < static_cast<int>(here) ? static_cast<Isa>(level) : here;
    }
  }
  throw std::invalid_argument(std::string("TOMFISHER_CPU_ISA must be scalar, avx2, avx512, avx512bf16 or amx, got '") +
                              limit + "'.");
}

Isa isa() {
  static const Isa chosen = isa_limited(std::getenv("TOMFISHER_CPU_ISA"));
  return chosen;
}

}  // namespace tomfisher::cpu
