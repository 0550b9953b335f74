"""Every kind of picture comes out as it should, or is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from unalike.errors import PictureError
from unalike.images.pictures import change_depth, read_picture

GRAY = np.arange(30, dtype=np.uint8).reshape(5, 6) * 8
GRAY16 = np.arange(30, dtype=np.uint16).reshape(5, 6) * 2000
COLOR = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=-1)


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff"])
def test_gray_and_colour_of_8_bits(tmp_path: Path, suffix: str) -> None:
    for array, expected in ((GRAY, GRAY[None]), (COLOR, COLOR.transpose(2, 0, 1))):
        path = tmp_path / f"picture.{suffix}"
        Image.fromarray(array).save(path)
        np.testing.assert_array_equal(read_picture(path), expected)
        assert read_picture(path).dtype == np.uint8


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_gray_of_16_bits_keeps_every_level(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    Image.fromarray(GRAY16).save(path)
    np.testing.assert_array_equal(read_picture(path), GRAY16[None])
    assert read_picture(path).dtype == np.uint16


def test_colour_tiff_of_16_bits(tmp_path: Path) -> None:
    color = np.stack([GRAY16] * 3, axis=-1)
    tifffile.imwrite(tmp_path / "c.tif", color, photometric="rgb")
    np.testing.assert_array_equal(read_picture(tmp_path / "c.tif"), color.transpose(2, 0, 1))


def test_white_is_zero_tiff_is_inverted(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "m.tif", GRAY, photometric="miniswhite")
    np.testing.assert_array_equal(read_picture(tmp_path / "m.tif"), 255 - GRAY[None])


def test_jpeg_palette_cmyk_bilevel_and_opaque_alpha(tmp_path: Path) -> None:
    Image.fromarray(GRAY).save(tmp_path / "g.jpg", quality=95)
    assert abs(read_picture(tmp_path / "g.jpg").astype(int) - GRAY).max() < 12
    Image.fromarray(COLOR).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    assert read_picture(tmp_path / "p.png").shape == (3, 5, 6)
    Image.fromarray(COLOR).convert("CMYK").save(tmp_path / "k.jpg")
    assert read_picture(tmp_path / "k.jpg").shape == (3, 5, 6)
    Image.fromarray(GRAY > 100).save(tmp_path / "b.png")
    assert set(np.unique(read_picture(tmp_path / "b.png"))) == {0, 255}
    Image.fromarray(np.dstack([COLOR, np.full((5, 6), 255, np.uint8)])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), COLOR.transpose(2, 0, 1))


def test_orientation_is_applied(tmp_path: Path) -> None:
    picture = Image.fromarray(GRAY)
    exif = picture.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    picture.save(tmp_path / "o.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "o.png")[0], np.rot90(GRAY, -1))


def test_gray_from_colour_and_back(tmp_path: Path) -> None:
    Image.fromarray(COLOR).save(tmp_path / "c.png")
    gray = read_picture(tmp_path / "c.png", color="gray")
    luma = np.rint(COLOR.astype(float) @ [0.299, 0.587, 0.114])
    np.testing.assert_array_equal(gray[0], luma)
    Image.fromarray(GRAY).save(tmp_path / "g.png")
    assert read_picture(tmp_path / "g.png", color="rgb").shape == (3, 5, 6)


def write_16_bit_colour_png(path: Path) -> None:
    """Pillow cannot write one: header, one row of one pixel, trailer."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    body = zlib.compress(b"\0" + b"\1\2" * 3)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def write_bad(kind: str, path: Path) -> None:
    if kind == "not a picture":
        path.write_bytes(b"hello")
    elif kind == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(path, "PNG")
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "several frames":
        Image.fromarray(GRAY).save(path, "PNG", save_all=True, append_images=[Image.fromarray(GRAY[::-1])])
    elif kind == "16-bit colour":
        write_16_bit_colour_png(path)
    elif kind == "transparent":
        Image.fromarray(np.dstack([COLOR, GRAY])).save(path, "PNG")
    else:
        Image.new("1", (12_000, 12_000)).save(path, "PNG")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("not a picture", "is not a picture"),
        ("truncated", "cannot be read"),
        ("several frames", "several frames"),
        ("16-bit colour", "16-bit colour PNG"),
        ("transparent", "transparent"),
        ("huge", "announces 12000×12000"),
    ],
)
def test_refused_with_a_reason_and_the_name(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "x.png"
    write_bad(kind, path)
    with pytest.raises(PictureError, match=message) as caught:
        read_picture(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_depths() -> None:
    np.testing.assert_array_equal(change_depth(change_depth(GRAY, 16), 8), GRAY)
    assert change_depth(np.array([65535], np.uint16), 8)[0] == 255
