"""The `dejavu` command: one file per verb, nothing imported before it is needed, no logic of its own."""

from __future__ import annotations

import sys

INTERRUPTED_EXIT_CODE = 130


def main() -> None:
    """Run the command with the arguments of the process, and exit."""
    try:
        from dejavu.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while it imports
        code = INTERRUPTED_EXIT_CODE
    sys.exit(code)
