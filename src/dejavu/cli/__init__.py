"""The `dejavu` command: one file per verb, nothing imported before it is needed, no logic of its own."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command with the arguments of the process, and exit."""
    from dejavu.cli.app import run

    sys.exit(run(sys.argv[1:]))
