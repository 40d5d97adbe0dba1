"""Averages the weights of two models that were adapted from the same one, such as two densities of a frontier.

    python benchmarks/average.py OUT/0.88 OUT/0.49 0.3 OUT/averaged

writes 0.7 times the matrices of the layers of OUT/0.88 plus 0.3 times those of OUT/0.49, all else (and the plan) from
OUT/0.88: "model soups" (Wortsman et al., ICML 2022) of two. What was learned on different densities is found in
different places of the same valley, and their middle loses less on text that neither has seen; `dejavu perplexity` says
whether it does.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from dejavu.errors import InputError
from dejavu.models.folder_writer import write_folder
from dejavu.models.loading import open_model
from dejavu.plan import AccessPlan
from dejavu.plan.choice import OWN
from dejavu.tokenizer import Tokenizer


def average(first: Path, second: Path, share: float, out: Path) -> None:
    """Write (1 - share) of the layers' matrices of `first` plus `share` of those of `second`, with `first`'s plan.

    Raises:
        InputError: the models differ in shape, or `share` is not within [0, 1].
        DejavuError: a model cannot be read, or `out` not be written.
    """
    if not 0 <= share <= 1:
        raise InputError(f"a share of {share}", fix="give one from 0 (the first model) to 1 (the second)")
    plan = AccessPlan.load(first / OWN)
    a, b = open_model(first), open_model(second)
    if a.config != b.config:
        raise InputError(
            f"{first} and {second} are not of one shape", fix="give two densities of one frontier"
        )

    def read(name: str) -> np.ndarray:
        values = a.weights.read(name)
        if not name.startswith("layers.") or values.ndim != 2:
            return values
        return np.float32(1 - share) * values + np.float32(share) * b.weights.read(name)

    write_folder(out, a.config, read, add_files=Tokenizer.from_model(a).save)
    written = open_model(out)
    dataclasses.replace(plan, model=written.weights.fingerprint).save(out / OWN)
    for model in (a, b, written):
        model.close()


def main() -> None:
    """Parse the command line and write the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("share", type=float, help="of the second")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    average(options.first, options.second, options.share, options.out)
    print(f"next: dejavu perplexity {options.out} --plan auto --text FILE")


if __name__ == "__main__":
    main()
