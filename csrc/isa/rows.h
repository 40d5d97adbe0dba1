// The row kernels of one codec, over ranges of rows and over lists of bundles.
#pragma once

#include <type_traits>

#include "rows_decode.h"
#include "rows_mlp.h"
#include "rows_prepare.h"

namespace {

// Row `first` of bundle `bundle` and those after it, also in the next bundles.
struct Onward {
  const Bundles& bundles;
  int bundle, first, shift;
  Onward(const Bundles& bundles_, int bundle_, int first_, int n)
      : bundles(bundles_), bundle(bundle_), first(first_), shift(-1) {
    const int rows = bundles.rows;
    if (first + n <= rows) {
      shift = 31;
    } else if ((rows & (rows - 1)) == 0) {
      shift = __builtin_ctz(unsigned(rows));  // a division takes as long as a quarter of a short row
    }
  }
  Row operator()(int i) const {
    const int at = first + i, further = shift >= 0 ? at >> shift : at / bundles.rows;
    return bundles.row(bundle + further, at - further * bundles.rows);
  }
};

// All rows of each bundle of a list, bundle by bundle, those of one in the order of Streams.
struct Whole {
  const Bundles& bundles;
  const int32_t* list;
  Streams order;
  int shift;
  Whole(const Bundles& bundles_, const int32_t* list_)
      : bundles(bundles_), list(list_), order(bundles.rows), shift(-1) {
    if ((bundles.rows & (bundles.rows - 1)) == 0) shift = __builtin_ctz(unsigned(bundles.rows));
  }
  Row operator()(int i) const {
    const int before = shift >= 0 ? i >> shift : i / bundles.rows;
    return bundles.row(list[before], order(i - before * bundles.rows));
  }
};

// Rows `row(0)` to `row(n - 1)`, in the order in which they are read; those that are fetched meanwhile come kAhead
// after. To be asked for at(0), ahead(0), at(1), ahead(1) ...: each address is made once. kOnward: they lie one behind
// the other.
template <Codec C, int kAhead, bool kOnward, typename RowAt>
class Reading {
 public:
  Reading(RowAt row, int n) : row_(row), n_(n) {
    for (int i = 0; i < kAhead && i < n; ++i) known_[i] = row_(i);
  }
  Row at(int i) const { return known_[unsigned(i) % kAhead]; }
  Row ahead(int i) {
    Row& place = known_[unsigned(i) % kAhead];
    const Row here = place;
    if (i + kAhead < n_) place = row_(i + kAhead);
    return kOnward && !is_grouped(C) ? prefetch_place(here) : place;
  }

 private:
  RowAt row_;
  int n_;
  Row known_[kAhead];
};

// use(at, ahead, order): `row(i)`, i < n, in the order of Streams.
template <Codec C, int kAhead, typename RowAt, typename Use>
inline void in_streams(RowAt row, int n, Use use) {
  const Streams order(n);
  const auto read = [&](int i) { return row(order(i)); };
  Reading<C, kAhead, std::is_same_v<RowAt, Onward>, decltype(read)> rows(read, n);
  use([&](int i) { return rows.at(i); }, [&](int i) { return rows.ahead(i); }, order);
}

template <Codec C, int Most = kTokens, typename RowAt>
inline void dots(const RowLayout& layout, RowAt row, int n, const void* const* inputs, int tokens, float* const* outs) {
  in_streams<C, 4 * kDotRows>(row, n, [&](auto at, auto ahead, const Streams& order) {
    dot_rows<C, Most>(layout, at, ahead, order, n, inputs, tokens, outs);
  });
}

// One token's dots: codes in planes have kernels of their own.
template <Codec C, typename RowAt>
inline void dots_of_one(const RowLayout& layout, RowAt row, int n, const void* input, float* out) {
  if constexpr (is_planes(C)) {
    in_streams<C, 4 * kPlaneRows>(row, n, [&](auto at, auto ahead, const Streams& order) {
      plane_rows<C>(layout, at, ahead, order, n, input, out);
    });
  } else {
    dots<C, 1>(layout, row, n, &input, 1, &out);
  }
}

template <Codec C>
void dot_many(const Bundles& bundles, int bundle, int first, int n, const void* const* inputs, int tokens,
              float* const* outs) {
  dots<C>(bundles.layout, Onward(bundles, bundle, first, n), n, inputs, tokens, outs);
}

template <Codec C>
void dot(const Bundles& bundles, int bundle, int first, int n, const void* input, float* out) {
  dots_of_one<C>(bundles.layout, Onward(bundles, bundle, first, n), n, input, out);
}

template <Codec C>
void axpy(const Bundles& bundles, const int32_t* list, int n, const float* const* coefficients, int tokens,
          float* const* outputs) {
  const int each = bundles.rows;
  const Whole whole(bundles, list);
  const auto add = [&](auto together) {
    Reading<C, decltype(together)::value, true, Whole> rows(whole, n * each);
    for (int first = 0; first < n * each; first += each) {
      const float* by[dejavu::kMaxTokens];
      for (int t = 0; t < tokens; ++t) by[t] = coefficients[t] + first;
      axpy_rows<C>(
          bundles.layout, [&](int i) { return rows.at(first + i); }, [&](int i) { return rows.ahead(first + i); },
          whole.order, each, by, tokens, outputs);
    }
  };
  tokens > 1 ? add(Count<kSumSets * kSumRows>()) : add(Count<kSumRows>());
}

template <Codec C>
void axpy_list(const Bundles& bundles, int row, const int32_t* list, int n, const float* coefficients, float* output) {
  const auto listed = [&](int i) { return bundles.row(list[i], row); };
  in_streams<C, kSumRows>(listed, n, [&](auto at, auto ahead, const Streams& order) {
    axpy_rows<C>(bundles.layout, at, ahead, order, n, &coefficients, 1, &output);
  });
}

template <Codec C>
void dot_list(const Bundles& bundles, int first, int rows, const int32_t* list, int n, const void* input, float* out) {
  const unsigned each = unsigned(rows);
  dots_of_one<C>(
      bundles.layout, [&](int i) { return bundles.row(list[unsigned(i) / each], first + int(unsigned(i) % each)); },
      n * rows, input, out);
}

template <Codec C>
void dot_picked(const Bundles& bundles, const int32_t* picked, int n, const void* input, float* out) {
  const unsigned rows = unsigned(bundles.rows);
  dots_of_one<C>(
      bundles.layout,
      [&](int i) { return bundles.row(int(unsigned(picked[i]) / rows), int(unsigned(picked[i]) % rows)); }, n, input,
      out);
}

// Parts of int8 rows have dots of lists alone, with one token.
template <Codec C>
constexpr dejavu::RowKernels part_kernels() {
  dejavu::RowKernels kernels{};
  kernels.prepare = prepare_grouped;
  kernels.dot_list = dot_list<C>;
  return kernels;
}

template <Codec C>
constexpr dejavu::RowKernels row_kernels() {
  return {is_grouped(C) ? prepare_grouped : prepare_f32,
          dot<C>,
          axpy<C>,
          mlp<C>,
          dot_many<C>,
          mlp_many<C>,
          dot_list<C>,
          dot_picked<C>,
          axpy_list<C>,
          decode<C>};
}

}  // namespace
