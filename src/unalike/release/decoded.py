"""What files unfold to (`Stream`), within bounds (`Purse`), and the openers of formats that hold numbers.

An opener gives the parts of a file, once its first bytes have told the format: streams that hold no others, or bytes
with the way to them, which may be any format again. It raises whatever its decoder raises.
"""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unalike.images.quiet import QUIET

EXPANSION = 64  # a PNG of a flat picture packs better than this, hence the allowance
ALLOWANCE = 64 * 2**20

Array = NDArray[Any]


@dataclass(frozen=True)
class Stream:
    """Something that can be searched, and the way to it (``where``: "bytes", "gzip › zip member 3" …).

    Either ``data`` (``text`` says that all of it is words), or ``values``: an array of numbers, of any shape.
    With a ``problem`` it could not be opened, or not as a whole.
    """

    where: str
    data: bytes = b""
    values: Array | None = None
    text: bool = False
    problem: str = ""

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data) if self.values is None else int(self.values.nbytes)


class TooLargeError(Exception):
    """More would come out of this file than the bounds allow."""


class NotThisError(Exception):
    """The first bytes looked like this format by chance."""


class Purse:
    """Bytes that may still come out of a file."""

    def __init__(self, size: int) -> None:
        """``size``: bytes of the file."""
        self.left = bound_of(size)

    def spend(self, size: int) -> None:
        """Pay for so many bytes; what is too dear empties the purse, so that a thousand bombs cost no more than one."""
        if size > self.left:
            self.left = 0
            raise TooLargeError
        self.left -= size

    def read(self, stream: BinaryIO) -> bytes:
        """All of a stream that unpacks as it is read."""
        data = stream.read(self.left + 1)
        self.spend(len(data))
        return data

    def inflate(self, data: bytes, wbits: int) -> tuple[bytes, bytes, bool]:
        """What zlib's format (``wbits`` as of zlib) holds, what follows it, and whether it was whole."""
        engine = zlib.decompressobj(wbits)
        out = engine.decompress(data, self.left + 1)
        self.spend(len(out))
        return out, engine.unused_data, engine.eof


Part = Stream | tuple[str, bytes]  # a leaf, or bytes that may hold more
Opener = Callable[[bytes, Purse], Iterator[Part]]


def bound_of(size: int) -> int:
    """Bytes that may come out of a file, or a folder of one array, that takes ``size`` bytes on disk."""
    return EXPANSION * size + ALLOWANCE


# --- pictures and volumes ---------------------------------------------------------------------------------------------


def open_png(data: bytes, purse: Purse) -> Iterator[Part]:
    """Texts, the rows as they are packed, what follows the end, and the picture. All values of a PNG are big-endian."""
    position, packed, deep = 8, [], False
    while position + 8 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        body = data[position + 8 : position + 8 + length]
        position += 12 + length
        if kind == b"IHDR":
            deep = body[8:9] == b"\x10" and body[9:10] in (b"\2", b"\4", b"\6")
        elif kind == b"IDAT":
            packed.append(body)
        elif kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"iCCP"):
            yield Stream(f"{kind.decode()} of a PNG", body, text=True)
            start = body.find(b"\x78", body.find(b"\0"))
            if kind != b"tEXt" and start >= 0:
                yield f"{kind.decode()} of a PNG", body[start:]
        elif kind == b"IEND":
            break
    if data[position:]:
        yield "after the end of a PNG", data[position:]
    out, rest, _ = purse.inflate(b"".join(packed), 15)
    yield Stream("rows of a PNG", out)  # with what no decoder shows: rows beyond the picture
    if rest:
        yield "after the rows of a PNG", rest
    yield from open_picture(data, purse)
    if deep:
        yield Stream("decoded picture", problem="16 bits of a coloured PNG are read as 8")


def open_picture(data: bytes, purse: Purse) -> Iterator[Part]:
    """All frames, (H, W) or (H, W, bands); of palettes the numbers and the colours."""
    from PIL import Image, ImageSequence

    planes: list[Array] = []
    with QUIET, Image.open(io.BytesIO(data)) as picture:
        for frame in ImageSequence.Iterator(picture):
            purse.spend(frame.width * frame.height * 4)
            if frame.mode in ("P", "CMYK", "YCbCr", "1", "PA"):
                planes.append(np.asarray(frame.convert("L" if frame.mode == "1" else "RGB")))
            if frame.mode != "1":
                planes.append(np.asarray(frame))
    yield from (Stream("decoded picture", values=plane) for plane in planes)


def open_tiff(data: bytes, purse: Purse) -> Iterator[Part]:
    """All pages, in their own depth."""
    import tifffile

    pages: list[Array] = []
    try:
        with QUIET, tifffile.TiffFile(io.BytesIO(data)) as file:
            for page in file.pages:
                purse.spend(int(page.size) * 8)
                pages.append(page.asarray())
    except ValueError:  # a compression that tifffile leaves to another library, and Pillow does not
        yield from open_picture(data, purse)
        return
    yield from (Stream("decoded picture", values=page) for page in pages)


def open_nifti(data: bytes, purse: Purse) -> Iterator[Part]:
    """Voxels as they are stored and, where they are scaled, as they are meant."""
    import nibabel

    kind = nibabel.Nifti1Image if data[344:348] == b"n+1\0" else nibabel.Nifti2Image
    with QUIET:
        image = kind.from_bytes(data)
        purse.spend(int(np.prod(image.shape, dtype=np.float64)) * image.get_data_dtype().itemsize)
        stored = np.asarray(image.dataobj.get_unscaled())
    yield Stream("voxels", values=stored)
    if (image.dataobj.slope, image.dataobj.inter) != (1, 0):
        purse.spend(8 * stored.size)
        yield Stream("scaled voxels", values=np.asarray(image.dataobj))


def open_dicom(data: bytes, purse: Purse) -> Iterator[Part]:
    """All tags (of nested items, too), values that are bytes, and the pixels."""
    import pydicom

    begin = 144 + int.from_bytes(data[140:144], "little")  # the first element says how long the file's own header is
    if b"1.2.840.10008.1.2.1.99\0" in data[128:begin]:  # deflated: pydicom would unpack it without bounds
        unpacked = purse.inflate(data[begin:], -15)[0]
        purse.spend(len(unpacked))
        yield "deflated data set", unpacked
    with QUIET:
        dataset = pydicom.dcmread(io.BytesIO(data))
        words, inner = [], []
        for element in dataset.iterall():
            if isinstance(element.value, bytes):
                if element.keyword != "PixelData":
                    inner.append(element.value)
            elif element.VR != "SQ":
                words.append(str(element.value))
    yield Stream("DICOM tags", "\n".join(words).encode("utf-8", "surrogateescape"), text=True)
    for value in inner:
        if len(value) > 64:
            purse.spend(len(value))
            yield "DICOM value", value
    if "PixelData" in dataset:
        wanted = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames")
        purse.spend(int(np.prod([float(dataset.get(name) or 1) for name in wanted])) // 8)
        with QUIET:
            values = dataset.pixel_array
        yield Stream("DICOM pixels", values=values)


# --- arrays and tables ------------------------------------------------------------------------------------------------


def open_npy(data: bytes, purse: Purse) -> Iterator[Part]:
    """The numbers of an array; one of Python objects is never read."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, transposed, dtype = read(stream)
    if dtype.hasobject or dtype.names:
        yield Stream("array", problem="it is an array of objects")
        return
    count = int(np.prod(shape, dtype=np.float64))
    purse.spend(count * dtype.itemsize)
    flat = np.frombuffer(data, dtype, count, stream.tell())
    yield Stream("array", values=flat.reshape(shape, order="F" if transposed else "C"))


_TENSORS = {
    "U8": "u1",
    "I8": "i1",
    "BOOL": "?",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "I64": "<i8",
} | {
    "U64": "<u8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "BF16": "<u2",
}


def fits_tensors(data: bytes) -> bool:
    """Whether these could be the first bytes of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return data[8:9] == b"{" and 2 <= length <= len(data) - 8


def open_tensors(data: bytes, purse: Purse) -> Iterator[Part]:
    """All tensors, read from the format's JSON header without its library."""
    begin = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:begin])
    except ValueError as error:
        raise NotThisError from error
    yield "safetensors header", data[8:begin]
    for entry in (entry for name, entry in header.items() if name != "__metadata__"):
        first, last = entry["data_offsets"]
        if entry["dtype"] not in _TENSORS:
            yield Stream("tensor", problem=f"numbers of kind {str(entry['dtype'])[:8]} are unknown")
            continue
        purse.spend(2 * (last - first))
        flat = np.frombuffer(data[begin + first : begin + last], _TENSORS[entry["dtype"]])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            flat = (flat.astype("<u4") << 16).view("<f4")
        yield Stream("tensor", values=flat.reshape(entry["shape"]))


def open_parquet(data: bytes, purse: Purse) -> Iterator[Part]:
    """All columns, one group of rows at a time, and the file's metadata."""
    file = pq.ParquetFile(pa.BufferReader(data))
    for key, value in (file.schema_arrow.metadata or {}).items():
        yield "table metadata", key + b"\n" + value
    for group in range(file.num_row_groups):
        described = file.metadata.row_group(group)
        purse.spend(
            described.num_rows + sum(described.column(i).total_uncompressed_size for i in range(described.num_columns))
        )
        yield from _table(file.read_row_group(group), purse)


def open_arrow(data: bytes, purse: Purse) -> Iterator[Part]:
    """All columns, one batch of rows at a time."""
    file = pa.ipc.open_file(pa.BufferReader(data))
    for number in range(file.num_record_batches):
        yield from _table(pa.Table.from_batches([file.get_batch(number)]), purse)


def _table(table: pa.Table, purse: Purse) -> Iterator[Part]:
    purse.spend(int(table.nbytes))
    for column in table.columns:
        yield from _column(column.combine_chunks(), purse)


def _column(values: Any, purse: Purse) -> Iterator[Part]:
    """One column of a table: words, bytes, numbers, and what is nested in them."""
    kind = values.type
    if isinstance(values, pa.ChunkedArray):
        for chunk in values.chunks:
            yield from _column(chunk, purse)
    elif isinstance(values, pa.ExtensionArray):
        yield from _column(values.storage, purse)
    elif pa.types.is_dictionary(kind):
        yield from _column(values.dictionary, purse)
    elif pa.types.is_struct(kind):
        for inner in values.flatten():
            yield from _column(inner, purse)
    elif pa.types.is_map(kind):
        yield from _column(values.keys, purse)
        yield from _column(values.items, purse)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = values.flatten()
        lengths = np.unique(values.value_lengths().drop_null().to_numpy(zero_copy_only=False))
        numeric = pa.types.is_integer(inner.type) or pa.types.is_floating(inner.type)
        if numeric and len(lengths) == 1 and lengths[0]:
            flat = inner.to_numpy(zero_copy_only=False)
            yield Stream("table column", values=flat.reshape(-1, int(lengths[0])))
        else:
            yield from _column(inner, purse)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield "table column", "\n".join(value for value in values.to_pylist() if value).encode()
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        for value in values.to_pylist():
            if value:
                yield "table column", value
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        yield Stream("table column", values=values.drop_null().to_numpy(zero_copy_only=False))


def open_pdf(data: bytes, purse: Purse) -> Iterator[Part]:
    """Streams that are packed, and JPEG pictures."""
    for found in re.finditer(rb"stream\r?\n(.*?)endstream", data, re.DOTALL):
        if found.group(1)[:1] == b"\x78" or found.group(1)[:2] == b"\xff\xd8":
            purse.spend(len(found.group(1)))
            yield "PDF stream", found.group(1)
