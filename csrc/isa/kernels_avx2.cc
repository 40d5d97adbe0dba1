#include "vec_avx2.h"
// clang-format off: the vector type comes first
#define DEJAVU_TABLE kernels_avx2
#include "kernels_table.h"
