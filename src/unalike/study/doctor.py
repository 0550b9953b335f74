"""What works on this machine, what is missing, and how to get it. Nothing is fetched, and nobody is told.

It is asked when something does not work, so nothing but Python and this package is taken for granted: each library is
imported on its own, and whatever it raises becomes a line.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import locale
import os
import platform
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unalike import __version__
from unalike.vision.fetch import cache_folder, digest_file

State = Literal["ok", "missing", "slow", "broken"]
GIB = 2**30
LITTLE_ROOM = 5 * GIB  # bytes where results are written: a cohort and its runs
LITTLE_SCRATCH = GIB  # bytes in the folder for temporary files
LITTLE_MEMORY = 4 * GIB  # bytes
AGAIN = "pip install --upgrade unalike"

# A distribution's module, where it has another name.
_MODULES = {"pillow": "PIL", "scikit-image": "skimage", "scikit-learn": "sklearn", "simpleitk": "SimpleITK"}
# What is not needed: distribution, what it is for, how to get it.
_OPTIONAL = (
    ("dask", "spreading work over a cluster (--scheduler)", "pip install 'unalike[cluster]'"),
    ("distributed", "spreading work over a cluster (--scheduler)", "pip install 'unalike[cluster]'"),
    ("tensorboard", "train --tracker tensorboard", "pip install tensorboard"),
    ("mlflow", "train --tracker mlflow", "pip install mlflow"),
    ("wandb", "train --tracker wandb", "pip install wandb"),
)
_LIBJPEG = "pip install pylibjpeg pylibjpeg-libjpeg (GPL), or pip install python-gdcm"
_OPENJPEG = "pip install pylibjpeg pylibjpeg-openjpeg"
# Compressed DICOM pixels: transfer syntax (PS3.5 A.4), what it is called, what adds a decoder.
_SYNTAXES = (
    ("1.2.840.10008.1.2.5", "RLE", AGAIN),
    ("1.2.840.10008.1.2.4.50", "JPEG baseline, 8 bits", AGAIN),
    ("1.2.840.10008.1.2.4.51", "JPEG extended, 12 bits", _LIBJPEG),
    ("1.2.840.10008.1.2.4.70", "JPEG lossless", _LIBJPEG),
    ("1.2.840.10008.1.2.4.80", "JPEG-LS", "pip install pyjpegls, or pip install python-gdcm"),
    ("1.2.840.10008.1.2.4.90", "JPEG 2000", AGAIN),
    ("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000", _OPENJPEG),
)
_DIGITS = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")  # of the SHA-256, in the name of a file of weights


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    ``what`` it is, what was ``found``, what that ``means``, and how to ``get`` what is missing (empty where it is ok).
    ``needed``: without it unalike does not work.
    """

    what: str
    state: State
    found: str
    means: str
    get: str = ""
    needed: bool = False

    @property
    def stops(self) -> bool:
        """Whether unalike does not work because of this."""
        return self.needed and self.state in ("missing", "broken")


def examine_machine() -> tuple[Check, ...]:
    """Look at everything once: `Check` by check, the machine first, then libraries, files, the terminal.

    Takes seconds, as it imports all libraries. A look that fails is itself a line, `broken`; nothing is raised.
    """
    looks: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("Python", _python),
        ("processor", _processor),
        ("memory", _memory),
        ("disk", _disk),
        ("libraries", _libraries),
        ("torch", _torch),
        ("exact products", _products),
        ("torchvision", _torchvision),
        ("optional libraries", _optional),
        ("DICOM decoders", _decoders),
        ("weights", _weights),
        ("terminal", _terminal),
    )
    found: list[Check] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries talk while they are imported
        for what, look in looks:
            try:
                found.extend(look())
            except Exception as error:  # the doctor is asked because something is broken
                found.append(Check(what, "broken", _said(error), "this could not be looked at", AGAIN))
    return tuple(found)


def _python() -> Iterator[Check]:
    version = platform.python_version()
    fits = sys.version_info >= (3, 11)
    yield Check(
        "Python",
        "ok" if fits else "broken",
        f"{version} on {platform.platform()}",
        "what unalike runs in" if fits else "unalike needs 3.11 or newer",
        "" if fits else "install Python 3.11 or newer",
        needed=True,
    )
    yield Check("unalike", "ok", f"{__version__} in {Path(__file__).parents[1]}", "this package")


def _processor() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "")
    limited = f", OMP_NUM_THREADS={threads}" if threads else ""
    yield Check("processor", "ok", f"{cores} cores usable{limited}", "how much is worked on at once")


def _memory() -> Iterator[Check]:
    total, free = _memory_bytes()
    if not total:
        yield Check("memory", "ok", "unknown on this system", "how large a cohort may be")
        return
    little = total < LITTLE_MEMORY
    yield Check(
        "memory",
        "slow" if little else "ok",
        f"{_size(total)}, {_size(free)} free",
        "large networks and cohorts will not fit" if little else "how large a cohort and a network may be",
        "train with a smaller --batch-size, or --accumulate" if little else "",
    )


def _memory_bytes() -> tuple[int, int]:
    """Memory that this process may use, and what is free of it (bytes); zeros where that cannot be told."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    total, free = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    try:  # a container's limit
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return total, free
    if limit.isdigit() and int(limit) < total:
        return int(limit), min(free, max(int(limit) - used, 0))
    return total, free


def _disk() -> Iterator[Check]:
    scratch = Path(tempfile.gettempdir())
    yield _room("disk, here", Path.cwd(), LITTLE_ROOM, "where results are written, unless --out says otherwise", False)
    yield _room("disk, temporary files", scratch, LITTLE_SCRATCH, "TMPDIR: where files are kept for a moment", True)
    yield _room("disk, cache", cache_folder(), LITTLE_SCRATCH, "where fetched weights stay", False)


def _room(what: str, place: Path, least: int, means: str, needed: bool) -> Check:
    """Whether a file can be written at ``place`` (or where it would be made), and how much room there is."""
    there = next(folder for folder in (place, *place.parents) if folder.is_dir())
    names = {"disk, temporary files": "set TMPDIR to another folder", "disk, cache": "set XDG_CACHE_HOME"}
    elsewhere = names.get(what, "work in another folder, or give --out")
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"unalike")
    except OSError as error:
        told = f"{place} cannot be written ({error.strerror or error})"
        return Check(what, "broken", told, means, elsewhere, needed)
    free = shutil.disk_usage(there).free
    if free < least:
        return Check(
            what, "slow", f"{place}: {_size(free)} free", f"{means}; little room", f"make room, or {elsewhere}"
        )
    return Check(what, "ok", f"{place}: {_size(free)} free", means, needed=needed)


def _libraries() -> Iterator[Check]:
    """Each dependency: whether it is there, of a version we ask for, and can be imported."""
    ranges = _ranges()
    if not ranges:
        told = "unalike is not installed as a package"
        yield Check("libraries", "missing", told, "versions of libraries are not checked", "pip install unalike")
    for name, wanted in ranges.items():
        if name not in ("torch", "torchvision"):  # these have lines of their own
            yield _library(name, wanted)


def _library(name: str, wanted: Any) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "missing", f"not installed; {wanted} wanted", "unalike needs it", AGAIN, needed=True)
    try:
        importlib.import_module(_MODULES.get(name.lower(), name.replace("-", "_")))
    except Exception as error:
        told = f"{version} cannot be imported: {_said(error)}"
        again = f"pip install --force-reinstall '{name}{wanted}'"
        return Check(name, "broken", told, "unalike needs it", again, needed=True)
    if not wanted.contains(version, prereleases=True):
        told = f"{version}, outside {wanted}"
        return Check(name, "broken", told, "never tried with unalike", f"pip install '{name}{wanted}'", needed=True)
    return Check(name, "ok", version, "unalike needs it", needed=True)


def _ranges() -> dict[str, Any]:
    """Versions that unalike asks for, of what it needs on this machine (``packaging``'s specifiers, by name)."""
    from packaging.requirements import Requirement

    try:
        given = importlib.metadata.requires("unalike") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    asked = [Requirement(line) for line in given]
    return {each.name: each.specifier for each in asked if each.marker is None or each.marker.evaluate({"extra": ""})}


def _torch() -> Iterator[Check]:
    from packaging.specifiers import SpecifierSet

    check = _library("torch", _ranges().get("torch", SpecifierSet()))
    yield check
    if check.state in ("missing", "broken"):
        return
    import torch

    from unalike.devices import has_bfloat16

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(cards):
        about = torch.cuda.get_device_properties(number)
        yield Check(f"cuda:{number}", "ok", f"{about.name}, {_size(about.total_memory)}", "networks are trained on it")
    if not cards:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        yield Check(
            "graphics card",
            "slow",
            f"none; {built}",
            "networks are trained on the processor: fine for small images, days for large ones",
            "an NVIDIA card, its driver, and torch for it (pytorch.org)",
        )
    for device in ("cuda", "cpu") if cards else ("cpu",):
        there = has_bfloat16(torch.device(device))
        yield Check(
            f"bfloat16 on {device}",
            "ok" if there else "slow",
            "in hardware" if there else "not in hardware",
            "networks compute in bfloat16" if there else "networks compute in float32, which takes longer",
            "" if there else "a newer processor; results do not depend on it",
        )


def _products() -> Iterator[Check]:
    """Which exact product the search for copies takes; the proof of `similarity.products` is done here, now."""
    import torch

    from unalike.similarity.products import int8_product, pick_product

    for device in ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",):
        fast = pick_product(torch.device(device)) is int8_product
        yield Check(
            f"exact products on {device}",
            "ok" if fast else "slow",
            "int8, proven exact just now" if fast else "float32 in short blocks, exact as well",
            "the search for copies" if fast else "the search for copies is exact, but takes several times as long",
            "" if fast else "torch 2.6 or newer on a processor with int8 products (AVX-512 VNNI, AMX)",
        )


def _torchvision() -> Iterator[Check]:
    from packaging.specifiers import SpecifierSet

    check = _library("torchvision", _ranges().get("torchvision", SpecifierSet()))
    if check.state != "ok":
        yield check
        return
    import torch

    compiled = torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "CPU")
    built = "with its compiled operators" if compiled else "without its compiled operators (for another torch)"
    yield Check("torchvision", "ok", f"{check.found}, {built}", "unalike needs its networks, no operators", needed=True)


def _optional() -> Iterator[Check]:
    needed = _ranges()
    for name, purpose, get in _OPTIONAL:
        if name in needed:
            continue
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if importlib.util.find_spec(name) is None:
                yield Check(name, "missing", "not installed", f"only for {purpose}", get)
                continue
            version = "of unknown version"
        try:
            importlib.import_module(name)
        except Exception as error:
            yield Check(name, "broken", f"{version} cannot be imported: {_said(error)}", f"only for {purpose}", get)
            continue
        yield Check(name, "ok", version, f"for {purpose}")


def _decoders() -> Iterator[Check]:
    """Which compressed DICOM pixels pydicom can decode with what is installed."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    for syntax, name, get in _SYNTAXES:
        plugins = get_decoder(UID(syntax)).available_plugins
        if name.startswith("JPEG extended"):  # Pillow decodes 8 bits of it
            plugins = tuple(each for each in plugins if each != "pillow")
        yield Check(
            f"DICOM, {name}",
            "ok" if plugins else "missing",
            ", ".join(plugins) or "no decoder",
            "read by prepare" if plugins else "prepare skips or refuses such files",
            "" if plugins else get,
        )


def _weights() -> Iterator[Check]:
    """Which files of weights lie where fetched ones stay, each compared with the digest in its name."""
    folder = cache_folder()
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    for path in files:
        named = _DIGITS.search(path.name)
        if named is None:
            continue  # not fetched by us, or half
        whole = digest_file(path).startswith(named[1])
        yield Check(
            f"weights, {path.name}",
            "ok" if whole else "broken",
            f"{_size(path.stat().st_size)} in {folder}" + ("" if whole else ", of another digest than its name says"),
            "a network of others, for fidelity",
            "" if whole else f"remove {path}; --fetch-weights gets it again",
        )
    if not any("inception" in path.name for path in files):
        yield Check(
            "weights, Inception",
            "missing",
            f"not in {folder}",
            "only for fidelity --features inception; the cohort's own features need none",
            "unalike fidelity … --features inception --fetch-weights (asks GitHub), or --weights FILE",
        )


def _terminal() -> Iterator[Check]:
    terminal = sys.stderr.isatty()
    coloured = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    shown = "a bar" if terminal else "a line every ten seconds"
    if os.environ.get("UNALIKE_PROGRESS") == "off":
        shown = "off (UNALIKE_PROGRESS)"
    found = f"{'a terminal' if terminal else 'no terminal'}, {'colours' if coloured else 'no colours'}"
    yield Check("terminal", "ok", found, f"progress is shown as: {shown}")
    encodings = {
        "files": locale.getpreferredencoding(False),
        "names of files": sys.getfilesystemencoding(),
        "output": getattr(sys.stdout, "encoding", None) or "unknown",
    }
    other = {what: name for what, name in encodings.items() if name.replace("-", "").lower() != "utf8"}
    yield Check(
        "locale",
        "missing" if other else "ok",
        ", ".join(f"{what} in {name}" for what, name in other.items()) or "UTF-8",
        "names with other than English letters may not print" if other else "any letter can be read and printed",
        "set PYTHONUTF8=1, or LC_ALL=C.UTF-8" if other else "",
    )


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"
