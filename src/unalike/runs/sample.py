"""Draw samples from a run into a samples folder. The same command after an interruption keeps what was drawn."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unalike import folders
from unalike.cohort.store import ImageWriter, open_images
from unalike.engine import Progress, show_progress, tell
from unalike.errors import FolderError, InputError, RunError, SettingsError
from unalike.folders import Header
from unalike.generators.data import PixelScale
from unalike.generators.settings import resolve_settings
from unalike.records import Pixels
from unalike.runs.families import Family, Sampler, check_seed, find_family, read_run
from unalike.runs.given import GivenSettings, read_given
from unalike.runs.settings import GuardSettings

if TYPE_CHECKING:
    from unalike.generators.processes import Processes
    from unalike.runs.guard import Guard, Tally

PARTS = "parts"


def draw_samples(
    *,
    run: str | Path,
    out: str | Path,
    count: int,
    first_seed: int = 0,
    settings: Any = None,
    device: str = "auto",
    given: GivenSettings | None = None,
    guard: str | Path | None = None,
    guard_settings: GuardSettings | None = None,
    rejected: str | Path | None = None,
) -> Path:
    """Draw ``count`` samples of a run, from seed ``first_seed`` on, into a samples folder; returns its path.

    A sample depends on the run, its seed and the sampler alone: not on ``count``, the batch size, or the number of
    processes (``accelerate launch`` shares the work). ``settings`` is the kind's dataclass (`DrawSettings`, or
    `SampleSettings` for diffusion), a mapping of its fields, or None. ``given`` says what samples are made from
    besides noise. Interrupted, the same call keeps the batches that were finished.

    With ``guard``, the cohort the run was trained on, samples that look like copies are rejected and the next seeds
    drawn instead; how many, and which seeds, is recorded. The rejected images go into the samples folder
    ``rejected`` where one is named; it is as internal as the cohort. See `unalike.audit.index.reject_copies` for what
    a guard cannot promise.

    Raises `SettingsError` for an unknown or unfitting setting; `FolderError` if the run is no finished run,
    its model was changed, or ``out`` is taken; `RunError` if the guard rejects too many.
    """
    run, out = Path(run), Path(out)
    header = read_run(run)
    content = header.content
    family = find_family(str(content["generator"]))
    settings = resolve_settings(family.draw_settings, settings)
    check_order(header=header, out=out, count=count, first_seed=first_seed, given=given, guard=guard, rejected=rejected)
    if folders.digest_tree(run / folders.MODEL) != content["model_digest"]:
        raise FolderError(f"{run / folders.MODEL} is not the model that {header.path.name} describes. Train it again.")
    extra, named = _open_given(given, content, count)
    if getattr(settings, "morph", ()):
        extra |= {"count": _count_between(count, first_seed=first_seed, guard=guard)}
    digest = folders.digest_of(run, kind="run")
    guarding = guard_settings or GuardSettings()
    identity = {"run": digest, "count": count, "first_seed": first_seed, "settings": asdict(settings), "given": named}
    if guard is not None:
        identity |= {"guard": open_run_cohort(Path(guard), header).digest, "guard_settings": asdict(guarding)}
    # A guard asks batch after batch: one larger than what is wanted would be drawn for nothing.
    batch_size = settings.batch_size if guard is None else min(settings.batch_size, count)
    with _processes(family, device) as processes:
        main = processes is None or processes.main
        # Of several processes each has a graphics card of its own.
        place = device if processes is None else str(processes.place)
        sampler = family.open(run, content=content, settings=settings, device=place, **extra)
        work = Drawing(out, sampler, header, batch_size, first_seed, count)
        opened: list[Guard] = []

        def begin() -> None:
            folders.begin_folder(out, kind="samples", settings=identity, resumable=True)
            if rejected is not None:  # taken by somebody else, it is refused before anything is drawn
                folders.begin_folder(
                    Path(rejected), kind="samples", settings=identity | {"rejected": True}, resumable=True
                )
            if guard is not None:
                opened.append(_open_guard(Path(guard), out, header, guarding))

        _first(processes, begin)
        turned_away: list[int] = []
        about_guard: dict[str, Any] = {}
        if guard is None:
            seeds = work.draw_all(processes)
        else:
            seeds, turned_away, about_guard = work.draw_guarded(opened[0] if main else None, guarding, processes)
        if not main:
            return out
    about = {name: content[name] for name in ("generator", "subjects", "subject_seed", "holds_training_images")}
    about |= {"precision": precision} if (precision := getattr(sampler, "precision", None)) is not None else {}
    about |= {"given": named} if given is not None else {}
    shared: dict[str, Any] = {
        "settings": asdict(settings),
        "seed": first_seed,
        "inputs": {"run": digest, "cohort": header.inputs["cohort"]},
    }
    written = work.assemble(out, seeds)
    if rejected is not None:
        _write_rejected(Path(rejected), work, turned_away, about, shared)
    if guard is not None:
        folders.write_json(out / folders.REJECTED, about_guard["rejections"])
        about |= {"guard": about_guard["summary"]}
    shutil.rmtree(out / PARTS)
    folders.finish_folder(out, kind="samples", content={**written, **about}, **shared)
    return out


def check_order(
    *,
    header: Header,
    out: Path,
    count: int,
    first_seed: int,
    given: GivenSettings | None,
    guard: str | Path | None,
    rejected: str | Path | None,
) -> None:
    """Refuse what cannot be drawn from the run of this header; nothing is read but headers."""
    kind, run = str(header.content["generator"]), header.path.parent
    family = find_family(kind)
    check_seed("first_seed", first_seed)
    if count < 1:
        raise SettingsError(f"--count {count}: draw at least 1 sample.")
    if given is not None and not family.given:
        raise SettingsError(f"given images are for diffusion; this run is a {kind}. Leave them out.")
    if given is not None and given.interpolate is not None:
        for end in given.interpolate:
            check_seed("interpolate", end)
        if first_seed or guard is not None:
            raise SettingsError("--interpolate goes without --first-seed and --guard: leave them out.")
        if count < 2:
            raise SettingsError(f"--count {count}: --interpolate needs 2 or more, the two ends.")
    if rejected is not None and guard is None:
        raise SettingsError("--rejected is where samples go that a guard rejects: give --guard COHORT.")
    if rejected is not None and Path(rejected).resolve() == out.resolve():
        raise SettingsError(f"--rejected {rejected} is --out as well. Give the rejected samples a folder of their own.")
    for place in (out, Path(rejected or out)):
        if place.resolve().is_relative_to(run.resolve()):
            raise SettingsError(f"{place} lies in the run {run}. Give the samples a folder beside it.")
    if guard is not None:
        open_run_cohort(Path(guard), header)


def _count_between(count: int, *, first_seed: int, guard: str | Path | None) -> int:
    """How many samples lie between two prompts, the ends included."""
    if count < 2 or first_seed or guard is not None:
        raise SettingsError("--morph goes with a --count of 2 or more, and without --first-seed and --guard.")
    return count


def _open_given(given: GivenSettings | None, content: Any, count: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    if given is None:
        return {}, None
    found, named = read_given(given, content=content, count=count)
    return {"given": found}, named


def _open_guard(cohort: Path, out: Path, header: Header, settings: GuardSettings) -> Guard:
    """The guard; where it is refused and nothing was drawn yet, ``out`` is free for a corrected command."""
    from unalike.runs.guard import open_guard

    try:
        return open_guard(cohort, header=header, settings=settings)
    except InputError:
        folders.give_up_folder(out)
        raise


@contextlib.contextmanager
def _processes(family: Family, device: str) -> Iterator[Processes | None]:
    """The processes that share the work; None where there is only one."""
    if not family.network or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    from unalike.generators.processes import join_processes

    processes = join_processes(device)
    with processes.refusing_once():
        yield processes


def _first(processes: Processes | None, work: Callable[[], object]) -> None:
    """Do ``work`` in the first process; the others wait for it."""
    if processes is None:
        work()
    else:
        processes.first(work)


@dataclass(frozen=True)
class Drawing:
    """Samples in the making: batches of seeds, kept one by one under ``out``/parts."""

    out: Path
    sampler: Sampler
    header: Header
    batch_size: int
    first_seed: int
    count: int

    def batch(self, number: int) -> range:
        """Seeds of a batch, the last of a plain drawing cut short at the last sample."""
        begin = self.first_seed + number * self.batch_size
        return range(begin, begin + self.batch_size)

    def draw_all(self, processes: Processes | None) -> list[int]:
        """Draw every batch, each process its own; gives the seeds."""
        end = self.first_seed + self.count
        numbers = range(-(-self.count // self.batch_size))
        with self._progress(self.count, processes) as progress:
            for number in numbers if processes is None else processes.share(numbers):
                seeds = self.batch(number)
                seeds = range(seeds.start, min(seeds.stop, end))
                self.draw_part(seeds)
                progress.advance(len(seeds) * (1 if processes is None else processes.count))
        if processes is not None:
            processes.wait()
        return list(range(self.first_seed, end))

    def draw_guarded(
        self, guard: Guard | None, settings: GuardSettings, processes: Processes | None
    ) -> tuple[list[int], list[int], dict[str, Any]]:
        """Draw batch after batch until enough are kept: seeds kept, seeds rejected, and what the header says.

        The seeds are asked in order, so that which are kept depends neither on batches nor on processes.
        """
        from unalike.runs.guard import Tally

        tally = Tally(wanted=self.count, limit=settings.patience * self.count)
        number, workers = 0, 1 if processes is None else processes.count
        with self._progress(self.count, processes) as progress:
            while True:
                mine = self.batch(number + (0 if processes is None else processes.rank))
                self.draw_part(mine)
                if processes is not None:
                    processes.wait()
                _first(processes, partial(self._judge, guard, tally, range(number, number + workers), progress))
                number += workers
                if tally.done if processes is None else processes.agree(tally.done):
                    break
        if guard is None:
            return [], [], {}
        return tally.kept, [entry["seed"] for entry in tally.rejections], tally.about(guard)

    def _judge(self, guard: Guard | None, tally: Tally, numbers: Sequence[int], progress: Progress) -> None:
        """Ask the guard about these batches, in order."""
        assert guard is not None  # noqa: S101 - the process that judges opened it
        before = len(tally.kept)
        for number in numbers:
            seeds = self.batch(number)
            tally.add(seeds, guard.look(self.read_part(seeds)))
        progress.advance(len(tally.kept) - before, f"{len(tally.rejections)} rejected")
        try:
            tally.give_up_in_time()
        except RunError:
            # What was drawn shows patients, and nobody asked to keep it.
            folders.give_up_folder(self.out, nothing_made=lambda: True)
            raise

    def _progress(self, total: int, processes: Processes | None) -> contextlib.AbstractContextManager[Progress]:
        if processes is not None and not processes.main:
            return contextlib.nullcontext(Progress())
        return show_progress(f"sample {self.header.content['generator']}", total=total, unit="images")

    def draw_part(self, seeds: Sequence[int]) -> None:
        """Draw one batch and keep it, unless it is there from an interrupted drawing."""
        place = self._part(seeds)
        if _is_whole(place, len(seeds)):
            return
        place.parent.mkdir(exist_ok=True)
        pixels = self.sampler.draw(seeds)
        temporary = place.with_suffix(".partial")
        try:
            with temporary.open("wb") as stream:
                np.save(stream, pixels, allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(place)
        except OSError as error:
            raise RunError(
                f"{place} cannot be written ({error}). What was drawn before stays: make room and repeat the command."
            ) from error

    def read_part(self, seeds: Sequence[int]) -> Pixels:
        """The pixels of a batch that was drawn."""
        pixels: Pixels = np.load(self._part(seeds), allow_pickle=False)
        return pixels

    def _part(self, seeds: Sequence[int]) -> Path:
        return self.out / PARTS / f"{seeds[0]:010d}.npy"

    def assemble(self, out: Path, seeds: Sequence[int]) -> dict[str, Any]:
        """Write the samples of these seeds (ascending) as images and records; the content for the header."""
        content = self.header.content
        scale = PixelScale.from_content(content)
        height, width = int(content["height"]), int(content["width"])
        writer = ImageWriter(out, channels=scale.channels, height=height, width=width, dtype=np.dtype(scale.dtype))
        number, pixels = -1, np.empty(0)
        for seed in seeds:
            here, place = divmod(seed - self.first_seed, self.batch_size)
            if here != number:
                number, pixels = here, self.read_part(self.batch(here))
            record = {"subject": f"sample-{seed:06d}", "source": "run", "role": "synthetic", "seed": seed}
            writer.append(pixels[place], record | self.sampler.describe(seed))
        return writer.close()


def _write_rejected(
    place: Path,
    work: Drawing,
    seeds: Sequence[int],
    about: dict[str, Any],
    shared: dict[str, Any],
) -> None:
    """The samples that the guard rejected, as a samples folder of their own. They show patients."""
    if not seeds:
        folders.give_up_folder(place, nothing_made=lambda: True)
        tell(f"The guard rejected nothing: there is no {place}.")
        return
    written = work.assemble(place, seeds)
    content = {**written, **about, "rejected": True, "holds_training_images": True}
    folders.finish_folder(place, kind="samples", content=content, **shared)


def _is_whole(place: Path, count: int) -> bool:
    """Whether a part is there and can be read; a damaged one is drawn again."""
    try:
        return len(np.load(place, allow_pickle=False)) == count
    except (OSError, ValueError, EOFError):
        return False


def open_run_cohort(cohort: Path, header: Header) -> Any:
    """The cohort that the run of ``header`` was trained on.

    Raises `InputError` if ``cohort`` is another one: only the one it was trained on knows whom it saw.
    """
    opened = open_images(cohort)
    if header.inputs["cohort"] != opened.digest:
        raise InputError(
            f"{cohort} is not the cohort that {header.path.parent} was trained on, or it has changed. Give that one."
        )
    return opened
