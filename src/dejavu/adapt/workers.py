"""`Workers`: threads that each compute on data of their own.

Operations are short: threads that share each of them wait for one another thousands of times per step, and where the
machine is not idle, mostly for one that does not run. Here they meet once per step.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    T = TypeVar("T")


class Workers:
    """Runs functions side by side, each on one thread.

    Args:
        threads: how many.
    """

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(1)
        self.count = threads
        # torch's setting holds for the thread that makes it, and for those that have not computed yet.
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def map(self, function: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
        """As the builtin; raises what the first function that failed raised."""
        return list(self._pool.map(function, *arguments))
