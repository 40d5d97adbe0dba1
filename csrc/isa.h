// The instruction sets that dejavu is compiled for, best last. One is chosen at run time; DEJAVU_ISA overrides.
#pragma once

namespace dejavu {

enum class Isa : int {
  portable = 0,    // plain C++, any CPU
  avx2 = 1,        // AVX2, FMA, F16C
  avx512 = 2,      // AVX-512 F, BW, DQ, VL, VNNI
  avx512bf16 = 3,  // avx512 and AVX512-BF16 (bf16 dot products in the GEMM)
  amx = 4,         // avx512bf16 and AMX-TILE, AMX-BF16 (bf16 tiles in the GEMM)
};

inline constexpr int kIsaCount = 5;

const char* isa_name(Isa isa);
bool isa_supported(
    Isa isa);  // by this build, this CPU and this operating system (AMX asks the kernel for permission once)
Isa best_isa();

}  // namespace dejavu
