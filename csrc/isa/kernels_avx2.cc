#include "vec_avx2.h"
// clang-format off: the vector type comes first
#define DEJAVU_TABLE kernels_avx2
#define DEJAVU_TABLE_NAME "avx2"
#include "kernels_table.h"
