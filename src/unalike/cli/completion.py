"""``unalike completion``: the shell completes commands, options and their choices."""

from __future__ import annotations

import sys
from typing import Literal

Shell = Literal["bash", "zsh", "fish"]
_INSTALL = {
    "bash": (
        "mkdir -p ~/.local/share/bash-completion/completions && "
        "unalike completion bash > ~/.local/share/bash-completion/completions/unalike",
        "needs the package bash-completion; else: source <(unalike completion bash) in ~/.bashrc",
    ),
    "zsh": (
        "mkdir -p ~/.zfunc && unalike completion zsh > ~/.zfunc/_unalike",
        "in ~/.zshrc, before compinit: fpath=(~/.zfunc $fpath)",
    ),
    "fish": (
        "mkdir -p ~/.config/fish/completions && unalike completion fish > ~/.config/fish/completions/unalike.fish",
        "nothing else is needed",
    ),
}


def completion(shell: Shell, /) -> None:
    """Print a script by which a shell completes commands, options and choices.

    How to install it is said beside it, on stderr. The script holds all names itself: completing starts no Python.
    Print it again after an update.

    Parameters
    ----------
    shell
        bash, zsh or fish.
    """
    print(completion_script(shell))
    command, note = _INSTALL[shell]
    print(f"To install: {command}\n({note}). Then open a new shell.", file=sys.stderr)


def completion_script(shell: Shell) -> str:
    """The script for this shell, of the whole command line as it is."""
    from unalike.cli import build_app  # which imports this module

    return build_app().generate_completion(shell=shell)
