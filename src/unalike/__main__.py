"""Entry point of the ``unalike`` program, and of ``python -m unalike``."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the command line and run it: Ctrl-C while it is still loading is no traceback either."""
    try:
        from unalike.cli import main as run_command_line

        run_command_line()
    except KeyboardInterrupt:
        print("unalike: interrupted", file=sys.stderr)  # noqa: T201 - a command line prints
        sys.exit(130)


if __name__ == "__main__":
    main()
