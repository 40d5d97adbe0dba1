"""dejavu: run large language models by touching only the weights each token needs.

from dejavu import LLM, SamplingParams

with LLM.from_pretrained() as llm:
    print(llm.generate("The sea is", SamplingParams(temperature=0)).text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dejavu.errors import DejavuError
    from dejavu.llm import LLM
    from dejavu.outputs import Completion, Generation, StreamEvent, Timings, TokenLogprobs, Usage
    from dejavu.plan import AccessPlan
    from dejavu.sampling import SamplingParams
    from dejavu.sequences import Conversation

_HOME = {
    "LLM": "llm",
    "AccessPlan": "plan",
    "SamplingParams": "sampling",
    "Conversation": "sequences",
    "DejavuError": "errors",
    "Completion": "outputs",
    "Generation": "outputs",
    "StreamEvent": "outputs",
    "Timings": "outputs",
    "TokenLogprobs": "outputs",
    "Usage": "outputs",
}

__all__ = [
    "LLM",
    "AccessPlan",
    "Completion",
    "Conversation",
    "DejavuError",
    "Generation",
    "SamplingParams",
    "StreamEvent",
    "Timings",
    "TokenLogprobs",
    "Usage",
]


if not TYPE_CHECKING:  # a type checker should see only the names above

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used, so that the command line starts fast."""
        if name not in _HOME:
            raise AttributeError(f"module 'dejavu' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"dejavu.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
