"""Which plan a user means: "off", "auto", a folder, or a plan."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from dejavu.errors import InputError, PlanError
from dejavu.models.adapter_config import ADAPTER_NAME
from dejavu.models.delta import DELTA_NAME
from dejavu.models.folder_files import GENTLER, OWN
from dejavu.models.store import expand_path
from dejavu.models.writing import check_folder
from dejavu.plan.access_plan import AccessPlan
from dejavu.plan.storage import PLAN_NAME, read_plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dejavu.codecs import Codec
    from dejavu.models.weights import Weights

__all__ = ["GENTLER", "OWN", "check_place", "choose_plan", "holds_plan", "model_files", "own_plans"]


def choose_plan(
    wanted: AccessPlan | Path | str, weights: Weights, codec: Codec | None, model: Path | None = None
) -> AccessPlan | None:
    """The plan to run `weights` by, held in `codec`; None: dense.

    Args:
        wanted: "off": none. "auto": the one in the model's folder (`plan/`, where `dejavu adapt` puts it), if it is for
            these weights in this codec. Otherwise a plan, or the folder of one; one of the model's own (`own_plans`) may be
            named by its place in the model's folder, such as "gentler/0.5".
        weights: of the model.
        codec: how its weights will be held; None: that follows from the plan.
        model: where it lies.

    Raises:
        PlanError: the plan cannot be read, is for another model, or reads leading bits that the codec does not have.
        InputError: the folder's name cannot be one.
    """
    if wanted == "off":
        return None
    if wanted == "auto":
        if model is None or not holds_plan(model / OWN):
            return None
        own = read_plan(model / OWN)
        suits = own.model == weights.fingerprint and (codec is None or _made_for(own, codec))
        return own if suits else None
    plan = wanted if isinstance(wanted, AccessPlan) else read_plan(_folder(expand_path(wanted), model))
    plan.check_model(weights.fingerprint)
    if codec is not None:
        plan.check_codec(codec)
    return plan


def own_plans(model: Path) -> dict[Path, AccessPlan]:
    """The plans in a model's folder, by their places in it: its own, and the gentler ones beside it.

    Raises:
        PlanError: one cannot be read.
    """
    with _reading(model):
        found = [model / OWN, *sorted((model / GENTLER).glob("*"))]
    return {folder.relative_to(model): read_plan(folder) for folder in filter(holds_plan, found)}


def holds_plan(folder: Path) -> bool:
    """Whether a plan lies in `folder`. Raises `PlanError` where that cannot be told."""
    with _reading(folder):
        return (folder / PLAN_NAME).is_file()


def model_files(folder: Path) -> list[str]:
    """Names of the files by which a folder is a model's, of those that are there."""
    return [name for name in ("config.json", DELTA_NAME, ADAPTER_NAME) if (folder / name).is_file()]


def check_place(folder: Path, *, force: bool) -> None:
    """Whether a new plan may be written into `folder`.

    Raises:
        InputError: a file, a model or, without `force`, a plan lies there.
        CacheError: the folder cannot be written.
    """
    check_folder(folder)
    if found := model_files(folder):
        raise InputError(
            f"{folder} holds a model ({found[0]})",
            fix=f"give a folder in it for its own plan: -o {folder / OWN}",
        )
    if holds_plan(folder) and not force:
        raise InputError(f"{folder} holds a plan", fix="give another folder, or --force to replace it")


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PlanError(
            f"cannot read {folder}: {error.strerror or error}", fix="check its permissions"
        ) from error


def _folder(wanted: Path, model: Path | None) -> Path:
    """Where the plan lies that is called `wanted`: there, or at that place in the model's folder."""
    if model is None or holds_plan(wanted):
        return wanted
    if holds_plan(model / wanted):
        return model / wanted
    if known := own_plans(model):
        raise PlanError(
            f"there is no plan at {wanted}",
            fix=f"give the folder of a plan, or one of the model's own: {', '.join(map(str, known))}",
        )
    return wanted


def _made_for(plan: AccessPlan, codec: Codec) -> bool:
    """Whether a plan was measured in the codec or in none, or leaves out nothing but zeros in any."""
    said = plan.evidence
    return plan.suits(codec) and (said.get("exact") is True or said.get("codec", codec) == codec)
