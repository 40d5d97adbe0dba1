"""`python -m dejavu.cli`."""

from dejavu.cli import main

main()
