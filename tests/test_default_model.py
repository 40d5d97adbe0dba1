"""The native engine on the default model: equal to the reference, and as near to it in every codec as was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dejavu.engine import NativeExecutor
from dejavu.evaluation.divergence import token_kl
from dejavu.models.loading import open_model
from dejavu.reference import ReferenceExecutor
from dejavu.tokenizer import Tokenizer
from tiny_models import relative_error
from tolerances import TOLERANCES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

pytestmark = pytest.mark.real_model

TEXT = (Path(__file__).parent.parent / "LICENSE").read_text(encoding="utf-8")
DECODED = 48


@pytest.fixture(scope="module")
def tokens(smollm2_path: Path) -> NDArray[np.int32]:
    """The beginning of a text that is known to all."""
    model = open_model(smollm2_path)
    ids = Tokenizer.from_model(model).encode(TEXT[:3000])[:300]
    model.close()
    assert len(ids) == 300
    return np.array(ids, np.int32)


@pytest.fixture(scope="module")
def native(smollm2_path: Path) -> Iterator[NativeExecutor]:
    executor = NativeExecutor.load(smollm2_path, codec="f32", kv_dtype="f32", threads=2, cache=False)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def exact(native: NativeExecutor, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    return native.prefill(tokens, native.new_cache(), all_logits=True)


def decoded(executor: Any, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    cache = executor.new_cache()
    return np.concatenate([executor.decode(tokens[i : i + 1], [cache]) for i in range(len(tokens))])


def test_native_equals_the_reference(
    native: NativeExecutor, smollm2_path: Path, tokens: NDArray[np.int32], exact: NDArray[np.float32]
) -> None:
    model = open_model(smollm2_path)
    reference = ReferenceExecutor(model.config, model.weights)
    few = tokens[:DECODED]
    expected = reference.prefill(few, reference.new_cache(), all_logits=True)
    model.close()
    assert relative_error(decoded(native, few), expected) <= TOLERANCES["native_f32"]
    assert relative_error(exact[:DECODED], expected) <= TOLERANCES["native_f32_prefill"]


@pytest.mark.parametrize("codec", ["bf16", "int8", "int4"])
def test_codecs_are_as_near_as_they_were(
    codec: Any, smollm2_path: Path, tokens: NDArray[np.int32], exact: NDArray[np.float32]
) -> None:
    executor = NativeExecutor.load(smollm2_path, codec=codec, kv_dtype="f32", threads=2, cache=False)
    prefilled = executor.prefill(tokens, executor.new_cache(), all_logits=True)
    few = decoded(executor, tokens[:DECODED])
    executor.close()
    limit = TOLERANCES[f"default_model_{codec}"]
    assert token_kl(exact, prefilled).mean() <= limit
    assert token_kl(exact[:DECODED], few).mean() <= limit
