"""Weights of networks, read from the files of others without running anything.

safetensors files, and torch's own in the layout of today and that of before torch 1.6 (``vision.archive``). Numbers are
mapped from the file, not read: a network's weights take memory once, in the network.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from unalike.errors import InputError
from unalike.vision.archive import (
    AGAIN,
    ITEM_BYTES,
    SAFE,
    Limits,
    Span,
    Storage,
    TensorView,
    UnfitError,
    clean,
    find_members,
    interpret,
    read_span,
)

MOST_BYTES = 2**32  # of a file, and of all tensors in it; VGG-19 has 575 million
MOST_PICKLE = 2**21  # bytes; DenseNet-121's is about 100,000
MOST_MEMBERS = 2**14  # files in an archive: one a tensor
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80\x02"
_MAGIC = 0x1950A86A20F9469CFC6C  # with which torch began its files before 1.6
_PROTOCOL = 1001
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # below which training scripts keep the weights
_COUNTER = "num_batches_tracked"  # of batch normalization: not in files of before torch 0.4.1, used in training only
_DTYPES = {
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "I8": torch.int8,
    "U8": torch.uint8,
}


def read_weights(path: str | Path, *, most_bytes: int = MOST_BYTES) -> dict[str, torch.Tensor]:
    """The named tensors in a file, of the kinds of numbers it has; its suffix does not matter.

    They are a ``state_dict``, alone or below ``state_dict``, ``model_state_dict`` or ``model`` of a checkpoint; what
    else a checkpoint holds is left out. Tensors lie in the file itself, mapped: keep it as it is while they are used,
    and write to none.

    Raises `InputError` in one line if the file cannot be read, is damaged, names code, holds no weights, or if it or
    its tensors have more than ``most_bytes``.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UnfitError("does not exist or is not a file. Check the path.")
        size = path.stat().st_size
        if size > most_bytes:
            raise UnfitError(f"has {size:,} bytes, more than {most_bytes:,}: refused. Give a file of weights.")
        with path.open("rb") as stream:
            return _read(stream, path, size, most_bytes)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}). Check its permissions.") from error
    except UnfitError as error:
        raise InputError(f"{path} {error}") from error


def load_weights(
    network: nn.Module, weights: Mapping[str, torch.Tensor], *, path: str | Path, skip: tuple[str, ...] = ()
) -> None:
    """Copy weights into a network: all of it, and no others, but for the layers named in ``skip`` and what is below.

    A prefix "module." that all names have (of training on several devices) is taken off. Numbers become those of the
    network's kind. Counters of batches may be missing: only training uses them. ``path`` is named in errors.

    Raises `InputError` if a tensor is missing, superfluous, of another shape, or not finite; the network is as before.
    """
    given = {key: tensor for key, tensor in plain_names(weights).items() if not _is_below(key, skip)}
    wanted = {key: tensor for key, tensor in network.state_dict().items() if not _is_below(key, skip)}
    _check_fits(given, wanted, path)
    with torch.no_grad():
        for key, tensor in given.items():
            wanted[key].copy_(tensor)


def plain_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights without the prefix "module." that training on several devices gives to all names."""
    all_have_it = all(key.startswith("module.") for key in weights)
    return {key.removeprefix("module.") if all_have_it else key: tensor for key, tensor in weights.items()}


def _is_below(key: str, layers: tuple[str, ...]) -> bool:
    return any(key == layer or key.startswith(f"{layer}.") for layer in layers)


def _check_fits(given: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], path: str | Path) -> None:
    advice = "Give a file of this network's weights."
    for key, own in wanted.items():
        found = given.get(key)
        if found is None:
            if key.endswith(_COUNTER):
                continue
            raise InputError(f"{path} holds no {key}, which the network has as {_show(own)}. {advice}")
        if found.shape != own.shape:
            raise InputError(f"{path} holds {key} as {_show(found)}, the network as {_show(own)}. {advice}")
        if found.is_floating_point() and not _is_finite(found):
            raise InputError(f"{path} holds numbers that are not finite ({key}). {AGAIN}")
    for key, found in given.items():
        if key not in wanted:
            raise InputError(f"{path} holds {clean(key)} as {_show(found)}, which the network has not. {advice}")


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are; lowest and highest tell, and take no memory."""
    return not tensor.numel() or all(bool(torch.isfinite(end)) for end in tensor.aminmax())


def _show(tensor: torch.Tensor) -> str:
    return " × ".join(f"{side:,}" for side in tensor.shape) or "a single number"


def _read(stream: BinaryIO, path: Path, size: int, most_bytes: int) -> dict[str, torch.Tensor]:
    begin = stream.read(16)
    limits = Limits("a network", most_bytes, MOST_PICKLE, MOST_MEMBERS, state=True)
    if begin.startswith(_ZIP):
        members = find_members(stream, size, limits)
        document = interpret(read_span(stream, members["data.pkl"]), limits)
        spans = {name.removeprefix("data/"): span for name, span in members.items() if name.startswith("data/")}
    # Before pickles: the length of a header may begin with the bytes that they begin with.
    elif begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") <= size - 8:
        return _read_safetensors(path)
    elif begin.startswith(_PICKLE):
        document, spans = _read_former(stream, size, limits)
    else:
        raise UnfitError("is neither a safetensors file nor one of torch. Give a file of weights.")
    return _materialize(_find_tensors(document), spans, path, most_bytes)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as opened:
            weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        raise UnfitError(f"is a damaged safetensors file ({clean(str(error))}). Fetch it again.") from error
    if not weights:
        raise UnfitError("holds no weights. Give a file of weights.")
    return weights


def _read_former(stream: BinaryIO, size: int, limits: Limits) -> tuple[Any, dict[str, Span]]:
    """What the object of a file of before torch 1.6 is, and where the numbers of each storage lie.

    A magic number, a version, facts about the machine, the object, the keys of storages: five pickles. Then of each
    storage, in this order, how many numbers it has (8 bytes) and the numbers.
    """
    stream.seek(0)
    pickles = io.BytesIO(stream.read(5 * limits.most_pickle))
    if interpret(pickles, limits) != _MAGIC or interpret(pickles, limits) != _PROTOCOL:
        raise UnfitError("is a pickle that torch did not write: refused. Give a file of weights.")
    machine = interpret(pickles, limits)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise UnfitError(f"was written on a big-endian machine: not read. {SAFE}")
    document, keys = interpret(pickles, limits), interpret(pickles, limits)
    if type(keys) is not list or any(type(key) is not str for key in keys) or len(set(keys)) != len(keys):
        raise UnfitError(f"is damaged: its list of numbers makes no sense. {AGAIN}")
    storages = _find_storages(document)
    spans = {}
    place = pickles.tell()
    for key in keys:
        storage = storages.get(key)
        if storage is None:  # of a tensor that is left out: its width is not known
            raise UnfitError(f"is damaged: it has numbers that nothing uses. {AGAIN}")
        spans[key] = Span(place + 8, storage.count * ITEM_BYTES[storage.kind])
        if read_span(stream, Span(place, 8)) != storage.count.to_bytes(8, "little"):
            raise UnfitError(f"is damaged: its numbers are not what it says. {AGAIN}")
        place += 8 + spans[key].size
        if place > size:
            raise UnfitError(f"is damaged: it ends too early. {AGAIN}")
    return document, spans


def _find_storages(document: Any) -> dict[str, Storage]:
    """All storages that anything in a document uses, by key; each value is looked at once, however often it occurs."""
    found: dict[str, Storage] = {}
    seen: set[int] = set()
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, TensorView):
            if found.setdefault(value.storage.key, value.storage) != value.storage:
                raise UnfitError(f"is damaged: its numbers are not what it says. {AGAIN}")
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return found


def _find_tensors(document: Any) -> dict[str, TensorView]:
    """The named tensors of a state_dict, alone or in a checkpoint."""
    candidates = [document.get(key) for key in _WRAPPERS] + [document] if isinstance(document, dict) else []
    for candidate in candidates:
        if isinstance(candidate, dict):
            tensors = {key: value for key, value in candidate.items() if isinstance(value, TensorView)}
            if tensors and all(type(key) is str for key in tensors):
                return tensors
    raise UnfitError("holds no weights. Give a file of a network's weights.")


def _materialize(
    views: Mapping[str, TensorView], spans: Mapping[str, Span], path: Path, most_bytes: int
) -> dict[str, torch.Tensor]:
    """Tensors that lie in the file. A repeated row takes no memory here, but would in a network: so it counts."""
    total = sum(math.prod(view.shape) * ITEM_BYTES[view.storage.kind] for view in views.values())
    if total > most_bytes:
        raise UnfitError(
            f"holds tensors of {total:,} bytes, more than {most_bytes:,}: refused. Give a file of weights."
        )
    # Changes stay in memory and never reach the file; torch has no tensors that cannot be written to.
    mapped = np.memmap(path, np.uint8, mode="c")
    storages: dict[str, torch.Tensor] = {}
    weights = {}
    for key, view in views.items():
        storage = view.storage
        if storage.key not in storages:
            storages[storage.key] = _open_storage(storage, spans.get(storage.key), mapped)
        elif storages[storage.key].dtype != _DTYPES[storage.kind] or len(storages[storage.key]) != storage.count:
            raise UnfitError(f"is damaged: its numbers are not what it says. {AGAIN}")
        weights[key] = storages[storage.key].as_strided(view.shape, view.stride, view.offset)
    return weights


def _open_storage(storage: Storage, span: Span | None, mapped: np.memmap[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    """The numbers of a storage, flat."""
    width = ITEM_BYTES[storage.kind]
    if span is None or span.size != storage.count * width or span.begin + span.size > len(mapped):
        raise UnfitError(f"is damaged: its numbers are not what it says. {AGAIN}")
    numbers = np.asarray(mapped[span.begin : span.begin + span.size])
    if numbers.ctypes.data % width:  # before 1.6 numbers lay anywhere
        numbers = numbers.copy()
    return torch.from_numpy(numbers).view(_DTYPES[storage.kind])
