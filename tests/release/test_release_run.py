"""The whole gate, from folders to a bundle, in worlds whose answer is known."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.conftest import draw_person

from unalike import folders
from unalike.audit.changes import CHANGES
from unalike.audit.run import audit_samples
from unalike.audit.settings import AuditSettings
from unalike.cli import run as run_command
from unalike.cohort.build import prepare_cohort
from unalike.cohort.settings import PrepareSettings
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.errors import FolderError, SettingsError
from unalike.release.policy import ReleasePolicy
from unalike.release.run import Override, ReleaseResult, release_samples
from unalike.release.verify import verify_bundle

# Few holdout subjects and few images: the budget is as wide as such a small world can meet.
SMALL = ReleasePolicy(copy_rate=0.2, exposed=0.5, closer=1.0, second="local", second_power=0.5)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cohort of 90 subjects, a third held out, samples of new people (clean) and with 4 copies (copied), audited."""
    with pytest.MonkeyPatch.context() as patch:
        for change in list(CHANGES)[2:]:  # plain copies are all that the gate asks about
            patch.delitem(CHANGES, change)
        yield make_world(tmp_path_factory.mktemp("world"))


def make_world(place: Path) -> Path:
    pictures = place / "pictures"
    pictures.mkdir()
    random = np.random.default_rng(0)
    for subject in range(90):
        for index, image in enumerate(draw_person(random, images=2)):
            Image.fromarray(image).save(pictures / f"patient{subject:03d}_{index}.png")
    settings = PrepareSettings(subject_pattern=r"(patient\d+)_", holdout=1 / 3)
    cohort = prepare_cohort(source=pictures, out=place / "cohort", settings=settings)
    people = np.concatenate([draw_person(random) for _ in range(40)])[:, None]
    write_samples(place / "clean", people, cohort)
    copied = people.copy()
    noise = random.integers(-5, 6, (4, 1, 24, 24))
    copied[:4] = np.clip(cohort.read(cohort.rows("train")[[0, 10, 20, 30]]).astype(int) + noise, 0, 255)
    write_samples(place / "copied", copied, cohort)
    for name in ("clean", "copied"):
        audit_samples(
            synthetic=place / name,
            against=place / "cohort",
            out=place / f"audit-{name}",
            settings=AuditSettings(planted=20),
        )
    return place


def write_samples(out: Path, images: np.ndarray, cohort: ImageFolder) -> Path:
    folders.begin_folder(out, kind="samples", settings={})
    height, width = images.shape[2:]
    writer = ImageWriter(out, channels=cohort.channels, height=height, width=width, dtype=images.dtype)
    for seed, image in enumerate(images):
        label = "even" if seed % 2 == 0 else "odd"
        record = {"subject": f"sample-{seed:06d}", "source": "run", "role": "synthetic", "seed": seed, "label": label}
        writer.append(image, record)
    folders.finish_folder(
        out,
        kind="samples",
        settings={"steps": 25, "prompt": "/home/somebody/secret"},
        seed=0,
        inputs={"cohort": cohort.digest},
        content=writer.close() | {"subjects": None, "subject_seed": 0, "generator": "diffusion"},
    )
    return out


@pytest.fixture(autouse=True)
def one_second_audit_of_the_same_images(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests release the same images: what the second audit found of them is kept."""
    from unalike.release import run as room

    def audit_once(*, synthetic: Path, out: Path, **options: object) -> None:
        name = open_images(synthetic, kind="samples").header.content["images_digest"][:16]
        kept = world / f"kept-{name}"
        if not kept.is_dir():
            audit_samples(synthetic=synthetic, out=out, **options)
            shutil.copytree(out, kept)
        elif not out.is_dir():
            shutil.copytree(kept, out)

    monkeypatch.setattr(room, "audit_samples", audit_once)


def release(world: Path, out: Path, name: str = "clean", **options: object) -> ReleaseResult:
    options = {"policy": SMALL, "against": world / "cohort"} | options
    return release_samples(samples=world / name, audit=world / f"audit-{name}", out=out, **options)


def test_clean_samples_leave_in_every_format_and_the_bundle_verifies(world: Path, tmp_path: Path) -> None:
    found = release(world, tmp_path / "out", formats=("png", "nifti", "dicom", "samples"))
    assert found.gate.decision in ("RELEASE", "FILTERED"), [c for c in found.gate.clauses if not c.passed]
    bundle = found.bundle
    assert bundle is not None
    checked = verify_bundle(bundle)
    assert checked.passed, checked.problems
    assert checked.images == found.gate.kept
    assert found.search is not None
    assert not found.search.leaks
    subprocess.run(["sha256sum", "-c", "--quiet", "checksums.sha256"], cwd=bundle, check=True)
    card = json.loads((bundle / "card.json").read_text())
    assert card["decision"] == found.gate.decision
    assert card["generator"]["sampling"] == {"steps": 25}
    every = b"".join(path.read_bytes() for path in bundle.rglob("*") if path.is_file())
    assert b"secret" not in every
    assert str(world).encode() not in every


def test_copies_are_removed_and_named_with_why(world: Path, tmp_path: Path) -> None:
    found = release(world, tmp_path / "out", "copied", formats=("samples",))
    assert found.gate.decision == "FILTERED", [c for c in found.gate.clauses if not c.passed]
    left = open_images(found.bundle / "samples", kind="samples")
    assert not set(left.numbers("seed").tolist()) & {0, 1, 2, 3}
    assert len(left) == found.gate.kept == 40 - found.gate.removed - found.gate.removed_by_second


def test_another_audit_holds_with_exit_code_three(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["release", str(world / "clean"), "--audit", str(world / "audit-copied"), "--out", str(out)]
    assert run_command([*arguments, "--against", str(world / "cohort")]) == 3
    said = capsys.readouterr().err
    assert "not those that were audited" in said
    assert not (out / "bundle").exists()
    assert folders.read_header(out, kind="release").content["decision"] == "HELD"


def test_the_command_gives_one_json_document(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('copy_rate = 0.2\nexposed = 0.5\ncloser = 1.0\nsecond = "local"\n')
    arguments = [str(world / "clean"), "--audit", str(world / "audit-clean"), "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert run_command(["release", *arguments, "--policy", str(policy), "--json"]) == 0  # the cohort lies beside
    said = json.loads(capsys.readouterr().out)
    assert said["decision"] in ("RELEASE", "FILTERED")
    assert Path(said["bundle"]).is_dir()
    assert {clause["name"] for clause in said["clauses"]} >= {"fresh audit", "copy rate", "second finds"}


def test_a_missing_audit_holds_and_the_same_place_serves_again(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    held = release_samples(samples=world / "clean", audit=tmp_path / "nowhere", out=out)
    assert (held.gate.decision, held.bundle) == ("HELD", None)
    assert release(world, out).bundle is not None


def test_a_changed_image_is_refused(world: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(world / "clean", changed)
    chunk = changed / "images.zarr" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[7] ^= 1
    chunk.write_bytes(bytes(content))
    with pytest.raises(FolderError, match="image 0 was changed"):
        release_samples(samples=changed, audit=world / "audit-clean", out=tmp_path / "out", against=world / "cohort")
    assert not (tmp_path / "out").exists()


def test_an_uncalibrated_audit_holds(make_pictures: Callable[..., Path], tmp_path: Path) -> None:
    train, synthetic = make_pictures("train"), make_pictures("synthetic", seed=5)
    audit_samples(synthetic=synthetic, train=train, out=tmp_path / "audit")
    found = release_samples(samples=synthetic, audit=tmp_path / "audit", out=tmp_path / "out", train=train)
    assert found.gate.decision == "HELD"
    failed = {clause.name: clause for clause in found.gate.clauses if not clause.passed}
    assert "calibrated" in failed


def test_a_policy_that_nothing_can_meet_says_which_clause_and_by_how_much(world: Path, tmp_path: Path) -> None:
    found = release(world, tmp_path / "out", policy=replace(SMALL, copy_rate=0.0001))
    assert found.gate.decision == "HELD"
    failed = {clause.name: clause for clause in found.gate.clauses if not clause.passed}
    assert "percentage points above" in failed["copy rate"].gap
    assert "planted" in failed["copy rate"].gap  # what would help


def test_an_override_is_written_into_everything_that_leaves(world: Path, tmp_path: Path) -> None:
    strict = replace(SMALL, copy_rate=0.0001)
    why = "agreed with the ethics board"
    found = release(world, tmp_path / "out", policy=strict, override=Override(why, "A. Berg"), formats=("png", "dicom"))
    assert found.overridden
    bundle = found.bundle
    for name in ("card.json", "README.md", "datasheet.md", "card.html"):
        assert why in (bundle / name).read_text(), name
    with Image.open(next((bundle / "images" / "png").rglob("*.png"))) as picture:
        assert any(why in str(value) for value in picture.info.values())
    import pydicom

    first = pydicom.dcmread(next((bundle / "images" / "dicom").rglob("*.dcm")))
    assert why in str(first.ImageComments)
    assert verify_bundle(bundle).passed


@pytest.mark.parametrize("forged", ["patients.csv", "card.json"])
def test_a_bundle_with_new_checksums_holds_nothing_strange(world: Path, tmp_path: Path, forged: str) -> None:
    from unalike.release.checksums import write_checksums

    bundle = release(world, tmp_path / "out").bundle
    card = json.loads((bundle / "card.json").read_text())
    (bundle / forged).write_text("name\n" if forged == "patients.csv" else json.dumps(card | {"schema": 99}))
    write_checksums(bundle)
    checked = verify_bundle(bundle)
    assert not checked.passed
    assert any(forged in problem for problem in checked.problems)


def test_an_override_needs_a_reason(world: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--reason"):
        release(world, tmp_path / "out", override=Override(" "))


def test_a_missing_signature_holds_and_a_given_one_does_not(world: Path, tmp_path: Path) -> None:
    signed = replace(SMALL, signatures=("data protection officer",))
    assert release(world, tmp_path / "a", policy=signed).gate.decision == "HELD"
    found = release(world, tmp_path / "b", policy=signed, signatures={"Data Protection Officer": "A. Berg"})
    assert found.bundle is not None
    with pytest.raises(SettingsError, match="asks for"):
        release(world, tmp_path / "c", policy=signed, signatures={"king": "B"})


def test_what_a_steward_calls_a_copy_is_removed(world: Path, tmp_path: Path) -> None:
    decisions = {
        "kind": "decisions",
        "schema": 1,
        "audit": folders.digest_of(world / "audit-clean", kind="audit"),
        "name": "clean",
        "made": "2026-01-01T00:00:00Z",
        "by": "A. Berg",
        "pairs": [{"query": 17, "reference": 3, "decision": "copy", "note": ""}],
    }
    place = tmp_path / "decisions.json"
    place.write_text(json.dumps(decisions))
    found = release(world, tmp_path / "out", decisions=[place], formats=("samples",))
    assert found.gate.decision == "FILTERED"
    assert 17 not in open_images(found.bundle / "samples", kind="samples").numbers("seed")
    place.write_text(json.dumps(decisions | {"audit": "0" * 64}))
    with pytest.raises(SettingsError, match="decisions"):
        release(world, tmp_path / "other", decisions=[place])


def test_a_finished_release_is_never_overwritten(world: Path, tmp_path: Path) -> None:
    release(world, tmp_path / "out")
    with pytest.raises(FolderError, match="finished"):
        release(world, tmp_path / "out")


def test_a_policy_with_typos_lists_all_of_them(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('copy_rat = 0.01\npower = "high"\n')
    arguments = ["release", str(world / "clean"), "--audit", str(world / "audit-clean"), "--out", str(tmp_path / "out")]
    assert run_command([*arguments, "--policy", str(policy)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in ("copy_rat", "power", "policy.toml"))
    assert not (tmp_path / "out").exists()


def test_an_audit_of_other_images_cannot_be_overruled(world: Path, tmp_path: Path) -> None:
    found = release_samples(
        samples=world / "clean",
        audit=world / "audit-copied",
        against=world / "cohort",
        out=tmp_path / "out",
        policy=SMALL,
        override=Override("in a hurry"),
    )
    assert (found.gate.decision, found.bundle) == ("HELD", None)
    assert not (tmp_path / "out" / "bundle").exists()


def interrupt_before_the_search(world: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release of the clean samples whose bundle is written and not yet searched."""
    from unalike.release import run as room

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(room, "search_bundle", stop)
        with pytest.raises(KeyboardInterrupt):
            release(world, out)


def test_a_bundle_gets_its_place_only_when_it_was_searched(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_before_the_search(world, tmp_path / "out", monkeypatch)
    assert not (tmp_path / "out" / "bundle").exists()
    assert verify_bundle(release(world, tmp_path / "out").bundle).passed


def test_an_interrupted_release_does_not_go_on_with_other_decisions(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_before_the_search(world, tmp_path / "out", monkeypatch)
    document = {
        "kind": "decisions",
        "schema": 1,
        "audit": folders.digest_of(world / "audit-clean", kind="audit"),
        "pairs": [{"query": 5, "reference": 0, "decision": "copy", "note": ""}],
    }
    (tmp_path / "late.json").write_text(json.dumps(document))
    with pytest.raises(FolderError, match="other settings"):
        release(world, tmp_path / "out", decisions=[tmp_path / "late.json"])


def test_a_find_of_the_search_takes_the_bundle_away_whatever_anybody_says(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unalike.release import run as room
    from unalike.release.leaks import Leak

    real = room.search_bundle

    def find(bundle: Path, cohort: Path) -> object:
        return replace(real(bundle, cohort), leaks=(Leak("images/x.png", "decoded picture", "training image", "one"),))

    monkeypatch.setattr(room, "search_bundle", find)
    found = release(world, tmp_path / "out", override=Override("never mind"))
    assert (found.gate.decision, found.bundle) == ("HELD", None)
    assert not list((tmp_path / "out").rglob("*.png"))


def test_stewards_who_disagree_are_told_so(world: Path, tmp_path: Path) -> None:
    places = []
    for number, decision in enumerate(("copy", "not a copy")):
        document = {
            "kind": "decisions",
            "schema": 1,
            "audit": folders.digest_of(world / "audit-clean", kind="audit"),
            "pairs": [{"query": 3, "reference": 0, "decision": decision, "note": ""}],
        }
        places.append(tmp_path / f"{number}.json")
        places[-1].write_text(json.dumps(document))
    with pytest.raises(SettingsError, match="image 3"):
        release(world, tmp_path / "out", decisions=places)


@pytest.mark.parametrize("inside", ["clean", "cohort", "audit-clean"])
def test_a_release_lies_in_no_folder_that_it_is_made_of(world: Path, inside: str) -> None:
    with pytest.raises(SettingsError, match="only read"):
        release(world, world / inside / "release")
    assert not (world / inside / "release").exists()


def test_what_only_an_override_could_release_and_nothing_is_left_of_is_held(world: Path, tmp_path: Path) -> None:
    cohort = open_images(world / "cohort")
    copies = write_samples(tmp_path / "copies", cohort.read(cohort.rows("train")[:30]), cohort)
    audit_samples(
        synthetic=copies, against=cohort.path, out=tmp_path / "audit", settings=AuditSettings(planted=8, pairs=4)
    )
    found = release_samples(
        samples=copies,
        audit=tmp_path / "audit",
        against=cohort.path,
        out=tmp_path / "out",
        policy=SMALL,
        override=Override("all of them"),
    )
    assert (found.gate.decision, found.bundle, found.gate.kept) == ("HELD", None, 0)


def test_a_full_disk_is_one_line_and_leaves_no_bundle(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unalike.errors import RunError
    from unalike.release import run as room

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(room, "write_images", full)
    with pytest.raises(RunError, match="No space left"):
        release(world, tmp_path / "out")
    assert not (tmp_path / "out" / "bundle").exists()
