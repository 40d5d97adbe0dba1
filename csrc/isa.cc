// Probing of the instruction sets with CPUID, XGETBV (what the operating system saves) and, for AMX, Linux's
// permission.
#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dejavu {
namespace {

#if defined(__x86_64__)

unsigned long long enabled_state() {  // XCR0; only after CPUID says OSXSAVE
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<unsigned long long>(high) << 32) | low;
}

// Linux gives a process the 8 KiB of tile state only on request; the grant holds for all of its threads.
bool request_tiles() {
#if defined(__linux__)
  constexpr long kArchReqXcompPerm = 0x1023, kXfeatureXtiledata = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
#else
  return false;
#endif
}

Isa probe() {
  const auto bit = [](unsigned word, int at) { return ((word >> at) & 1) != 0; };
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::portable;
  const bool fma = bit(c, 12), osxsave = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
  if (!(osxsave && avx && fma && f16c)) return Isa::portable;
  const unsigned long long state = enabled_state();
  constexpr unsigned long long kAvxState = 0x6, kAvx512State = 0xe6, kTileState = 0x60000;

  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Isa::portable;
  const unsigned leaves = a;
  if (!(bit(b, 5) && (state & kAvxState) == kAvxState)) return Isa::portable;
  const bool avx512 = bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31) && bit(c, 11);  // F, DQ, BW, VL, VNNI
  if (!(avx512 && (state & kAvx512State) == kAvx512State)) return Isa::avx2;
  const bool tiles = bit(d, 22) && bit(d, 24);  // AMX-BF16, AMX-TILE

  if (leaves < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !bit(a, 5)) return Isa::avx512;
  if (!(tiles && (state & kTileState) == kTileState && request_tiles())) return Isa::avx512bf16;
  return Isa::amx;
}

#else

Isa probe() { return Isa::portable; }

#endif

}  // namespace

const char* isa_name(Isa isa) {
  static constexpr const char* kNames[kIsaCount] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};
  return kNames[static_cast<int>(isa)];
}

Isa best_isa() {
  static const Isa best = probe();
  return best;
}

bool isa_supported(Isa isa) { return static_cast<int>(isa) <= static_cast<int>(best_isa()); }

}  // namespace dejavu
