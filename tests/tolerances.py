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
    # Row kernels. int8 and int4 take the input (dot) or the coefficients (axpy) as int16 codes with a shared step, so
    # errors are relative to the sum of magnitudes. Seen: 4e-5, 8e-5 and 1.1e-4.
    "decode_rows": 1e-6,
    # Norms, activations, softmax and attention of single vectors, beside float64. Seen: 8e-7.
    "kernels": 2e-6,
    "dot": 1e-4,
    "axpy": 1e-4,
    "mlp": 2e-4,
    # The native engine against the reference, logits. int8, int4: int16 activations. *_prefill: bf16 operands in the
    # products where the machine has them.
    "native_f32": 1e-4,
    "native_f32_prefill": 1e-4,
    "native_bf16": 1e-4,
    "native_bf16_prefill": 3e-2,
    "native_int8": 1e-3,
    "native_int8_prefill": 3e-2,
    "native_int4": 1e-3,
    "native_int4_prefill": 3e-2,
    "native_kv_f32": 1e-4,
    "native_kv_f16": 1e-3,
    "native_kv_bf16": 1e-2,
    "native_kv_int8": 2e-2,
    # Keys and values computed late from the kept layer inputs, against those computed at once: logits after them.
    "late_kv": 1e-5,
    # Matrix products, relative to the largest sum of magnitudes: only the order of the sums differs (for bf16 both
    # sides round the operands). Seen: 2e-7 and 1e-7.
    "gemm_f32": 4e-7,
    "gemm_bf16": 4e-7,
    # Scores this close to the border of a selected set, relative to the largest, may fall on either side: predictors
    # multiply int16 activations; weights of f32 otherwise differ by the order of sums.
    "margin_f32": 3e-5,
    "margin": 2e-4,
}
