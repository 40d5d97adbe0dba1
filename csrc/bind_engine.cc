// The engine and its caches. Everything that comes from Python is checked here, before any kernel reads memory.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "bindings.h"
#include "engine.h"

namespace dejavu {
namespace {

struct NativeEngine {
  Array<const uint8_t, 1> buffer;  // keeps the packed weights alive
  Engine engine;
};

// The caches of a call, which nobody else may touch while it runs without Python's lock.
class InUse {
 public:
  InUse() = default;
  InUse(const InUse&) = delete;
  ~InUse() {
    for (Cache* cache : caches_) cache->in_use = false;
  }
  void add(const Engine& engine, Cache* cache) {
    if (!cache) throw std::invalid_argument("a cache is None");
    if (!engine.owns(*cache)) {
      throw std::invalid_argument("a cache is of another model: only the executor that made it can use it");
    }
    if (std::count(caches_.begin(), caches_.end(), cache)) {
      throw std::invalid_argument("a cache can be in a batch once");
    }
    check_free(*cache);
    caches_.push_back(cache);
    cache->in_use = true;
  }
  static void check_free(const Cache& cache) {
    if (cache.in_use) throw std::invalid_argument("another thread is using the cache");
  }

 private:
  std::vector<Cache*> caches_;
};

void check_token(const Engine& engine, int64_t token, const Cache& cache, int count) {
  const Config& c = engine.config();
  if (token < 0 || token >= c.vocab) {
    throw std::invalid_argument("token " + std::to_string(token) + " is outside the vocabulary of " +
                                std::to_string(c.vocab));
  }
  if (count > c.max_context - cache.length()) {
    throw std::invalid_argument("position " + std::to_string(long(cache.length()) + count) +
                                " is beyond the context of " + std::to_string(c.max_context));
  }
}

// The rows of the batch that each cache gets; throws where tokens and counts do not fit.
std::vector<Segment> parse_segments(const Engine& engine, const Array<const int32_t, 1>& tokens,
                                    const std::vector<Cache*>& caches, const std::vector<int>& counts, InUse& in_use) {
  if (caches.size() != counts.size() || caches.empty()) throw std::invalid_argument("one count per cache is needed");
  std::vector<Segment> segments;
  size_t row = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    in_use.add(engine, caches[i]);
    if (counts[i] < 1 || size_t(counts[i]) > tokens.shape(0) - row) {
      throw std::invalid_argument("counts do not add up to the tokens");
    }
    for (int t = 0; t < counts[i]; ++t) check_token(engine, tokens.data()[row + size_t(t)], *caches[i], counts[i]);
    segments.push_back({caches[i], int(row), counts[i]});
    row += size_t(counts[i]);
  }
  if (row != tokens.shape(0)) throw std::invalid_argument("counts do not add up to the tokens");
  return segments;
}

void check_logits(const Engine& engine, const Array<float, 2>& logits, size_t rows) {
  if (logits.shape(0) != rows || int(logits.shape(1)) != engine.config().vocab) {
    throw std::invalid_argument("logits is not [rows, vocab]");
  }
}

// What waits for a pass that runs must let that pass have the lock when it ends.
template <typename Body>
auto without_gil(Body body) {
  nb::gil_scoped_release release;
  return body();
}

// The array called `name`, or null where it holds no tokens; throws where it is not [layers, tokens, width].
float* captured(const nb::dict& arrays, const char* name, int layers, size_t tokens, int width) {
  Array<float, 3> array;
  if (!arrays.contains(name) || !nb::try_cast(arrays[name], array, false) || array.shape(0) != size_t(layers) ||
      (array.shape(1) && array.shape(1) != tokens) || array.shape(2) != size_t(width)) {
    throw std::invalid_argument(std::string(name) + " is not float32 [layers, tokens, " + std::to_string(width) + "]");
  }
  return array.size() ? array.data() : nullptr;
}

}  // namespace

void bind_engine(nb::module_& m) {
  m.def("best_isa", [] { return std::string(isa_name(best_isa())); }, "The best instruction set of this machine.");

  nb::class_<Cache>(m, "Cache", "Keys and values of one sequence.")
      .def_prop_ro("length", &Cache::length)
      .def_prop_ro("nbytes", &Cache::bytes)
      .def(
          "truncate",
          [](Cache& c, int length) {
            InUse::check_free(c);
            if (length < 0 || length > c.length())
              throw std::invalid_argument("length is outside what the cache holds");
            c.truncate(length);
          },
          nb::arg("length"))
      .def("fork", [](const Cache& c) {
        InUse::check_free(c);
        return c.fork();
      });

  nb::class_<NativeEngine>(m, "Engine", "The native executor over one buffer of packed weights.")
      .def(
          "__init__",
          [](NativeEngine* self, const nb::dict& config, const std::string& codec, const std::string& head_codec,
             Array<const uint8_t, 1> buffer, const nb::dict& sections, int leading, int threads,
             const std::string& isa) {
            if (leading != 0 && (leading < dejavu::kFewestApart || leading > dejavu::kMostApart))
              throw std::invalid_argument("leading is out of range");
            Sections views;
            for (auto [key, value] : sections) {
              const auto range = nb::cast<std::vector<uint64_t>>(value);
              if (range.size() != 2 || range[0] > buffer.shape(0) || range[1] > buffer.shape(0) - range[0]) {
                throw std::invalid_argument("section " + nb::cast<std::string>(key) + " is outside the buffer");
              }
              views[nb::cast<std::string>(key)] = {buffer.data() + range[0], size_t(range[1])};
            }
            const Config c = parse_config(config);
            new (self) NativeEngine{
                buffer, {c, parse_codec(codec), parse_codec(head_codec), views, leading, threads, parse_isa(isa)}};
          },
          nb::arg("config"), nb::arg("codec"), nb::arg("head_codec"), nb::arg("buffer").noconvert(),
          nb::arg("sections"), nb::arg("leading"), nb::arg("threads"), nb::arg("isa"),
          "ValueError names the section or field that is missing or of the wrong size.")
      .def_prop_ro("isa", [](const NativeEngine& e) { return std::string(isa_name(e.engine.isa())); })
      .def_prop_ro("threads", [](const NativeEngine& e) { return e.engine.threads(); })
      .def(
          "new_cache", [](const NativeEngine& e, const std::string& kv) { return e.engine.new_cache(parse_kv(kv)); },
          nb::arg("kv"))
      .def(
          "set_plan",
          [](NativeEngine& e, const std::optional<nb::dict>& plan) {
            std::unique_ptr<Plan> parsed = plan ? parse_plan(*plan, e.engine.config()) : nullptr;
            nb::gil_scoped_release release;
            e.engine.set_plan(std::move(parsed));
          },
          nb::arg("plan").none(), "The access plan of the next calls, or None: dense.")
      .def("counters",
           [](const NativeEngine& e) {
             const Counters c = without_gil([&] { return e.engine.counters(); });
             nb::dict found;
             found["tokens"] = c.tokens, found["neurons"] = c.neurons, found["heads"] = c.heads;
             found["recomputed"] = c.recomputed, found["decoded"] = c.decoded, found["mlp_seconds"] = c.mlp_seconds;
             nb::dict seconds;
             for (int i = 0; i < kParts; ++i) seconds[kPartNames[i]] = c.seconds[i];
             found["seconds"] = seconds;
             return found;
           })
      .def("reset_counters", [](NativeEngine& e) { without_gil([&] { e.engine.reset_counters(); }); })
      .def_prop_rw(
          "barrier_cost", [](const NativeEngine& e) { return without_gil([&] { return e.engine.barrier_cost(); }); },
          [](NativeEngine& e, long cost) { without_gil([&] { e.engine.set_barrier_cost(cost); }); })
      .def(
          "decode",
          [](NativeEngine& e, Array<const int32_t, 1> tokens, const std::vector<Cache*>& caches, bool sparse,
             Array<float, 2> logits) {
            if (caches.empty() || caches.size() != tokens.shape(0)) {
              throw std::invalid_argument("one token per cache is needed");
            }
            InUse in_use;
            for (size_t i = 0; i < caches.size(); ++i) {
              in_use.add(e.engine, caches[i]);
              check_token(e.engine, tokens.data()[i], *caches[i], 1);
            }
            check_logits(e.engine, logits, caches.size());
            nb::gil_scoped_release release;
            e.engine.decode(tokens.data(), caches.data(), int(caches.size()), sparse, logits.data());
          },
          nb::arg("tokens").noconvert(), nb::arg("caches"), nb::arg("sparse"), nb::arg("logits").noconvert(),
          "Appends one token to each cache, under the plan if `sparse`; writes the logits, float32 [tokens, vocab].")
      .def(
          "forward",
          [](NativeEngine& e, Array<const int32_t, 1> tokens, const std::vector<Cache*>& caches,
             const std::vector<int>& counts, bool sparse, const std::string& which, Array<float, 2> logits) {
            if (which != "last" && which != "all" && which != "none") {
              throw std::invalid_argument("which is " + which + "; last, all and none are possible");
            }
            const Logits kind = which == "last" ? Logits::last : which == "all" ? Logits::all : Logits::none;
            InUse in_use;
            const std::vector<Segment> segments = parse_segments(e.engine, tokens, caches, counts, in_use);
            if (kind != Logits::none) {
              check_logits(e.engine, logits, kind == Logits::all ? tokens.shape(0) : segments.size());
            }
            nb::gil_scoped_release release;
            e.engine.forward(tokens.data(), segments, sparse, kind, logits.data());
          },
          nb::arg("tokens").noconvert(), nb::arg("caches"), nb::arg("counts"), nb::arg("sparse"), nb::arg("which"),
          nb::arg("logits").noconvert(),
          "Appends counts[i] tokens to caches[i], under the plan if `sparse`; writes the logits of each cache's last "
          "token, of all tokens, or none.")
      .def(
          "trace",
          [](NativeEngine& e, Array<const int32_t, 1> tokens, std::vector<Cache*> caches, std::vector<int> counts,
             const nb::dict& arrays, Array<float, 2> logits, bool sparse) {
            const Config& c = e.engine.config();
            InUse in_use;
            const std::vector<Segment> segments = parse_segments(e.engine, tokens, caches, counts, in_use);
            if (logits.shape(0)) check_logits(e.engine, logits, tokens.shape(0));
            const auto find = [&](const char* name, int width) {
              return captured(arrays, name, c.layers, tokens.shape(0), width);
            };
            const Capture capture{find("attn_input", c.d),
                                  find("mlp_input", c.d),
                                  find("hidden", c.ff),
                                  find("gate", c.ff),
                                  find("head_norm", c.heads),
                                  find("chosen", c.ff),
                                  captured(arrays, "head_input", 1, tokens.shape(0), c.embed_dim)};
            nb::gil_scoped_release release;
            e.engine.forward(tokens.data(), segments, sparse, logits.shape(0) ? Logits::all : Logits::none,
                             logits.data(), capture);
          },
          nb::arg("tokens").noconvert(), nb::arg("caches"), nb::arg("counts"), nb::arg("arrays"),
          nb::arg("logits").noconvert(), nb::arg("sparse"),
          "Appends counts[i] tokens to caches[i]; fills the arrays (float32 [layers, tokens, width]: attn_input and "
          "mlp_input of width d, "
          "hidden, gate and chosen of width ff, head_norm of width heads; and head_input, [1, tokens, embed_dim]) and "
          "logits (float32 [tokens, vocab]); those with room for no tokens are left alone.");
}

}  // namespace dejavu
