"""Names of what a model's folder holds."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import PurePosixPath

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

_WRITTEN = ("config.json", "model*.safetensors", "model.safetensors.index.json", *TEXT_FILES, OWN, GENTLER)
_PLAN_FILES = (".json", ".safetensors")


def is_written(name: str) -> bool:
    """Whether a file or folder of this name, in a model's folder, is what a conversion writes or a download brings."""
    return any(fnmatchcase(name, pattern) for pattern in _WRITTEN)


def is_plan_file(name: str) -> bool:
    """Whether a file, by its path in a model's folder, belongs to one of the model's own plans."""
    path = PurePosixPath(name)
    folders = path.parts[:-1]
    own = folders == (OWN,) or (len(folders) == 2 and folders[0] == GENTLER)
    return own and path.suffix in _PLAN_FILES
