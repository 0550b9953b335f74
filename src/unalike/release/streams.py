"""Every stream inside a file, opened within bounds: what is packed, coded or drawn in it, and what is in that, again.

A file is a stream of bytes. If its first bytes are those of a known format, the format is opened: members of archives,
compressed data, numbers of arrays and columns, pixels of pictures, texts of tags. Each of these is a stream again.
Formats are told by their content, never by a file's name.

Bounds, against files that are made to blow up: what comes out of a file is at most `EXPANSION` times its size and
`ALLOWANCE` bytes more; streams lie at most `DEPTH` deep. What lies beyond, or cannot be opened, is a stream with a
``problem``: nothing is passed over in silence.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import io
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from urllib.parse import unquote_to_bytes

import numpy as np
import pyarrow as pa

from unalike.release.decoded import (
    EXPANSION,
    NotThisError,
    Opener,
    Part,
    Purse,
    Stream,
    TooLargeError,
    fits_tensors,
    open_arrow,
    open_dicom,
    open_nifti,
    open_npy,
    open_parquet,
    open_pdf,
    open_picture,
    open_png,
    open_tensors,
    open_tiff,
)

DEPTH = 4
FILE = "bytes"  # where the bytes of the file itself are
_WORDS = "words"


def open_streams(data: bytes) -> Iterator[Stream]:
    """All streams of a file with these bytes, itself first."""
    yield from _open(data, FILE, 0, Purse(len(data)))


def _open(data: bytes, where: str, depth: int, purse: Purse) -> Iterator[Stream]:
    yield Stream(where, data, text=is_text(data))
    known = False
    for name, fits, opener in _FORMATS:
        if not fits(data):
            continue
        try:
            for part in opener(data, purse):
                known = known or name not in (_WORDS, "picture")
                label = part.where if isinstance(part, Stream) else part[0]
                inner = label if where == FILE else f"{where} › {label}"
                if isinstance(part, Stream):
                    yield Stream(inner, part.data, part.values, part.text, part.problem)
                elif depth < DEPTH:
                    yield from _open(part[1], inner, depth + 1, purse)
                else:
                    yield Stream(inner, problem=f"it lies more than {DEPTH} streams deep")
        except NotThisError:
            continue
        except TooLargeError:
            yield Stream(where, problem=f"{name}: more would come out than {EXPANSION} times the file's size")
        except MemoryError:
            yield Stream(where, problem=f"{name}: too large for memory")
        except Exception as error:  # decoders raise anything on damaged files; their words may quote the file
            yield Stream(where, problem=f"{name} cannot be opened ({type(error).__name__})")
    if not known and depth < DEPTH:
        yield from _carve(data, where, depth, purse)


def is_text(data: bytes) -> bool:
    """Whether these bytes are UTF-8 text without NUL."""
    if b"\0" in data[:4096] or b"\0" in data:
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _carve(data: bytes, where: str, depth: int, purse: Purse) -> Iterator[Stream]:
    """Pictures and gzip streams in the midst of what is no known format; each ends where the next PNG begins."""
    magic = b"\x89PNG\r\n\x1a\n"
    for found in re.finditer(re.escape(magic) + rb"|\x1f\x8b\x08[\x00-\x1f]|\xff\xd8\xff[\xdb\xe0-\xef]", data):
        if not found.start():
            continue
        end = data.find(magic, found.end())
        piece = data[found.start() : end if end > 0 else None]
        try:
            purse.spend(len(piece))
        except TooLargeError:
            yield Stream(where, problem=f"more would come out than {EXPANSION} times the file's size")
            return
        inner = [*_open(piece, f"{where} › within", depth + 1, purse)][1:]
        # Four bytes may be there by chance, and then nothing can be opened; the eight of a PNG are not.
        if piece.startswith(magic) or purse.left == 0 or any(not stream.problem for stream in inner):
            yield from inner


# --- compressed and packed ------------------------------------------------------------------------------------------


def _gzip(data: bytes, purse: Purse) -> Iterator[Part]:
    member = 0
    while data[:2] == b"\x1f\x8b":
        out, data, whole = purse.inflate(data, 31)
        yield "gzip" if not member else f"gzip member {member + 1}", out
        if not whole:
            yield Stream("gzip", problem="gzip is cut short")
        member += 1
    if data.strip(b"\0"):
        yield "after the end of gzip", data


def _zlib(data: bytes, purse: Purse) -> Iterator[Part]:
    try:
        out, rest, whole = purse.inflate(data, 15)
    except zlib.error as error:
        raise NotThisError from error
    if not whole and not out:
        raise NotThisError
    yield "zlib", out
    if rest:
        yield "after the end of zlib", rest


def _bz2(data: bytes, purse: Purse) -> Iterator[Part]:
    with bz2.open(io.BytesIO(data)) as stream:
        yield "bzip2", purse.read(stream)  # type: ignore[arg-type]


def _xz(data: bytes, purse: Purse) -> Iterator[Part]:
    with lzma.open(io.BytesIO(data)) as stream:
        yield "xz", purse.read(stream)  # type: ignore[arg-type]


def _arrow_codec(codec: str) -> Opener:
    def opener(data: bytes, purse: Purse) -> Iterator[Part]:
        yield codec, purse.read(pa.CompressedInputStream(pa.BufferReader(data), codec))

    return opener


def _zip(data: bytes, purse: Purse) -> Iterator[Part]:
    try:
        opened = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile as error:
        if data.startswith(b"PK\3\4"):
            raise
        raise NotThisError from error  # four bytes that occur in other files, too
    with opened as archive:
        members = archive.infolist()
        yield Stream("zip names", "\n".join(member.filename for member in members).encode(), text=True)
        for number, member in enumerate(members, start=1):
            label = f"zip member {number}"
            try:
                with archive.open(member) as stream:
                    yield label, purse.read(stream)  # type: ignore[arg-type]
            except (RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, EOFError) as error:
                yield Stream(label, problem=f"it cannot be unpacked ({type(error).__name__})")


def _tar(data: bytes, purse: Purse) -> Iterator[Part]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for number, member in enumerate(archive, start=1):
            yield Stream("tar names", f"{member.name}\n{member.linkname}".encode(), text=True)
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                yield f"tar member {number}", purse.read(content)  # type: ignore[arg-type]


# --- words that stand for bytes ---------------------------------------------------------------------------------------

_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{40,}(?:(?:\\n|\\r|\s){1,8}[A-Za-z0-9+/_-]{16,})*")
_HEX = re.compile(rb"(?:[0-9a-fA-F]{2}){32,}")
_NUMBER = rb"-?\d{1,5}(?:\.\d{1,20})?(?:e-?\d{1,2})?"
_NUMBERS = re.compile(rb"(?<![\w.])" + _NUMBER + rb"(?:[\s,;\[\]]{1,24}+" + _NUMBER + rb")*+")  # each read once
_SMALL = 2**12
_LIST = 32  # bytes: sixteen numbers take as many


def _coded(data: bytes, purse: Purse) -> Iterator[Part]:
    """Base64, hexadecimal digits, percent signs, and numbers written as words."""
    for label, pattern, decode in (("base64", _BASE64, _from_base64), ("hexadecimal", _HEX, _from_hex)):
        small: list[bytes] = []  # thousands of digests are one stream, not thousands
        for found in pattern.finditer(data):
            out = decode(found.group())
            purse.spend(len(out))
            if len(out) < _SMALL and not any(fits(out) for name, fits, _ in _FORMATS if name != _WORDS):
                small.append(out)
            else:
                yield label, out
        if small:
            yield Stream(label, (b"\0" * 16).join(small))
    if re.search(rb"%[0-9A-Fa-f]{2}", data) and is_text(data):
        out = unquote_to_bytes(data)
        purse.spend(len(out))
        yield "percent signs", out
    lists = b" ".join(found.group() for found in _NUMBERS.finditer(data) if len(found.group()) >= _LIST)
    if lists:
        purse.spend(8 * len(lists))
        words = re.sub(rb"[\s,;\[\]]+", b" ", lists).split()
        yield Stream("numbers in text", values=np.array(words, dtype="S32").astype(np.float64))


def _from_base64(run: bytes) -> bytes:
    run = re.sub(rb"\\n|\\r|\s", b"", run).replace(b"-", b"+").replace(b"_", b"/")
    run = run[: len(run) - (len(run) % 4 == 1)]
    try:
        return base64.b64decode(run + b"=" * (-len(run) % 4))
    except binascii.Error:
        return b""


def _from_hex(run: bytes) -> bytes:
    return bytes.fromhex(run.decode())


def _unknown(_data: bytes, _purse: Purse) -> Iterator[Part]:
    yield Stream("container", problem="its format is not opened here (HDF5, 7z, RAR or blosc)")


def _zarr_header(data: bytes, _purse: Purse) -> Iterator[Part]:
    """Of an array in an archive the chunks are opened as what they are; those of other codecs cannot be told."""
    try:
        described = json.loads(data)
    except ValueError as error:
        raise NotThisError from error
    codecs = {str(codec.get("name")) for codec in described.get("codecs", [])}
    if old := described.get("compressor"):
        codecs.add(str(old.get("id")))
    if codecs - {"bytes", "gzip", "zstd", "crc32c", "zlib", "bz2", "lzma"}:
        yield Stream("zarr array", problem="its chunks are coded in a way that is not opened here")


def _starts(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda data: data.startswith(magics)


# Name, how its first bytes are told, what opens it. All that fit are opened.
_FORMATS: tuple[tuple[str, Callable[[bytes], bool], Opener], ...] = (
    ("PNG", _starts(b"\x89PNG\r\n\x1a\n"), open_png),
    ("picture", _starts(b"\xff\xd8\xff", b"GIF87a", b"GIF89a"), open_picture),
    ("picture", lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", open_picture),
    ("picture", lambda data: data[:2] == b"BM" and int.from_bytes(data[2:6], "little") == len(data), open_picture),
    ("TIFF", _starts(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), open_tiff),
    ("NIfTI", lambda data: data[344:348] == b"n+1\0" or data[4:8] == b"n+2\0", open_nifti),
    ("DICOM", lambda data: data[128:132] == b"DICM", open_dicom),
    ("array", _starts(b"\x93NUMPY"), open_npy),
    ("safetensors", fits_tensors, open_tensors),
    ("parquet", _starts(b"PAR1"), open_parquet),
    ("Arrow", _starts(b"ARROW1"), open_arrow),
    ("PDF", _starts(b"%PDF"), open_pdf),
    ("gzip", _starts(b"\x1f\x8b\x08"), _gzip),
    ("zlib", _starts(b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"), _zlib),
    ("bzip2", _starts(*(b"BZh%d1AY&SY" % level for level in range(1, 10))), _bz2),
    ("xz", _starts(b"\xfd7zXZ\0"), _xz),
    ("zstd", _starts(b"\x28\xb5\x2f\xfd"), _arrow_codec("zstd")),
    ("lz4", _starts(b"\x04\x22\x4d\x18"), _arrow_codec("lz4")),
    ("zip", lambda data: b"PK\5\6" in data[-65558:] or data.startswith(b"PK\3\4"), _zip),
    ("tar", lambda data: data[257:262] == b"ustar", _tar),
    ("container", _starts(b"\x89HDF\r\n\x1a\n", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"), _unknown),
    ("zarr", lambda data: b'"zarr_format"' in data[:65536] and data.lstrip()[:1] == b"{", _zarr_header),
    (_WORDS, lambda _data: True, _coded),
)
