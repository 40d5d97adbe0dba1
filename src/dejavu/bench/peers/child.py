"""The process of a peer: loads a backend and answers commands. Runs under any Python, and imports nothing of dejavu.

    python child.py BACKEND.py

A backend is a file with a class ``Backend`` and a string ``VERSION`` (such as "NAME 1.2"). The first line out is
``{"ready": VERSION}``, or ``{"missing": MODULE}`` where the backend imports what is not installed. Then one JSON object per
line comes in, ``{"do": METHOD, ...}`` with the method's arguments, and one goes out: ``{"value": ...}``, or ``{"error":
TEXT}``. ``peak_rss`` is answered here: the largest resident memory so far, in bytes.
"""

from __future__ import annotations

import json
import os
import runpy
import sys


def peak_rss() -> int:
    """Largest resident memory of this process in bytes; 0 where the system does not say."""
    try:
        with open("/proc/self/status", encoding="utf-8") as status:  # noqa: PTH123  this file stands alone
            lines = [line.split() for line in status if line.startswith("VmHWM:")]
    except OSError:
        return 0
    return int(lines[0][1]) << 10 if lines else 0


def main() -> None:
    """Answer commands until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not come between answers

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    sys.path.pop(0)  # this folder: its names are not for import
    try:
        found = runpy.run_path(sys.argv[1])
    except ImportError as error:
        answer({"missing": error.name or str(error)})
        return
    backend = found["Backend"]()
    answer({"ready": found["VERSION"]})
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        try:
            answer({"value": peak_rss() if name == "peak_rss" else getattr(backend, name)(**command)})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
