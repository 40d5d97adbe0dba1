// The table of kernels of one instruction set. The including file defines DEJAVU_TABLE and includes a vec_*.h.
#include <math.h>
#include <string.h>

#include "attention.h"
#include "choose.h"
#include "learn.h"
#include "math.h"
#include "memory.h"
#include "rows.h"
#include "tiles.h"

#define DEJAVU_KV(function) \
  {function<KvType::f32>, function<KvType::f16>, function<KvType::bf16>, function<KvType::int8>}

namespace dejavu {
extern const Kernels DEJAVU_TABLE;
const Kernels DEJAVU_TABLE = {
    {row_kernels<Codec::f32>(), row_kernels<Codec::bf16>(), row_kernels<Codec::int8>(), row_kernels<Codec::int4>(),
     part_kernels<Codec::low3>(), part_kernels<Codec::low4>(), part_kernels<Codec::low5>()},
    tile_dot,
    rms_norm,
    layer_norm,
    ::add,
    activate,
    ::softmax,
    softcap,
    DEJAVU_KV(scores),
    DEJAVU_KV(mix),
    DEJAVU_KV(store_key),
    DEJAVU_KV(store_value),
    DEJAVU_KV(load_keys),
    DEJAVU_KV(load_value),
    above,
    transpose,
    ::read,
    {learn_kernels<float>(), learn_kernels<uint16_t>()},
};
}  // namespace dejavu
