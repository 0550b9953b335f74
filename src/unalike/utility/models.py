"""Classifiers on disk: weights as safetensors, all else as JSON. No pickle.

A model holds no pixel of any image. Still, one trained on real images can remember them: treat it as you treat the
cohort, and do not hand it on.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unalike import folders
from unalike.errors import FolderError, SettingsError
from unalike.utility.classifier import Classifier
from unalike.vision import networks

WEIGHTS = "classifier.safetensors"
ABOUT = "classifier.json"
FORMAT = 1
_NEXT = "Measure the utility again."


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write ``folder`` with two files, the JSON with the digest of the weights last: without it there is no model.

    What was trained on real images is as internal as the cohort (see the module).
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT).unlink(missing_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.network.state_dict().items()}
    partial = folder / f"{WEIGHTS}.partial"
    save_file(weights, partial)
    partial.replace(folder / WEIGHTS)
    about: dict[str, Any] = {
        field.name: getattr(classifier, field.name)
        for field in dataclasses.fields(classifier)
        if field.name != "network"
    }
    digest = folders.digest_file(folder / WEIGHTS)
    folders.write_json(folder / ABOUT, {"format": FORMAT, "weights_digest": digest} | about)


def load_classifier(folder: Path, *, device: torch.device) -> Classifier:
    """Read what `save_classifier` wrote, onto ``device``.

    Raises `FolderError` if there is none, if it is damaged or was changed, or of another format.
    """
    if not (folder / ABOUT).is_file():
        raise FolderError(f"{folder} holds no classifier ({ABOUT} is missing). {_NEXT}")
    about = folders.read_json(folder / ABOUT)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise FolderError(f"{folder / ABOUT} is not of format {FORMAT}, which this version reads. {_NEXT}")
    try:
        if folders.digest_file(folder / WEIGHTS) != about["weights_digest"]:
            raise FolderError(f"{folder / WEIGHTS} was changed since it was made. {_NEXT}")
        name, classes, channels = str(about["name"]), tuple(about["classes"]), tuple(about["channels"])
        network = networks.build_network(name, classes=len(classes), channels=len(channels), seed=0)
        network.load_state_dict(load_file(folder / WEIGHTS))
        return Classifier(
            name=name,
            classes=classes,
            channels=channels,
            side=int(about["side"]),
            highest=int(about["highest"]),
            mean=tuple(about["mean"]),
            deviation=tuple(about["deviation"]),
            network=network.to(device).train(False),
            precision=str(about["precision"]),
        )
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError, SettingsError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FolderError(f"{folder} holds a damaged classifier ({said}). {_NEXT}") from error
