"""``python -m unalike`` is the command line."""

from unalike.cli import main

main()
