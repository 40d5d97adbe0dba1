"""Plans on disk: ``plan.json`` says everything, ``predictors.safetensors`` holds the arrays.

The JSON carries the SHA-256 of the arrays' file, so that two files of different plans are never taken for one. An array
``layers.0.neurons.a`` that is kept in int8 is stored as its ``.codes`` (int8, of its own shape) and ``.scales``
(float16, one per 32 values of a row).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from dejavu.codecs import GROUP, Encoded, encode
from dejavu.errors import CacheError, DejavuError, ModelFormatError, PlanError
from dejavu.models.safetensors import SafeTensors, load_json
from dejavu.models.safetensors_writer import write_safetensors
from dejavu.models.store import atomic_write
from dejavu.plan.access_plan import SCHEMA, AccessPlan, KvPolicy, LayerPlan, VocabularySketch
from dejavu.plan.compensator import Compensator
from dejavu.plan.selectors import Dense, HeadSelector, NeuronSelector

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]

PLAN_NAME = "plan.json"
ARRAYS_NAME = "predictors.safetensors"

_MAX_JSON = 64 << 20
_MAX_LAYERS = 4096
_TRAIN = "train it again: dejavu train MODEL --text FILE -o PLAN"
_NO_COMPENSATOR = {"kind": "none"}


def write_plan(plan: AccessPlan, folder: Path) -> None:
    """See `AccessPlan.save`."""
    arrays: Arrays = {}
    layers = [
        {
            "neurons": _describe(layer.neurons, f"layers.{i}.neurons", arrays),
            "heads": _describe(layer.heads, f"layers.{i}.heads", arrays),
            "compensator": _describe(layer.compensator, f"layers.{i}.compensator", arrays),
        }
        for i, layer in enumerate(plan.layers)
    ]
    vocabulary = _describe(plan.vocabulary, "vocabulary", arrays)
    stored = io.BytesIO()
    write_safetensors(stored, arrays)
    data = stored.getbuffer()
    record = {
        "schema": SCHEMA,
        "model": plan.model,
        "name": plan.name,
        "kv": dataclasses.asdict(plan.kv),
        "vocabulary": vocabulary,
        "predictors": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "evidence": plan.evidence,
        "layers": layers,
    }
    try:
        text = json.dumps(record, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PlanError(f"the evidence of a plan must be plain JSON: {error}") from error
    try:
        # Both files are complete before either is renamed; the arrays come first.
        with atomic_write(folder / PLAN_NAME) as head, atomic_write(folder / ARRAYS_NAME) as body:
            head.write(text.encode())
            head.flush()
            os.fsync(head.fileno())
            body.write(data)
    except CacheError as error:
        raise PlanError(
            f"cannot save the plan: {error.args[0]}", fix="free some space, or give another folder"
        ) from error


def read_plan(folder: Path) -> AccessPlan:
    """See `AccessPlan.load`."""
    record = _read_json(folder / PLAN_NAME)
    if record.get("schema") != SCHEMA:
        raise PlanError(
            f"{folder}: schema {record.get('schema')!r:.40}; this version of dejavu reads schema {SCHEMA}",
            fix=f"{_TRAIN}, or use the version of dejavu that wrote it",
        )
    fields = {"schema", "model", "name", "kv", "vocabulary", "predictors", "evidence", "layers"}
    try:
        _check_fields(PLAN_NAME, record, fields, fields)
        for name, kind in (("model", str), ("name", str), ("evidence", dict), ("layers", list)):
            if not isinstance(record[name], kind):
                raise PlanError(f"{name} is {record[name]!r:.60}; a {kind.__name__} is needed")
        if not 0 < len(record["layers"]) <= _MAX_LAYERS:
            raise PlanError(f"{len(record['layers'])} layers; 1 to {_MAX_LAYERS} are supported")
        arrays = _read_arrays(folder / ARRAYS_NAME, record["predictors"])
        plan = AccessPlan(
            model=record["model"],
            layers=tuple(_layer(f"layers.{i}", entry, arrays) for i, entry in enumerate(record["layers"])),
            name=record["name"],
            kv=_kv(record["kv"]),
            vocabulary=_build("vocabulary", record["vocabulary"], (Dense, VocabularySketch), arrays),
            evidence=record["evidence"],
        )
        if arrays:
            raise PlanError(f"{ARRAYS_NAME} holds {min(arrays)!r:.80}, which {PLAN_NAME} does not name")
    except PlanError as error:
        raise PlanError(f"{folder}: {error.args[0]}", fix=error.fix or _TRAIN) from error
    return plan


def _describe(value: Any, prefix: str, arrays: Arrays) -> dict[str, Any]:
    """A selector or the like as JSON; its arrays go into `arrays`."""
    if value is None:
        return _NO_COMPENSATOR
    entry = {"kind": value.kind}
    for field in dataclasses.fields(value):
        content, name = getattr(value, field.name), f"{prefix}.{field.name}"
        stored = field.metadata.get("stored")
        if stored == "int8":
            arrays[f"{name}.codes"], arrays[f"{name}.scales"] = _int8(content)
        elif stored:
            arrays[name] = content
        elif content is not None:
            entry[field.name] = content
    return entry


def _int8(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Codes [n, width] and scales [n, width / GROUP] of rows [n, width]."""
    n, width = rows.shape
    if not rows.size:
        return np.empty((n, width), np.int8), np.empty((n, -(-width // GROUP)), np.float16)
    encoded = encode("int8", rows)
    return encoded.codes[:, :width], np.asarray(encoded.scales)


def _layer(where: str, entry: object, arrays: Arrays) -> LayerPlan:
    parts = {"neurons", "heads", "compensator"}
    entry = _check_fields(where, entry, parts, parts)
    compensator = None
    if entry["compensator"] != _NO_COMPENSATOR:
        compensator = _build(f"{where}.compensator", entry["compensator"], (Compensator,), arrays)
    return LayerPlan(
        _build(f"{where}.neurons", entry["neurons"], get_args(NeuronSelector), arrays),
        _build(f"{where}.heads", entry["heads"], get_args(HeadSelector), arrays),
        compensator,
    )


def _kv(entry: object) -> KvPolicy:
    fields = {"kind", "buffer"}
    return KvPolicy(**_check_fields("kv", entry, fields, fields))


def _build(where: str, entry: object, kinds: Sequence[type[Any]], arrays: Arrays) -> Any:
    """The inverse of `_describe`: one of `kinds`; takes its arrays out of `arrays`."""
    kind = entry.get("kind") if isinstance(entry, dict) else None
    chosen = next((k for k in kinds if k.kind == kind), None)
    if chosen is None:
        raise PlanError(f"{where}: kind {kind!r:.40}; supported: {', '.join(k.kind for k in kinds)}")
    plain = {f.name for f in dataclasses.fields(chosen) if not f.metadata}
    values = dict(_check_fields(where, entry, {"kind", *plain}, {"kind"}))
    del values["kind"]
    for field in dataclasses.fields(chosen):
        if stored := field.metadata.get("stored"):
            values[field.name] = _take(f"{where}.{field.name}", stored, arrays)
    try:
        return chosen(**values)
    except TypeError as error:  # a field without default is missing
        raise PlanError(f"{where}: {error}") from error
    except PlanError as error:
        raise PlanError(f"{where}: {error.args[0]}") from error


def _take(name: str, stored: str, arrays: Arrays) -> NDArray[Any] | Encoded:
    """An array of the file, or its codes."""
    if stored != "int8":
        return _pop(name, stored, arrays)
    codes, scales = _pop(f"{name}.codes", "int8", arrays), _pop(f"{name}.scales", "float16", arrays)
    groups = -(-codes.shape[1] // GROUP) if codes.ndim == 2 else 0
    if codes.ndim != 2 or scales.shape != (len(codes), groups) or not np.isfinite(scales).all():
        raise PlanError(
            f"{name}: codes {list(codes.shape)} with scales {list(scales.shape)}; [n, width] with finite "
            f"[n, width / {GROUP}] are needed"
        )
    width = codes.shape[1]
    if not codes.size:
        return np.empty(codes.shape, np.float32)
    return Encoded("int8", width, np.pad(codes, ((0, 0), (0, groups * GROUP - width))), scales)


def _pop(name: str, dtype: str, arrays: Arrays) -> NDArray[Any]:
    if name not in arrays:
        raise PlanError(f"{ARRAYS_NAME} lacks {name!r}")
    array = arrays.pop(name)
    if array.dtype.name != dtype:
        raise PlanError(f"{name} is {array.dtype}; {dtype} is needed")
    return array


def _check_fields(where: str, entry: object, known: set[str], needed: set[str]) -> dict[str, Any]:
    """`entry` as an object with no fields but the known ones."""
    if not isinstance(entry, dict):
        raise PlanError(f"{where} is {entry!r:.60}; an object is needed")
    if unknown := entry.keys() - known:
        raise PlanError(f"{where}: unknown {min(unknown)!r:.60}; known: {', '.join(sorted(known))}")
    if missing := needed - entry.keys():
        raise PlanError(f"{where}: {', '.join(sorted(missing))} is missing")
    return entry


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_JSON + 1)
    except OSError as error:
        raise PlanError(
            f"cannot read {path}: {error.strerror or error}", fix="give the folder of a plan"
        ) from error
    if len(data) > _MAX_JSON:
        raise PlanError(f"{path}: more than {_MAX_JSON} bytes")
    try:
        return load_json(data, str(path))
    except ModelFormatError as error:
        raise PlanError(error.args[0], fix=_TRAIN) from error


def _read_arrays(path: Path, promised: object) -> Arrays:
    """All arrays of the file, once its size and hash are those that plan.json gives."""
    promised = _check_fields("predictors", promised, {"bytes", "sha256"}, {"bytes", "sha256"})
    try:
        with path.open("rb") as stream:
            data = stream.read()
    except OSError as error:
        raise PlanError(f"cannot read {ARRAYS_NAME}: {error.strerror or error}", fix=_TRAIN) from error
    if (len(data), hashlib.sha256(data).hexdigest()) != (promised["bytes"], promised["sha256"]):
        raise PlanError(
            f"{ARRAYS_NAME} is truncated or of another plan: {len(data)} bytes, {promised['bytes']!r:.20} promised",
            fix=f"copy both files of the plan again, or {_TRAIN}",
        )
    try:
        tensors = SafeTensors(path)
        try:
            return {name: tensors.read(name) for name in tensors.names()}
        finally:
            tensors.close()
    except DejavuError as error:
        raise PlanError(error.args[0], fix=_TRAIN) from error
