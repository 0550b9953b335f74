"""`release_samples`: the gate, from folders to a folder. Only what passes leaves the house.

A release folder is internal and holds ``bundle/``, which is what leaves it. In order: is the audit of these images and
of this cohort (`gate`), what is removed (`gate.screen`), an audit of what remains by a second measure, the decision
(`gate.judge`), the bundle, and a search of its every byte for what belongs to a patient (`leaks`).
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from unalike import folders
from unalike.audit.run import audit_samples
from unalike.audit.settings import AuditSettings
from unalike.cohort.roles import Roles, open_roles
from unalike.cohort.settings import PictureSettings
from unalike.cohort.store import ImageFolder, ImageWriter, open_images, verify_images
from unalike.devices import pick_device
from unalike.engine import show_progress, tell
from unalike.errors import FolderError, RunError, SettingsError
from unalike.fidelity.result import read_fidelity
from unalike.records import Estimate, IntArray, as_json
from unalike.release.card import build_card, write_cards
from unalike.release.checksums import write_checksums
from unalike.release.descriptors import describe_folder, frechet_between, nominal_reference
from unalike.release.facts import AuditFacts, read_decisions, read_facts
from unalike.release.gate import Clause, GateResult, Screening, judge, screen
from unalike.release.images import Format, write_images
from unalike.release.leaks import SearchResult, search_bundle
from unalike.release.nifti import nominal_grid
from unalike.release.policy import ReleasePolicy

BUNDLE, INTERNAL, REMAINDER, SECOND = "bundle", "internal", "remainder", "second-audit"
DECISION = "decision.json"


@dataclass(frozen=True)
class Override:
    """A release against the gate's decision: why, and who says so. Both are written into everything that leaves."""

    reason: str
    by: str = ""


@dataclass(frozen=True)
class About:
    """What a release says of itself beyond what was measured."""

    title: str = ""
    """Title of the bundle; default the name of the samples folder."""

    licence: str = ""
    """Terms under which the bundle may be used."""

    contact: str = ""
    """Whom to ask."""

    intended_use: tuple[str, ...] = ()
    """What the images are meant for; default research on methods."""


@dataclass(frozen=True)
class ReleaseResult:
    """The gate's decision and what came of it; the same stands in the folder's header (``release.json``).

    ``bundle`` is None when the samples are held.
    """

    path: Path
    bundle: Path | None
    gate: GateResult
    override: Override | None
    search: SearchResult | None

    @property
    def leaves(self) -> bool:
        """Whether anything may leave the house."""
        return self.bundle is not None

    @property
    def overridden(self) -> bool:
        """Whether it leaves though the gate says no."""
        return self.leaves and self.gate.decision == "HELD"


def release_samples(
    *,
    samples: str | Path,
    audit: str | Path,
    out: str | Path,
    against: str | Path | None = None,
    train: str | Path | None = None,
    holdout: str | Path | None = None,
    policy: ReleasePolicy | None = None,
    formats: Sequence[Format] = ("png",),
    decisions: Sequence[str | Path] = (),
    signatures: Mapping[str, str] | None = None,
    override: Override | None = None,
    fidelity: Sequence[str | Path] = (),
    utility: Sequence[str | Path] = (),
    run: str | Path | None = None,
    about: About | None = None,
    seed: int = 0,
    device: str = "auto",
) -> ReleaseResult:
    """Decide whether samples may leave the house, remove the copies among them, and write what may.

    ``samples`` and the real images are what ``audit`` was made of: give ``against``, or ``train`` and ``holdout``, as
    there; a cohort is looked for beside the samples and the audit where none is named. ``decisions`` are files that the
    evidence page exported, ``signatures`` maps a role to who signs. ``fidelity``, ``utility`` and ``run`` are folders
    of the same samples, and the run that drew them: what they say goes onto the card.

    Writes the folder ``out``: internal, but for ``out/bundle``. Samples that are held leave no bundle, and the same
    call may be made again. Interrupted, the second audit goes on where it was.

    Raises `FolderError` if a folder is not what it should be or an image was changed, `SettingsError` if decisions,
    measurements or settings do not belong here, `RunError` if the disk ends it.
    """
    policy, about, out = policy or ReleasePolicy(), about or About(), Path(out)
    policy.check()
    if override is not None and not override.reason.strip():
        raise SettingsError('--override needs --reason "…": it is written into everything that leaves.')
    if not formats:
        raise SettingsError("--formats: name at least one of png, nifti, dicom, samples.")
    signed = _match_signatures(policy, signatures or {})
    wanted: dict[str, Any] = {
        "samples": Path(samples).name,
        "policy": asdict(policy),
        "formats": list(formats),
        "signatures": signed,
        "override": None if override is None else asdict(override),
        "about": asdict(about),
    }
    try:
        facts = read_facts(Path(audit))
    except FolderError as error:
        return _hold_unaudited(out, wanted, seed, str(error), override)
    _check_place(out, [samples, audit, against, train, holdout, *fidelity, *utility])
    pick_device(device)  # one that is not there is told before anything is done
    named = _Real(*(None if path is None else Path(path) for path in (against, train, holdout)))
    real = _find_real(facts, Path(samples), Path(audit), named)
    pictures = PictureSettings(**{each.name: facts.settings[each.name] for each in fields(PictureSettings)})
    measured = _read_measured(Path(samples), fidelity, utility, run)
    with open_roles(
        synthetic=Path(samples), against=real.against, train=real.train, holdout=real.holdout, settings=pictures
    ) as roles:
        chosen = _read_all_decisions([Path(place) for place in decisions], facts)
        _check_images(roles.synthetic.folder)
        # What an interrupted release has found holds only for the same audit and the same decisions.
        wanted |= {"audit": facts.digest, "decisions": {str(row): chosen[row] for row in sorted(chosen)}}
        try:
            _begin(out, wanted)
            work = _Work(out, facts, roles, policy, tuple(formats), override, about, measured, signed, seed, device)
            return work.go(chosen, real, wanted)
        except OSError as error:
            raise RunError(
                f"{error.filename or out} cannot be written ({error.strerror or error}). Nothing has left: make room "
                "and repeat the command to go on."
            ) from error


@dataclass(frozen=True)
class _Real:
    """Where the real images are: a cohort, or plain folders."""

    against: Path | None
    train: Path | None
    holdout: Path | None


@dataclass(frozen=True)
class _Measured:
    """What other folders say of the same samples."""

    fidelity: tuple[dict[str, Any], ...]
    utility: tuple[dict[str, Any], ...]
    run: Mapping[str, Any] | None


@dataclass(frozen=True)
class _Work:
    """One release while it is made."""

    out: Path
    facts: AuditFacts
    roles: Roles
    policy: ReleasePolicy
    formats: tuple[Format, ...]
    override: Override | None
    about: About
    measured: _Measured
    signed: Mapping[str, str]
    seed: int
    device: str

    def go(self, chosen: Mapping[int, str], real: _Real, wanted: Mapping[str, Any]) -> ReleaseResult:
        stale = _find_stale(self.facts, self.roles)
        screening = screen(self.facts, chosen, self.policy)
        first = self._judge(screening, None, stale)
        second = None
        # What is held in any case is not worth minutes of a second audit. An audit of other images says nothing of
        # these, and so does nobody who would overrule it.
        may_leave = not stale and bool(screening.kept.any())
        overruled = self.override is not None and may_leave
        if overruled or all(clause.passed for clause in first.clauses if not clause.name.startswith("second")):
            second = self._audit_again(screening, real)
        gate = self._judge(screening, second, stale) if second is not None else first
        if gate.decision == "HELD" and (not overruled or gate.kept == 0):
            return self._finish(gate, None, None, wanted)
        bundle, search = self._bundle(gate, screening)
        if search.leaks:
            shutil.rmtree(bundle)
            gate = _with_leaks(gate, search)
            return self._finish(gate, None, search, wanted)
        bundle.rename(self.out / BUNDLE)
        return self._finish(gate, self.out / BUNDLE, search, wanted)

    def _judge(self, screening: Screening, second: AuditFacts | None, stale: Sequence[str]) -> GateResult:
        return judge(self.policy, self.facts, screening, second, fresh=stale, signatures=self.signed)

    def _audit_again(self, screening: Screening, real: _Real) -> AuditFacts | None:
        """The audit of what remains, by the policy's second measure beside the first ones."""
        if not screening.kept.any():
            return None
        internal = self.out / INTERNAL
        place, again = internal / REMAINDER, internal / SECOND
        if folders.kind_of(again) == "audit":
            return read_facts(again)
        if folders.kind_of(place) != "samples":
            shutil.rmtree(place, ignore_errors=True)
            _write_remainder(self.roles, np.flatnonzero(screening.kept), place)
        given = {each.name: self.facts.settings[each.name] for each in fields(AuditSettings)}
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        settings = replace(AuditSettings(**given), rerank=(), exhaustive=False)
        if self.policy.second == "local":
            settings = replace(settings, local=True)
        else:
            settings = replace(settings, learned=(self.policy.second,))
        tell(f"auditing what remains again, by a second measure: {self.policy.second}")
        audit_samples(
            synthetic=place,
            out=again,
            settings=settings,
            name=f"what remains, with {self.policy.second}",
            seed=self.seed,
            device=self.device,
            against=real.against,
            train=real.train,
            holdout=real.holdout,
        )
        return read_facts(again)

    def _bundle(self, gate: GateResult, screening: Screening) -> tuple[Path, SearchResult]:
        """Write all that leaves the house, and search it. It gets its place only when nothing was found."""
        bundle, place = self.out / INTERNAL / BUNDLE, self.out / INTERNAL / REMAINDER
        for begun in (bundle, self.out / BUNDLE):
            shutil.rmtree(begun, ignore_errors=True)  # of an interrupted release
        bundle.mkdir(parents=True)
        if folders.kind_of(place) != "samples":
            shutil.rmtree(place, ignore_errors=True)
            _write_remainder(self.roles, np.flatnonzero(screening.kept), place)
        remainder = open_images(place, kind="samples")
        dropped = np.isin(np.flatnonzero(screening.kept), gate.removed_by_second_rows)
        rows = np.flatnonzero(~dropped).astype(np.int64)
        cohort = self.roles.train.folder
        write_images(
            remainder, rows, bundle, formats=self.formats, grid=nominal_grid(cohort), note=_note(gate, self.override)
        )
        reference = nominal_reference(cohort, self.roles.train.rows)
        recompute: dict[str, Any] = {"descriptors": None, "frechet": None}
        if reference is not None:
            found = frechet_between(describe_folder(remainder, rows), reference)
            recompute = {"descriptors": as_json(reference), "frechet": found}
        card = build_card(facts=self._describe(gate, screening, remainder, rows) | {"recompute": recompute})
        write_cards(card, bundle)
        write_checksums(bundle)
        with show_progress("Searching the bundle for what is a patient's", total=1, unit="bundles") as progress:
            search = search_bundle(bundle, cohort.path)
            progress.advance()
        return bundle, search

    def _describe(
        self, gate: GateResult, screening: Screening, remainder: ImageFolder, rows: IntArray
    ) -> dict[str, Any]:
        """What the cards say; see `card.build_card`."""
        facts, header, train = self.facts, self.roles.synthetic.folder.header, self.roles.train
        labels = Counter(remainder.column("label")[rows].tolist())
        seeds = remainder.numbers("seed")[rows]
        reasons = Counter(reason for reason in screening.reasons if reason)
        if gate.removed_by_second:
            reasons[f"flagged by {self.policy.second}"] = gate.removed_by_second
        drawn = header.kind == "samples"
        return {
            "title": self.about.title or facts.name,
            "made_by": folders.made_by(),
            # The day alone: the hour tells nobody anything, and bundles of one day are equal byte by byte.
            "created": datetime.now(UTC).date().isoformat(),
            "decision": gate.decision,
            "override": None if self.override is None or gate.decision != "HELD" else asdict(self.override),
            "images": {
                "count": len(rows),
                "channels": list(remainder.channels),
                "height": remainder.size[0],
                "width": remainder.size[1],
                "dtype": remainder.dtype.name,
                "labels": {label or "none": number for label, number in sorted(labels.items())},
            },
            "formats": list(self.formats),
            "generator": {
                "kind": header.content.get("generator", "unknown: pictures of another program") if drawn else "unknown",
                "sampling": _plain_settings(header.settings) if drawn else {},
                "training": {} if self.measured.run is None else _plain_settings(self.measured.run["settings"]),
                "seeds": _runs_of(seeds),
            },
            "training": {"subjects": len(np.unique(train.subjects)), "images": len(train)},
            "privacy": {
                "clauses": as_json(gate.clauses),
                "copies": as_json(gate.copies),
                "audit": _tell_audit(facts),
                "second": None if gate.second is None else {"measure": self.policy.second, **_tell_audit(gate.second)},
                "removed": {
                    "count": gate.removed + gate.removed_by_second,
                    "share": (gate.removed + gate.removed_by_second) / max(len(facts.queries), 1),
                    "reasons": dict(reasons),
                },
                "diversity_lost": _tell_lost(self.roles.synthetic.labels, remainder, rows, facts, gate.second),
                "policy": asdict(self.policy),
            },
            "fidelity": list(self.measured.fidelity),
            "utility": list(self.measured.utility),
            "signatures": dict(self.signed),
            "intended_use": list(self.about.intended_use),
            "licence": self.about.licence,
            "contact": self.about.contact,
        }

    def _finish(
        self, gate: GateResult, bundle: Path | None, search: SearchResult | None, wanted: Mapping[str, Any]
    ) -> ReleaseResult:
        """Write the decision, then the header; what was needed on the way only goes."""
        internal = self.out / INTERNAL
        shutil.rmtree(internal / REMAINDER, ignore_errors=True)
        document = _decision(gate, self.override, search)
        folders.write_json(self.out / DECISION, document)
        content = document | {
            "bundle_digest": None if bundle is None else folders.digest_file(bundle / "checksums.sha256"),
            "second_audit": folders.kind_of(internal / SECOND) == "audit",
            "internal": True,
        }
        inputs = dict(self.facts.inputs) | {"audit": folders.digest_of(self.facts.path, kind="audit")}
        folders.finish_folder(self.out, kind="release", settings=wanted, seed=self.seed, inputs=inputs, content=content)
        return ReleaseResult(self.out, bundle, gate, self.override, search)


def _decision(gate: GateResult, override: Override | None, search: SearchResult | None) -> dict[str, Any]:
    return {
        "decision": gate.decision,
        "override": None if override is None or gate.decision != "HELD" else asdict(override),
        "clauses": as_json(gate.clauses),
        "copies": as_json(gate.copies),
        "removed": gate.removed,
        "removed_by_second": gate.removed_by_second,
        "kept": gate.kept,
        "search": None if search is None else {
            "files": search.files, "streams": search.streams, "bytes": search.bytes_searched,
            "leaks": as_json(search.leaks[:100]), "notes": list(search.notes),
        },
    }  # fmt: skip


def _begin(out: Path, wanted: Mapping[str, Any]) -> None:
    """Begin or resume; samples that were held may be tried again in the same place."""
    if folders.kind_of(out) == "release":
        header = folders.read_header(out, kind="release")
        if header.content.get("bundle_digest") is None:
            shutil.rmtree(out)
    folders.begin_folder(out, kind="release", settings=wanted, resumable=True)


def _hold_unaudited(
    out: Path, wanted: Mapping[str, Any], seed: int, problem: str, override: Override | None
) -> ReleaseResult:
    """Without an audit nothing is known, so nothing leaves: not even by override."""
    if override is not None:
        raise SettingsError(f"{problem} Nothing was measured, so there is nothing that --override could overrule.")
    clause = Clause(
        "audit", "a finished audit of these samples", problem, False, "Run: unalike audit SAMPLES --against COHORT"
    )
    undefined = Estimate(float("nan"), float("nan"), float("nan"), 0, "not audited")
    gate = GateResult.held_without_audit(clause, undefined)
    _begin(out, wanted)
    document = _decision(gate, None, None)
    folders.write_json(out / DECISION, document)
    folders.finish_folder(
        out,
        kind="release",
        settings=wanted,
        seed=seed,
        inputs={},
        content=document | {"bundle_digest": None, "internal": True},
    )
    return ReleaseResult(out, None, gate, None, None)


def _check_place(out: Path, given: Sequence[str | Path | None]) -> None:
    """A release lies in no folder that it is made of: that folder would not be what it was."""
    for place in given:
        if place is not None and out.resolve().is_relative_to(Path(place).resolve()):
            raise SettingsError(f"--out {out} lies in {place}, which is only read. Choose another --out.")


def _read_all_decisions(places: Sequence[Path], facts: AuditFacts) -> dict[int, str]:
    """Decisions of several stewards. Raises `SettingsError` where two disagree: who is right is not for us to say."""
    chosen: dict[int, str] = {}
    for place in places:
        found = read_decisions(place, facts)
        other = [row for row in found if chosen.get(row, found[row]) != found[row]]
        if other:
            raise SettingsError(
                f"{place} says {found[other[0]]!r} of image {other[0]}, another --decisions file says "
                f"{chosen[other[0]]!r} ({len(other)} such images). Let the stewards agree."
            )
        chosen |= found
    return chosen


def _match_signatures(policy: ReleasePolicy, given: Mapping[str, str]) -> dict[str, str]:
    """Signatures by the policy's names of roles. Raises `SettingsError` for one that nobody asks for."""
    known = {role.casefold(): role for role in policy.signatures}
    unknown = [role for role in given if role.casefold() not in known]
    if unknown:
        asked = ", ".join(policy.signatures) or "nobody's"
        raise SettingsError(f"--sign {', '.join(unknown)}: the policy asks for {asked} signature. Mend one of them.")
    return {known[role.casefold()]: name for role, name in given.items() if name.strip()}


def _find_real(facts: AuditFacts, samples: Path, audit: Path, named: _Real) -> _Real:
    """The real images as they are named, or the audit's cohort where it lies beside the samples or the audit."""
    if named != _Real(None, None, None):
        return named
    digest = facts.inputs.get("cohort")
    if digest is None:
        raise SettingsError("this audit was made of plain folders: name them again with --train and --holdout.")
    header = folders.HEADERS["cohort"]
    places = [samples.resolve().parent, audit.resolve().parent]
    near = [sorted(place.glob(f"*/{header}")) for place in places]
    far = [sorted(place.parent.glob(f"*/*/{header}")) for place in places]
    for found in dict.fromkeys(itertools.chain(*near, *far)):
        with contextlib.suppress(OSError, FolderError):  # somebody else's folders are nobody's concern
            if open_images(found.parent).digest == digest:
                tell(f"cohort: {found.parent}")
                return _Real(found.parent, None, None)
    raise SettingsError(
        "the audit's cohort does not lie beside the samples or the audit: name it with --against COHORT."
    )


def _find_stale(facts: AuditFacts, roles: Roles) -> list[str]:
    """Why the audit does not speak of these folders, in words."""
    words = {
        "synthetic": "the samples are not those that were audited, or have changed since",
        "cohort": "the cohort is not the one of the audit, or has changed since",
        "train": "the train folder is not the one of the audit, or has changed since",
        "holdout": "the holdout folder is not the one of the audit, or has changed since",
    }
    return [words[name] for name in words if roles.inputs.get(name) != facts.inputs.get(name)]


def _check_images(samples: ImageFolder) -> None:
    """Every image is what its record says: the audit looked at these pixels."""
    with show_progress("Checking samples", total=len(samples), unit="images") as progress:
        for block in verify_images(samples):
            progress.advance(len(block))


def _write_remainder(roles: Roles, rows: IntArray, place: Path) -> None:
    """The samples that the first audit leaves, as a samples folder that the second can be made of."""
    source = roles.synthetic.folder
    content = source.header.content
    settings = {"kept_of": len(source)}
    folders.begin_folder(place, kind="samples", settings=settings)
    height, width = source.size
    writer = ImageWriter(place, channels=source.channels, height=height, width=width, dtype=source.dtype)
    names = _names_of(source)
    records = source.records.take(rows).to_pylist()
    for begin in range(0, len(rows), writer.chunk):
        part = rows[begin : begin + writer.chunk]
        for row, image, record in zip(part, source.read(part), records[begin : begin + len(part)], strict=True):
            kept = {name: record[name] for name in ("slice", "label", "seed", "digest", "sums", "squares")}
            writer.append(image, kept | {"subject": names[row], "source": "", "role": "synthetic"})
    drawn = {
        name: content[name] for name in ("generator", "subjects", "subject_seed", "aspect_ratios") if name in content
    }
    folders.finish_folder(
        place,
        kind="samples",
        settings=settings,
        seed=source.header.seed,
        # As of the samples: who was seen follows from it.
        inputs={name: digest for name, digest in source.header.inputs.items() if name == "cohort"},
        content=writer.close() | drawn,
    )


def _names_of(source: ImageFolder) -> list[str]:
    """A name for each image's subject: as it was drawn, or, of plain folders, numbered; nobody's file name leaves."""
    subjects = source.column("subject").tolist()
    if all(name.startswith("sample-") for name in subjects):
        return [str(name) for name in subjects]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(subjects))}
    return [f"sample-{numbers[name]:06d}" for name in subjects]


def _read_measured(
    samples: Path, fidelity: Sequence[str | Path], utility: Sequence[str | Path], run: str | Path | None
) -> _Measured:
    """What other folders found of the same samples. Raises `SettingsError` for one that speaks of others."""
    drawn = folders.read_header(samples, kind="samples") if folders.kind_of(samples) == "samples" else None
    digest = "" if drawn is None else folders.digest_of(samples, kind="samples")

    def check(place: Path, kind: str, inputs: Mapping[str, str]) -> None:
        if drawn is not None and inputs.get("synthetic") != digest:
            raise SettingsError(f"--{kind} {place}: it was made of other samples. Leave it out, or measure these.")

    scores: list[dict[str, Any]] = []
    for place in map(Path, fidelity):
        check(place, "fidelity", folders.read_header(place, kind="fidelity").inputs)
        found = read_fidelity(place)
        # The name of features that were learned ends in digits of what they were learned from.
        features = re.sub(r"[ -]?\(?[0-9a-f]{8,}\)?$", "", found.features)
        scores += [as_json(score) | {"features": features} for score in found.scores]
    tables: list[dict[str, Any]] = []
    for place in map(Path, utility):
        header = folders.read_header(place, kind="utility")
        check(place, "utility", header.inputs)
        tables.append({"task": header.content["task"], "table": header.content["table"]})
    if run is None:
        return _Measured(tuple(scores), tuple(tables), None)
    header = folders.read_header(Path(run), kind="run")
    if drawn is None or drawn.inputs.get("run") != folders.digest_of(Path(run), kind="run"):
        raise SettingsError(f"--run {run}: the samples were not drawn from it. Leave it out, or name the right run.")
    return _Measured(tuple(scores), tuple(tables), as_json({"settings": header.settings}))


def _plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, switches and short words: a path could name somebody."""
    plain: dict[str, Any] = {}
    for name, value in settings.items():
        entries = value if isinstance(value, list) else [value]
        if all(not isinstance(each, Mapping) and "/" not in str(each) and "\\" not in str(each) for each in entries):
            plain[name] = "none" if value == "" else value
    return plain


def _runs_of(seeds: IntArray) -> list[list[int]]:
    """Seeds as runs [first, last]; those of another program's pictures are unknown."""
    known = np.unique(seeds[seeds >= 0])
    parts = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1) if len(known) else []
    return [[int(part[0]), int(part[-1])] for part in parts]


def _tell_audit(facts: AuditFacts) -> dict[str, Any]:
    """What of an audit may leave the house: no image, no subject, no path."""
    return {
        "decision": facts.decision,
        "headline": facts.headline,
        "warnings": list(facts.warnings),
        "level": facts.level,
        "holdout_subjects": facts.holdout_subjects,
        "power": [{name: row[name] for name in ("change", "planted", "sham")} for row in _content(facts)["power"]],
    }


def _content(facts: AuditFacts) -> Mapping[str, Any]:
    return folders.read_header(facts.path, kind="audit").content


def _tell_lost(
    before: Any, remainder: ImageFolder, rows: IntArray, facts: AuditFacts, second: AuditFacts | None
) -> dict[str, Any]:
    """What filtering took away beside the copies: classes that grew rarer, and how alike what is left is.

    Empty where nothing was removed.
    """
    counted = Counter(np.asarray(before).tolist())
    left = Counter(remainder.column("label")[rows].tolist())
    total = sum(counted.values())
    if total == len(rows):
        return {}
    lost: dict[str, Any] = {
        f"share of {label or 'all'}": f"{number / total:.1%} before, {left[label] / max(len(rows), 1):.1%} after"
        for label, number in sorted(counted.items())
        if label
    }
    names = {"samples_mean": "mean highest correlation with another sample", "spread": "variance, of that of train"}
    for when, audit in (("before", facts), ("after", second)):
        found = {} if audit is None else _content(audit).get("diversity") or {}
        lost |= {f"{words}, {when}": found[name] for name, words in names.items() if name in found}
    return lost


def _note(gate: GateResult, override: Override | None) -> str:
    """One line for the metadata of every image."""
    line = f"SYNTHETIC image: shows no patient. {folders.made_by()}, decision {gate.decision}."
    if gate.decision != "HELD" or override is None:
        return line
    return f"{line} RELEASED BY OVERRIDE: {' '.join(override.reason.split())}"


def _with_leaks(gate: GateResult, search: SearchResult) -> GateResult:
    """The gate's result when the finished bundle held something of a patient."""
    kinds = Counter(leak.what for leak in search.leaks)
    found = ", ".join(f"{number} × {what}" for what, number in sorted(kinds.items()))
    clause = Clause(
        "nothing of a patient in the bundle",
        "no training or holdout image, pseudonym, identifier or path in any byte of it",
        found,
        False,
        f"the bundle was removed again; see {DECISION} for the files",
    )
    return replace(gate, decision="HELD", clauses=(*gate.clauses, clause))
