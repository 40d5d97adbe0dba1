#include "vec_avx512.h"
// clang-format off: the vector type comes first
#define DEJAVU_TABLE kernels_avx512
#include "kernels_table.h"
