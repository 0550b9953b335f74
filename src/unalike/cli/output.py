"""What all verbs print alike: JSON to stdout on request, settings before the work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from unalike.engine import is_first_process
from unalike.errors import FolderError
from unalike.records import as_json

Seed = Annotated[int, Parameter(help="Everything random follows from this number.")]
Device = Annotated[str, Parameter(help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON document to stdout.")]
DryRun = Annotated[
    bool,
    Parameter(negative="", help="Resolve and print the settings, check what can be checked, do nothing."),
]


def show_settings(settings: Any, *, dry_run: bool, json_out: bool) -> None:
    """Print the resolved settings: to stderr before the work, or as the result of a dry run."""
    document = as_json(settings)
    if dry_run and json_out:
        print_json(document)
        return
    if not is_first_process():
        return
    text = ", ".join(f"{name}={value}" for name, value in document.items())
    print(f"settings: {text}", file=sys.stdout if dry_run else sys.stderr)


def require_paths(*paths: Path | None) -> None:
    """Raise `FolderError` for the first path that was given and does not exist."""
    for path in paths:
        if path is not None and not path.exists():
            raise FolderError(f"{path} does not exist. Check the path.")


def print_json(document: Any) -> None:
    """Print one JSON document to stdout."""
    print(json.dumps(as_json(document), indent=1, ensure_ascii=False))
