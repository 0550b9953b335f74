"""torchvision can be imported beside a torch of another build, and until then nothing of torch is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

DECLARED = """
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": "src", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_package_loads_neither_torch_nor_torchvision() -> None:
    run("import sys, unalike; sys.exit(bool({'torch', 'torchvision'} & set(sys.modules)))")


def test_torchvision_and_a_pipeline_of_diffusers_can_be_imported() -> None:
    # The hook has had its turn, and is gone; a second call adds no other.
    code = """
import sys
import unalike
import torchvision
from diffusers import StableDiffusionPipeline
from unalike.vision.imports import prepare_import
prepare_import()
hooks = [each for each in sys.meta_path if "BeforeTorchvision" in type(each).__name__]
assert hooks == [], hooks
assert torchvision.models.resnet18 is not None
print(StableDiffusionPipeline.__name__)
"""
    assert run(code) == "StableDiffusionPipeline\n"


@pytest.mark.parametrize("before", ["", "import torchvision\n"])
def test_where_torchvision_works_already_nothing_is_declared(before: str) -> None:
    code = f"""{DECLARED}{before}
import unalike
from unalike.vision import imports
import torchvision
imports.declare_operators()
assert imports._declared == []
print(torchvision.models.resnet18.__name__)
"""
    assert run(code) == "resnet18\n"


def test_without_torchvision_the_import_ends_as_it_always_does() -> None:
    code = """
import sys
import unalike
sys.path_hooks.clear()
sys.path_importer_cache.clear()
try:
    import torchvision
except ModuleNotFoundError as error:
    print(error.name)
"""
    done = run(code.replace("import unalike\n", "import unalike, torch, importlib.util\n"))
    assert done == "torchvision\n"
