"""Files of textual inversion: a token and the few vectors it stands for, read and written without running anything.

Four layouts are in use, told apart by content:

* diffusers' ``learned_embeds.safetensors``: ``{token: (n, d)}``, its metadata words;
* AUTOMATIC1111's safetensors: ``{"emb_params": (n, d)}``, named by the file;
* AUTOMATIC1111's ``.pt``: a torch archive of ``{"string_to_param": {"*": (n, d)}, "name", "step", "sd_checkpoint",
  "sd_checkpoint_name", …}`` (the embeddings of de Wilde et al. 2023 are such files);
* diffusers' former ``learned_embeds.bin``: a torch archive of ``{token: (n, d)}`` or ``{token: (d,)}``.

A torch archive is an uncompressed zip of a pickle (``data.pkl``) and of bare numbers (``data/KEY``). Loading a pickle
runs what it names. It is never loaded here: `_interpret` walks over its instructions and builds tuples, dicts, words
and numbers; the few names it knows are marks that nothing imports or calls, and any other name ends the reading. How
much memory a file may ask for is settled before any is taken.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize

from unalike.errors import FolderError, InputError, SettingsError

Vectors = npt.NDArray[np.float32]

SUFFIXES = (".pt", ".bin", ".safetensors")  # of files that may hold an embedding
MOST_VALUES = 2**20  # numbers of an embedding, n · d; 64 vectors of Stable Diffusion 2.x are 2**16
MOST_VECTORS = 1024
MOST_DIMENSION = 2**14
MOST_BYTES = 8 * MOST_VALUES + 2**20  # of a file: float64, and what stands around the numbers
MOST_PICKLE = 2**16  # bytes of data.pkl; real ones are about 400
MOST_MEMBERS = 64  # files in an archive
MOST_LETTERS = 200  # of a name

# What a vector's length says of the text encoder it was made for.
_MADE_FOR = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "Stable Diffusion XL"}
_ITEM_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
_RESERVED = ("__metadata__", "emb_params", "clip_l", "clip_g")
_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{64}")
_LOCAL = re.compile(r"[/.~\\]|[A-Za-z]:|.*\\|.*/.*/")  # how a path begins, and no name at a hub does
_ZIP, _PICKLE, _ENTRY = b"PK\x03\x04", b"\x80", b"PK\x01\x02"
_SAFE = "Ask for a safetensors file."
_AGAIN = "Fetch it again, or ask for a safetensors file."


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
            raise _UnfitError("does not exist or is not a file. Check the path.")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise _UnfitError(f"has {size:,} bytes, more than any embedding: refused. Give a textual inversion file.")
        with path.open("rb") as stream:
            data = stream.read(size)
        return _read(data, path.stem)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}). Check its permissions.") from error
    except _UnfitError as error:
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
            raise _UnfitError("names a cohort otherwise than by its digest. Give its SHA-256.")
        if embedding.token in _RESERVED:
            raise _UnfitError("has a name that stands for something else in such files. Choose another token.")
        if not 0 <= embedding.steps < 2**31:
            raise _UnfitError(f"was learned in {embedding.steps} steps, which no file can hold. Correct them.")
        shared = _embedding(embedding.token, embedding.vectors, _Origin.of(embedding))
    except _UnfitError as error:
        raise SettingsError(f"the embedding {_clean(embedding.token)} {error}") from error
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


class _UnfitError(Exception):
    """Why a file is not read: what follows its name in the message."""


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
        raise _UnfitError("has a name that cannot be shown. Give it a printable one of at most 200 letters.")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused below
        values = np.atleast_2d(np.array(vectors, dtype=np.float32, order="C"))
    _check_shape(values.shape)
    if not np.isfinite(values).all():
        raise _UnfitError("holds numbers that are not finite: it is of no use. Learn it anew.")
    steps = origin.steps if type(origin.steps) is int and 0 <= origin.steps < 2**31 else 0
    cohort = origin.cohort if isinstance(origin.cohort, str) and _DIGEST.fullmatch(origin.cohort) else ""
    return Embedding(token, values, _clean(origin.base), _clean(origin.base_name), steps, cohort)


def _check_shape(shape: tuple[int, ...]) -> None:
    count, dimension = ((1, *shape) if len(shape) == 1 else (*shape, 0, 0))[:2]
    small = 0 < count <= MOST_VECTORS and 0 < dimension <= MOST_DIMENSION and count * dimension <= MOST_VALUES
    if len(shape) not in (1, 2) or not small:
        shown = " × ".join(f"{side:,}" for side in shape[:4]) or "a single number"
        raise _UnfitError(f"holds a tensor of {shown}, not a few vectors. Give a textual inversion file.")


def _clean(text: Any) -> str:
    """A name from elsewhere, safe to print: one line of printable letters, "" for what is no text."""
    return "".join(letter for letter in text[:MOST_LETTERS] if letter.isprintable()) if isinstance(text, str) else ""


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
        raise _UnfitError(f"is a bare pickle, as torch wrote before version 1.6 (2020): refused. {_SAFE}")
    raise _UnfitError("is neither a safetensors file nor a torch archive. Give a textual inversion file.")


# Safetensors: eight bytes (length of the header), a JSON header, numbers.


def _read_safetensors(data: bytes, stem: str) -> Embedding:
    try:
        tensors = deserialize(data)  # type: ignore[no-untyped-call]
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError) as error:
        raise _UnfitError(f"is a damaged safetensors file ({_clean(str(error))}). Fetch it again.") from error
    name, tensor = _only(dict(tensors))
    if tensor["dtype"] not in _ITEM_BYTES:
        raise _UnfitError(f"holds numbers of kind {tensor['dtype']}. Ask for float32.")
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
        raise _UnfitError("is for Stable Diffusion XL (two text encoders). Give one for Stable Diffusion 1.x or 2.x.")
    if len(tensors) != 1:
        raise _UnfitError(f"holds {len(tensors):,} tensors, not the one of an embedding. Give one file a token.")
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


# Torch archives. What a pickle may build beyond plain values: marks for the names it knows, and tensors.

_STORAGES = {
    "torch FloatStorage": "F32",
    "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16",
    "torch DoubleStorage": "F64",
}
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_ORDERED = "collections OrderedDict"
_MODULES = ("torch.nn.modules.container ParameterDict",)
_SETS = ("__builtin__ set", "builtins set")  # a ParameterDict's state holds an empty one
_NAMES = {*_STORAGES, _TENSOR, _PARAMETER, _ORDERED, *_MODULES, *_SETS}


@dataclass(frozen=True)
class _Mark:
    """A name that stands in the pickle; nothing is imported for it."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Bare numbers in the archive: ``data/key``."""

    key: str
    kind: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage, all of it inside (offset, shape and stride count numbers, not bytes)."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class _Module:
    """A ParameterDict: its state is a plain dict, the tensors below ``_parameters``."""

    state: dict[Any, Any] = field(default_factory=dict)


def _read_archive(data: bytes, stem: str) -> Embedding:
    members = _members(data)
    if "data.pkl" not in members:
        raise _UnfitError("is an archive without data.pkl: torch did not write it. Give a textual inversion file.")
    if members.get("byteorder", b"little") != b"little":
        raise _UnfitError(f"was written on a big-endian machine: not read. {_SAFE}")
    document = _interpret(members["data.pkl"])
    if not isinstance(document, dict) or not document:
        raise _UnfitError("holds no embedding. Give a textual inversion file.")
    if "string_to_param" not in document:
        token, tensor = _only(document)
        return _embedding(token, _fill(tensor, members), _Origin())
    parameters = document["string_to_param"]
    if isinstance(parameters, _Module):
        parameters = parameters.state.get("_parameters")
    if not isinstance(parameters, dict):
        raise _UnfitError("holds no embedding. Give a textual inversion file.")
    origin = _Origin(
        base=document.get("sd_checkpoint"),
        base_name=document.get("sd_checkpoint_name"),
        steps=document.get("step"),
        cohort=document.get("cohort"),
    )
    _, tensor = _only(parameters)
    return _embedding(_bracketed(document.get("name"), stem), _fill(tensor, members), origin)


def _members(data: bytes) -> dict[str, bytes]:
    """Files in an archive, named without the folder they share. Nothing is unpacked onto the disk."""
    if data.count(_ENTRY) > MOST_MEMBERS:  # before the directory is read: each entry takes memory
        raise _UnfitError(f"is an archive of too many files: refused. {_SAFE}")
    members: dict[str, bytes] = {}
    total = 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                root, _, name = entry.filename.partition("/")
                plain = entry.filename.isprintable() and not {".", ".."} & set(entry.filename.split("/"))
                if not root or not name or not plain or "\\" in name or name in members:
                    raise _UnfitError(f"is an archive with a file in an odd place: refused. {_SAFE}")
                if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                    raise _UnfitError(f"is a compressed archive, which torch never writes: refused. {_SAFE}")
                total += entry.file_size  # more than the file has: its entries overlap
                if total > len(data) or (name == "data.pkl" and entry.file_size > MOST_PICKLE):
                    raise _UnfitError(f"holds more than an embedding needs ({_clean(name)}): refused. {_SAFE}")
                if name in ("data.pkl", "byteorder") or name.startswith("data/"):
                    members[name] = archive.read(entry)
    # What zipfile raises at damaged archives.
    except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError, OSError, LookupError, struct.error) as error:
        raise _UnfitError(f"is a damaged archive ({_clean(str(error))}). {_AGAIN}") from error
    return members


def _fill(tensor: Any, members: Mapping[str, bytes]) -> npt.NDArray[Any]:
    """The numbers of a tensor."""
    if not isinstance(tensor, _Tensor):
        raise _UnfitError("holds no embedding. Give a textual inversion file.")
    storage = tensor.storage
    data = members.get(f"data/{storage.key}")
    if data is None or len(data) != storage.count * _ITEM_BYTES[storage.kind]:
        raise _UnfitError(f"is damaged: its numbers are not what it says. {_AGAIN}")
    _check_shape(tensor.shape)
    index = np.asarray(tensor.offset)
    for size, step in zip(tensor.shape, tensor.stride, strict=True):
        index = index[..., None] + np.arange(size) * step
    values: npt.NDArray[Any] = _numbers(data, storage.kind)[index]
    return values


def _interpret(pickled: bytes) -> Any:
    """What a pickle of protocol 2 describes, in plain values, `_Mark`, `_Tensor` and `_Module`.

    Knows the instructions that torch's files of tensors consist of, and no others. Time and memory grow with the
    number of instructions only: nothing is called, nested or copied twice.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "STOP":
                break
            machine.step(opcode.name, argument)
        (document,) = machine.stack
    # What an instruction finds if those before it were not what a pickler writes; pickletools warns of odd escapes.
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError, struct.error, Warning) as error:
        raise _UnfitError(f"is damaged: its pickle makes no sense. {_AGAIN}") from error
    return document


class _Machine:
    """The stack of a pickle, its marks (as heights of the stack) and its memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """One instruction, by its name in `pickletools`."""
        if name in _PLAIN:
            self.stack.append(argument)
        elif name in _FRESH:
            self.stack.append(_FRESH[name]())
        elif name in _TUPLES:
            self.stack.append(self._take(_TUPLES[name]))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "GLOBAL":
            if argument not in _NAMES:
                raise _UnfitError(f"carries code ({_clean(argument).replace(' ', '.')}): refused. {_SAFE}")
            self.stack.append(_Mark(argument))
        elif name == "PROTO":
            if argument != 2:
                raise _UnfitError(f"holds a pickle of protocol {argument}, not 2: refused. {_SAFE}")
        elif name in _STEPS:
            _STEPS[name](self)
        else:
            raise _UnfitError(f"may carry code (pickle instruction {name}): refused. {_SAFE}")

    def _take(self, count: int) -> tuple[Any, ...]:
        """The topmost values, taken off."""
        if len(self.stack) < count:
            raise IndexError
        taken = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return taken

    def _take_marked(self) -> tuple[Any, ...]:
        return self._take(len(self.stack) - self.marks.pop())

    def mark(self) -> None:
        self.marks.append(len(self.stack))

    def tuple_of_marked(self) -> None:
        self.stack.append(self._take_marked())

    def set_item(self) -> None:
        self._fill_dict(self._take(2))

    def set_items(self) -> None:
        self._fill_dict(self._take_marked())

    def _fill_dict(self, pairs: tuple[Any, ...]) -> None:
        keys = pairs[::2]
        if type(self.stack[-1]) is not dict or any(type(key) is not str for key in keys):
            raise TypeError
        self.stack[-1].update(zip(keys, pairs[1::2], strict=True))

    def build(self) -> None:
        """Give the state of an object: only a ParameterDict has one here."""
        (state,) = self._take(1)
        if not isinstance(self.stack[-1], _Module) or type(state) is not dict:
            raise _UnfitError(f"may carry code (pickle instruction BUILD): refused. {_SAFE}")
        self.stack[-1].state = state

    def make(self) -> None:
        """An object of a class, without a call (NEWOBJ)."""
        made, given = self._take(2)
        if made not in [_Mark(name) for name in _MODULES] or given != ():
            raise TypeError
        self.stack.append(_Module())

    def storage(self) -> None:
        """A persistent id: where bare numbers lie."""
        (given,) = self._take(1)
        word, mark, key, _, count = given
        if word != "storage" or not isinstance(mark, _Mark) or not isinstance(key, str) or type(count) is not int:
            raise TypeError
        if not 0 < count <= MOST_VALUES:
            raise _UnfitError(f"holds {count:,} numbers, more than any embedding: refused. {_SAFE}")
        self.stack.append(_Storage(key, _STORAGES[mark.name], count))

    def reduce(self) -> None:
        """A call in other pickles; here a known form of what torch writes, or the end."""
        called, given = self._take(2)
        if not isinstance(called, _Mark) or type(given) is not tuple:
            raise TypeError
        if called.name == _TENSOR:
            self.stack.append(_tensor(*given))
        elif called.name == _PARAMETER and isinstance(given[0], _Tensor):
            self.stack.append(given[0])
        elif called.name == _ORDERED and given == ():
            self.stack.append({})
        elif called.name in _SETS and given == ([],):
            self.stack.append(None)
        else:
            raise TypeError


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, _: Any, hooks: Any, about: Any = None) -> _Tensor:
    """The arguments of torch's ``_rebuild_tensor_v2``: all numbers of the view must lie in the storage."""
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, _Storage) or type(shape) is not tuple or type(stride) is not tuple or hooks or about:
        raise TypeError
    if any(type(number) is not int or number < 0 for number in numbers) or len(shape) != len(stride):
        raise TypeError
    _check_shape(shape)
    stride = tuple(step if size > 1 else 0 for size, step in zip(shape, stride, strict=True))  # unused, so any number
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if last >= storage.count:
        raise _UnfitError(f"is damaged: a tensor reaches beyond its numbers. {_AGAIN}")
    return _Tensor(storage, offset, shape, stride)


_PLAIN = ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_FRESH: Mapping[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STEPS: Mapping[str, Callable[[_Machine], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_of_marked,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "BUILD": _Machine.build,
    "NEWOBJ": _Machine.make,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.reduce,
}


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
    """``data.pkl`` of AUTOMATIC1111's layout, protocol 2: `_interpret` and the formal list in `pickletools` read it."""
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
