"""A study file: what it becomes, what changes with it, and that all that is wrong is told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from unalike.errors import SettingsError
from unalike.study.cells import Cell, fingerprint
from unalike.study.plan import plan_cells, read_study

STUDY = """
[study]
title = "Two"
layout = "akbar2025"
[phantoms.brains]
subjects = 24
[cohorts.volumes]
phantom = "brains"
size = 32
percentiles = [1, 99]
channels = ["t1", "t2"]
about.paper = "BRATS20"
[cohorts.pictures]
data = "chest"
size = 32
stratify = true
[generators.diffusion]
preset = "akbar2025"
ema-decays = [0.9, 0.99]
steps = 10
subjects = [8, 0]
vary.size = ["small", "medium"]
sample.sampler = "dpm++"
[generators.memorizer]
cohorts = ["volumes"]
[samples]
count = 30
[audit]
planted = 0
[fidelity]
generators = ["memorizer"]
[utility]
cohorts = ["pictures"]
[explain]
of = ["utility", "audit"]
each = 1
[sweeps.table1]
kind = "diffusion"
cohort = "volumes"
count = 100
train.steps = [5, 10]
train.subjects = [4, 0]
train.channel-multipliers = [[1, 2], [1, 1]]
sample.guidance = [1, 2.5]
set.batch-size = 4
[[commands]]
name = "film"
needs = ["audit:volumes/memorizer/all"]
argv = ["sample", "{run:volumes/memorizer/all}", "--count", "3", "--out", "{out}"]
"""


FILM = "command:film"  # it draws from the memorizer of the volumes, once that has been audited


@pytest.fixture
def write(tmp_path: Path) -> object:
    (tmp_path / "chest").mkdir()
    (tmp_path / "chest" / "a.png").write_bytes(b"a picture")

    def make(text: str = STUDY) -> Path:
        file = tmp_path / "study.toml"
        file.write_text(text)
        return file

    return make


def _plan(file: Path) -> dict[str, Cell]:
    cells = plan_cells(read_study(file, {"chest": file.parent / "chest"}), file.parent / "out")
    return {cell.name: cell for cell in cells}


def _changed(before: dict[str, Cell], after: dict[str, Cell]) -> set[str]:
    return {name for name, cell in before.items() if after[name].out != cell.out}


def test_cells_are_the_commands_a_user_would_type(write, tmp_path: Path) -> None:
    cells = _plan(write())
    out = tmp_path / "out"
    brains, volumes = cells["phantom:brains"], cells["cohort:volumes"]
    assert brains.argv == ("phantom", str(brains.out), "--subjects", "24")
    assert brains.out.parent == out / "sources"
    assert volumes.argv[:4] == ("prepare", str(brains.out), "--out", str(volumes.out))
    assert " ".join(volumes.argv[4:]) == (
        f"--recipe nifti --size 32 --percentiles 1.0 99.0 --channels t1 --channels t2 --key {out / 'phantom.key'}"
    )
    assert cells["cohort:pictures"].argv[1] == str(tmp_path / "chest")
    assert cells["cohort:pictures"].argv[-1] == "--stratify"
    run = cells["run:volumes/diffusion/8"]
    assert run.argv == (
        *("train", "diffusion", str(volumes.out), "--out", str(run.out), "--preset", "akbar2025"),
        *("--ema-decays", "0.9", "--ema-decays", "0.99", "--steps", "10", "--subjects", "8"),
    )
    samples = cells["samples:volumes/diffusion/8"]
    assert samples.argv == (
        *("sample", str(run.out), "--out", str(samples.out), "--count", "30", "--sampler", "dpm++"),
    )
    audit = cells["audit:volumes/diffusion/8"]
    assert audit.argv[:6] == ("audit", str(samples.out), "--against", str(volumes.out), "--out", str(audit.out))
    assert audit.needs == ("samples:volumes/diffusion/8", "cohort:volumes")
    assert audit.about["about"] == {"paper": "BRATS20"}
    sweep = cells["sweep:table1"].argv
    assert [word for word in sweep if "=" in word] == [
        *("subjects=4,all", "steps=5,10", "channel_multipliers=1+2,1+1", "guidance=1,2.5", "batch_size=4"),
    ]
    film = cells["command:film"]
    assert film.argv[1] == str(cells["run:volumes/memorizer/all"].out)
    assert film.argv[-1] == str(film.out)
    assert film.kind == "samples"
    assert film.needs == ("audit:volumes/memorizer/all", "run:volumes/memorizer/all")


def test_measures_are_asked_of_those_they_name(write) -> None:
    names = list(_plan(write()))
    assert [name for name in names if name.startswith("fidelity:")] == ["fidelity:volumes/memorizer/all"]
    of = [name for name in names if name.startswith("utility:")]
    assert of
    assert all(name.startswith("utility:pictures/diffusion/") for name in of)
    assert "explain:pictures/diffusion/8" in names
    assert "explain:pictures/diffusion/8/audit" in names
    assert "explain:volumes/memorizer/all" not in names


def test_each_cell_stands_after_what_it_needs(write) -> None:
    seen: set[str] = set()
    for name, cell in _plan(write()).items():
        assert set(cell.needs) <= seen
        seen.add(name)


def test_a_variation_that_is_the_plain_training_shares_its_folder(write) -> None:
    cells = _plan(write())
    plain, medium, small = (cells[f"audit:volumes/diffusion/8{tail}"] for tail in ("", "/size=medium", "/size=small"))
    assert medium.out == plain.out
    assert medium.needs == (plain.name,)
    assert small.out != plain.out
    assert small.about["varied"] == {"size": "small"}


def test_the_same_file_gives_the_same_folders(write) -> None:
    file = write()
    first = _plan(file)
    assert _plan(file) == first
    outs = {cell.out for cell in first.values()}
    shared = [name for name in first if "/size=medium" in name]
    assert len(outs) == len(first) - len(shared)


@pytest.mark.parametrize(
    ("before", "after", "touched"),
    [
        ("planted = 0", "planted = 8", lambda name: name.startswith(("audit:", FILM)) or name.endswith("/audit")),
        ("each = 1", "each = 2", lambda name: name.startswith("explain:")),
        (
            'cohorts = ["volumes"]\n',
            'cohorts = ["volumes"]\nnoise = 5\n',
            lambda name: "/memorizer/" in name or name == FILM,
        ),
        ("steps = 10\n", "steps = 11\n", lambda name: "/diffusion/" in name),
        (
            "subjects = 24",
            "subjects = 25",
            lambda name: "volumes" in name or name.startswith(("phantom:", "sweep:", FILM)),
        ),
        ('title = "Two"', 'title = "Other"', lambda name: False),
    ],
)
def test_a_change_makes_new_folders_below_it_and_nowhere_else(write, before: str, after: str, touched) -> None:
    first = _plan(write())
    second = _plan(write(STUDY.replace(before, after)))
    assert _changed(first, second) == {name for name in first if touched(name)}


def test_a_changed_file_of_the_data_makes_the_cohort_anew(write, tmp_path: Path) -> None:
    first = _plan(write())
    assert fingerprint(tmp_path / "chest") == fingerprint(tmp_path / "chest")
    (tmp_path / "chest" / "a.png").write_bytes(b"another picture")
    changed = _changed(first, _plan(write()))
    assert "cohort:pictures" in changed
    assert "utility:pictures/diffusion/8" in changed
    assert not any("volumes" in name for name in changed)


def test_moved_data_change_nothing(write, tmp_path: Path) -> None:
    file = write()
    first = _plan(file)
    (tmp_path / "chest").rename(tmp_path / "moved")
    second = plan_cells(read_study(file, {"chest": tmp_path / "moved"}), tmp_path / "out")
    assert not _changed(first, {cell.name: cell for cell in second})


def test_a_seed_is_said_where_it_counts(write) -> None:
    file = write(STUDY.replace('title = "Two"', 'title = "Two"\nseed = 3'))
    cells = _plan(file)
    for name in ("phantom:brains", "cohort:volumes", "run:volumes/memorizer/all", "audit:volumes/memorizer/all"):
        assert cells[name].argv[-2:] == ("--seed", "3")
    assert "--seed" not in cells["samples:volumes/memorizer/all"].argv
    assert read_study(file, {"chest": file.parent / "chest"}, seed=5).seed == 5


def test_all_that_is_wrong_is_told_at_once(write, tmp_path: Path) -> None:
    wrong = """
[study]
title = 3
layout = "akbar2024"
[cohort.x]
[phantoms.brains]
subjects = 0
[cohorts.a]
data = "chest-xray"
siz = 32
[cohorts.b]
source = "nowhere"
size = 2
[cohorts.c]
phantom = "brain"
[generators.diffusion]
cohorts = ["aa"]
learning-rate = -1
batch-size = "many"
vary.size = ["huge"]
sample.steps = 0
[generators.gan]
kind = "styleган"
[audit]
level = 2
[explain]
[[commands]]
name = "x"
argv = ["smaple", "{out}"]
[[commands]]
name = "y"
argv = ["sample", "{run:a/diffusion/al}", "{out}"]
"""
    with pytest.raises(SettingsError) as caught:
        read_study(write(wrong), {"chest": tmp_path})
    told = str(caught.value)
    assert "\n" not in told
    for part in (
        "nothing was started: 1) ",
        "[cohort]: unknown table; did you mean cohorts?",
        "[study] title = 3: give text",
        "layout 'akbar2024': unknown; did you mean akbar2025?",
        "[phantoms.brains] phantom: subjects is 0",
        "[cohorts.a]: where is chest-xray? Say --data chest-xray=PATH",
        "[cohorts.a] siz: unknown; did you mean size?",
        f"[cohorts.b]: {tmp_path / 'nowhere'} does not exist",
        "[cohorts.b] --size 2: give 4 to 4096 pixels",
        "[cohorts.c] phantom brain: unknown; did you mean brains?",
        "[generators.diffusion] cohorts aa: unknown",
        "[generators.diffusion] learning_rate = -1.0",
        "[generators.diffusion] batch-size = 'many': give a whole number",
        "[generators.diffusion.vary] size = 'huge': give one of tiny",
        "[generators.diffusion.sample] steps = 0",
        "[generators.gan] kind 'styleган': unknown",
        "[audit] --level 2.0",
        "[explain] explains [utility], which the study has not",
        "[[commands]] x argv: 'smaple' is no command of unalike; did you mean sample?",
        "[[commands]] y run:a/diffusion/al: there is no such cell",
        "--data chest: nothing in the study asks for it; did you mean chest-xray?",
    ):
        assert part in told, part


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[study", "is no TOML file"),
        ("[cohorts.a]\nsource = '.'", r"no \[study\] table"),
        ("[study]\n[cohorts.a]\nsource = '.'\ndata = 'x'", "only one"),
        ("[study]\n[cohorts.a]\nfolder = '.'", "cohort"),
        ("[study]\n[cohorts.a]\nsource = '.'\nrecipe = 'brat'", "--recipe brat is unknown"),
        ("[study]\n[cohorts.A]\nsource = '.'", "small letters"),
        ("[study]\n[cohorts.a]\nsource='.'\n[generators.gaussian]\nsubjects = [-1]", "0 for all"),
        ("[study]\n[cohorts.a]\nsource='.'\n[generators.diffusion]\nwatch-level = 0.1", "watch-every"),
        ("[study]\n[samples]\ncount = 0", "at least 1 sample"),
        ("[study]\nseed = -1", "from 0"),
        ("[study]\n[utility]\ntask='segment'\n[explain]", "explains classifiers"),
        ("[study]\n[[commands]]\nname='a'\nargv=['sample']", "where the command writes"),
        ("[study]\n[sweeps.a]\nkind='gaussian'\ncohort='x'", "cohort 'x': unknown"),
    ],
)
def test_what_makes_no_sense_is_refused(write, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_study(write(text))


def test_a_study_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        read_study(tmp_path / "none.toml")


def test_the_command_line_takes_every_planned_command(write) -> None:
    from unalike.cli import build_app

    app = build_app()
    for cell in _plan(write()).values():
        if cell.stage != "cohort":  # recipes are looked up on the way, which the planner has done
            app.parse_args(list(cell.argv), exit_on_error=False, print_error=False)
