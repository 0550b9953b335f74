"""Files of textual inversion: a token and the few vectors it stands for, read and written without running anything.

Four layouts are in use, told apart by content:

* diffusers' ``learned_embeds.safetensors``: ``{token: (n, d)}``, its metadata words;
* AUTOMATIC1111's safetensors: ``{"emb_params": (n, d)}``, named by the file;
* AUTOMATIC1111's ``.pt``: a torch archive of ``{"string_to_param": {"*": (n, d)}, "name", "step", "sd_checkpoint",
  "sd_checkpoint_name", …}`` (the embeddings of de Wilde et al. 2023 are such files);
* diffusers' former ``learned_embeds.bin``: a torch archive of ``{token: (n, d)}`` or ``{token: (d,)}``.

A torch archive holds a pickle. It is never loaded: ``vision.archive`` takes it apart without running anything, and how
much memory a file may ask for is settled before any is taken.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize

from unalike.errors import FolderError, InputError, SettingsError
from unalike.vision.archive import (
    AGAIN,
    ITEM_BYTES,
    MOST_LETTERS,
    SAFE,
    Limits,
    Module,
    TensorView,
    UnfitError,
    clean,
    find_members,
    interpret,
    read_span,
)

Vectors = npt.NDArray[np.float32]

SUFFIXES = (".pt", ".bin", ".safetensors")  # of files that may hold an embedding
MOST_VALUES = 2**20  # numbers of an embedding, n · d; 64 vectors of Stable Diffusion 2.x are 2**16
MOST_VECTORS = 1024
MOST_DIMENSION = 2**14
MOST_BYTES = 8 * MOST_VALUES + 2**20  # of a file: float64, and what stands around the numbers
MOST_PICKLE = 2**16  # bytes of data.pkl; real ones are about 400
MOST_MEMBERS = 64  # files in an archive

# What a vector's length says of the text encoder it was made for.
_MADE_FOR = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "Stable Diffusion XL"}
_KINDS = ("BF16", "F16", "F32", "F64")  # of numbers
_RESERVED = ("__metadata__", "emb_params", "clip_l", "clip_g")
_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{64}")
_LOCAL = re.compile(r"[/.~\\]|[A-Za-z]:|.*\\|.*/.*/")  # how a path begins, and no name at a hub does
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


@dataclass(frozen=True, eq=False)
class Embedding:
    """A token and its ``vectors`` (n, d), float32 and finite: n places of a prompt, d numbers each.

    ``base`` names the text encoder it was learned with: ``"sha256:…"``, or whatever a foreign file says (AUTOMATIC1111
    writes eight digits of a checkpoint's hash), "" if unknown; ``base_name`` is the base's name for people. ``steps``
    counts updates as the file does, 0 if unknown. ``cohort`` is the digest of the cohort it was learned from, "" if
    unknown.
    """

    token: str
    vectors: Vectors = field(repr=False)
    base: str = ""
    base_name: str = ""
    steps: int = 0
    cohort: str = ""


def read_embedding(path: str | Path) -> Embedding:
    """The embedding in a file of any of the four layouts above; its suffix does not matter.

    The token of AUTOMATIC1111's files is their name in angle brackets, ``<name>``. Numbers in float16, bfloat16 or
    float64 become float32.

    Raises `InputError` in one line if the file cannot be read, is damaged, names code, holds none or several
    embeddings, or is larger than any embedding.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UnfitError("does not exist or is not a file. Check the path.")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UnfitError(f"has {size:,} bytes, more than any embedding: refused. Give a textual inversion file.")
        with path.open("rb") as stream:
            data = stream.read(size)
        return _read(data, path.stem)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}). Check its permissions.") from error
    except UnfitError as error:
        raise InputError(f"{path} {error}") from error


def write_embedding(embedding: Embedding, path: str | Path) -> Path:
    """Write a file that other programs read, whole or not at all; gives the path.

    ``.safetensors`` is diffusers' layout, ``.pt`` AUTOMATIC1111's (whose names bear no angle brackets). All of the
    embedding can be read back from either, numbers bit for bit. Of a ``base_name`` that is a path only the last part is
    written: files get shared.

    Raises `SettingsError` for another suffix, and for what no file should hold (a cohort named otherwise than by its
    digest, numbers that are not finite …); `FolderError` if the file cannot be written.
    """
    path = Path(path)
    try:
        if embedding.cohort and not _DIGEST.fullmatch(embedding.cohort):
            raise UnfitError("names a cohort otherwise than by its digest. Give its SHA-256.")
        if embedding.token in _RESERVED:
            raise UnfitError("has a name that stands for something else in such files. Choose another token.")
        if not 0 <= embedding.steps < 2**31:
            raise UnfitError(f"was learned in {embedding.steps} steps, which no file can hold. Correct them.")
        shared = _embedding(embedding.token, embedding.vectors, _Origin.of(embedding))
    except UnfitError as error:
        raise SettingsError(f"the embedding {clean(embedding.token)} {error}") from error
    if path.suffix == ".safetensors":
        data = _safetensors_bytes(shared)
    elif path.suffix == ".pt":
        data = _archive_bytes(shared)
    else:
        raise SettingsError(f"{path} must end in .safetensors or .pt. Choose another name.")
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise FolderError(f"{path} cannot be written ({error.strerror or error}). Choose another place.") from error
    return path


def check_fits(embedding: Embedding, *, dimension: int, base: str, room: int) -> None:
    """Raise `InputError` if an embedding cannot be used with a base model.

    ``dimension`` is the length of its text encoder's word vectors, ``base`` the encoder's "sha256:…" ("" if unknown),
    ``room`` how many vectors it has places for (75 of CLIP's 77). Hashes of other kinds cannot be compared, and pass.
    """
    count, found = embedding.vectors.shape
    if found != dimension:
        known = f": it is for {_MADE_FOR[found]}" if found in _MADE_FOR else ""
        raise InputError(
            f"{embedding.token} has {found:,} numbers a vector, the base's text encoder {dimension:,}{known}. "
            "Choose that base, or another embedding."
        )
    if embedding.base != base and embedding.base.startswith("sha256:") and base.startswith("sha256:"):
        named = f" ({embedding.base_name})" if embedding.base_name else ""
        raise InputError(
            f"{embedding.token} was learned with another text encoder, {_short(embedding.base)}{named}; the base's is "
            f"{_short(base)}. Choose that base, or learn the token anew."
        )
    if count > room:
        raise InputError(
            f"{embedding.token} has {count:,} vectors, the base's text encoder has room for {room:,}. "
            "Choose an embedding of fewer vectors."
        )


def _short(digest: str) -> str:
    return digest[: len("sha256:") + 12]


@dataclass(frozen=True)
class _Origin:
    """Where an embedding is from, as a file says it: any values at all."""

    base: Any = None
    base_name: Any = None
    steps: Any = None
    cohort: Any = None

    @classmethod
    def of(cls, embedding: Embedding) -> _Origin:
        name = embedding.base_name
        name = re.split(r"[/\\]", name.rstrip("/\\"))[-1] if _LOCAL.match(name) else name
        return cls(embedding.base, name, int(embedding.steps), embedding.cohort)


def _embedding(token: Any, vectors: npt.NDArray[Any], origin: _Origin) -> Embedding:
    """Check what a file said, and what will be written."""
    if not isinstance(token, str) or not token.isprintable() or not 0 < len(token) <= MOST_LETTERS:
        raise UnfitError("has a name that cannot be shown. Give it a printable one of at most 200 letters.")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused below
        values = np.atleast_2d(np.array(vectors, dtype=np.float32, order="C"))
    _check_shape(values.shape)
    if not np.isfinite(values).all():
        raise UnfitError("holds numbers that are not finite: it is of no use. Learn it anew.")
    steps = origin.steps if type(origin.steps) is int and 0 <= origin.steps < 2**31 else 0
    cohort = origin.cohort if isinstance(origin.cohort, str) and _DIGEST.fullmatch(origin.cohort) else ""
    return Embedding(token, values, clean(origin.base), clean(origin.base_name), steps, cohort)


def _check_shape(shape: tuple[int, ...]) -> None:
    count, dimension = ((1, *shape) if len(shape) == 1 else (*shape, 0, 0))[:2]
    small = 0 < count <= MOST_VECTORS and 0 < dimension <= MOST_DIMENSION and count * dimension <= MOST_VALUES
    if len(shape) not in (1, 2) or not small:
        shown = " × ".join(f"{side:,}" for side in shape[:4]) or "a single number"
        raise UnfitError(f"holds a tensor of {shown}, not a few vectors. Give a textual inversion file.")


def _bracketed(name: Any, stem: str) -> str:
    """AUTOMATIC1111's name as a token."""
    name = name if isinstance(name, str) and name else stem
    return name if name.startswith("<") and name.endswith(">") else f"<{name}>"


def _numbers(data: bytes, kind: str) -> npt.NDArray[Any]:
    """Bare little-endian numbers as a flat array: float16, float32 or float64."""
    if kind == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[kind])


def _read(data: bytes, stem: str) -> Embedding:
    if data.startswith(_ZIP):
        return _read_archive(data, stem)
    # Before pickles: the length of a header may begin with the byte that they begin with.
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        return _read_safetensors(data, stem)
    if data.startswith(_PICKLE):
        raise UnfitError(f"is a bare pickle, as torch wrote before version 1.6 (2020): refused. {SAFE}")
    raise UnfitError("is neither a safetensors file nor a torch archive. Give a textual inversion file.")


# Safetensors: eight bytes (length of the header), a JSON header, numbers.


def _read_safetensors(data: bytes, stem: str) -> Embedding:
    try:
        tensors = deserialize(data)  # type: ignore[no-untyped-call]
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError) as error:
        raise UnfitError(f"is a damaged safetensors file ({clean(str(error))}). Fetch it again.") from error
    name, tensor = _only(dict(tensors))
    if tensor["dtype"] not in _KINDS:
        raise UnfitError(f"holds numbers of kind {tensor['dtype']}. Ask for float32.")
    shape = tuple(tensor["shape"])
    _check_shape(shape)
    values = _numbers(bytes(tensor["data"]), tensor["dtype"]).reshape(shape)
    said = header.get("__metadata__") or {}
    token = _bracketed(said.get("name"), stem) if name == "emb_params" else name
    origin = _Origin(
        base=said.get("base") or said.get("sd_checkpoint"),
        base_name=said.get("base_name") or said.get("sd_checkpoint_name"),
        steps=_whole(said.get("steps") or said.get("step") or said.get("ss_steps")),
        cohort=said.get("cohort"),
    )
    return _embedding(token, values, origin)


def _whole(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,10}", text) else None


def _only(tensors: Mapping[Any, Any]) -> tuple[Any, Any]:
    """The one entry of a dict."""
    if {"clip_l", "clip_g"} & set(tensors):
        raise UnfitError("is for Stable Diffusion XL (two text encoders). Give one for Stable Diffusion 1.x or 2.x.")
    if len(tensors) != 1:
        raise UnfitError(f"holds {len(tensors):,} tensors, not the one of an embedding. Give one file a token.")
    (entry,) = tensors.items()
    return entry


def _safetensors_bytes(embedding: Embedding) -> bytes:
    """Written here rather than by the library, which orders metadata by chance: equal embeddings, equal files."""
    said = {"base": embedding.base, "base_name": embedding.base_name, "cohort": embedding.cohort}
    numbers = embedding.vectors.astype("<f4").tobytes()
    document = {
        "__metadata__": {"format": "pt", "steps": str(embedding.steps)}
        | {key: word for key, word in said.items() if word},
        embedding.token: {"dtype": "F32", "shape": embedding.vectors.shape, "data_offsets": [0, len(numbers)]},
    }
    header = json.dumps(document, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + numbers


# Torch archives.

_LIMITS = Limits("an embedding", MOST_VALUES, MOST_PICKLE, MOST_MEMBERS, check_shape=_check_shape)


def _read_archive(data: bytes, stem: str) -> Embedding:
    stream = io.BytesIO(data)
    members = {name: read_span(stream, span) for name, span in find_members(stream, len(data), _LIMITS).items()}
    document = interpret(members["data.pkl"], _LIMITS)
    if not isinstance(document, dict) or not document:
        raise UnfitError("holds no embedding. Give a textual inversion file.")
    if "string_to_param" not in document:
        token, tensor = _only(document)
        return _embedding(token, _fill(tensor, members), _Origin())
    parameters = document["string_to_param"]
    if isinstance(parameters, Module):
        parameters = parameters.state.get("_parameters")
    if not isinstance(parameters, dict):
        raise UnfitError("holds no embedding. Give a textual inversion file.")
    origin = _Origin(
        base=document.get("sd_checkpoint"),
        base_name=document.get("sd_checkpoint_name"),
        steps=document.get("step"),
        cohort=document.get("cohort"),
    )
    _, tensor = _only(parameters)
    return _embedding(_bracketed(document.get("name"), stem), _fill(tensor, members), origin)


def _fill(tensor: Any, members: Mapping[str, bytes]) -> npt.NDArray[Any]:
    """The numbers of a tensor."""
    if not isinstance(tensor, TensorView):
        raise UnfitError("holds no embedding. Give a textual inversion file.")
    storage = tensor.storage
    data = members.get(f"data/{storage.key}")
    if data is None or len(data) != storage.count * ITEM_BYTES[storage.kind]:
        raise UnfitError(f"is damaged: its numbers are not what it says. {AGAIN}")
    _check_shape(tensor.shape)
    index = np.asarray(tensor.offset)
    for size, step in zip(tensor.shape, tensor.stride, strict=True):
        index = index[..., None] + np.arange(size) * step
    values: npt.NDArray[Any] = _numbers(data, storage.kind)[index]
    return values


# Writing a torch archive: the same instructions, one after another.


def _archive_bytes(embedding: Embedding) -> bytes:
    """A zip as torch writes it: nothing compressed, no dates, numbers at a multiple of 64 bytes."""
    files = {
        "archive/data.pkl": _pickle(embedding),
        "archive/data/0": embedding.vectors.astype("<f4").tobytes(),
        "archive/version": b"3\n",
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, (1980, 0, 0, 0, 0, 0))
            # A local header is 30 bytes, the name, and this: an "extra field" (mark, length) that torch fills with Z.
            padding = -(stream.tell() + 30 + len(name) + 4) % 64
            entry.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            archive.writestr(entry, content)
    return stream.getvalue()


def _pickle(embedding: Embedding) -> bytes:
    """``data.pkl`` of AUTOMATIC1111's layout, protocol 2: `interpret` and the formal list in `pickletools` read it."""
    count, dimension = embedding.vectors.shape
    name = embedding.token
    entries = {
        "string_to_token": b"}" + _word("*") + _integer(265) + b"s",  # 265 is the token "*" of CLIP
        "string_to_param": b"}" + _word("*") + _tensor_bytes(count, dimension) + b"s",
        "name": _word(name[1:-1] if len(name) > 2 and name[0] == "<" and name[-1] == ">" else name),
        "step": _integer(embedding.steps),
        "sd_checkpoint": _word(embedding.base) if embedding.base else b"N",
        "sd_checkpoint_name": _word(embedding.base_name) if embedding.base_name else b"N",
    }
    if embedding.cohort:
        entries["cohort"] = _word(embedding.cohort)
    return b"\x80\x02}(" + b"".join(_word(key) + value for key, value in entries.items()) + b"u."


def _tensor_bytes(count: int, dimension: int) -> bytes:
    """A contiguous float32 tensor (count, dimension) that lies in ``data/0``."""
    storage = b"(" + _word("storage") + _name("torch", "FloatStorage") + _word("0") + _word("cpu")
    storage += _integer(count * dimension) + b"tQ"
    sides = _integer(count) + _integer(dimension) + b"\x86" + _integer(dimension) + _integer(1) + b"\x86"
    hooks = _name("collections", "OrderedDict") + b")R"
    return _name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + _integer(0) + sides + b"\x89" + hooks + b"tR"


def _word(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(number: int) -> bytes:
    return b"J" + struct.pack("<i", number)


def _name(module: str, name: str) -> bytes:
    return b"c" + f"{module}\n{name}\n".encode()
