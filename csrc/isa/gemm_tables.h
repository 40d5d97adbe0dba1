// The matrix products that the files of csrc/isa/ define.
#pragma once

#include "../gemm.h"

namespace dejavu {

extern const Gemm kGemmF32Portable;
extern const Gemm kGemmF32Avx2;
extern const Gemm kGemmF32Avx512;
extern const Gemm kGemmBf16Avx512;
extern const Gemm kGemmBf16Amx;

}  // namespace dejavu
