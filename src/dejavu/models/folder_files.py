"""Names of what a model's folder holds."""

from __future__ import annotations

import shutil
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

OWN = "plan"
"""Folder of a plan in the folder of a model that was made for it."""
GENTLER = "gentler"
"""Folder of further plans beside it, of more neurons, by their densities."""

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
)
"""What a folder may hold of a tokenizer, and what has to go with copies of a model."""

MORE_TEMPLATES = "additional_chat_templates"
"""Folder of further chat templates, by their names, as transformers writes them."""

_WRITTEN = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    *TEXT_FILES,
    MORE_TEMPLATES,
    OWN,
    GENTLER,
)
_PLAN_FILES = (".json", ".safetensors")


def is_written(name: str) -> bool:
    """Whether a file or folder of this name, in a model's folder, is what a conversion writes or a download brings."""
    return any(fnmatchcase(name, pattern) for pattern in _WRITTEN)


def is_inner_file(name: str) -> bool:
    """Whether a file of a folder in a model's folder, by its path, belongs to the model: to a plan, or a chat template."""
    path = PurePosixPath(name)
    folders = path.parts[:-1]
    if folders == (MORE_TEMPLATES,):
        return path.suffix == ".jinja"
    own = folders == (OWN,) or (len(folders) == 2 and folders[0] == GENTLER)
    return own and path.suffix in _PLAN_FILES


def more_templates(folder: Path) -> list[Path]:
    """Files of the further chat templates in a model's folder."""
    return sorted((folder / MORE_TEMPLATES).glob("*.jinja"))


def copy_texts(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy the files `names`, those that there are, and further chat templates, from one model's folder into another."""
    files = [source / name for name in names if (source / name).is_file()]
    for file in (*files, *more_templates(source)):
        place = target / file.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)
