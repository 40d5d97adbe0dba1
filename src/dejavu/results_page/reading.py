"""Reading result files: each is known by what is in it, not by its name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dejavu.errors import InputError
from dejavu.models.store import expand_path
from dejavu.plan import AccessPlan
from dejavu.plan.choice import own_plans
from dejavu.plan.storage import PLAN_NAME
from dejavu.plan.summary import summarize
from dejavu.results_page import shapes

Kind = Literal["eval", "bench", "analysis", "plan", "adaptation", "frontier"]
ANALYSIS_NAME, ADAPTATION_NAME = "analysis.json", "adaptation.json"
STAGES_NAME = "frontier.json"
_SCHEMA = 1
_MAX_BYTES = 256 << 20
_KNOWN = (
    "give files of: dejavu eval -o FILE, dejavu bench --json > FILE, dejavu analyze -o FOLDER, dejavu train -o PLAN, "
    "dejavu adapt -o FOLDER, benchmarks/frontier.py --out FILE"
)


@dataclass(frozen=True)
class Source:
    """A result."""

    kind: Kind
    path: Path
    data: dict[str, Any]
    """As the file has it; frontier: {"rows"}; plan: what `summarize` gives, and "sha256" of plan.json."""
    of_adapted: bool = False
    """plan: it lies in the folder of an adapted model."""

    @property
    def fingerprint(self) -> str | None:
        """Of the weights it was measured on; None: not known."""
        if self.kind == "frontier":
            return next((row["fingerprint"] for row in self.data["rows"] if "fingerprint" in row), None)
        return self.data["model"] if self.kind == "plan" else self.data.get("fingerprint")

    @property
    def model(self) -> str | None:
        """How the model was called; a path by its last part. None: not said."""
        if self.kind in ("plan", "frontier"):
            return None
        name: str = self.data["base" if self.kind == "adaptation" else "model"]
        return name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name

    @property
    def synthetic(self) -> bool:
        """Whether its weights are random numbers in the shape of a model."""
        return self.kind == "bench" and any(r["synthetic_weights"] for r in self.data["results"])

    @property
    def commands(self) -> list[str]:
        """Those that made it, as far as it says."""
        entries = [self.data["evidence"]] if self.kind == "plan" else self.data.get("rows", [self.data])
        found = [entry.get("command") for entry in entries]
        return [*dict.fromkeys(command for command in found if command and isinstance(command, str))]

    @property
    def dates(self) -> list[str]:
        """Days on which it was made, as year-month-day."""
        found = self.data["rows"] if self.kind == "frontier" else [self.data]
        return sorted({str(entry["date"])[:10] for entry in found if "date" in entry})


def read_result(path: Path) -> list[Source]:
    """What a file or a folder of results holds.

    Raises:
        InputError: it cannot be read, is of no known kind, of another schema, or not what its kind has to be.
        PlanError: a plan is damaged.
    """
    try:
        return _read(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}", fix=_KNOWN) from error


def place(path: Path | str) -> Path:
    """Where a path that somebody wrote leads, so that two can be compared; as it is where that cannot be told."""
    try:
        return expand_path(path).resolve()
    except (
        InputError,
        OSError,
        RuntimeError,
    ):  # no such user, or the working folder is gone, or links in a circle
        return Path(path)


def _read(path: Path) -> list[Source]:
    if path.is_dir():
        return _read_folder(path)
    if path.name == PLAN_NAME:
        return [_plan(path.parent)]
    text = _text(path)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return [_frontier(path, text)]
    if isinstance(document, dict) and "name" in document and "layers" not in document:
        return [_frontier(path, text)]
    if isinstance(document, dict) and {"rows", "base_ppl"} <= document.keys():
        return [_stages(path, document)]
    return [_source(path, document)]


def _read_folder(folder: Path) -> list[Source]:
    if (folder / PLAN_NAME).is_file():
        return [_plan(folder)]
    stages = folder / STAGES_NAME
    if stages.is_file():
        document = _json(stages)
        found = [_stages(stages, document)]
        for name in (row["model"] for row in document["rows"]):
            if name is not None and (folder / name).parent == folder and (folder / name).is_dir():
                found += _read_folder(folder / name)
        return found
    found = [
        _source(p, _json(p)) for name in (ANALYSIS_NAME, ADAPTATION_NAME) if (p := folder / name).is_file()
    ]
    if not found or found[-1].kind == "adaptation":
        found += [_plan(folder / name, of_adapted=True) for name in own_plans(folder)]
    if not found:
        raise InputError(f"{folder} holds no {PLAN_NAME}, {ANALYSIS_NAME} or {ADAPTATION_NAME}", fix=_KNOWN)
    return found


def _source(path: Path, document: Any) -> Source:
    kind = _kind(document)
    if kind is None:
        raise InputError(f"{path} is no result of dejavu that the page can show", fix=_KNOWN)
    if kind != "adaptation" and document.get("schema") != _SCHEMA:
        raise InputError(
            f"{path}: schema {document.get('schema')!r:.40}; this version of dejavu reads schema {_SCHEMA}",
            fix="make it again, or use the version of dejavu that wrote it",
        )
    shape = {
        "eval": shapes.EVAL,
        "bench": shapes.BENCH,
        "analysis": shapes.ANALYSIS,
        "adaptation": shapes.ADAPTATION,
    }[kind]
    _check(document, shape, str(path))
    if kind == "bench":
        for number, record in enumerate(document["results"]):
            if record.get("bits_per_weight"):  # then all of its memory is known
                _check(record, shapes.MEMORY, f"{path}: results[{number}]")
    for name in {"eval": ["runs"], "bench": ["results"], "adaptation": ["curve"]}.get(kind, []):
        if not document[name]:
            raise InputError(f"{path}: {name} is empty", fix="make it again")
    return Source(kind, path, document)


def _kind(document: Any) -> Literal["eval", "bench", "analysis", "adaptation"] | None:
    if not isinstance(document, dict):
        return None
    if document.get("kind") == "eval":
        return "eval"
    if document.get("kind") == "bench":
        return "bench"
    if {"verdict", "quality"} <= document.keys():
        return "analysis"
    return "adaptation" if {"curve", "native", "base"} <= document.keys() else None


def _plan(folder: Path, *, of_adapted: bool = False) -> Source:
    facts = summarize(AccessPlan.load(folder))
    _check(facts["evidence"], shapes.EVIDENCE, f"{folder / PLAN_NAME}: evidence")
    digest = hashlib.sha256((folder / PLAN_NAME).read_bytes()).hexdigest()
    return Source("plan", folder, facts | {"sha256": digest}, of_adapted)


def _frontier(path: Path, text: str) -> Source:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number} is no JSON: {error}", fix=_KNOWN) from error
        if not isinstance(row, dict) or not {"ppl_ratio", "tokens_per_s"} & row.keys():
            raise InputError(f"{path}, line {number} has neither ppl_ratio nor tokens_per_s", fix=_KNOWN)
        quality = "ppl_ratio" in row
        _check(row, shapes.QUALITY_ROW if quality else shapes.SPEED_ROW, f"{path}, line {number}")
        if not row["ppl_ratio" if quality else "tokens_per_s"] > 0:
            raise InputError(f"{path}, line {number}: a figure is not above 0", fix="measure it again")
        rows.append(row)
    if not rows:
        raise InputError(f"{path} is empty", fix=_KNOWN)
    models = dict.fromkeys(row["fingerprint"] for row in rows if "fingerprint" in row)
    if len(models) > 1:
        named = " and ".join(fingerprint[:16] for fingerprint in models)
        raise InputError(
            f"{path} has rows of different models: {named}", fix="measure each into a file of its own"
        )
    return Source("frontier", path, {"rows": rows})


def _stages(path: Path, document: Any) -> Source:
    """What `dejavu adapt --frontier` wrote, as rows of a frontier."""
    _check(document, shapes.STAGES, str(path))
    of_all = {"cpu": document["machine"]["cpu"], "command": document["command"]}
    kinds, rows = {"training-free": "plan", "gentler": "adapted"}, []
    for row in document["rows"]:
        name = row["kind"] if row["kind"] == "dense" else f"{row['kind']} {row['target']:g}"
        entry = {"name": name, "kind": kinds.get(row["kind"], row["kind"]), **of_all}
        if not (row["ppl_ratio"] > 0 and row["tokens_per_s"] > 0):
            raise InputError(f"{path}: a figure of {name} is not above 0", fix="measure it again")
        quality = {"text": "held out", "tokens": document["tokens"], "ppl_ratio": row["ppl_ratio"]}
        rows.append(entry | quality | {"fingerprint": document["fingerprint"]})
        rows.append(entry | {"tokens_per_s": row["tokens_per_s"], "spread": row["spread"]})
    if not rows:
        raise InputError(f"{path}: rows is empty", fix="make it again")
    return Source("frontier", path, {"rows": rows})


def _check(document: Any, shape: Any, where: str) -> None:
    try:
        shapes.check(document, shape, where)
    except InputError as error:
        raise InputError(str(error.args[0]), fix="make the file again with this version of dejavu") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}", fix="make it again") from error


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path} has more than {_MAX_BYTES} bytes", fix=_KNOWN)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise InputError(f"cannot read {path}: {reason}", fix=_KNOWN) from error
