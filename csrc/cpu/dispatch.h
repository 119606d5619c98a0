// Which instruction set the code written for several of them uses, decided once at run time.
//
// Files that end in _avx2, _avx512, _avx512bf16 or _amx are compiled with the flags of that set (setup.py).
// They include no C++ standard library header and keep everything but their entry points in an anonymous
// namespace: an inline function compiled there could otherwise be the copy that the linker keeps for all.
#pragma once

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "The C++ code needs a little-endian machine: TOMFISHER_BUILD_EXT=0 installs tomfisher without it."
#endif

namespace tomfisher::cpu {

enum class Isa { scalar = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3, amx = 4 };

// What this processor and operating system can run; TOMFISHER_CPU_ISA=scalar|avx2|avx512|avx512bf16|amx
// lowers it (for tests and measurements) and never raises it. Read at the first call.
Isa isa();

// As isa(), from the given text (nullptr: no limit) instead of the environment.
// Throws std::invalid_argument for a name that is none of the above.
Isa isa_limited(const char* limit);

const char* name(Isa isa);

}  // namespace tomfisher::cpu
