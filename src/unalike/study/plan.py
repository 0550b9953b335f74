"""`read_study`: a study file is read, and everything wrong with it told at once, before anything is started."""

from __future__ import annotations

import dataclasses
import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unalike import folders
from unalike.audit.settings import AuditSettings
from unalike.cohort.phantom import PhantomSettings
from unalike.cohort.recipes import find_recipe, recipe_settings
from unalike.cohort.settings import PrepareSettings
from unalike.errors import FolderError, SettingsError
from unalike.explain.settings import ExplainSettings
from unalike.fidelity.settings import FidelitySettings
from unalike.generators.controls.gaussian import GaussianSettings
from unalike.generators.controls.memorizer import MemorizerSettings
from unalike.generators.diffusion.settings import PRESETS as DIFFUSION_PRESETS
from unalike.generators.diffusion.settings import DiffusionSettings, SampleSettings
from unalike.generators.inversion.settings import InversionDrawSettings, InversionSettings
from unalike.generators.settings import DrawSettings
from unalike.generators.stylegan.settings import PRESETS as STYLEGAN_PRESETS
from unalike.generators.stylegan.settings import StyleganDrawSettings, StyleganSettings
from unalike.runs.given import GivenSettings
from unalike.runs.settings import GuardSettings, WatchSettings
from unalike.study.cells import Cell, check_cells, plan_cells
from unalike.study.study_settings import (
    LAYOUTS,
    MEASURES,
    PATHS,
    CohortPlan,
    CommandPlan,
    GeneratorPlan,
    MeasurePlan,
    Study,
    SweepPlan,
    check_values,
    fit_table,
    suggest,
    types_of,
)
from unalike.utility.settings import UtilitySettings

__all__ = ["Cell", "Study", "plan_cells", "read_study"]

TRAINING: Mapping[str, Any] = {
    "diffusion": DiffusionSettings,
    "stylegan": StyleganSettings,
    "inversion": InversionSettings,
    "gaussian": GaussianSettings,
    "memorizer": MemorizerSettings,
}
DRAWING: Mapping[str, Any] = {
    "diffusion": SampleSettings,
    "stylegan": StyleganDrawSettings,
    "inversion": InversionDrawSettings,
    "gaussian": DrawSettings,
    "memorizer": DrawSettings,
}
NETWORKS = ("diffusion", "stylegan", "inversion")
PRESETS: Mapping[str, Mapping[str, Any]] = {"diffusion": DIFFUSION_PRESETS, "stylegan": STYLEGAN_PRESETS}
MEASURE_SETTINGS: Mapping[str, Any] = {
    "audit": AuditSettings,
    "fidelity": FidelitySettings,
    "utility": UtilitySettings,
    "explain": ExplainSettings,
}
# As `unalike train` names them, and as `WatchSettings` does.
_WATCH = {
    "watch_every": "every",
    "watch_samples": "samples",
    "watch_steps": "steps",
    "watch_level": "level",
    "copy_budget": "budget",
    "stop_on_memorization": "stop",
}
_GUARD = {"guard_level": "level", "guard_patience": "patience"}
_SAMPLES: dict[str, Any] = {
    "count": int,
    "first_seed": int,
    "batch_size": int,
    "guard": bool,
    "guard_level": float,
    "guard_patience": int,
}
_NAME = re.compile(r"[a-z0-9-]+")
_DATA = re.compile(r"\{data:([^{}]*)\}")


def read_study(file: str | Path, data: Mapping[str, str | Path] | None = None, *, seed: int | None = None) -> Study:
    """Read and check a study file; ``data`` says where data sets are (over the file's own ``[data]``).

    ``seed`` takes the place of the file's. Raises one `SettingsError` that lists all that is wrong: unknown tables,
    keys and names (with the closest there is), values that their settings refuse, data that is not given or not there.
    """
    file = Path(file)
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"the study {file} does not exist or cannot be read. Check the path.") from error
    except ValueError as error:
        raise SettingsError(f"{file} is no TOML file ({error}). Mend it.") from error
    reader = _Reader(file, document, {name: Path(path) for name, path in (data or {}).items()})
    study = reader.read()
    if seed is not None:
        study = dataclasses.replace(study, seed=seed)
    if not 0 <= study.seed < 2**62:
        reader.problems.append(f"seed {study.seed}: give a whole number from 0 to below 2 to the 62.")
    check_cells(study, reader.problems)
    problems = list(dict.fromkeys(reader.problems))
    if problems:
        listed = " ".join(f"{at}) {problem}" for at, problem in enumerate(problems, 1))
        many = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise SettingsError(f"{file}: {many}, nothing was started: {listed}")
    return study


class _Reader:
    """Turns the tables of a file into a `Study`; what is wrong is gathered in ``problems`` on the way."""

    def __init__(self, file: Path, document: dict[str, Any], data: Mapping[str, Path]) -> None:
        self.file, self.document, self.given = file, document, data
        self.place = file.resolve().parent
        self.problems: list[str] = []
        self.data: dict[str, Path] = {}
        self.used: set[str] = set()

    def read(self) -> Study:
        """The study, as far as it can be understood."""
        known = ("study", "data", "phantoms", "cohorts", "generators", "samples", *MEASURES, "sweeps", "commands")
        for name in self.document:
            if name not in known:
                self.problems.append(f"[{name}]: unknown table; {suggest(name, known)}")
        head = self._head()
        self._read_data()
        phantoms = {name: self._phantom(name, table) for name, table in self._tables("phantoms")}
        cohorts = {name: self._cohort(name, table, phantoms) for name, table in self._tables("cohorts")}
        samples = fit_table(_SAMPLES, self._table("samples"), "[samples]", self.problems)
        self._check_guard(samples, "[samples]")
        generators = {name: self._generator(name, table, cohorts) for name, table in self._tables("generators")}
        measures = {
            name: self._measure(name, self._table(name), cohorts, generators)
            for name in MEASURES
            if name in self.document
        }
        sweeps = {name: self._sweep(name, table, cohorts) for name, table in self._tables("sweeps")}
        commands = self._commands()
        for name in sorted(set(self.given) - self.used):
            self.problems.append(f"--data {name}: nothing in the study asks for it; {suggest(name, self.used)}")
        return Study(
            file=self.file,
            title=head.get("title", self.file.stem),
            layout=head.get("layout", ""),
            note=head.get("note", ""),
            seed=head.get("seed", 0),
            data=self.data,
            phantoms=phantoms,
            cohorts=cohorts,
            generators=generators,
            samples=samples,
            measures=measures,
            sweeps=sweeps,
            commands=commands,
        )

    def _head(self) -> dict[str, Any]:
        if "study" not in self.document:
            self.problems.append('there is no [study] table: begin with [study] and title = "…".')
        types = {"title": str, "layout": str, "note": str, "seed": int}
        head = fit_table(types, self._table("study"), "[study]", self.problems)
        if head.get("layout", "") not in LAYOUTS:
            self.problems.append(f"[study] layout {head['layout']!r}: unknown; {suggest(head['layout'], LAYOUTS[1:])}")
        return head

    def _table(self, name: str) -> dict[str, Any]:
        table = self.document.get(name, {})
        if isinstance(table, dict):
            return table
        self.problems.append(f"{name}: give a table, [{name}].")
        return {}

    def _tables(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Tables within a table, such as [cohorts.brats20]."""
        for inner, table in self._table(name).items():
            if not isinstance(table, dict):
                self.problems.append(f"[{name}] {inner}: give a table, [{name}.{inner}].")
                continue
            if not _NAME.fullmatch(inner):
                self.problems.append(f"[{name}.{inner}]: give a name of small letters, digits and hyphens.")
            yield inner, table

    def _read_data(self) -> None:
        for name, path in self._table("data").items():
            if isinstance(path, str):
                self.data[name] = (self.place / Path(path).expanduser()).resolve()
            else:
                self.problems.append(f"[data] {name}: give a path as text.")
        self.data |= {name: path.expanduser().resolve() for name, path in self.given.items()}

    def _find_data(self, name: str, where: str) -> Path | None:
        self.used.add(name)
        if name not in self.data:
            self.problems.append(f"{where}: where is {name}? Say --data {name}=PATH, or {name} = PATH in [data].")
            return None
        return self._there(self.data[name], where)

    def _there(self, path: Path, where: str) -> Path | None:
        if path.exists():
            return path
        self.problems.append(f"{where}: {path} does not exist. Check the path.")
        return None

    def _resolve_paths(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Settings that name files as absolute paths, where they are there or made of ``{data:NAME}``."""

        def resolve(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(resolve, value))
            named = _DATA.search(str(value))
            if named:
                found = self._find_data(named[1], where)
                return value if found is None else _DATA.sub(lambda _: str(found), str(value))
            near = self.place / Path(str(value)).expanduser()
            return str(near.resolve()) if str(value) and near.exists() else value

        return {
            name: resolve(value) if name in PATHS or (name == "recipe" and str(value).endswith(".toml")) else value
            for name, value in values.items()
        }

    # The tables, one by one

    def _phantom(self, name: str, table: Mapping[str, Any]) -> dict[str, Any]:
        where = f"[phantoms.{name}]"
        values = fit_table(types_of(PhantomSettings) | {"seed": int}, table, where, self.problems)
        check_values(PhantomSettings, _without(values, "seed"), where, self.problems)
        return values

    def _cohort(self, name: str, table: Mapping[str, Any], phantoms: Mapping[str, Any]) -> CohortPlan:
        where = f"[cohorts.{name}]"
        places = ("source", "phantom", "data", "folder")
        types = types_of(PrepareSettings) | dict.fromkeys(places, str) | {"key": str, "seed": int, "about": dict}
        values = fit_table(types, table, where, self.problems)
        about, seed = values.pop("about", {}), values.pop("seed", None)
        given = {place: values.pop(place) for place in places if place in values}
        if len(given) != 1:
            self.problems.append(f"{where}: give one of source, phantom, data and folder, and only one.")
        source = folder = key = None
        if "key" in values:
            key = self._there((self.place / Path(values.pop("key")).expanduser()).resolve(), where)
        if "source" in given:
            source = self._there((self.place / Path(given["source"]).expanduser()).resolve(), where)
        if "data" in given:
            source = self._find_data(given["data"], where)
        if "phantom" in given and given["phantom"] not in phantoms:
            self.problems.append(f"{where} phantom {given['phantom']}: unknown; {suggest(given['phantom'], phantoms)}")
        if "folder" in given:
            folder = self._cohort_folder((self.place / Path(given["folder"]).expanduser()).resolve(), where)
            if values:
                self.problems.append(f"{where} {', '.join(values)}: a cohort that is there is taken as it is.")
        else:
            if "phantom" in given:
                values = {"recipe": "nifti", **values}
            values = self._resolve_paths(values, where)
            self._check_prepare(values, where)
        return CohortPlan(values, source, given.get("phantom", ""), key, folder, seed, about)

    def _cohort_folder(self, path: Path, where: str) -> Path | None:
        try:
            folders.read_header(path, kind="cohort")
        except FolderError as error:
            self.problems.append(f"{where} {error}")
            return None
        return path

    def _check_prepare(self, values: Mapping[str, Any], where: str) -> None:
        try:
            find_recipe(values.get("recipe", "folder"))
        except SettingsError as error:
            self.problems.append(f"{where} {error}")
            return
        check_values(recipe_settings, values, where, self.problems)

    def _generator(self, name: str, table: Mapping[str, Any], cohorts: Mapping[str, Any]) -> GeneratorPlan:
        where = f"[generators.{name}]"
        kind = table.get("kind", name)
        if kind not in TRAINING:
            self.problems.append(f"{where} kind {kind!r}: unknown; {suggest(str(kind), TRAINING)}")
            return GeneratorPlan(kind=str(kind), cohorts=tuple(cohorts))
        own = {"preset": str, "cohorts": tuple[str, ...], "subjects": tuple[int, ...], "seed": int}
        own |= dict.fromkeys(("vary", "sample", "about"), dict) | {"kind": str}
        watch = {name: types_of(WatchSettings)[inner] for name, inner in _WATCH.items()} if kind in NETWORKS else {}
        values = fit_table(types_of(TRAINING[kind]) | watch | own, table, where, self.problems)
        alone = {name: values.pop(name) for name in own if name in values}
        subjects = alone.get("subjects", (0,))
        if not subjects or min(subjects) < 0 or len(set(subjects)) < len(subjects):
            self.problems.append(f"{where} subjects: give numbers of 1 or more, or 0 for all, each once.")
        preset = alone.get("preset", "")
        presets = PRESETS.get(kind, {})
        if preset not in ("", *presets):
            self.problems.append(f"{where} preset {preset}: unknown; {suggest(preset, presets)}")
            preset = ""
        values = self._resolve_paths(values, where)
        made = self._check_training(kind, preset, values, where)
        return GeneratorPlan(
            kind=kind,
            preset=preset,
            settings=values,
            cohorts=self._names(alone.get("cohorts"), cohorts, f"{where} cohorts"),
            subjects=subjects,
            variants=self._variants(kind, preset, values, alone.get("vary", {}), made, f"[generators.{name}.vary]"),
            sample=self._drawing(kind, alone.get("sample", {}), f"[generators.{name}.sample]"),
            seed=alone.get("seed"),
            about=alone.get("about", {}),
        )

    def _check_training(self, kind: str, preset: str, values: Mapping[str, Any], where: str) -> Any:
        """The settings as a training has them, or None where they are refused."""
        watch = {name: values[name] for name in _WATCH if name in values}
        if watch.get("watch_every"):
            renamed = {_WATCH[name]: value for name, value in watch.items()}
            check_values(WatchSettings, renamed, where, self.problems)
        elif watch and set(watch) != {"watch_every"}:
            self.problems.append(f"{where} {', '.join(watch)}: these need watch-every.")
        plain = _without(values, *_WATCH)
        base = PRESETS.get(kind, {}).get(preset)
        if base is None:
            made = check_values(TRAINING[kind], plain, where, self.problems)
        else:
            made = check_values(lambda **given: dataclasses.replace(base, **given), plain, where, self.problems)
        return None if made is None else (made, watch)

    def _variants(
        self, kind: str, preset: str, values: Mapping[str, Any], table: Mapping[str, Any], plain: Any, where: str
    ) -> tuple[tuple[Mapping[str, Any], Mapping[str, Any] | None], ...]:
        """All combinations, the last name fastest."""
        grid = self._grid(types_of(TRAINING[kind]), table, where)
        if not grid:
            return ()
        found: list[tuple[Mapping[str, Any], Mapping[str, Any] | None]] = []
        for combination in itertools.product(*grid.values()):
            varied = dict(zip(grid, combination, strict=True))
            made = self._check_training(kind, preset, {**values, **varied}, where)
            found.append((varied, None if made is not None and made == plain else {**values, **varied}))
        return tuple(found)

    def _grid(self, types: Mapping[str, Any], table: Mapping[str, Any], where: str) -> dict[str, tuple[Any, ...]]:
        """Values of each setting that varies, as a tuple."""
        fitted: dict[str, tuple[Any, ...]] = {}
        for name, entries in table.items():
            if not isinstance(entries, list) or not entries:
                self.problems.append(f"{where} {name}: give a list of values.")
                continue
            key = name.replace("-", "_")
            single = [fit_table(types, {name: entry}, where, self.problems) for entry in entries]
            values = tuple(entry[key] for entry in single if key in entry)
            if len(set(values)) < len(values):
                self.problems.append(f"{where} {name}: give each value once.")
            if values:
                fitted[key] = values
        return fitted

    def _drawing(self, kind: str, table: Mapping[str, Any], where: str) -> dict[str, Any]:
        types = types_of(DRAWING[kind]) | _SAMPLES
        if kind in ("diffusion", "inversion"):
            types |= types_of(GivenSettings)
        if "morph" in types:
            types["morph"] = tuple[str, str]  # as the command line has it
        values = fit_table(types, table, where, self.problems)
        self._check_guard(values, where)
        own = {name: value for name, value in values.items() if name in types_of(DRAWING[kind])}
        check_values(DRAWING[kind], own, where, self.problems)
        given = {name: value for name, value in values.items() if name in types_of(GivenSettings)}
        if given:
            check_values(GivenSettings, given, where, self.problems)
        return self._resolve_paths(values, where)

    def _check_guard(self, values: Mapping[str, Any], where: str) -> None:
        if values.get("count", 1) < 1:
            self.problems.append(f"{where} count {values['count']}: draw at least 1 sample.")
        renamed = {inner: values[name] for name, inner in _GUARD.items() if name in values}
        check_values(GuardSettings, renamed, where, self.problems)

    def _measure(
        self, name: str, table: Mapping[str, Any], cohorts: Mapping[str, Any], generators: Mapping[str, Any]
    ) -> MeasurePlan:
        where = f"[{name}]"
        own: dict[str, Any] = {"cohorts": tuple[str, ...], "generators": tuple[str, ...], "seed": int}
        if name == "explain":
            own["of"] = tuple[str, ...]
        values = fit_table(types_of(MEASURE_SETTINGS[name]) | own, table, where, self.problems)
        alone = {key: values.pop(key) for key in own if key in values}
        values = self._resolve_paths(values, where)
        check_values(MEASURE_SETTINGS[name], values, where, self.problems)
        of = alone.get("of", ("utility",) if name == "explain" else ())
        for one in of:
            if one not in ("utility", "audit"):
                self.problems.append(f"{where} of {one}: give utility, audit or both.")
            elif one not in self.document:
                self.problems.append(f"{where} explains [{one}], which the study has not. Add the table [{one}].")
        if "utility" in of and self._table("utility").get("task") == "segment":
            self.problems.append(f'{where} explains classifiers, and [utility] has task = "segment". Leave it out.')
        return MeasurePlan(
            settings=values,
            cohorts=self._names(alone.get("cohorts"), cohorts, f"{where} cohorts"),
            generators=self._names(alone.get("generators"), generators, f"{where} generators"),
            of=of,
            seed=alone.get("seed"),
        )

    def _names(self, wanted: tuple[str, ...] | None, known: Mapping[str, Any], where: str) -> tuple[str, ...]:
        """Those that were named, or all."""
        if wanted is None:
            return tuple(known)
        for name in wanted:
            if name not in known:
                self.problems.append(f"{where} {name}: unknown; {suggest(name, known)}")
        return tuple(dict.fromkeys(name for name in wanted if name in known))

    def _sweep(self, name: str, table: Mapping[str, Any], cohorts: Mapping[str, Any]) -> SweepPlan:
        where = f"[sweeps.{name}]"
        types = {"kind": str, "cohort": str, "count": int, "seed": int}
        types |= dict.fromkeys(("train", "sample", "set", "about"), dict)
        values = fit_table(types, table, where, self.problems)
        kind, cohort = values.get("kind", ""), values.get("cohort", "")
        if cohort not in cohorts:
            self.problems.append(f"{where} cohort {cohort!r}: unknown; {suggest(cohort, cohorts)}")
        if kind not in TRAINING:
            self.problems.append(f"{where} kind {kind!r}: unknown; {suggest(kind, TRAINING)}")
            return SweepPlan(kind, cohort)
        subjects = values.get("train", {}).get("subjects", [])
        varied = _without(values.get("train", {}), "subjects")
        train = self._grid(types_of(TRAINING[kind]), varied, f"[sweeps.{name}.train]")
        if subjects:
            train = {"subjects": self._sweep_subjects(subjects, where), **train}
        sample = self._grid(types_of(DRAWING[kind]), values.get("sample", {}), f"[sweeps.{name}.sample]")
        fixed = fit_table(
            types_of(TRAINING[kind]) | {"subjects": int}, values.get("set", {}), f"[sweeps.{name}.set]", self.problems
        )
        fixed = self._resolve_paths(fixed, where)
        axes = {key: entries for key, entries in train.items() if key != "subjects"}
        for combination in itertools.product(*axes.values()):
            given = _without(fixed, "subjects") | dict(zip(axes, combination, strict=True))
            check_values(TRAINING[kind], given, f"[sweeps.{name}.train]", self.problems)
        for combination in itertools.product(*sample.values()):
            given = dict(zip(sample, combination, strict=True))
            check_values(DRAWING[kind], given, f"[sweeps.{name}.sample]", self.problems)
        about = values.get("about", {})
        return SweepPlan(kind, cohort, train, sample, fixed, values.get("count"), values.get("seed"), about)

    def _sweep_subjects(self, entries: Any, where: str) -> tuple[Any, ...]:
        found = tuple("all" if entry == 0 else entry for entry in entries) if isinstance(entries, list) else ()
        if not found or not all(entry == "all" or (isinstance(entry, int) and entry > 0) for entry in found):
            self.problems.append(f"{where} subjects: give a list of numbers of 1 or more, or 0 for all.")
            return ()
        return found

    def _commands(self) -> dict[str, CommandPlan]:
        tables = self.document.get("commands", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.problems.append("commands: give tables, [[commands]].")
            return {}
        found: dict[str, CommandPlan] = {}
        types = {"name": str, "argv": tuple[str, ...], "needs": tuple[str, ...], "about": dict}
        for at, table in enumerate(tables, 1):
            where = f"[[commands]] {table.get('name', f'number {at}')}"
            values = fit_table(types, table, where, self.problems)
            name = values.get("name", "")
            if not _NAME.fullmatch(name) or name in found:
                self.problems.append(f"{where}: give a name of its own, of small letters, digits and hyphens.")
            for word in values.get("argv", ()):
                for data in _DATA.findall(word):
                    self._find_data(data, where)
            found[name] = CommandPlan(values.get("argv", ()), values.get("needs", ()), values.get("about", {}))
        return found


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
