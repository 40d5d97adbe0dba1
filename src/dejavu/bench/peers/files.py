"""The model that is measured, in files that a peer reads."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from dejavu.bench.peers.synthetic_gguf import write_synthetic_gguf
from dejavu.conversion import convert
from dejavu.errors import CacheError
from dejavu.models.folder_writer import config_json
from dejavu.models.loading import kind_of, open_model

if TYPE_CHECKING:
    from dejavu.bench.peers.engines import Engine
    from dejavu.codecs import Codec
    from dejavu.models.config import ModelConfig
    from dejavu.models.progress import Progress


class PeerFiles:
    """Files in a folder, each made when it is first asked for.

    Args:
        folder: where they are put; the caller removes it.
        source: a model (a GGUF file or a folder; of a delta or an adapter peers get a converted one), or a shape for
            synthetic weights.
        progress: told of writing.
    """

    def __init__(self, folder: Path, source: Path | ModelConfig, progress: Progress | None = None) -> None:
        self._folder, self._source, self._progress = folder, source, progress

    def find(self, engine: Engine, codec: Codec) -> Path:
        """The model as `engine` reads it at the bits of `codec`.

        Raises:
            DejavuError: the model has no such form.
        """
        return self._gguf(engine.types[codec]) if engine.reads == "gguf" else self._model_folder(codec)

    def _gguf(self, kind: str) -> Path:
        target = self._folder / f"{kind}.gguf"
        if target.exists():
            return target
        if not isinstance(self._source, Path):
            part = target.with_suffix(".part")
            try:
                write_synthetic_gguf(part, self._source, kind)
            except OSError as error:
                part.unlink(missing_ok=True)
                raise CacheError(
                    f"{self._folder}: {error.strerror or error}", fix="set TMPDIR to a folder with more space"
                ) from error
            part.rename(target)
        elif self._source.is_file() and self._is_stored_as(kind):
            return self._source
        else:
            convert(self._source, target, format="gguf", codec=kind.lower(), progress=self._progress)
        return target

    def _is_stored_as(self, kind: str) -> bool:
        """Whether most of the model's matrices are of this type."""
        model = open_model(Path(str(self._source)))
        try:
            names = [name for name in model.weights.names() if len(model.weights.shape(name)) == 2]
            kinds = Counter(map(model.weights.source_type, names))
        finally:
            model.close()
        return kinds.most_common(1)[0][0] == kind

    def _model_folder(self, codec: Codec) -> Path:
        if isinstance(self._source, Path) and kind_of(self._source) == "folder":
            return self._source
        kind = "bf16" if codec == "bf16" else "f32"
        target = self._folder / f"folder-{kind}"
        if target.exists():
            return target
        if isinstance(self._source, Path):
            convert(self._source, target, format="safetensors", codec=kind, progress=self._progress)
        else:  # the peer makes the weights up
            target.mkdir()
            (target / "config.json").write_text(json.dumps(config_json(self._source)), encoding="utf-8")
        return target
