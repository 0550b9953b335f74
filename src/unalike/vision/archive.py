"""Files of tensors that torch wrote, taken apart without running anything.

Such a file is an uncompressed zip of a pickle (``data.pkl``) and of bare numbers (``data/KEY``); before torch 1.6
(2020) it was a row of pickles and then the numbers. Loading a pickle runs what it names. It is never loaded here:
`interpret` walks over its instructions and builds tuples, lists, dicts, words and numbers; the few names it knows are
marks that nothing imports or calls, and any other name ends the reading. How much memory a file may ask for is settled
before any is taken.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO

SAFE = "Ask for a safetensors file."
AGAIN = "Fetch it again, or ask for a safetensors file."
ITEM_BYTES = {
    "BF16": 2,
    "BOOL": 1,
    "F16": 2,
    "F32": 4,
    "F64": 8,
    "I16": 2,
    "I32": 4,
    "I64": 8,
    "I8": 1,
    "U8": 1,
}
"""Bytes of a number, by its kind as safetensors names it."""

MOST_AXES = 32  # of a tensor
MOST_LETTERS = 200  # of a name that is shown
_ENTRY = b"PK\x01\x02"  # how each entry of a zip's directory begins
_CHUNK = 2**20


class UnfitError(Exception):
    """Why a file is not read: what follows its name in the message."""


def _any_shape(shape: tuple[int, ...]) -> None:
    """Accept every shape."""


@dataclass(frozen=True)
class Limits:
    """What a file may ask for.

    ``kind`` names what it is to hold, as in "an embedding". ``most_numbers`` bounds a storage, ``most_pickle`` a pickle
    (bytes), ``most_members`` the files in an archive; ``check_shape`` raises `UnfitError` for the shape of a tensor.
    ``state`` allows what networks' weights need beyond the tensors of a dict: lists, whole numbers, keys that are
    numbers, what torch 0.x wrote.
    """

    kind: str
    most_numbers: int
    most_pickle: int
    most_members: int
    state: bool = False
    check_shape: Callable[[tuple[int, ...]], None] = _any_shape


@dataclass(frozen=True)
class Span:
    """Where bytes lie in a file."""

    begin: int
    size: int


@dataclass(frozen=True)
class Storage:
    """Bare numbers: ``data/key`` of an archive. ``kind`` is a key of `ITEM_BYTES`."""

    key: str
    kind: str
    count: int


@dataclass(frozen=True)
class TensorView:
    """A view of a storage, all of it inside (offset, shape and stride count numbers, not bytes)."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class Module:
    """A ParameterDict: its state is a plain dict, the tensors below ``_parameters``."""

    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Mark:
    """A name that stands in the pickle; nothing is imported for it."""

    name: str


def clean(text: Any) -> str:
    """A name from elsewhere, safe to print: one line of printable letters, "" for what is no text."""
    return "".join(letter for letter in text[:MOST_LETTERS] if letter.isprintable()) if isinstance(text, str) else ""


def find_members(stream: BinaryIO, size: int, limits: Limits) -> dict[str, Span]:
    """Files in an archive of ``size`` bytes, named without the folder they share: ``data.pkl``, ``data/0`` …

    Nothing is unpacked. The checksum of each is compared, so all of it is read once. Raises `UnfitError` for a damaged
    archive, one that torch would not have written, and where ``data.pkl`` is missing or numbers are big-endian.
    """
    if _count_entries(stream) > limits.most_members:  # before the directory is read: each entry takes memory
        raise UnfitError(f"is an archive of too many files: refused. {SAFE}")
    try:
        with zipfile.ZipFile(stream) as archive:
            members = _list_members(archive, size, limits)
            spans = {name: _locate(archive, stream, entry) for name, entry in members.items()}
    # What zipfile raises at damaged archives.
    except (zipfile.BadZipFile, ValueError, RuntimeError, EOFError, OSError, LookupError, struct.error) as error:
        raise UnfitError(f"is a damaged archive ({clean(str(error))}). {AGAIN}") from error
    if "data.pkl" not in spans:
        raise UnfitError("is an archive without data.pkl: torch did not write it. Give another file.")
    order = spans.get("byteorder")
    if order is not None and read_span(stream, order) != b"little":
        raise UnfitError(f"was written on a big-endian machine: not read. {SAFE}")
    return spans


def read_span(stream: BinaryIO, span: Span) -> bytes:
    """These bytes of a file."""
    stream.seek(span.begin)
    return stream.read(span.size)


def _count_entries(stream: BinaryIO) -> int:
    """How many entries a zip's directory can have at most: how often their mark occurs anywhere."""
    stream.seek(0)
    count, before = 0, b""
    while chunk := stream.read(_CHUNK):
        count += (before + chunk).count(_ENTRY)
        before = chunk[1 - len(_ENTRY) :]
    return count


def _list_members(archive: zipfile.ZipFile, size: int, limits: Limits) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    total = 0
    seen = set()
    for entry in archive.infolist():
        root, _, name = entry.filename.partition("/")
        plain = entry.filename.isprintable() and not {".", ".."} & set(entry.filename.split("/"))
        if not root or not name or not plain or "\\" in name or name in seen:
            raise UnfitError(f"is an archive with a file in an odd place: refused. {SAFE}")
        seen.add(name)
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise UnfitError(f"is a compressed archive, which torch never writes: refused. {SAFE}")
        total += entry.file_size  # more than the file has: its entries overlap
        if total > size or (name == "data.pkl" and entry.file_size > limits.most_pickle):
            raise UnfitError(f"holds more than {limits.kind} needs ({clean(name)}): refused. {SAFE}")
        if name in ("data.pkl", "byteorder") or name.startswith("data/"):
            members[name] = entry
    return members


def _locate(archive: zipfile.ZipFile, stream: BinaryIO, entry: zipfile.ZipInfo) -> Span:
    """Where the bytes of an entry lie, once they are proven to be whole."""
    with archive.open(entry) as member:
        while member.read(_CHUNK):
            pass
    # A local header: 26 bytes, the lengths of a name and of an extra field, both, and then the bytes.
    name, extra = struct.unpack("<HH", read_span(stream, Span(entry.header_offset + 26, 4)))
    return Span(entry.header_offset + 30 + name + extra, entry.file_size)


# What a pickle may build beyond plain values: marks for the names it knows, and tensors.

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

# With ``Limits.state``.
_MORE_STORAGES = {
    "torch BoolStorage": "BOOL",
    "torch ByteStorage": "U8",
    "torch CharStorage": "I8",
    "torch IntStorage": "I32",
    "torch LongStorage": "I64",
    "torch ShortStorage": "I16",
}
_ANY_STORAGE = _STORAGES | _MORE_STORAGES
_FORMER_TENSOR = "torch._utils _rebuild_tensor"  # torch 0.1 to 0.3
_FORMER_PARAMETER = "torch.nn.parameter Parameter"
_MORE_NAMES = {*_MORE_STORAGES, _FORMER_TENSOR, _FORMER_PARAMETER}


def interpret(pickled: bytes | BinaryIO, limits: Limits) -> Any:
    """What a pickle of protocol 2 describes, in plain values, `TensorView` and `Module`.

    Of a stream the pickle that begins where it stands, and no byte more. Knows the instructions that torch's files of
    tensors consist of, and no others. Time and memory grow with the number of instructions only: nothing is called,
    nested or copied twice. Raises `UnfitError`.
    """
    machine = _Machine(limits)
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(pickled) if isinstance(pickled, bytes) else pickled):
            if opcode.name == "STOP":
                break
            machine.step(opcode.name, argument)
        (document,) = machine.stack
    # What an instruction finds if those before it were not what a pickler writes; pickletools warns of odd escapes.
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError, struct.error, Warning) as error:
        raise UnfitError(f"is damaged: its pickle makes no sense. {AGAIN}") from error
    return document


class _Machine:
    """The stack of a pickle, its marks (as heights of the stack) and its memo."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0
        self.names = _NAMES | _MORE_NAMES if limits.state else _NAMES
        self.plain = (*_PLAIN, *_MORE_PLAIN) if limits.state else _PLAIN
        self.steps = _STEPS | _MORE_STEPS if limits.state else _STEPS

    def step(self, name: str, argument: Any) -> None:
        """One instruction, by its name in `pickletools`."""
        if name in self.plain:
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
            if argument not in self.names:
                raise UnfitError(f"carries code ({clean(argument).replace(' ', '.')}): refused. {SAFE}")
            self.stack.append(_Mark(argument))
        elif name == "PROTO":
            if argument != 2:
                raise UnfitError(f"holds a pickle of protocol {argument}, not 2: refused. {SAFE}")
        elif name in self.steps:
            self.steps[name](self)
        else:
            raise UnfitError(f"may carry code (pickle instruction {name}): refused. {SAFE}")

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

    def append(self) -> None:
        self._extend(self._take(1))

    def append_marked(self) -> None:
        self._extend(self._take_marked())

    def _extend(self, values: tuple[Any, ...]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError
        self.stack[-1].extend(values)

    def set_item(self) -> None:
        self._fill_dict(self._take(2))

    def set_items(self) -> None:
        self._fill_dict(self._take_marked())

    def _fill_dict(self, pairs: tuple[Any, ...]) -> None:
        keys = pairs[::2]
        if type(self.stack[-1]) is not dict or not all(map(self._is_key, keys)):
            raise TypeError
        self.stack[-1].update(zip(keys, pairs[1::2], strict=True))

    def _is_key(self, key: Any) -> bool:
        return type(key) is str or (self.limits.state and type(key) is int and -(2**31) <= key < 2**31)

    def build(self) -> None:
        """Give the state of an object: a ParameterDict has one, and what torch adds to weights is dropped."""
        (state,) = self._take(1)
        made = self.stack[-1]
        if isinstance(made, Module) and type(state) is dict:
            made.state = state
        elif not self.limits.state or not (_is_metadata(made, state) or _is_flags(made, state)):
            raise UnfitError(f"may carry code (pickle instruction BUILD): refused. {SAFE}")

    def make(self) -> None:
        """An object of a class, without a call (NEWOBJ)."""
        made, given = self._take(2)
        if made in [_Mark(name) for name in _MODULES] and given == ():
            self.stack.append(Module())
        elif self.limits.state and made == _Mark(_FORMER_PARAMETER) and isinstance(given[0], TensorView):
            self.stack.append(given[0])
        else:
            raise TypeError

    def storage(self) -> None:
        """A persistent id: where bare numbers lie."""
        (given,) = self._take(1)
        if self.limits.state and len(given) == 6 and given[5] is None:  # before torch 1.6: whose part it is
            given = given[:5]
        word, mark, key, _, count = given
        if word != "storage" or not isinstance(mark, _Mark) or not isinstance(key, str) or type(count) is not int:
            raise TypeError
        if not 0 < count <= self.limits.most_numbers:
            named = self.limits.kind.partition(" ")[2]
            raise UnfitError(f"holds {count:,} numbers, more than any {named}: refused. {SAFE}")
        self.stack.append(Storage(key, _ANY_STORAGE[mark.name], count))

    def reduce(self) -> None:
        """A call in other pickles; here a known form of what torch writes, or the end."""
        called, given = self._take(2)
        if not isinstance(called, _Mark) or type(given) is not tuple:
            raise TypeError
        if called.name == _TENSOR:
            self.stack.append(_view(self.limits, *given))
        elif called.name == _FORMER_TENSOR:
            storage, offset, shape, stride = given
            self.stack.append(_view(self.limits, storage, offset, shape, stride, None, None))
        elif called.name in (_PARAMETER, _FORMER_PARAMETER) and isinstance(given[0], TensorView):
            self.stack.append(given[0])
        elif called.name == _ORDERED and given == ():
            self.stack.append({})
        elif called.name == _ORDERED and self.limits.state:
            self._ordered(*given)
        elif called.name in _SETS and given == ([],):
            self.stack.append(None)
        else:
            raise TypeError

    def _ordered(self, pairs: Any) -> None:
        """An ordered dict as Python 2 wrote it, from a list of pairs."""
        if type(pairs) is not list:
            raise TypeError
        self.copied += len(pairs)
        if self.copied > self.limits.most_pickle:  # one list, again and again
            raise UnfitError(f"holds more than {self.limits.kind} needs (data.pkl): refused. {SAFE}")
        if any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
            raise TypeError
        self.stack.append({})
        self._fill_dict(tuple(value for pair in pairs for value in pair))


def _is_metadata(made: Any, state: Any) -> bool:
    """Whether this is the state of a ``state_dict``: versions of its layers."""
    return type(made) is dict and type(state) is dict and list(islice(state, 2)) in ([], ["_metadata"])


def _is_flags(made: Any, state: Any) -> bool:
    """Whether this is the state of a parameter of torch 0.x: whether it learns, and no hooks."""
    if not isinstance(made, TensorView) or type(state) is not tuple or len(state) > 4:
        return False
    return all(flag in (True, False, None, {}) for flag in state)


def _view(
    limits: Limits, storage: Any, offset: Any, shape: Any, stride: Any, _: Any, hooks: Any, about: Any = None
) -> TensorView:
    """The arguments of torch's ``_rebuild_tensor_v2``: all numbers of the view must lie in the storage."""
    if not isinstance(storage, Storage) or type(shape) is not tuple or type(stride) is not tuple or hooks or about:
        raise TypeError
    if len(shape) != len(stride) or len(shape) > MOST_AXES:
        raise TypeError
    numbers = (offset, *shape, *stride)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise TypeError
    limits.check_shape(shape)
    stride = tuple(step if size > 1 else 0 for size, step in zip(shape, stride, strict=True))  # unused, so any number
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if last >= storage.count:
        raise UnfitError(f"is damaged: a tensor reaches beyond its numbers. {AGAIN}")
    return TensorView(storage, offset, shape, stride)


_PLAIN = ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
_MORE_PLAIN = ("SHORT_BINSTRING", "BINSTRING")
_FRESH: Mapping[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STEPS: dict[str, Callable[[_Machine], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_of_marked,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "BUILD": _Machine.build,
    "NEWOBJ": _Machine.make,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.reduce,
}
_MORE_STEPS: dict[str, Callable[[_Machine], None]] = {"APPEND": _Machine.append, "APPENDS": _Machine.append_marked}
