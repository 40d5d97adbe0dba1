// Kernels on vectors and on the KV cache, one by one, for parity tests; and the measurement of read bandwidth.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include "bindings.h"
#include "cache.h"
#include "pool.h"
#include "select.h"

namespace dejavu {
namespace {

using Floats = Array<const float, 1>;
using Output = Array<float, 1>;
using Matrix = Array<const float, 2>;
using MatrixOut = Array<float, 2>;

void same(size_t a, size_t b) {
  if (a != b) throw std::invalid_argument("arrays differ in length");
}

}  // namespace

void bind_kernels(nb::module_& m) {
  m.def(
      "norm",
      [](const std::string& isa, Floats x, Floats weight, std::optional<Floats> bias, bool rms, float eps, Output out) {
        same(x.shape(0), weight.shape(0));
        same(x.shape(0), out.shape(0));
        if (bias) same(x.shape(0), bias->shape(0));
        const Kernels& k = kernels(parse_isa(isa));
        const int n = int(x.shape(0));
        if (rms) {
          k.rms_norm(x.data(), weight.data(), eps, n, out.data());
        } else {
          k.layer_norm(x.data(), weight.data(), bias ? bias->data() : nullptr, eps, n, out.data());
        }
      },
      nb::arg("isa"), nb::arg("x").noconvert(), nb::arg("weight"), nb::arg("bias").none(), nb::arg("rms"),
      nb::arg("eps"), nb::arg("out").noconvert());

  m.def(
      "activate",
      [](const std::string& isa, const std::string& activation, Floats gate, std::optional<Floats> up, Output out,
         float threshold) {
        same(gate.shape(0), out.shape(0));
        if (up) same(gate.shape(0), up->shape(0));
        kernels(parse_isa(isa))
            .activate(parse_activation(activation, threshold), gate.data(), up ? up->data() : nullptr,
                      int(gate.shape(0)), out.data());
      },
      nb::arg("isa"), nb::arg("activation"), nb::arg("gate").noconvert(), nb::arg("up").none(),
      nb::arg("out").noconvert(), nb::arg("threshold") = 0.0f);

  m.def(
      "pick",
      [](const std::string& isa, Floats scores, int k, float threshold, Array<int32_t, 1> list) {
        same(scores.shape(0), list.shape(0));
        if (k < 0) throw std::invalid_argument("k is below 0");
        Selector selector;
        selector.k = k, selector.threshold = threshold;
        std::vector<float> scratch(scores.shape(0));
        return pick(kernels(parse_isa(isa)), selector, scores.data(), int(scores.shape(0)), scratch.data(),
                    list.data());
      },
      nb::arg("isa"), nb::arg("scores").noconvert(), nb::arg("k"), nb::arg("threshold"), nb::arg("list").noconvert(),
      "Writes the places of the k highest scores, or where k is 0 of those above the threshold, in rising order, and "
      "returns how many they are.");

  m.def(
      "softmax",
      [](const std::string& isa, Output x) {
        if (x.shape(0) == 0) throw std::invalid_argument("softmax of nothing");
        return kernels(parse_isa(isa)).softmax(x.data(), int(x.shape(0)));
      },
      nb::arg("isa"), nb::arg("x").noconvert());

  m.def(
      "softcap",
      [](const std::string& isa, Output x, float cap) {
        kernels(parse_isa(isa)).softcap(x.data(), cap, int(x.shape(0)));
      },
      nb::arg("isa"), nb::arg("x").noconvert(), nb::arg("cap"));

  m.def(
      "attend",
      [](const std::string& isa, const std::string& kv, Matrix q, Matrix keys, Matrix values, float scale, int first,
         MatrixOut scores, MatrixOut out) {
        const int heads = int(q.shape(0)), n = int(keys.shape(0)), hd = int(keys.shape(1));
        same(q.shape(1), size_t(hd));
        same(out.shape(0), size_t(heads));
        same(out.shape(1), size_t(hd));
        same(scores.shape(0), size_t(heads));
        same(scores.shape(1), size_t(n));
        same(values.shape(0), size_t(n));
        same(values.shape(1), size_t(hd));
        if (n < 1 || n > kCacheBlock || first < 0 || first >= n)
          throw std::invalid_argument("1..128 positions, first among them");
        const Kernels& k = kernels(parse_isa(isa));
        const KvType type = parse_kv(kv);
        Cache cache(type, 1, 1, hd);
        cache.reserve(n);
        const int t = int(type);
        for (int p = 0; p < n; ++p) {
          k.store_key[t](keys.data() + p * hd, hd, p, cache.keys(0, 0, 0), cache.key_scales(0, 0, 0));
          k.store_value[t](values.data() + p * hd, hd, p, cache.values(0, 0, 0), cache.value_scales(0, 0, 0));
        }
        std::vector<float> room(size_t(heads) * kCacheBlock);
        k.scores[t](q.data(), heads, cache.keys(0, 0, 0), nullptr, cache.key_scales(0, 0, 0), hd,
                    first / kKeyTile * kKeyTile, n, scale, room.data(), kCacheBlock);
        for (int h = 0; h < heads; ++h) {
          float* own = room.data() + h * kCacheBlock + first;
          std::memcpy(scores.data() + h * n + first, own, size_t(n - first) * sizeof(float));
          k.softmax(own, n - first);
        }
        std::memset(out.data(), 0, size_t(heads * hd) * sizeof(float));
        k.mix[t](room.data(), kCacheBlock, heads, cache.values(0, 0, 0), nullptr, cache.value_scales(0, 0, 0), hd,
                 first, n, out.data());
      },
      nb::arg("isa"), nb::arg("kv"), nb::arg("q").noconvert(), nb::arg("keys").noconvert(),
      nb::arg("values").noconvert(), nb::arg("scale"), nb::arg("first"), nb::arg("scores").noconvert(),
      nb::arg("out").noconvert(),
      "Attention of query heads over up to 128 positions that are written into a real cache block.");

  m.def(
      "read_bandwidth",
      [](int threads, size_t bytes, int repeats, std::vector<int> streams) {
        if (threads < 1 || repeats < 1 || bytes < 4096 || streams.empty())
          throw std::invalid_argument("threads, repeats >= 1; bytes >= 4096; streams not empty");
        for (int n : streams) {
          if (n != 1 && n != 4 && n != 8) throw std::invalid_argument("streams are 1, 4 or 8");
        }
        bytes = bytes / 4096 * 4096;
        std::unique_ptr<char, void (*)(void*)> data(static_cast<char*>(std::aligned_alloc(4096, bytes)), std::free);
        if (!data) throw std::bad_alloc();
        const Kernels& k = kernels(best_isa());
        double best = 0;
        nb::gil_scoped_release release;
        Pool pool(threads);
        std::vector<uint64_t> found(size_t(threads) * 8);
        auto range = [&](int t) { return share(int(bytes / 4096), 1, t, threads); };
        pool.run([&](int t) {
          const Range r = range(t);
          std::memset(data.get() + size_t(r.begin) * 4096, 1, size_t(r.end - r.begin) * 4096);
        });
        for (size_t i = 0; i < streams.size() * size_t(repeats); ++i) {
          const int side_by_side = streams[i % streams.size()];
          const auto start = std::chrono::steady_clock::now();
          pool.run([&](int t) {
            const Range r = range(t);
            found[size_t(t) * 8] +=
                k.read(data.get() + size_t(r.begin) * 4096, size_t(r.end - r.begin) * 4096, side_by_side);
          });
          const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
          if (double(bytes) / seconds > best) best = double(bytes) / seconds;
        }
        return best;
      },
      nb::arg("threads"), nb::arg("bytes") = size_t(512) << 20, nb::arg("repeats") = 5,
      nb::arg("streams") = std::vector<int>{1, 4, 8},
      "Sequential read bandwidth in bytes per second: the best of `repeats` passes over `bytes` of memory with each of "
      "`streams` sequences side by side per thread.");
}

}  // namespace dejavu
