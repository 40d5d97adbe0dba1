#include "vec_portable.h"
// clang-format off: the vector type comes first
#define DEJAVU_TABLE kernels_portable
#include "kernels_table.h"
