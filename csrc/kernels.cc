#include "kernels.h"

namespace dejavu {

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

const Kernels& kernels(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::avx512) return kernels_avx512;
  if (isa == Isa::avx2) return kernels_avx2;
#endif
  (void)isa;
  return kernels_portable;
}

}  // namespace dejavu
