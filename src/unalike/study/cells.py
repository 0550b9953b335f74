"""`plan_cells`: a study becomes cells, each of which is one unalike command with a folder of its own.

A folder is named by what decides it: its command, with inputs named by what decides *them*, and files by name, size
and time. So a change anywhere makes new folders below it and nowhere else, nothing is overwritten, and an earlier
study file finds its folders again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unalike import folders
from unalike.study.study_settings import PATHS, GeneratorPlan, Study, as_flags, suggest

ROOMS = {
    "phantom": "sources",
    "cohort": "cohorts",
    "run": "runs",
    "samples": "samples",
    "audit": "audits",
    "fidelity": "fidelity",
    "utility": "utility",
    "explain": "explain",
    "sweep": "sweeps",
    "command": "commands",
}
DEFAULT_COUNT = 1000
# Procedural patients are nobody: with a key that everybody knows their pseudonyms, and so all tables, are always the
# same.
PHANTOM_KEY, PHANTOM_KEY_BYTES = "phantom.key", b"the key of patients who never lived"
# The kind of folder that a verb writes; the others write files.
KINDS = {
    "prepare": "cohort",
    "train": "run",
    "adopt": "run",
    "sample": "samples",
    "audit": "audit",
    "fidelity": "fidelity",
    "utility": "utility",
    "explain": "explain",
    "membership": "membership",
    "steps": "steps",
    "sweep": "sweep",
    "demo": "demo",
    "release": "release",
    "release-model": "model-release",
}
VERBS = (*KINDS, "latent", "report", "phantom", "cohort", "index", "inspect", "recipes", "verify")
_PLACEHOLDER = re.compile(r"\{(out|[a-z]+:[^{}]+)\}")
_LONGEST = 80
_OUT = "\0out"

Word = tuple[str, str]
"""A word as the command has it, and as it counts for the name of the folder."""


@dataclass(frozen=True)
class Cell:
    """One command: ``argv`` after ``unalike``, and the folder ``out`` it writes, which is of this ``kind``.

    ``kind`` is "" where the command writes something else than a folder of ours. ``argv`` is empty for a cohort that
    was there before. ``key`` is the hexadecimal name of what decides the cell; ``needs`` names other cells. ``about``
    says what it is: cohort, generator, subjects (0: all), varied, and free labels.
    """

    name: str
    stage: str
    argv: tuple[str, ...]
    out: Path
    needs: tuple[str, ...] = ()
    kind: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""


def plan_cells(study: Study, out: str | Path) -> tuple[Cell, ...]:
    """All cells of a checked study, in an order in which each stands after those it needs; folders are below ``out``.

    Cells that come to the same command share its folder: the later one needs the first.
    """
    problems: list[str] = []
    cells = _Planner(study, Path(out).resolve(), fingerprint, problems).plan()
    assert not problems, problems  # noqa: S101 - `read_study` has refused them
    return cells


def check_cells(study: Study, problems: list[str]) -> None:
    """Tell in ``problems`` what cells refer to and is not there; files are not looked at."""
    _Planner(study, Path(), lambda _: "", problems).plan()


def fingerprint(path: Path) -> str:
    """What tells whether files have changed: the header of a folder of ours; else names, sizes and times."""
    kind = folders.kind_of(path) if path.is_dir() else None
    if kind is not None:
        return folders.digest_of(path, kind=kind)
    digest = hashlib.sha256()
    for name, file in _files(path):
        told = file.stat()
        digest.update(f"{name} {told.st_size} {told.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield path.name, path
    for place, inner, names in os.walk(path):
        inner.sort()
        for name in sorted(names):
            file = Path(place, name)
            if file.exists():  # a link may lead nowhere
                yield file.relative_to(path).as_posix(), file


class _Planner:
    def __init__(self, study: Study, out: Path, fingerprint_of: Callable[[Path], str], problems: list[str]) -> None:
        self.study, self.out, self.problems = study, out, problems
        self.fingerprint_of = fingerprint_of
        self.cells: dict[str, Cell] = {}
        self.first: dict[Path, str] = {}

    def plan(self) -> tuple[Cell, ...]:
        for name, values in self.study.phantoms.items():
            settings = {key: value for key, value in values.items() if key != "seed"}
            words = [_same("phantom"), (_OUT, _OUT), *self._flags(settings), *self._seed(values.get("seed"))]
            self._add(f"phantom:{name}", words, about={"phantom": name})
        for name in self.study.cohorts:
            self._plan_cohort(name)
        for name, generator in self.study.generators.items():
            for cohort in generator.cohorts:
                for subjects in generator.subjects:
                    self._plan_run(name, generator, cohort, subjects)
        self._plan_measures()
        for name in self.study.sweeps:
            self._plan_sweep(name)
        for name in self.study.commands:
            self._plan_command(name)
        return tuple(self.cells.values())

    def _add(
        self, name: str, words: Sequence[Word], *, needs: Sequence[str] = (), kind: str = "", about: Mapping[str, Any]
    ) -> str:
        stage, _, told = name.partition(":")
        key = _key([counts for _, counts in words])
        plain = re.sub(r"[^A-Za-z0-9.+_-]+", "-", told)[:_LONGEST].rstrip("-.")
        out = self.out / ROOMS[stage] / f"{plain}-{key}"
        # The first cell of a key gives its folder its name.
        same = next((cell for cell in self.cells.values() if (cell.stage, cell.key) == (stage, key)), None)
        if same is not None:
            out, needs = same.out, (same.name,)
        argv = tuple(word.replace(_OUT, str(out)) for word, _ in words)
        self.cells[name] = Cell(name, stage, argv, out, tuple(dict.fromkeys(needs)), kind, about, key)
        return name

    def _in(self, name: str) -> Word:
        cell = self.cells[name]
        return str(cell.out), f"<{cell.stage} {cell.key}>"

    def _file(self, path: Path) -> Word:
        return str(path), f"<files {self.fingerprint_of(path)}>"

    def _flags(self, values: Mapping[str, Any]) -> list[Word]:
        found: list[Word] = []
        for name, value in values.items():
            words = as_flags({name: value})
            if name in PATHS or name == "recipe":
                # The content of a file decides, not where it is.
                found += [self._file(Path(word)) if Path(word).is_absolute() else _same(word) for word in words]
            else:
                found += map(_same, words)
        return found

    def _seed(self, own: int | None) -> list[Word]:
        seed = self.study.seed if own is None else own
        return [_same("--seed"), _same(str(seed))] if seed else []

    def _plan_cohort(self, name: str) -> None:
        plan = self.study.cohorts[name]
        about = {"cohort": name, "about": dict(plan.about)}
        if plan.folder is not None:
            key = _key(["<cohort>", self.fingerprint_of(plan.folder)])
            self.cells[f"cohort:{name}"] = Cell(f"cohort:{name}", "cohort", (), plan.folder, (), "cohort", about, key)
            return
        needs = []
        source = ("", "")
        keyed: list[Word] = []
        if plan.key is not None:
            keyed = [_same("--key"), self._file(plan.key)]
        elif plan.phantom:
            keyed = [_same("--key"), (str(self.out / PHANTOM_KEY), "<phantom key>")]
        if plan.phantom in self.study.phantoms:
            needs = [f"phantom:{plan.phantom}"]
            source = self._in(needs[0])
        elif plan.source is not None:
            source = self._file(plan.source)
        words = [_same("prepare"), source, _same("--out"), (_OUT, _OUT), *self._flags(plan.settings), *keyed]
        self._add(f"cohort:{name}", [*words, *self._seed(plan.seed)], needs=needs, kind="cohort", about=about)

    def _plan_run(self, name: str, plan: GeneratorPlan, cohort: str, subjects: int) -> None:
        told = f"{cohort}/{name}/{subjects or 'all'}"
        for varied, settings in (({}, plan.settings), *plan.variants):
            path = "/".join([told, *(f"{key}={_show(value)}" for key, value in varied.items())])
            about = {
                "cohort": cohort,
                "generator": name,
                "kind": plan.kind,
                "subjects": subjects,
                "varied": dict(varied),
                "about": {**self.study.cohorts[cohort].about, **plan.about},
            }
            wanted = plan.settings if settings is None else settings
            self._plan_training(path, plan, cohort, subjects, wanted, about)
            self._plan_samples(path, plan, cohort, about)

    def _plan_training(
        self,
        path: str,
        plan: GeneratorPlan,
        cohort: str,
        subjects: int,
        settings: Mapping[str, Any],
        about: Mapping[str, Any],
    ) -> None:
        given = self._in(f"cohort:{cohort}")
        words = [_same("train"), _same(plan.kind), given, _same("--out"), (_OUT, _OUT)]
        if plan.preset:
            words += [_same("--preset"), _same(plan.preset)]
        words += self._flags({name: value for name, value in settings.items() if name != "stop_on_memorization"})
        if settings.get("stop_on_memorization"):
            words.append(_same("--stop-on-memorization"))  # it has no negative
        if subjects:
            words += [_same("--subjects"), _same(str(subjects))]
        words += self._seed(plan.seed)
        self._add(f"run:{path}", words, needs=[f"cohort:{cohort}"], kind="run", about=about)

    def _plan_samples(self, path: str, plan: GeneratorPlan, cohort: str, about: Mapping[str, Any]) -> None:
        values = {"count": DEFAULT_COUNT, **self.study.samples, **plan.sample}
        needs = [f"run:{path}"]
        words = [_same("sample"), self._in(needs[0]), _same("--out"), (_OUT, _OUT)]
        guard = values.pop("guard", False)
        words += self._flags({name: value for name, value in values.items() if guard or not name.startswith("guard_")})
        if guard:
            needs.append(f"cohort:{cohort}")
            words += [_same("--guard"), self._in(f"cohort:{cohort}")]
        self._add(f"samples:{path}", words, needs=needs, kind="samples", about=about)

    def _plan_measures(self) -> None:
        samples = [cell for cell in self.cells.values() if cell.stage == "samples"]
        for stage, plan in self.study.measures.items():
            for cell in samples:
                if cell.about["cohort"] in plan.cohorts and cell.about["generator"] in plan.generators:
                    self._plan_measure(stage, cell)

    def _plan_measure(self, stage: str, samples: Cell) -> None:
        plan = self.study.measures[stage]
        path, cohort = samples.name.removeprefix("samples:"), f"cohort:{samples.about['cohort']}"
        flags = [*self._flags(plan.settings), *self._seed(plan.seed)]
        if stage != "explain":
            words = [_same(stage), self._in(samples.name), _same("--against"), self._in(cohort)]
            title = _title(samples.about)
            words += [_same("--out"), (_OUT, _OUT), _same("--name"), (title, "<title>"), *flags]
            needs = [samples.name, cohort]
            self._add(f"{stage}:{path}", words, needs=needs, kind=stage, about=samples.about)
            return
        for of in plan.of:
            if f"{of}:{path}" not in self.cells:
                continue  # [utility] or [audit] is restricted to others
            words, needs = [_same("explain"), self._in(f"{of}:{path}"), _same("--out"), (_OUT, _OUT)], [f"{of}:{path}"]
            if of == "utility":
                needs += [samples.name, cohort]
                words += [_same("--against"), self._in(cohort), _same("--synthetic"), self._in(samples.name)]
            name = f"explain:{path}" if of == "utility" else f"explain:{path}/{of}"
            self._add(name, [*words, *flags], needs=needs, kind="explain", about={**samples.about, "of": of})

    def _plan_sweep(self, name: str) -> None:
        plan = self.study.sweeps[name]
        cohort = f"cohort:{plan.cohort}"
        if cohort not in self.cells:
            return  # told already
        words = [_same("sweep"), _same(plan.kind), self._in(cohort), _same("--out"), (_OUT, _OUT)]
        for flag, grid in (("--train", plan.train), ("--sample", plan.sample)):
            words += [
                _same(word) for key, values in grid.items() for word in (flag, f"{key}={','.join(map(_show, values))}")
            ]
        for key, value in plan.fixed.items():
            word = ",".join(map(_show, value)) if isinstance(value, tuple) else _show(value)
            words += [_same("--set"), (f"{key}={word}", f"{key}={self._flags({key: value})}")]
        if plan.count is not None:
            words += [_same("--count"), _same(str(plan.count))]
        about = {"sweep": name, "cohort": plan.cohort, "kind": plan.kind, "about": dict(plan.about)}
        self._add(f"sweep:{name}", [*words, *self._seed(plan.seed)], needs=[cohort], kind="sweep", about=about)

    def _plan_command(self, name: str) -> None:
        plan, where = self.study.commands[name], f"[[commands]] {name}"
        if not plan.argv or plan.argv[0] not in VERBS:
            verb = plan.argv[0] if plan.argv else ""
            self.problems.append(f"{where} argv: {verb!r} is no command of unalike; {suggest(verb, VERBS)}")
            return
        if not any("{out}" in word for word in plan.argv):
            self.problems.append(f'{where} argv: say where the command writes: "{{out}}".')
            return
        wanted = [*plan.needs, *(named for word in plan.argv for named in _PLACEHOLDER.findall(word))]
        wanted = [named for named in wanted if named != "out" and not named.startswith("data:")]
        unknown = [named for named in dict.fromkeys(wanted) if named not in self.cells]
        for named in unknown:
            self.problems.append(f"{where} {named}: there is no such cell; {suggest(named, self.cells)}")
        if unknown:
            return
        words = [self._fill(word) for word in plan.argv]
        words += [("", f"<needs {self.cells[named].key}>") for named in plan.needs]
        kind = KINDS.get(plan.argv[0], "") if "{out}" in plan.argv else ""
        about = {"command": name, "about": dict(plan.about)}
        self._add(f"command:{name}", words, needs=wanted, kind=kind, about=about)
        cell = self.cells[f"command:{name}"]
        argv = cell.argv[: len(plan.argv)]  # what it needs only counts
        self.cells[cell.name] = Cell(cell.name, cell.stage, argv, cell.out, cell.needs, kind, about, cell.key)

    def _fill(self, word: str) -> Word:
        def value(match: re.Match[str], side: int) -> str:
            named = match[1]
            if named == "out":
                return _OUT
            if named.startswith("data:"):
                path = self.study.data.get(named.removeprefix("data:"))
                return "" if path is None else self._file(path)[side]
            return self._in(named)[side]

        return _PLACEHOLDER.sub(lambda match: value(match, 0), word), _PLACEHOLDER.sub(
            lambda match: value(match, 1), word
        )


def _same(word: str) -> Word:
    return word, word


def _key(words: Sequence[str]) -> str:
    """8 hexadecimal digits of what decides a cell."""
    return hashlib.sha256(json.dumps([folders.SCHEMA, *words]).encode()).hexdigest()[:8]


def _show(value: Any) -> str:
    """A setting as a name or the command line has it; entries of a list are joined by +."""
    if isinstance(value, tuple):
        return "+".join(map(_show, value))
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _title(about: Mapping[str, Any]) -> str:
    """What reports call samples: ``brats20, diffusion, 32 subjects``."""
    subjects = f"{about['subjects']} subjects" if about["subjects"] else "all subjects"
    varied = [f"{key} {_show(value)}" for key, value in about["varied"].items()]
    return ", ".join([about["cohort"], about["generator"], subjects, *varied])
