// Memory for what is read again with every token.
#pragma once

#include <cstddef>

namespace dejavu {

// `bytes` of memory, aligned to cache lines; large pieces in huge pages, where the system has them. Not initialised.
// Throws std::bad_alloc.
void* allocate(size_t bytes);
void deallocate(void* p);
struct Deallocate {
  void operator()(void* p) const { deallocate(p); }
};

}  // namespace dejavu
