// The matrix product as the engine uses it (packing by pieces of depth, then multiplying), for parity tests.
#include <nanobind/stl/string.h>

#include <cstring>
#include <memory>
#include <stdexcept>

#include "bindings.h"
#include "gemm.h"
#include "memory.h"

namespace dejavu {
namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using Output = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;

using Buffer = std::unique_ptr<char, Deallocate>;

// Filled with NaN, so that a product which reads what packing did not write shows it.
Buffer poisoned(size_t bytes) {
  Buffer buffer(static_cast<char*>(allocate(bytes + 64)));
  std::memset(buffer.get(), 0xff, bytes + 64);
  return buffer;
}

template <typename Any>
size_t row_stride(const Any& x) {
  if (x.stride(1) != 1 && x.shape(1) > 1) throw std::invalid_argument("rows must be contiguous");
  return size_t(x.stride(0));
}

bool transposed(const std::string& name, const char* plain, const char* other) {
  if (name != plain && name != other) throw std::invalid_argument("unknown packing '" + name + "'");
  return name == other;
}

void multiply(Matrix a, Matrix b, Output c, const std::string& isa, const std::string& kind, const std::string& pack,
              const std::string& pack_b, bool accumulate, int k_split) {
  if (kind != "f32" && kind != "bf16") throw std::invalid_argument("unknown kind '" + kind + "'");
  const Gemm& gemm = kind == "f32" ? gemm_f32(parse_isa(isa)) : gemm_bf16(parse_isa(isa));
  const bool at = transposed(pack, "a", "at"), bt = transposed(pack_b, "b", "bt");
  const int m = int(a.shape(at ? 1 : 0)), k = int(a.shape(at ? 0 : 1)), n = int(b.shape(bt ? 0 : 1));
  if (int(b.shape(bt ? 1 : 0)) != k || int(c.shape(0)) != m || int(c.shape(1)) != n || m < 1 || n < 1 || k < 1) {
    throw std::invalid_argument("the shapes of a, b and c do not fit together, or are empty");
  }
  const size_t lda = row_stride(a), ldb = row_stride(b), ldc = row_stride(c);
  const size_t a_panel = gemm.panel_bytes_a(k), b_panel = gemm.panel_bytes_b(k);
  const Buffer packed_a = poisoned(size_t((m + gemm.mr - 1) / gemm.mr) * a_panel);
  const Buffer packed_b = poisoned(size_t((n + gemm.nr - 1) / gemm.nr) * b_panel);
  const int piece = k_split > 0 ? (k_split + gemm.kr - 1) / gemm.kr * gemm.kr : k;

  if (gemm.begin) gemm.begin();
  for (int k0 = 0; k0 < k; k0 += piece) {
    const int depth = k - k0 < piece ? k - k0 : piece;
    char* to_a = packed_a.get() + size_t(k0) * size_t(gemm.mr) * gemm.element_size;
    char* to_b = packed_b.get() + size_t(k0) * size_t(gemm.nr) * gemm.element_size;
    const float* from_a = a.data() + size_t(k0) * (at ? lda : 1);
    const float* from_b = b.data() + size_t(k0) * (bt ? 1 : ldb);
    (at ? gemm.pack_at : gemm.pack_a)(from_a, lda, m, depth, to_a, a_panel);
    (bt ? gemm.pack_bt : gemm.pack_b)(from_b, ldb, depth, n, to_b, b_panel);
    gemm.multiply(m, n, depth, to_a, a_panel, to_b, b_panel, c.data(), ldc, accumulate || k0 > 0);
  }
  if (gemm.end) gemm.end();
}

}  // namespace

void bind_gemm(nb::module_& m) {
  m.def(
      "isas",
      [] {
        nb::list names;
        for (int i = 0; i < kIsaCount; ++i) {
          if (isa_supported(Isa(i))) names.append(isa_name(Isa(i)));
        }
        return names;
      },
      "Instruction sets that this build, CPU and operating system support, best last.");
  m.def(
      "gemm", &multiply, nb::arg("a").noconvert(), nb::arg("b").noconvert(), nb::arg("c").noconvert(), nb::kw_only(),
      nb::arg("isa"), nb::arg("kind"), nb::arg("pack") = "a", nb::arg("pack_b") = "b", nb::arg("accumulate") = false,
      nb::arg("k_split") = 0,
      "c[m, n] (+)= a @ b through packed operands of `kind` 'f32' or 'bf16'. a is [m, k] (pack 'a') or [k, m] ('at'), "
      "b is [k, n] (pack_b 'b') or [n, k] ('bt'); rows may be strided. k_split: depth packed and added at a time.");
}

}  // namespace dejavu
