"""Memory that a process takes at most while it packs and runs a model: the packed weights, the cache, and little else."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

D, FF, HEADS, LAYERS, VOCAB = 1024, 4096, 16, 6, 1000
BESIDE = 200 << 20
"""Python, its packages, room for a pass, and pieces of the source while they are packed: less than the source has in all.
Seen: 130 MB."""

RUN = """
import json, sys
from pathlib import Path
import numpy as np
from dejavu.engine import NativeExecutor
from dejavu.environment import peak_rss_bytes

executor = NativeExecutor.load(Path(sys.argv[1]), codec=sys.argv[2], threads=2, cache=sys.argv[3] == "file")
cache = executor.new_cache()
executor.prefill(np.arange(64, dtype=np.int32), cache)
executor.decode(np.array([5], np.int32), [cache])
sizes = {"packed": executor.packed.buffer.size, "cache": cache.nbytes, "peak": peak_rss_bytes()}
print(json.dumps(sizes))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred million weights of bfloat16, which are zeros in a file with holes: no disk is written."""
    folder = tmp_path_factory.mktemp("large")
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, D), "model.norm.weight": (D,)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{p}_proj.weight": (D, D) for p in "qkvo"}
        shapes |= {f"{layer}.mlp.{p}_proj.weight": (FF, D) for p in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (D, FF)}
        shapes |= {f"{layer}.{p}_layernorm.weight": (D,) for p in ("input", "post_attention")}
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    assert end > 200_000_000
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": D,
        "intermediate_size": FF,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("codec", ["bf16", "int8", "int4"])
def test_packing_and_running_take_little_beside_the_weights(
    codec: str, where: str, folder: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"DEJAVU_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", RUN, str(folder), codec, where]
    for _ in range(2 if where == "file" else 1):  # packing it, and from the packed file
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        sizes = json.loads(done.stdout)
        assert sizes["peak"] <= sizes["packed"] + sizes["cache"] + BESIDE
