"""Weights are fetched once, over https, with the digest in their name, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from unalike.errors import FolderError, InputError, SettingsError
from unalike.vision import fetch
from unalike.vision.fetch import cache_folder, digest_file, fetch_weights

DATA = bytes(range(256)) * 5000  # more than one piece
DIGITS = hashlib.sha256(DATA).hexdigest()[:8]
URL = f"https://example.org/models/net-{DIGITS}.pth"


class Response(io.BytesIO):
    """What a server answers; breaks off after ``until`` bytes."""

    def __init__(self, data: bytes, url: str, until: int | None) -> None:
        super().__init__(data)
        self.url, self.until = url, until

    def geturl(self) -> str:
        return self.url

    def read(self, size: int | None = -1) -> bytes:
        if self.until is not None and self.tell() >= self.until:
            raise http.client.IncompleteRead(b"")
        return super().read(size)


class Server:
    def __init__(self) -> None:
        self.data, self.url, self.until, self.asked = DATA, URL, None, 0
        self.error: Exception | None = None

    @contextlib.contextmanager
    def open(self, url: str) -> Iterator[Response]:
        assert url == URL
        self.asked += 1
        if self.error is not None:
            raise self.error
        yield Response(self.data, self.url, self.until)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(fetch, "open_url", server.open)
    return server


def test_a_file_is_fetched_once_and_then_verified(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "weights"
    path = fetch_weights(URL, folder=folder)
    assert path == folder / f"net-{DIGITS}.pth"
    assert path.read_bytes() == DATA
    assert list(folder.iterdir()) == [path]
    assert fetch_weights(URL, folder=folder) == path
    assert server.asked == 1
    path.write_bytes(DATA[:-1])
    assert fetch_weights(URL, folder=folder).read_bytes() == DATA
    assert server.asked == 2


def test_another_digest_is_deleted_and_refused(server: Server, tmp_path: Path) -> None:
    server.data = DATA + b"x"
    other = hashlib.sha256(server.data).hexdigest()[:8]
    with pytest.raises(InputError, match=rf"net-{DIGITS}\.pth has the digest {other}, not {DIGITS}: deleted\."):
        fetch_weights(URL, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_too_large_is_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MOST_BYTES", len(DATA))
    fetch_weights(URL, folder=tmp_path / "just")
    monkeypatch.setattr(fetch, "MOST_BYTES", len(DATA) - 1)
    with pytest.raises(InputError, match="has more than 1,279,999 bytes: refused"):
        fetch_weights(URL, folder=tmp_path / "more")
    assert not list((tmp_path / "more").iterdir())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (urllib.error.URLError(OSError(-3, "Temporary failure in name resolution")), "name resolution"),
        (urllib.error.HTTPError(URL, 404, "Not Found", http.client.HTTPMessage(), None), "Not Found"),
        (TimeoutError("timed\nout"), "timed out"),
        (http.client.BadStatusLine("x"), "x"),
    ],
)
def test_without_a_network_the_address_and_the_way_out_are_told(
    error: Exception, said: str, server: Server, tmp_path: Path
) -> None:
    server.error = error
    with pytest.raises(InputError) as caught:
        fetch_weights(URL, folder=tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{URL} cannot be fetched (")
    assert said in message
    assert message.endswith("--weights FILE.")
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def test_what_breaks_off_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.until = 2**20
    with pytest.raises(InputError, match="cannot be fetched"):
        fetch_weights(URL, folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"http://example.org/net-{DIGITS}.pth", "does not begin with https://"),
        (f"file:///etc/net-{DIGITS}.pth", "does not begin with https://"),
        (f"https:///net-{DIGITS}.pth", "does not begin with https://"),
        ("https://example.org/net.pth", "does not end with the digest"),
        ("https://example.org/net-0123abc.pth", "does not end with the digest"),
        (f"https://example.org/..%2Fnet-{DIGITS}.pth", "does not end with the digest"),
        ("https://example.org/", "does not end with the digest"),
    ],
)
def test_addresses_that_are_not_asked(url: str, said: str, server: Server, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=said):
        fetch_weights(url, folder=tmp_path)
    assert server.asked == 0


def test_an_answer_from_an_address_without_https_is_refused(server: Server, tmp_path: Path) -> None:
    server.url = "http://example.org/net"
    with pytest.raises(InputError, match="leads to an address without https"):
        fetch_weights(URL, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match=r"file/x cannot be written \(Not a directory\)"):
        fetch_weights(URL, folder=tmp_path / "file" / "x")


def test_the_cache_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, server: Server, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert fetch_weights(URL) == tmp_path / "cache" / "unalike" / "weights" / f"net-{DIGITS}.pth"
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert cache_folder() == tmp_path / ".cache" / "unalike" / "weights"


def test_the_digest_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert digest_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
