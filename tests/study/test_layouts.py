"""Layouts: the papers' numbers, the three findings where the answer is known, and pages of studies with holes in them.

Audits are written by hand in the shape the audit has, because what they say must be known; cohorts, samples and
memories of generators are made with the cheap ones.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.report.conftest import FakeAudit

from unalike import folders
from unalike.cohort.build import prepare_cohort
from unalike.cohort.settings import PrepareSettings
from unalike.errors import FolderError, SettingsError
from unalike.records import Estimate
from unalike.report import figures
from unalike.report.tables import Table
from unalike.runs.sample import draw_samples
from unalike.runs.train import train_generator
from unalike.stats.intervals import estimate_difference, estimate_share
from unalike.study.layouts import LAYOUTS, find_paper, list_papers, write_results
from unalike.study.layouts.akbar2025 import (
    answer_findings,
    combine_means,
    join_answers,
    judge_excess,
    judge_shares,
    share_difference,
    tabulate_models,
    tabulate_sizes,
)
from unalike.study.layouts.dewilde2023 import tabulate_mixtures, tabulate_sweep
from unalike.study.layouts.generic import Model, Results, read_model
from unalike.study.layouts.nafi2024 import tabulate_classes, tabulate_networks
from unalike.study.layouts.papers import (
    AKBAR_TABLE_2,
    AKBAR_TABLE_3,
    DEWILDE_TABLE_1,
    DEWILDE_TABLE_4,
    NAFI_TABLE_1,
    NAFI_TABLE_2,
)
from unalike.study.plan import plan_cells, read_study

SECRET = "/hospital/patients/Miller.nii"


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DOTS", 30)


@dataclass
class FakeStudy:
    """A result put together by hand: each folder is added under a cell's name."""

    path: Path
    layout: str = "akbar2025"
    title: str = "A study <of> nobody & all"
    cells: list[Any] = field(default_factory=list)

    def add(self, name: str, out: Path | None = None, *, state: str = "", reason: str = "", **about: Any) -> None:
        stage, _, told = name.partition(":")
        place = self.path / re.sub(r"\W+", "-", f"no-{name}") if out is None else out
        state = state or ("done" if out is not None else "not run")
        if "/" in told:
            about.setdefault("kind", told.split("/")[1].split("-")[0])
        cell = SimpleNamespace(name=name, stage=stage, argv=(), out=place, needs=(), about=about)
        self.cells.append(SimpleNamespace(cell=cell, state=state, reason=reason, seconds=1.0))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of pictures with two images a subject, and a memorizer's samples."""
    from PIL import Image
    from tests.conftest import draw_person

    place = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    for label in ("ill", "healthy"):
        (place / "pictures" / label).mkdir(parents=True)
        for subject in range(10):
            for index, image in enumerate(draw_person(random, images=2, size=16)):
                Image.fromarray(image).save(place / "pictures" / label / f"{label}{subject:02d}_{index}.png")
    settings = PrepareSettings(size=16, holdout=0.4, subject_pattern=r"([a-z]+\d+)_", near_duplicates=0)
    prepare_cohort(source=place / "pictures", out=place / "cohort", settings=settings)
    train_generator(kind="memorizer", cohort=place / "cohort", out=place / "run")
    draw_samples(run=place / "run", out=place / "samples", count=9)
    return place


@pytest.fixture
def study(world: Path, tmp_path: Path) -> FakeStudy:
    """Two data sets; diffusion copies (few subjects more), StyleGAN does not; one model has failed."""
    made = FakeStudy(tmp_path)
    made.add("cohort:chest", world / "cohort", about={"paper": "CXR-1300"})
    made.add("cohort:other", world / "cohort")
    for model, copied in (("diffusion/8", 0.9), ("diffusion/all", 0.4), ("stylegan/8", 0.0), ("stylegan/all", 0.0)):
        key = f"chest/{model}"
        fake = FakeAudit(name=key, copied=copied, train_subjects=8 if model.endswith("8") else 30, side=16, pairs=1)
        made.add(f"run:{key}")
        made.add(f"samples:{key}", world / "samples")
        made.add(f"audit:{key}", fake.write(tmp_path / model.replace("/", "-")))
    made.add("run:other/diffusion/all", state="failed", reason=f"{SECRET} is broken. Mend it.")
    made.add("audit:other/diffusion/all", state="not run", reason="needs run:other/diffusion/all")
    return made


def lines(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.head, line, strict=True)) for line in table.lines()]


# The papers


def test_the_papers_numbers_stand_as_printed() -> None:
    found = {(row.data, row.kind): (row.fid, row.inception, row.correlation) for row in AKBAR_TABLE_2}
    assert found["BRATS20", "diffusion"] == (15.85417, 2.35191, 0.98510)
    assert found["CXR-1300", "stylegan"] == (54.68277, 2.41764, 0.83847)
    assert len(found) == 8
    # Medium is the default: table 3 repeats table 2.
    for (data, kind), sizes in AKBAR_TABLE_3.items():
        assert sizes["medium"] == found[data, kind][2]
    assert sum(row.total for row in NAFI_TABLE_1 if row.data == "Brain Tumor") == 7023
    assert len(NAFI_TABLE_2) == 24
    best = {
        data: max(r.test_accuracy for r in NAFI_TABLE_2 if r.data == data) for data in ("Covid", "Brain Tumor", "ALL")
    }
    assert best == {"Covid": 78.24, "Brain Tumor": 86.46, "ALL": 91.38}
    assert min(DEWILDE_TABLE_1.values()) == DEWILDE_TABLE_1[100, 1.0] == 168
    assert [
        (row.auc, row.deviation) for row in DEWILDE_TABLE_4 if (row.real, row.synthetic, row.cases) == (200, 2000, 100)
    ] == [(0.803, 0.009)]


def test_every_paper_is_there_with_its_small_twin_and_can_be_planned(tmp_path: Path) -> None:
    names = set(list_papers())
    assert {"akbar2025", "nafi2024", "dewilde2023"} | {
        f"{n}-small" for n in ("akbar2025", "nafi2024", "dewilde2023")
    } <= names
    for name in names:
        text = find_paper(name).read_text(encoding="utf-8")
        asked = {*re.findall(r'^data = "(.+)"', text, re.MULTILINE), *re.findall(r"\{data:(.+?)\}", text)}
        assert bool(asked) != name.endswith("-small")
        plan = read_study(find_paper(name), dict.fromkeys(asked, tmp_path))
        assert plan.layout in LAYOUTS
        assert len(plan_cells(plan, tmp_path / "out")) >= 8


def test_the_open_study_repeats_trainings_that_are_known(tmp_path: Path) -> None:
    study = read_study(find_paper("akbar2025-open"), {"hippocampus": tmp_path, "chest-xray": tmp_path})
    wanted = {"batch_size": 16, "learning_rate": 2e-3, "size": "tiny"}
    assert study.generators["diffusion"].settings == {"steps": 5000} | wanted
    assert study.generators["stylegan"].settings == {"steps": 4000} | wanted
    assert study.cohorts["hippocampus"].settings == {"recipe": "msd", "size": 32, "slices": 8, "holdout": 0.25}


def test_a_misspelt_paper_is_told_the_closest_name() -> None:
    with pytest.raises(SettingsError, match=r"Did you mean akbar2025-small\? There are: akbar2025, "):
        find_paper("akbar2025-smal")


# Numbers


def test_combined_means_agree_with_the_difference_of_two() -> None:
    random = np.random.default_rng(1)
    sides = [(random.normal(mean, 1, 300), np.repeat(np.arange(60).astype(str), 5)) for mean in (0.4, 0.1)]
    ours = combine_means([(1, *sides[0]), (-1, *sides[1])], purpose="a")
    theirs = estimate_difference(*sides, random=np.random.default_rng(0))
    assert ours.value == pytest.approx(theirs.value)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert ours.n == 60


def test_combined_means_resample_subjects_and_not_images() -> None:
    values = np.repeat(np.random.default_rng(2).normal(0, 1, 30), 50)
    clustered = combine_means([(1, values, np.repeat(np.arange(30).astype(str), 50))], purpose="a")
    single = combine_means([(1, values, np.arange(1500).astype(str))], purpose="a")
    ratio = (clustered.high - clustered.low) / (single.high - single.low)
    assert ratio == pytest.approx(math.sqrt(50), rel=0.2)


def test_combined_means_of_nothing_and_of_one_subject_have_no_interval() -> None:
    some = (1, np.arange(4.0), np.array(list("abcd")))
    assert math.isnan(combine_means([some, (-1, np.full(2, np.nan), np.array(["a", "b"]))], purpose="a").value)
    found = combine_means([some, (-1, np.ones(3), np.array(["a"] * 3))], purpose="a")
    assert found.value == 0.5
    assert math.isnan(found.low)


def test_difference_of_shares_is_newcombes() -> None:
    found = share_difference(estimate_share(50, 100), estimate_share(10, 100))
    assert found.value == pytest.approx(0.4)
    # Clopper and Pearson: 0.3983 to 0.6017, and 0.0490 to 0.1762.
    assert found.low == pytest.approx(0.4 - math.hypot(0.5 - 0.3983, 0.1762 - 0.1), abs=1e-3)
    assert found.high == pytest.approx(0.4 + math.hypot(0.6017 - 0.5, 0.1 - 0.0490), abs=1e-3)
    assert share_difference(estimate_share(0, 9), estimate_share(9, 9)).low == -1


@pytest.mark.parametrize(
    ("difference", "first", "second", "answer"),
    [
        ((0.10, 0.05, 0.15), (0.12, 0.08), (0.02, -0.01), "seen"),
        ((-0.10, -0.15, -0.05), (0.02, 0.01), (0.12, 0.1), "not seen"),
        ((0.02, -0.01, 0.05), (0.1, 0.05), (0.1, 0.05), "cannot tell"),
        # The first is closer than the second, but neither is closer than new patients are: nothing is copied.
        ((0.02, 0.01, 0.03), (-0.01, -0.02), (-0.03, -0.04), "not seen"),
        ((0.02, 0.01, 0.03), (0.004, -0.003), (-0.03, -0.04), "cannot tell"),
        ((0.02, math.nan, math.nan), (0.1, 0.05), (0.1, 0.05), "cannot tell"),
    ],
)
def test_excess_is_judged_against_new_patients(
    difference: tuple[float, ...], first: tuple[float, float], second: tuple[float, float], answer: str
) -> None:
    own = [Estimate(value, low, 2 * value - low, 100, "") for value, low in (first, second)]
    assert judge_excess(Estimate(*difference, 100, ""), *own) == answer


def test_shares_are_judged_only_where_something_could_be_flagged() -> None:
    assert judge_shares(estimate_share(90, 100), estimate_share(0, 100)) == "seen"
    assert judge_shares(estimate_share(0, 100), estimate_share(90, 100)) == "not seen"
    assert judge_shares(estimate_share(4, 100), estimate_share(0, 100)) == "cannot tell"
    assert judge_shares(None, estimate_share(90, 100)) == "cannot tell"


def test_two_answers_that_disagree_are_none() -> None:
    assert join_answers("seen", "cannot tell") == join_answers("cannot tell", "seen") == "seen"
    assert join_answers("seen", "not seen") == "cannot tell"


# Akbar et al.


def test_findings_are_seen_where_they_were_planted(study: FakeStudy) -> None:
    part = answer_findings(Results(study))
    found = {(row["finding"], row["first"], row["second"]): row["answer"] for row in lines(part.tables[0])}
    of = "chest, {}, {}".format
    for subjects in ("8 subjects", "all subjects"):
        names = of("Diffusion model", subjects), of("StyleGAN", subjects)
        assert found["Diffusion copies more than StyleGAN", *names] == "seen"
    few_many = "Fewer training subjects, more copying"
    assert found[few_many, of("Diffusion model", "8 subjects"), of("Diffusion model", "all subjects")] == "seen"
    assert found[few_many, of("StyleGAN", "8 subjects"), of("StyleGAN", "all subjects")] != "seen"
    assert part.lead[0] == "1. Diffusion copies more than StyleGAN: seen in 2 of 2 comparisons."
    assert part.lead[2] == "3. Slices of volumes are copied more than single images: no comparison was planned."


def test_table_2_has_ours_beside_the_papers_and_not_run_for_what_failed(study: FakeStudy) -> None:
    rows = lines(tabulate_models(Results(study)))
    ours = rows[0]
    assert ours["data"] == "chest (CXR-1300)"
    assert ours["training subjects"] == "8 (640 images)"
    assert ours["verdict"] == "copies found"
    assert re.fullmatch(r"0\.\d{3} \(0\.\d{3} to .+\)", ours["mean highest correlation"])
    paper = {row["model"]: row for row in rows if row["numbers"] == "Akbar et al. 2025"}
    assert {row["data"] for row in paper.values()} == {"chest (CXR-1300)"}
    assert (paper["Diffusion model"]["Fréchet distance"], paper["StyleGAN"]["mean highest correlation"]) == (
        "57.5",
        "0.838",
    )
    failed = rows[-1]
    assert failed["data"] == "other (not the paper's data)"
    assert failed["verdict"] == failed["mean highest correlation"] == failed["Fréchet distance"] == "not run"


def test_table_3_takes_sizes_from_commands_where_nothing_was_trained(study: FakeStudy) -> None:
    for done, size in zip(
        (done for done in study.cells if done.cell.name.startswith("run:chest")),
        ("small", "large", "small"),
        strict=False,
    ):
        done.cell.argv = ("train", "diffusion", "--size", size)
    rows = lines(tabulate_sizes(Results(study)))
    ours = next(row for row in rows if (row["model"], row["training subjects"]) == ("Diffusion model", "8"))
    assert ours["small"].startswith("0.")
    assert ours["medium"] == ours["large"] == "not run"
    paper = next(row for row in rows if row["numbers"] == "Akbar et al. 2025")
    assert [paper[size] for size in ("small", "medium", "large")] == ["0.864", "0.879", "0.885"]


def test_pages_and_files_are_written_and_only_internal_ones_show_pictures(study: FakeStudy) -> None:
    written = write_results(study, study.path)
    assert all(path.is_file() for path in written)
    names = {path.name for path in written if path.parent.name == "figures"}
    # The cohort's images are single ones: figures 4 to 6, of which the last holds numbers alone.
    assert names == {f"figure-{n}.{s}" for n in ("4-internal", "5-internal", "6") for s in ("png", "svg")}
    internal, shareable = (
        (study.path / name).read_text(encoding="utf-8") for name in ("report.html", "report-shareable.html")
    )
    assert "INTERNAL: contains images of real patients" in internal
    assert internal.count("data:image/png") == 2
    assert SECRET in internal
    assert "A study &lt;of&gt; nobody &amp; all" in internal
    assert internal.index("Cells that failed") < internal.index("Were the paper")
    assert "data:image" not in shareable
    assert SECRET not in shareable
    assert "run:other/diffusion/all: failed" in shareable
    for text in (internal, shareable):
        assert "nan" not in re.sub(r"<style.*?</style>|data:[^\"]+", "", text, flags=re.DOTALL).split()
        assert not re.search("https?:", text)


def test_results_are_the_same_when_written_again(study: FakeStudy) -> None:
    def all_files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in write_results(study, study.path)}

    (study.path / "tables").mkdir()
    (study.path / "tables" / "old.md").write_text("of an earlier form")
    assert all_files() == all_files()
    assert not (study.path / "tables" / "old.md").exists()


def test_a_damaged_folder_is_told_and_its_row_stays(study: FakeStudy) -> None:
    place = next(done.cell.out for done in study.cells if done.cell.name == "audit:chest/stylegan/all")
    (place / folders.MATCHES).write_bytes(b"no table")
    results = Results(study)
    row = lines(tabulate_models(results))[3]
    assert [problem.partition(":chest")[0] for problem in results.problems] == ["audit"]
    assert results.problems[0].startswith("audit:chest/stylegan/all cannot be read")
    assert row["verdict"] == "not run"


def test_a_place_that_cannot_be_written_is_refused_in_one_line(study: FakeStudy) -> None:
    (study.path / "file").write_text("")
    with pytest.raises(FolderError, match="cannot be written"):
        write_results(study, study.path / "file")


@pytest.mark.parametrize("layout", ["", *LAYOUTS])
def test_a_study_of_which_nothing_ran_makes_a_page(layout: str, tmp_path: Path) -> None:
    study = FakeStudy(tmp_path, layout=layout)
    for name in ("cohort:a", "run:a/diffusion/all", "audit:a/diffusion/all", "utility:a/diffusion/all", "sweep:table1"):
        study.add(name, cohort="a")
    assert (tmp_path / "report.html") in write_results(study, tmp_path)
    assert "not run" in (tmp_path / "tables" / "models.md").read_text(encoding="utf-8")
    write_results(FakeStudy(tmp_path, layout=layout), tmp_path)


def test_names_of_cells_say_what_a_model_is() -> None:
    assert read_model("a/diffusion/all") == Model("a", "diffusion", "all")
    assert read_model("a/diffusion/32/size=small/steps=5").varied == (("size", "small"), ("steps", "5"))
    assert read_model("a/diffusion/32/size=small").key == "a/diffusion/32/size=small"


def test_a_variation_that_trains_as_the_plain_settings_is_one_model(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.add("run:a/diffusion/all", tmp_path / "one")
    study.add("run:a/diffusion/all/size=tiny", tmp_path / "one")
    study.add("run:a/diffusion/all/size=small", tmp_path / "two")
    assert [model.variation for model in Results(study).models()] == ["", "size small"]


# Nafi et al.


def estimate(value: float) -> dict[str, Any]:
    return {
        "value": value,
        "low": value - 0.05,
        "high": value + 0.05,
        "n": 40,
        "method": "bootstrap",
        "confidence": 0.95,
    }


def write_utility(place: Path) -> Path:
    place.mkdir()
    plain = dict.fromkeys(("train_loss", "validation_loss", "train_accuracy", "validation_accuracy"), 0.25)
    rows = [
        {"network": "resnet18", "source": source, **plain, "test_loss": estimate(0.9), "test_accuracy": estimate(right)}
        | {"precision": estimate(0.61), "recall": estimate(0.62), "f1": estimate(0.63)}
        for source, right in (("synthetic", 0.7), ("real", 0.8))
    ]
    difference = {
        "network": "resnet18",
        "first": "synthetic",
        "second": "real",
        "accuracy": estimate(-0.1),
        "f1": estimate(0),
    }
    mixed = {"real": 200, "synthetic": 2000, "augmentation": True, "auc_mean": 0.8, "auc_deviation": 0.02}
    mixing = {"rows": [mixed | {"auc": estimate(0.8), "difference": estimate(0.02)}]}
    content = {"task": "classify", "table": rows, "differences": [difference], "mixing": mixing}
    folders.finish_folder(place, kind="utility", settings={}, seed=0, inputs={}, content=content)
    return place


def test_tables_of_classes_and_networks_stand_beside_the_papers(world: Path, tmp_path: Path) -> None:
    study = FakeStudy(tmp_path, layout="nafi2024")
    study.add("cohort:covid", world / "cohort", about={"paper": "Covid"})
    study.add("run:covid/diffusion/all")
    study.add("samples:covid/diffusion/all", world / "samples")
    study.add("utility:covid/diffusion/all", write_utility(tmp_path / "utility"))
    study.add("run:covid/stylegan/all")
    study.add("utility:covid/stylegan/all", state="failed")
    classes = lines(tabulate_classes(Results(study)))
    ours = {row["class"]: row for row in classes if row["numbers"] == "ours"}
    assert {name: row["images"] for name, row in ours.items()} == {"healthy": "20", "ill": "20"}
    assert sum(int(row["for the generator (train)"]) for row in ours.values()) == 24
    assert sum(int(row["generated"]) for row in ours.values()) == 9
    assert [row["images"] for row in classes if row["numbers"] != "ours"] == ["1,252", "1,229"]
    networks = lines(tabulate_networks(Results(study)))
    assert networks[0]["test accuracy"] == "70.0% (65.0% to 75.0%)"
    assert networks[0]["trained on real: test accuracy"] == "80.0% (75.0% to 85.0%)"
    assert networks[0]["synthetic − real, accuracy"] == "−10.0% (−15.0% to −5.0%)"
    assert networks[1]["test accuracy"] == "not run"
    paper = [row for row in networks if row["numbers"] == "Nafi et al. 2024"]
    assert len(paper) == 8
    assert {row["network"]: row["test accuracy"] for row in paper}["ResNet-50"] == "78.2%"
    assert {path.name for path in write_results(study, tmp_path)} >= {"figure-5-internal.png", "figure-6-internal.png"}


# De Wilde et al.


def test_mixtures_stand_beside_the_papers_of_the_same_proportion(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path, layout="dewilde2023")
    study.add("cohort:prostate", about={"paper": "PI-CAI"})
    for subjects in ("all", "20"):
        study.add(f"run:prostate/inversion/{subjects}")
        study.add(f"utility:prostate/inversion/{subjects}", write_utility(tmp_path / subjects))
    rows = lines(tabulate_mixtures(Results(study)))
    assert [row["AUC, mean ± deviation over trainings"] for row in rows] == ["0.800 ± 0.020"] * 2
    assert [row["AUC, interval over test subjects"] for row in rows] == ["0.800 (0.750 to 0.850)"] * 2
    assert [row["AUC, de Wilde et al. 2023"] for row in rows] == ["0.803 ± 0.009", "0.745 ± 0.012"]


def write_sweep(place: Path) -> Path:
    place.mkdir()
    measured = {name: estimate(0.5) for name in ("frechet", "copies", "power", "highest", "highest_holdout", "alike")}
    found = measured | {"holdout_subjects": 40, "seconds": 1.0, "training_seconds": 1.0}
    rows = [
        {
            "cell": {"train": {"steps": 9}, "sample": {"steps": steps, "guidance": guidance}},
            "run": "r",
            "found": None if steps == 25 else found,
            "failed": "no room" if steps == 25 else "",
        }
        for steps in (25, 100)
        for guidance in (1.0, 2.0)
    ]
    content = {"generator": "inversion", "count": 100, "rows": rows, "yardstick": estimate(0.1)}
    folders.finish_folder(place, kind="sweep", settings={}, seed=0, inputs={}, content=content)
    return place


def test_a_sweep_of_steps_and_guidance_is_table_1(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path, layout="dewilde2023")
    study.add("cohort:prostate", about={"paper": "PI-CAI"})
    study.add("sweep:table1", write_sweep(tmp_path / "sweep"), cohort="prostate")
    study.add("sweep:table1-again", cohort="prostate")
    first, second = tabulate_sweep(Results(study), 1)
    rows = lines(first)
    # What does not vary is no column; of the training's steps and the sampling's only the latter vary.
    assert first.head[:3] == ["sampling steps", "guidance", "Fréchet distance"]
    assert [row["Fréchet distance"] for row in rows[:3]] == ["not run", "not run", "0.5 (0.45 to 0.55)"]
    # The paper has no images of 25 steps with guidance 1.
    assert [row["FID, de Wilde et al. 2023"] for row in rows] == ["", "194", "168", "171", ""]
    assert set(second.lines()[0]) == {"not run"}
    assert list(tabulate_sweep(Results(study), 2)) == []


def test_columns_of_a_figure_are_commands_of_its_name(world: Path, tmp_path: Path) -> None:
    study = FakeStudy(tmp_path, layout="dewilde2023")
    study.add("command:figure3-healthy", world / "samples")
    study.add("command:figure3-ill", state="failed")
    study.add("command:film", tmp_path)
    names = {path.name for path in write_results(study, tmp_path)}
    assert "figure-3-internal.svg" in names
    assert re.search("<!-- ill -->|>ill<", (tmp_path / "figures" / "figure-3-internal.svg").read_text(encoding="utf-8"))


def test_a_layout_that_fails_is_told_and_leaves_the_summary(study: FakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Results) -> Any:
        raise ValueError("a hole")

    monkeypatch.setitem(LAYOUTS, "akbar2025", fail)
    write_results(study, study.path)
    assert (study.path / "tables" / "models.csv").is_file()
    assert "a hole" in (study.path / "report.html").read_text(encoding="utf-8")
