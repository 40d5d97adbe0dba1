#include "memory.h"

#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dejavu {

void* allocate(size_t bytes) {
  constexpr size_t kHugePage = size_t(2) << 20;
  const size_t alignment = bytes >= kHugePage ? kHugePage : 64;
  const size_t units = bytes ? (bytes + alignment - 1) / alignment : 1;  // of nothing aligned_alloc may give null
  void* p = std::aligned_alloc(alignment, units * alignment);
  if (!p) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // A wish: where it is refused, pages are small.
  if (alignment == kHugePage) madvise(p, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return p;
}

void deallocate(void* p) { std::free(p); }

}  // namespace dejavu
