"""Attributes of subjects: known values from tables, headers and geometry, what is refused, and folders without them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.images.test_dicom import save, save_stack

from unalike import folders
from unalike.cli import run
from unalike.cohort import build, store
from unalike.cohort.build import prepare_cohort
from unalike.cohort.readers.attributes import clean_value
from unalike.cohort.recipes import recipe_settings
from unalike.cohort.removal import drop_subject
from unalike.cohort.store import ImageFolder, ImageWriter, open_images
from unalike.errors import InputError, SettingsError, UnalikeError
from unalike.report.inspect import inspect_folder

PATTERN = r"(p\d+)_"
TABLE_RECIPE = """
title = "Listed pictures"
expects = "list.csv"
does = "takes them"
reference = ""
[settings]
attributes = ["age"]
[[layout]]
reader = "table"
table = 'list\\.csv$'
path = "{file}"
subject = '(p\\d+)_'
"""


def prepare(source: Path, out: Path, recipe: str = "folder", **changes: Any) -> ImageFolder:
    options = {"holdout": 0.0, "near_duplicates": 0.0} | changes
    return prepare_cohort(
        source=source, out=out, settings=recipe_settings(recipe, **options), key=b"a key of the tests", workers=1
    )


def refuse(kind: type[UnalikeError], message: str, source: Path, out: Path, **changes: Any) -> None:
    with pytest.raises(kind, match=message) as caught:
        prepare(source, out, **changes)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def write_table(path: Path, rows: Sequence[Sequence[object]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return str(path)


def by_source(cohort: ImageFolder) -> dict[str, list[dict[str, str]]]:
    """Attributes of each item's images, by its path in the source."""
    private = pq.read_table(cohort.path / folders.PRIVATE / folders.SOURCES).to_pydict()
    paths = dict(zip(private["source"], private["path"], strict=True))
    found: dict[str, list[dict[str, str]]] = {}
    for source, attributes in zip(cohort.column("source").tolist(), cohort.attributes(), strict=True):
        found.setdefault(paths[source], []).append(attributes)
    return found


@pytest.fixture
def source(make_pictures: Callable[..., Path]) -> Path:
    """Six subjects of two pictures: p0000_0.png to p0005_1.png."""
    return make_pictures(subjects=6)


@pytest.fixture
def listed(source: Path, tmp_path: Path) -> tuple[Path, str]:
    """The pictures in a table of a recipe of one's own, with an age and a sex."""
    rows = [[path.name, 50 + 10 * number, "FM"[number % 2]] for number, path in enumerate(sorted(source.iterdir()))]
    write_table(source / "list.csv", [["file", "age", "sex"], *rows])
    recipe = tmp_path / "own.toml"
    recipe.write_text(TABLE_RECIPE)
    return source, str(recipe)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("sex", "  F ", "F"),
        ("sex", "a\t b\n", "a b"),
        ("sex", "\x1b[2J", "[2J"),
        *(("sex", missing, "") for missing in ("", "  ", "nan", "NaN", "NA", "n/a", "null")),
        ("finding", "none", "none"),
        ("age", "89", "89"),
        ("age", "90", "90"),
        ("age", "89.5", "90"),
        ("age", "104", "90"),
        ("Patient Age", "> 90 years", "90"),
        ("AGE_YEARS", "101", "90"),
        ("ageAtScan", "101", "90"),
        ("patientage", "101", "90"),
        ("Age", "058Y", "58"),
        ("Age", "104Y", "90"),
        ("Age", "018M", "1.5"),
        ("Age", "026W", "0.5"),
        ("age_months", "1068", "1068"),  # 89 years
        ("age_months", "1069", "1080"),
        ("age in days", "40000", "32872.5"),
        ("Age", "young", "young"),
        ("stage", "104", "104"),  # holds the letters, but not the word
        ("percentage", "95", "95"),
        ("image", "95", "95"),
        ("agent", "95", "95"),
    ],
)
def test_values_are_clean_and_ages_bounded(name: str, text: str, value: str) -> None:
    assert clean_value(name, text) == value


# ---------------------------------------------------------------- tables


def test_columns_of_a_recipes_own_table(listed: tuple[Path, str], tmp_path: Path) -> None:
    source, recipe = listed
    found = by_source(prepare(source, tmp_path / "c", recipe, attributes=("sex", "age")))
    expected = {
        f"p000{number // 2}_{number % 2}.png": [{"age": str(min(90, 50 + 10 * number)), "sex": "FM"[number % 2]}]
        for number in range(12)
    }
    assert found == expected


def test_a_recipe_names_attributes_itself(listed: tuple[Path, str], tmp_path: Path) -> None:
    source, recipe = listed
    cohort = prepare(source, tmp_path / "c", recipe)
    assert {frozenset(one) for one in cohort.attributes()} == {frozenset({"age"})}
    assert cohort.header.settings["attributes"] == ["age"]


def test_a_table_beside_names_patients_paths_or_files(source: Path, tmp_path: Path) -> None:
    inner = source / "more"
    inner.mkdir()
    for index in range(2):
        (source / f"p0005_{index}.png").rename(inner / f"p0005_{index}.png")
    table = write_table(
        tmp_path / "t.csv",
        [
            ["who", "age", "sex"],
            ["p0000", "95", " F"],
            ["p0001", "", "M"],  # missing: not in the map
            ["p0002_0.png", "12", ""],  # a file
            ["p0002", "13", "F"],  # its patient
            ["more/p0005_1.png", "7", "M"],
            ["p9999", "1", "F"],  # nobody here
            ["", "1", "F"],
            ["", "2", "M"],
        ],
    )
    options = {"subject_pattern": PATTERN, "attributes": ("age", "sex"), "attributes_table": table}
    cohort = prepare(source, tmp_path / "c", **options)
    found = by_source(cohort)
    assert found["p0000_0.png"] == found["p0000_1.png"] == [{"age": "90", "sex": "F"}]
    assert found["p0001_0.png"] == [{"sex": "M"}]
    assert found["p0002_0.png"] == [{"age": "12"}]
    assert found["p0002_1.png"] == [{"age": "13", "sex": "F"}]
    assert found["p0003_0.png"] == found["more/p0005_0.png"] == [{}]
    assert found["more/p0005_1.png"] == [{"age": "7", "sex": "M"}]
    assert any("5 of 12 pictures have no row in the table" in note for note in cohort.header.content["notes"])
    assert cohort.header.settings["attributes_table"] == "t.csv"  # its folders may tell of people


def test_without_the_option_nothing_is_kept(listed: tuple[Path, str], source: Path, tmp_path: Path) -> None:
    assert prepare(source, tmp_path / "a").attributes() == [{}] * 12
    assert prepare(source, tmp_path / "b", listed[1], attributes=()).attributes() == [{}] * 12


@pytest.mark.parametrize(
    "name",
    ["PatientID", "patient id", "Patient_Id", "Surname", "BIRTHDATE", "mrn", "AccessionNumber", "home address"],
)
def test_columns_that_identify_a_person_are_refused(source: Path, tmp_path: Path, name: str) -> None:
    table = write_table(tmp_path / "t.csv", [["who", name], ["p0000", "x"]])
    options = {"subject_pattern": PATTERN, "attributes_table": table}
    refuse(SettingsError, "identifies a person", source, tmp_path / "c", attributes=(name,), **options)


def test_columns_that_hold_names_under_another_title_are_refused(listed: tuple[Path, str], tmp_path: Path) -> None:
    source, recipe = listed
    refuse(SettingsError, "pictures' files", source, tmp_path / "c", recipe=recipe, attributes=("file",))
    people = [f"p000{number}" for number in range(6)]
    table = write_table(tmp_path / "t.csv", [["who", "code"], *([one, one] for one in people)])
    options = {"subject_pattern": PATTERN, "attributes_table": table}
    refuse(SettingsError, "what patients or files", source, tmp_path / "c", attributes=("code",), **options)
    refuse(SettingsError, "first column", source, tmp_path / "c", attributes=("who",), **options)
    stems = [[path.name, path.stem] for path in sorted(source.glob("*.png"))]
    write_table(tmp_path / "t.csv", [["who", "code"], *stems])
    refuse(SettingsError, "what patients or files", source, tmp_path / "c", attributes=("code",), **options)


def test_tables_that_do_not_fit_are_refused(listed: tuple[Path, str], tmp_path: Path) -> None:
    source, recipe = listed
    out, path = tmp_path / "c", tmp_path / "t.csv"
    options = {"subject_pattern": PATTERN, "attributes": ("age",), "attributes_table": str(path)}
    refuse(SettingsError, "no such column; there are file, age, sex", source, out, recipe=recipe, attributes=("Age",))
    refuse(InputError, "cannot be read as CSV", source, out, **options)
    for rows, kind, message in (
        ([["who", "sex"], ["p0000", "F"]], SettingsError, "no such column; there are who, sex"),
        ([["who", "age"], ["q", "1"]], InputError, "holds no patient, path or file name"),
        ([["who", "age"], ["p0000", "1"], ["p0000", "2"]], InputError, "line 3: p0000 stands there twice"),
        ([["who", "age"], ["p0000", "x" * 65]], SettingsError, "line 2, holds more than 64"),
        ([], InputError, "holds no patient"),
    ):
        write_table(path, rows)
        refuse(kind, message, source, out, **options)
    write_table(path, [["who", "age"], ["p0000", "x" * 64], ["p0000", "x" * 64]])
    assert {"age": "x" * 64} in prepare(source, out, **options).attributes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attributes": ("age", "age")}, "each name once"),
        ({"attributes": (" ",)}, "none that is empty"),
        ({"attributes": "age"}, "give a list"),
        ({"attributes_table": "t.csv"}, "name its columns with --attributes"),
        ({"attributes": ("age",)}, "recipe folder has none of its own; dicom and recipes with a table"),
        ({"attributes": ("position",)}, "recipe folder has none of its own"),
        ({"recipe": "nifti", "size": 8, "attributes": ("age",)}, "recipe nifti has only position"),
        ({"recipe": "dicom", "attributes": ("StudyDate",)}, "only PatientAge, PatientSex, ViewPosition"),
        ({"recipe": "dicom", "attributes": ("PatientName",)}, "identifies a person"),
    ],
)
def test_what_a_recipe_has_not_is_refused_before_anything_is_read(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    refuse(SettingsError, message, tmp_path / "nowhere", tmp_path / "c", **options)


# ---------------------------------------------------------------- volumes and DICOM


@pytest.mark.parametrize(("axis", "depth"), [("axial", 5), ("coronal", 4), ("sagittal", 3)])
def test_slices_know_their_place_in_the_volume(tmp_path: Path, axis: str, depth: int) -> None:
    (tmp_path / "v").mkdir()
    for case in range(2):
        voxels = np.random.default_rng(case).integers(0, 900, (3, 4, 5)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "v" / f"case{case}.nii.gz")
    options = {"recipe": "nifti", "size": 8, "axis": axis, "least_content": 0.0, "attributes": ("position",)}
    places = {
        5: ["0.000", "0.250", "0.500", "0.750", "1.000"],
        4: ["0.000", "0.333", "0.667", "1.000"],
        3: ["0.000", "0.500", "1.000"],
    }[depth]
    cohort = prepare(tmp_path / "v", tmp_path / "c", **options)
    assert [one["position"] for one in cohort.attributes()] == places * 2
    middle = prepare(tmp_path / "v", tmp_path / "m", slices=1, **options)  # of the whole volume, not of what is kept
    assert [one["position"] for one in middle.attributes()] == [places[depth // 2]] * 2
    flat = prepare(tmp_path / "v", tmp_path / "f", crop=(1, 1, 1), **options)
    assert flat.attributes() == [{"position": "0.500"}] * 2


def test_position_and_a_table_go_together(make_volumes: Callable[..., Path], tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "t.csv", [["case", "grade"], *([f"case{number:02d}", number] for number in range(6))]
    )
    cohort = prepare(
        make_volumes(), tmp_path / "c", "nifti", size=14, attributes=("position", "grade"), attributes_table=table
    )
    assert cohort.attributes() == [
        {"grade": str(case), "position": f"{place / 5:.3f}"} for case in range(6) for place in range(6)
    ]


DICOM: dict[str, Any] = {"recipe": "dicom", "size": 4, "least_content": 0.0}


def test_a_stack_of_dicom_has_the_fields_of_its_header_and_positions(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 900, (3, 4, 4)).astype(np.int16)
    for patient, tags in (
        ("P1", {"PatientAge": "058Y", "PatientSex": "F", "Manufacturer": " Acme  Ltd "}),
        ("P2", {"PatientAge": "097Y", "PatientSex": "M", "PatientName": "Doe^Jane"}),
        ("P3", {"PatientAge": "006M", "PatientSex": ""}),
    ):
        uids = {"StudyInstanceUID": f"1.2.{patient[1]}", "SeriesInstanceUID": f"1.2.{patient[1]}.1"}
        own = uids | tags | {"PatientID": patient}
        save_stack(tmp_path / "d" / patient, voxels, positions=[(0, 0, 5 * k) for k in range(3)], **own)
    names = ("PatientAge", "PatientSex", "Manufacturer", "Modality", "position")
    found = by_source(prepare(tmp_path / "d", tmp_path / "c", attributes=names, **DICOM))
    by_patient = {path.split("/")[0]: rows for path, rows in found.items()}
    for patient, said in (
        ("P1", {"PatientAge": "58", "PatientSex": "F", "Manufacturer": "Acme Ltd"}),
        ("P2", {"PatientAge": "90", "PatientSex": "M"}),
        ("P3", {"PatientAge": "0.5"}),
    ):
        rows = [said | {"Modality": "CT", "position": place} for place in ("0.000", "0.500", "1.000")]
        assert by_patient[patient] == rows


def test_each_picture_of_a_dicom_series_has_the_view_of_its_own_file(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number, (view, frames) in enumerate([("PA", 1), ("LL", 2), (None, 1)]):
        path = save(
            tmp_path / "d" / f"{number}.dcm",
            random.integers(0, 255, (4, 4) if frames == 1 else (frames, 4, 4), dtype=np.uint8),
            InstanceNumber=number,
            ViewPosition=view,
            PatientAge="030Y",
            **({"NumberOfFrames": frames} if frames > 1 else {}),
        )
        if view is None:
            path.write_bytes(path.read_bytes().replace(b"030Y", b"ANON"))  # no age, though it stands in its place
    cohort = prepare(tmp_path / "d", tmp_path / "c", attributes=("ViewPosition", "PatientAge"), **DICOM)
    first, second = ({"ViewPosition": view, "PatientAge": "30"} for view in ("PA", "LL"))
    assert cohort.attributes() == [first, second, second, {}]


def test_headers_and_a_table_go_together_for_dicom(tmp_path: Path) -> None:
    for patient in ("P1", "P2"):
        uids = {"StudyInstanceUID": f"1.2.{patient[1]}", "SeriesInstanceUID": f"1.2.{patient[1]}.1"}
        pixels = np.random.default_rng(int(patient[1])).integers(0, 255, (4, 4), dtype=np.uint8)
        save(tmp_path / "d" / f"{patient}.dcm", pixels, PatientID=patient, PatientSex="F", **uids)
    table = write_table(tmp_path / "t.csv", [["who", "PatientSex", "grade"], ["P1", "M", "2"], ["P2", "M", ""]])
    names = ("grade", "PatientSex")
    cohort = prepare(tmp_path / "d", tmp_path / "c", attributes=names, attributes_table=table, **DICOM)
    assert cohort.attributes() == [{"PatientSex": "F", "grade": "2"}, {"PatientSex": "F"}]  # the header's own


# ---------------------------------------------------------------- folders, interruption, removal


def without_column(cohort: ImageFolder) -> None:
    """Make a folder as it was written before there were attributes."""
    records = cohort.path / folders.RECORDS
    pq.write_table(pq.read_table(records).drop_columns(["attributes"]), records)
    header = cohort.path / folders.HEADERS["cohort"]
    document = json.loads(header.read_text())
    document["content"]["records_digest"] = folders.digest_file(records)
    for name in ("attributes", "attributes_table"):
        del document["settings"][name]
    header.write_text(json.dumps(document))


def test_folders_written_before_open_with_none(source: Path, tmp_path: Path) -> None:
    cohort = prepare(source, tmp_path / "c", subject_pattern=PATTERN)
    without_column(cohort)
    assert "attributes" not in pq.read_schema(cohort.path / folders.RECORDS).names
    opened = open_images(cohort.path)
    assert opened.attributes() == [{}] * 12
    assert opened.records.schema.equals(store.SCHEMA)
    assert opened.records.drop_columns(["attributes"]).equals(cohort.records.drop_columns(["attributes"]))
    assert "attributes" not in inspect_folder(opened.path, pictures=tmp_path / "pictures")
    drop_subject(cohort=opened.path, subjects=["p0001"])
    assert open_images(opened.path).attributes() == [{}] * 10


def test_images_written_without_attributes_have_none_and_others_are_sorted_by_name(tmp_path: Path) -> None:
    out = tmp_path / "c"
    folders.begin_folder(out, kind="cohort", settings={})
    writer = ImageWriter(out, channels=("a",), height=4, width=4, dtype=np.dtype(np.uint8))
    about = {"subject": "s", "source": "x", "role": "train"}
    for more in ({}, {"attributes": {"b": "1", "a": "ü"}}, {"attributes": [("a", "2")]}, {"attributes": None}):
        writer.append(np.zeros((1, 4, 4), np.uint8), about | more)
    folders.finish_folder(out, kind="cohort", settings={}, seed=0, inputs={}, content=writer.close())
    opened = open_images(out)
    assert opened.records["attributes"].to_pylist() == [[], [("a", "ü"), ("b", "1")], [("a", "2")], []]
    assert opened.attributes() == [{}, {"a": "ü", "b": "1"}, {"a": "2"}, {}]
    assert pq.read_table(out / folders.RECORDS).equals(opened.records)  # without any schema of ours


def test_the_order_of_names_changes_no_record(listed: tuple[Path, str], tmp_path: Path) -> None:
    source, recipe = listed
    one, other, less = (
        prepare(source, tmp_path / "".join(names), recipe, attributes=names).header.content
        for names in (("age", "sex"), ("sex", "age"), ("sex",))
    )
    assert one["records_digest"] == other["records_digest"] != less["records_digest"]


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> list[str]:
    """Let ``count`` items be loaded, then interrupt; gives the list of those that were."""
    load, loaded = build._load_one, list[str]()

    def one(item: Any, **options: Any) -> Any:
        if len(loaded) >= count:
            raise KeyboardInterrupt
        loaded.append(item.source)
        return load(item, **options)

    monkeypatch.setattr(build, "_load_one", one)
    return loaded


def test_an_interrupted_preparation_goes_on_with_the_same_attributes(
    listed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, recipe = listed
    monkeypatch.setattr(store, "LARGEST_CHUNK_IMAGES", 4)
    options = {"attributes": ("age", "sex")}
    whole = prepare(source, tmp_path / "whole", recipe, **options)
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "c", recipe, **options)
    loaded = stop_after(monkeypatch, 10**6)
    cohort = prepare(source, tmp_path / "c", recipe, **options)
    assert len(loaded) == 4  # two whole chunks are not read again
    assert cohort.attributes() == whole.attributes()
    assert cohort.header.content == whole.header.content


def test_a_table_that_changed_on_the_way_is_noticed(
    listed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, recipe = listed
    monkeypatch.setattr(store, "LARGEST_CHUNK_IMAGES", 4)
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "c", recipe)
    table = source / "list.csv"
    table.write_text(table.read_text().replace("50", "51", 1))
    with pytest.raises(InputError, match="begun when the source had other files"):
        prepare(source, tmp_path / "c", recipe)


def test_attributes_stay_with_their_images_when_a_patient_is_removed(listed: tuple[Path, str], tmp_path: Path) -> None:
    source, recipe = listed
    cohort = prepare(source, tmp_path / "c", recipe, attributes=("age", "sex"))
    before = dict(zip(cohort.column("digest").tolist(), cohort.attributes(), strict=True))
    drop_subject(cohort=cohort.path, subjects=["p0001"])
    after = open_images(cohort.path)
    assert len(after) == 10
    assert all(before[digest] == row for digest, row in zip(after.column("digest"), after.attributes(), strict=True))
    assert {"60", "70", "80"} - {row["age"] for row in after.attributes()} == {"70", "80"}


def test_dropped_duplicates_take_their_attributes_along(listed: tuple[Path, str], tmp_path: Path) -> None:
    source, recipe = listed
    (source / "p0003_0.png").write_bytes((source / "p0000_0.png").read_bytes())
    cohort = prepare(source, tmp_path / "c", recipe, attributes=("age", "sex"), on_leak="drop", near_duplicates=1.0)
    assert "p0003_0.png" not in (found := by_source(cohort))
    assert found["p0003_1.png"] == [{"age": "90", "sex": "M"}]
    assert found["p0000_0.png"] == [{"age": "50", "sex": "F"}]


# ---------------------------------------------------------------- inspect and the command line


def test_inspect_lists_attributes(source: Path, tmp_path: Path) -> None:
    rows = [
        [path.name, number, "" if number < 2 else "FFM"[number % 3], f"v{number:02d}", "7"]
        for number, path in enumerate(sorted(source.iterdir()))
    ]
    table = write_table(tmp_path / "t.csv", [["who", "age", "sex", "site", "dose"], *rows])
    names = ("age", "sex", "site", "dose")
    cohort = prepare(source, tmp_path / "c", attributes=names, attributes_table=table)
    listed = ", ".join(f"v{number:02d} 1" for number in range(10))
    assert inspect_folder(cohort.path)["attributes"] == {
        "age": "(12 of 12 images: 0 to 11)",
        "dose": "(12 of 12 images: 7)",
        "sex": "(10 of 12 images: F 6, M 4)",
        "site": f"(12 of 12 images: {listed}, and 2 other values)",
    }


def test_the_command_line_takes_several_names_after_one_flag(
    listed: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, recipe = listed
    out = tmp_path / "c"
    common = ["prepare", str(source), "--recipe", recipe, "--near-duplicates", "0", "--holdout", "0"]
    assert run([*common, "--attributes", "age", "sex", "--out", str(out)]) == 0
    assert open_images(out).attributes()[0] == {"age": "50", "sex": "F"}
    assert run(["inspect", str(out)]) == 0
    assert "attributes: age (12 of 12 images: 50 to 90), sex (12 of 12 images: F 6, M 6)" in capsys.readouterr().out
    assert run([*common, "--out", str(tmp_path / "d")]) == 0  # the recipe's own
    assert open_images(tmp_path / "d").attributes()[0] == {"age": "50"}
    assert run([*common, "--attributes", "age", "--attributes", "sex", "--out", str(tmp_path / "e")]) == 0
    assert open_images(tmp_path / "e").attributes()[0] == {"age": "50", "sex": "F"}
    capsys.readouterr()
    assert run([*common, "--attributes", "PatientID", "--out", str(tmp_path / "f")]) == 2
    assert "identifies a person" in capsys.readouterr().err


def test_no_name_or_path_of_a_table_leaves_the_private_part(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Mueller"
    folder.mkdir()
    table = write_table(folder / "t.csv", [["surname", "age"], ["p0000", "50"]])
    cohort = prepare(source, tmp_path / "c", subject_pattern=PATTERN, attributes=("age",), attributes_table=table)
    for path in cohort.path.rglob("*"):
        if path.is_file() and folders.PRIVATE not in path.parts:
            data = path.read_bytes()
            assert b"Mueller" not in data
            assert b"surname" not in data
