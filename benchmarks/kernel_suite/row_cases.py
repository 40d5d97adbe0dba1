"""Cases of the kernels on rows of weights, through the bindings that the parity tests use.

Weights are 64 random rows (neurons), repeated; the check computes these in float64 from what the NumPy codec says they
are after rounding. A call's own cost (Python, rounding the input) is in the time, and equal on both sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu import _core as core
from dejavu import codecs
from kernel_suite.cases import Work
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kernel_suite.cases import Sizes

    Codec = Any
    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

DISTINCT = 64
READ = {
    "lead5": (5, True),
    "low3": (5, False),
    "lead4": (4, True),
    "low4": (4, False),
    "lead3": (3, True),
    "low5": (3, False),
}
"""Name -> bits of int8 that lie apart, and whether they are read or the others."""


def random_weights(*shape: int) -> Floats:
    """Standard normal over the square root of the width."""
    return np.random.default_rng(0).standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)


def vector(*shape: int) -> Floats:
    """Inputs of a kernel, with an outlier, as activations have them."""
    x = np.random.default_rng(1).standard_normal(shape, np.float32)
    x[..., ::97] *= 20
    return x


def rounded(codec: Codec, weights: Floats) -> NDArray[np.float64]:
    """What the codec leaves of weights [..., d]."""
    flat = codecs.roundtrip(codec, weights.reshape(-1, weights.shape[-1]))
    return flat.reshape(weights.shape).astype(np.float64)


def aligned(nbytes: int) -> Bytes:
    """Memory that begins at a page."""
    room = np.empty(nbytes + 4096, np.uint8)
    start = -room.ctypes.data % 4096
    return room[start : start + nbytes]


def repeated(piece: Bytes, count: int) -> Bytes:
    """`piece` (any shape), `count` times: uint8 [count, bytes]."""
    out = aligned(piece.nbytes * count).reshape(count, piece.nbytes)
    out[:] = piece.reshape(-1)
    return out


def pack(codec: Codec, weights: Floats) -> Bytes:
    """Bundles of weights [bundles, rows, d]: uint8 [bundles, bytes]."""
    count, rows, d = weights.shape
    out = aligned(core.bundle_bytes(codec, d, rows) * count)
    core.pack(codec, weights, out, 1)
    return out.reshape(count, -1)


def over(found: NDArray[Any], expected: NDArray[Any], limit: float) -> float:
    """The largest difference over `limit`; infinite where something is not a number."""
    worst = float(np.abs(found - expected).max() / limit)
    return worst if np.isfinite(worst) else float("inf")


def times(size: int, piece: int, cold: bool) -> int:
    """How many pieces a case goes through."""
    return max(2, -(-size // piece)) if cold else 1


def row_bundles(sizes: Sizes, codec: Codec, d: int, cold: bool) -> tuple[Bytes, int, NDArray[np.float64]]:
    """Bundles of as many rows as stay in the cache: bytes, rows of each, and the rounded rows [rows, d]."""
    rows = max(4, sizes.hot_bytes // int(core.bundle_bytes(codec, d, 1)))
    few, index = random_weights(DISTINCT, d), np.arange(rows) % DISTINCT
    bundle = pack(codec, few[index][None])
    return (
        repeated(bundle, times(sizes.cold_bytes, bundle.nbytes, cold)).reshape(-1),
        rows,
        rounded(codec, few)[index],
    )


def dot(sizes: Sizes, codec: Codec, d: int, cold: bool) -> Work:
    """All rows of a bundle, as q, k, v and the head are computed."""
    data, rows, plain = row_bundles(sizes, codec, d, cold)
    count = data.nbytes // int(core.bundle_bytes(codec, d, rows))
    x, out, isa = vector(d), np.empty(rows, np.float32), core.best_isa()

    def run(i: int) -> None:
        core.dot(isa, codec, data, rows, i % count, 0, x, out)

    def error() -> float:
        out[:] = np.nan
        run(0)
        return over(out, plain @ x, TOLERANCES["dot"] * float((np.abs(plain) @ np.abs(x)).max()))

    return Work(run, error, rows, data.nbytes // count, cold)


def axpy(sizes: Sizes, codec: Codec, d: int, cold: bool) -> Work:
    """All rows of a bundle into one output, as o is computed."""
    data, rows, plain = row_bundles(sizes, codec, d, cold)
    count = data.nbytes // int(core.bundle_bytes(codec, d, rows))
    c, y, isa = vector(rows)[None], np.zeros((1, d), np.float32), core.best_isa()
    listed = [np.array([bundle], np.int32) for bundle in range(count)]

    def run(i: int) -> None:
        core.axpy(isa, codec, data, rows, listed[i % count], c, y)

    def error() -> float:
        y[:] = 0
        run(0)
        return over(y, c @ plain, TOLERANCES["axpy"] * float((np.abs(c) @ np.abs(plain)).max()))

    return Work(run, error, rows, data.nbytes // count, cold)


def neuron_layers(sizes: Sizes, codec: Codec, d: int, neurons: int, cold: bool) -> tuple[Bytes, int, Floats]:
    """Gated neurons by layers: bytes [layers, bytes], neurons of each (0: what stays in the cache), weights [64, 3, d]."""
    neurons = neurons or max(4, sizes.hot_bytes // int(core.bundle_bytes(codec, d, 3)))
    few = random_weights(DISTINCT, 3, d)
    layer = pack(codec, few)[np.arange(neurons) % DISTINCT]
    return repeated(layer, times(sizes.cold_bytes, layer.nbytes, cold)), neurons, few


def some(n: int, density: float, seed: int) -> NDArray[np.int32]:
    """A random set of that share of n, sorted."""
    size = max(1, round(density * n))
    return np.sort(np.random.default_rng(seed).choice(n, size, replace=False)).astype(np.int32)


def dot_list(sizes: Sizes, codec: Codec, d: int, cold: bool) -> Work:
    """One row of half of the neurons, as what a sketch left is computed."""
    layers, neurons, few = neuron_layers(sizes, codec, d, 0, cold)
    lists = [some(neurons, 0.5, i) for i in range(len(layers))]
    x, n, isa = vector(1, d), len(lists[0]), core.best_isa()
    out = np.empty((1, n), np.float32)

    def run(i: int) -> None:
        at = i % len(layers)
        core.dot_list(isa, codec, layers[at], 3, 1, lists[at], x, out)

    def error() -> float:
        out[:] = np.nan
        run(0)
        plain = rounded(codec, few[:, 1])
        limit = TOLERANCES["dot"] * float((np.abs(plain) @ np.abs(x[0])).max())
        return over(out[0], (plain @ x[0])[lists[0] % DISTINCT], limit)

    return Work(run, error, n, n * int(core.bundle_bytes(codec, d, 1)), cold)


def mlp(sizes: Sizes, codec: Codec, d: int, neurons: int, density: float, tokens: int = 1) -> Work:
    """A gated MLP over some or all of its neurons (0: as many as stay in the cache); several tokens share the list."""
    cold = neurons > 0
    layers, neurons, few = neuron_layers(sizes, codec, d, neurons, cold)
    lists = [None if density == 1 else some(neurons, density, i) for i in range(len(layers))]
    x, y, isa = vector(tokens, d), np.zeros((tokens, d), np.float32), core.best_isa()

    def run(i: int) -> None:
        at = i % len(layers)
        if tokens == 1:
            core.mlp(isa, codec, layers[at], True, "silu", x[0], y[0], lists[at])
        else:
            core.mlp_many(isa, codec, layers[at], True, "silu", x, y, lists[at])

    def error() -> float:
        y[:] = 0
        run(0)
        plain, chosen = rounded(codec, few), lists[0]
        index = (np.arange(neurons) if chosen is None else chosen) % DISTINCT
        gate, up = x @ plain[:, 0].T, x @ plain[:, 1].T
        hidden = gate / (1 + np.exp(-gate)) * up * np.bincount(index, minlength=DISTINCT)  # [tokens, 64]
        limit = TOLERANCES["mlp"] * float((np.abs(hidden) @ np.abs(plain[:, 2])).max())
        return over(y, hidden @ plain[:, 2], limit)

    n = neurons if lists[0] is None else len(lists[0])
    return Work(run, error, n, layers[0].nbytes * n // neurons, cold)


def decode_rows(sizes: Sizes, codec: Codec, d: int) -> Work:
    """Rows to float32, as a prompt's products take them."""
    data, rows, plain = row_bundles(sizes, codec, d, False)
    out, isa = np.empty((1, rows, d), np.float32), core.best_isa()

    def run(i: int) -> None:
        core.decode_rows(isa, codec, data, d, rows, out)

    def error() -> float:
        out[:] = np.nan
        run(0)
        return over(out[0], plain, TOLERANCES["decode_rows"] * float(np.abs(plain).max()))

    return Work(run, error, rows, data.nbytes, False)


def parts(sizes: Sizes, part: str, d: int, cold: bool) -> Work:
    """Gate and up by the leading bits, for all neurons; or the gate's later bits, for half of them."""
    from dejavu import nested  # here: a ref before it has the other cases

    apart, leading = READ[part]
    few = random_weights(DISTINCT, 3, d)
    each = sum(core.nested_bytes("int8", d, 2, 16, apart)) // 16
    neurons = max(4, sizes.hot_bytes // int(each)) // 4 * 4
    packed = np.ascontiguousarray(pack("int8", few)[np.arange(neurons) % DISTINCT]).reshape(-1)
    lead, rest = (aligned(size) for size in core.nested_bytes("int8", d, 2, neurons, apart))
    core.split_nested("int8", packed, d, 2, apart, lead, rest, 1)
    section = lead if leading else rest
    count = times(sizes.cold_bytes, section.nbytes, cold)
    sections = repeated(section, count)
    lists = [some(neurons, 0.5, i) for i in range(count)]
    x, isa, every = vector(d), core.best_isa(), np.empty(0, np.int32)
    out = np.empty((2, neurons) if leading else len(lists[0]), np.float32)

    def run(i: int) -> None:
        at = i % count
        if leading:
            core.tile_dot(isa, sections[at], 2, apart, neurons, apart, every, 0, neurons, x, out)
        else:
            core.nested_dot(isa, "int8", lead, sections[at], 2, apart, neurons, 0, lists[at], x, out)

    def error() -> float:
        encoded = codecs.encode("int8", few[:, :2].reshape(-1, d))
        whole = codecs.decode(encoded).astype(np.float64)
        known = nested.estimate(encoded, apart).astype(np.float64)
        exact = ((known if leading else whole - known) @ x).reshape(DISTINCT, 2)
        index = (np.arange(neurons) if leading else lists[0]) % DISTINCT
        out[:] = np.nan
        run(0)
        # Of all magnitudes that are summed up: of the codes' offsets too.
        limit = TOLERANCES["dot"] * float(np.abs(whole).max() * np.abs(x).sum())
        return over(out.reshape(-1), exact[index].T.reshape(-1) if leading else exact[index, 0], limit)

    row_bytes = d * (apart if leading else 8 - apart) // 8 + d // 16  # codes and scales
    return Work(run, error, out.size, out.size * row_bytes, cold)


def gemm(sizes: Sizes, kind: str, d: int, ff: int) -> Work:
    """Rows of up times a prompt, packing included. The operands are bf16 numbers, so that `kind` rounds nothing."""
    a, b = random_weights(ff, d), vector(sizes.prompt, d)
    for operand in (a, b):
        operand.view(np.uint32)[:] &= np.uint32(0xFFFF0000)
    c, isa = np.empty((ff, sizes.prompt), np.float32), core.best_isa()

    def run(i: int) -> None:
        core.gemm(a, b, c, isa=isa, kind=kind, pack_b="bt")

    def error() -> float:
        c[:] = np.nan
        run(0)
        wide = a.astype(np.float64), b.astype(np.float64).T
        limit = TOLERANCES[f"gemm_{kind}"] * float((np.abs(wide[0]) @ np.abs(wide[1])).max())
        return over(c, wide[0] @ wide[1], limit)

    return Work(run, error, ff, a.nbytes, False, flops=2 * a.size * sizes.prompt)
