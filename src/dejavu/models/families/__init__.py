"""The families of models: one file each, data and no forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dejavu.errors import ModelFormatError, UnsupportedModelError
from dejavu.models.families import bloom, falcon, gemma, llama, minicpm, neox, opt, sparse
from dejavu.models.families.family import Family, Layout

if TYPE_CHECKING:
    from collections.abc import Mapping

FAMILIES: tuple[Family, ...] = (
    *opt.FAMILIES,
    *llama.FAMILIES,
    *bloom.FAMILIES,
    *neox.FAMILIES,
    *gemma.FAMILIES,
    *falcon.FAMILIES,
    *sparse.FAMILIES,
    *minicpm.FAMILIES,
)

__all__ = ["FAMILIES", "Family", "Layout", "family_of_gguf", "family_of_hf"]


def family_of_hf(values: Mapping[str, object]) -> Family:
    """The family of a config.json, by `architectures`, else by `model_type`.

    Raises:
        UnsupportedModelError: no family matches; names those that there are.
    """
    architectures = values.get("architectures")
    model_type = values.get("model_type")
    if isinstance(architectures, list) and architectures:
        known = {name: family for family in FAMILIES for name in family.hf_architectures}
        found = next((known[name] for name in architectures if isinstance(name, str) and name in known), None)
        if found is None:
            raise UnsupportedModelError(
                f"config.json: architectures is {architectures!r}; supported are {', '.join(sorted(known))}"
            )
        return found
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    types = sorted(name for family in FAMILIES for name in family.model_types)
    raise UnsupportedModelError(
        f"config.json: model_type is {model_type!r}; supported are {', '.join(types)}"
    )


def family_of_gguf(metadata: Mapping[str, object]) -> Family:
    """The family of a GGUF file, by `general.architecture`.

    Raises:
        UnsupportedModelError: no family matches; names those that there are.
        ModelFormatError: the file does not say its architecture.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ModelFormatError("GGUF metadata: general.architecture is missing")
    known = {arch: family for family in FAMILIES for arch in family.gguf_architectures}
    if name not in known:
        raise UnsupportedModelError(
            f"GGUF metadata: general.architecture is {name!r}; supported are {', '.join(sorted(known))}"
        )
    return known[name]
