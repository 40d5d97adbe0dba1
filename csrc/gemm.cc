// Chooses the matrix product of an instruction set.
#include "gemm.h"

#include "isa/gemm_tables.h"

namespace dejavu {

const Gemm& gemm_f32(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::avx512) return kGemmF32Avx512;
  if (isa == Isa::avx2) return kGemmF32Avx2;
#else
  static_cast<void>(isa);
#endif
  return kGemmF32Portable;
}

const Gemm& gemm_bf16(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::amx) return kGemmBf16Amx;
  if (isa == Isa::avx512bf16) return kGemmBf16Avx512;
#endif
  return gemm_f32(isa);
}

}  // namespace dejavu
