"""torchvision beside a torch of another build: its compiled operators declared, so that it can be imported at all.

PyPI's torchvision is compiled against torch for CUDA. Beside a CPU build its library cannot be loaded, and every import
of torchvision, diffusers' and transformers' own among them, ends with "operator torchvision::nms does not exist".
Nothing here calls a compiled operator, and to be imported torchvision needs no more than that the names of two exist.

Other libraries import torchvision too, whenever they like, so the package hooks into the import of that one name
(`prepare_import`); before it nothing is loaded, torch neither.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[Any] = []  # an operator lives as long as the library that declared it


def declare_operators() -> None:
    """Make ``import torchvision`` work. Does nothing where it works already or there is no torchvision.

    The compiled library is loaded as torchvision itself would; only if that fails are the operators declared, without a
    body: who calls one is told by torch that it has none.
    """
    import torch

    if _declared or hasattr(torch.ops.torchvision, "nms"):
        return
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    with contextlib.suppress(OSError, RuntimeError):
        for compiled in sorted(Path(found.origin).parent.glob("_C*")):
            torch.ops.load_library(compiled)  # type: ignore[no-untyped-call]
    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in _OPERATORS:
        library.define(name + _SCHEMA)  # type: ignore[no-untyped-call]
    _declared.append(library)


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing itself; the first search for torchvision declares the operators and ends it."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the signature is Python's
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            declare_operators()
        return None


def prepare_import() -> None:
    """Have `declare_operators` called when torchvision is first imported, by whomever; loads nothing now."""
    if "torchvision" not in sys.modules and not any(isinstance(each, _BeforeTorchvision) for each in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())
