"""Every tolerance of the test-suite, in one place. They are tightened when they can be, never loosened.

A relative error is max |a - b| / max |b| over the whole array, b being the more trusted side.
"""

from __future__ import annotations

TOLERANCES: dict[str, float] = {
    # Logits in float32: sums in another order, transcendental functions of another library. Seen: 7e-7.
    "reference_vs_transformers": 1e-5,
    # The same executor, the same numbers, another chunking: matrix products of other shapes.
    "chunked_vs_whole": 1e-5,
    # RoPE frequencies in float32, relative per element: one rounding of pow.
    "rope_frequencies": 2.5e-7,
}
