"""The page: nothing leaves it, nothing slips into it, and it says what the audit says."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from unalike import folders
from unalike.errors import FolderError, SettingsError
from unalike.records import Estimate
from unalike.report import figures, write_report
from unalike.report.inspect import inspect_folder
from unalike.report.page import PICTURE_BUDGET
from unalike.report.read import read_audit
from unalike.report.statistics import STATISTICS, brief_lines
from unalike.report.words import (
    format_count,
    format_estimate,
    format_expected,
    format_number,
    format_percent,
    format_probability,
)

MakeAudit = Callable[..., Path]
VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = '<script>alert("x")</script> & $\\frac{1}{2}$ --> \'"'


class Page(HTMLParser):
    """Collects tags, attributes and visible text, and checks that tags balance."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def values(self, *names: str) -> list[str]:
        return [value for _, attributes in self.tags for key, value in attributes.items() if key in names]


@pytest.fixture(autouse=True)
def empty_figure_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figure of pairs is no part of a page, and the slowest to draw."""
    monkeypatch.setattr(figures, "draw_pairs", lambda *_, **__: Figure(figsize=(1, 1)))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def pictures_in(html: str) -> list[np.ndarray]:
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def edit_header(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "audit.json"
    document = json.loads(read(path))
    change(document["content"])
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.mark.parametrize("shareable", [False, True])
def test_nothing_is_asked_of_the_network(make_audit: MakeAudit, shareable: bool) -> None:
    html = read(write_report(make_audit(), shareable=shareable))
    page = Page(html)
    for value in page.values("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
        assert value.startswith(("#", "data:image/png;base64,"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    forbidden = {"link", "iframe", "object", "embed", "form", "base"}
    # The internal page of one audit has the script of its desk, which its policy names by its digest.
    assert not {tag for tag, _ in page.tags} & (forbidden | {"script"} if shareable else forbidden)
    assert "@import" not in html
    (policy,) = [a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_ids_are_unique_and_links_lead_somewhere(make_audit: MakeAudit, tmp_path: Path) -> None:
    audits = [make_audit("one"), make_audit("two", seed=1)]
    html = read(write_report(audits, out=tmp_path / "page.html"))
    ids = Page(html).values("id")
    assert len(ids) == len(set(ids))
    targets = [value[1:] for value in Page(html).values("href") if value.startswith("#")]
    targets += re.findall(r"url\(#([^)]*)\)", html)
    targets += [name for value in Page(html).values("aria-labelledby") for name in value.split()]
    assert set(targets) <= set(ids)


def test_verdict_comes_first_and_distrust_with_it(make_audit: MakeAudit) -> None:
    html = read(write_report(make_audit(warnings=["subject shared between roles"])))
    order = [
        "INTERNAL",
        "copies found",
        "112 of 128 synthetic",
        "subject shared between roles",
        "The numbers",
    ]
    places = [html.index(text) for text in order]
    assert places == sorted(places)


def test_numbers_stand_with_their_intervals(make_audit: MakeAudit) -> None:
    text = " ".join(" ".join(Page(read(write_report(make_audit()))).text).split())
    assert "87.5% 112 of 128 80.5% to 93.5%" in text
    assert "0.0062 1 / (160 + 1)" in text
    assert "2,559 holdout subjects" in text
    assert "n = 160" in text
    assert "bootstrap over subjects" in text


def test_undefined_is_a_word(make_audit: MakeAudit) -> None:
    folder = make_audit(holdout=0, copied=0.0, power=False, undefined=3, decision="cannot tell")
    html = read(write_report(folder))
    without_data = re.sub(r"base64,[^\"]*", "", html)
    assert not re.search(r"\b(nan|NaN|None|null|inf)\b", without_data)
    assert "undefined" in html
    assert "no holdout" in html
    assert "3 synthetic images have no defined correlation" in html
    assert "Not measured: no copies were planted" in html


def test_an_audit_in_which_all_is_undefined_still_has_a_page(make_audit: MakeAudit) -> None:
    folder = make_audit(synthetic=4, undefined=4, copied=0.0, holdout=0, pairs=0)
    html = read(write_report(folder))
    assert "The audit kept no pairs" in html


@pytest.mark.parametrize(("holdout", "why"), [(0, "without a holdout"), (12, "too few holdout subjects")])
def test_nothing_flagged_is_no_good_news_where_nothing_could_be(
    make_audit: MakeAudit, tmp_path: Path, holdout: int, why: str
) -> None:
    audits = [make_audit("one", holdout=holdout, copied=0.0, decision="cannot tell"), make_audit("two")]
    for html in (read(write_report(audits[0])), read(write_report(audits, out=tmp_path / "both.html"))):
        assert why in html
        assert "not judged" in html
        # With any holdout it can be said how many lie beyond it, and only that.
        assert html.count(">0 of 128<") == (holdout > 0)
        assert "No training subject is the best match" not in html
        assert "nobody is exposed so far" not in html


def test_hostile_names_are_text(make_audit: MakeAudit, tmp_path: Path) -> None:
    folder = make_audit(name=HOSTILE, headline=HOSTILE, warnings=[HOSTILE], settings={HOSTILE: HOSTILE})
    one = read(write_report(folder, title=HOSTILE))
    both = read(write_report([folder, folder], out=tmp_path / "both.html"))
    # The desk has its data in two blocks, and its own script.
    for html, scripts in ((one, 3), (both, 0)):
        assert len([tag for tag, _ in Page(html).tags if tag == "script"]) == scripts
        assert html.count("<script") == scripts
        assert "<script>alert" not in html
        assert 'alert("x")' in "".join(Page(html).text)


def test_shareable_page_shows_nobody(make_audit: MakeAudit) -> None:
    settings = {"level": 0.05, "cohort": "/hospital/doe-john", "best": 5, "power": True}
    folder = make_audit(settings=settings, poses=("left-right", "as it is"), reranked=True)
    pseudonyms = [f"pseu{number:02d}" for number in range(8)] + ["hold000"]
    # Even a sentence of the audit that names a subject gives nobody away.
    edit_header(folder, lambda content: content["verdict"]["warnings"].append("Subject pseu03dddd is twice."))
    internal = read(write_report(folder))
    assert len(pictures_in(internal)) > 6
    assert pseudonyms[3] in internal

    page = write_report(folder, shareable=True)
    html = read(page)
    assert page.name == "report-shareable.html"
    assert pictures_in(html) == []
    assert "data:" not in "".join(Page(html).values("src", "href"))
    # Nor an image of theirs by its number; what is said of all together stays.
    assert "Training image" not in html.replace("Training images hit", "")
    assert "Which measure spoke loudest for the 112 flagged images" in visible(page)
    assert "Copies among all that it would draw" in html
    assert "Histogram of p-values" in html
    assert not list((folder / "figures").glob("closest-pairs.*")) or "closest-pairs" not in html
    assert not [name for name in pseudonyms if name in html]
    assert "Subject [subject] is twice." in html
    assert "doe-john" not in html
    assert "INTERNAL" not in html
    assert "Shareable form" in html


def test_shareable_page_does_not_open_the_evidence(make_audit: MakeAudit) -> None:
    folder = make_audit()
    (folder / folders.EVIDENCE).unlink()
    assert write_report(folder, shareable=True).is_file()


def test_internal_page_holds_the_very_pixels(make_audit: MakeAudit) -> None:
    folder = make_audit()
    shown = [picture.tobytes() for picture in pictures_in(read(write_report(folder)))]
    with np.load(folder / folders.EVIDENCE) as evidence:
        for name in ("synthetic", "train"):
            assert all(pixels[0].tobytes() in shown for pixels in evidence[name])


def visible(path: Path) -> str:
    """All text of a page on one line."""
    return " ".join(" ".join(Page(read(path)).text).split())


def test_whole_set_statistics_stand_with_intervals_and_meanings(make_audit: MakeAudit) -> None:
    text = visible(write_report(make_audit()))
    for statistic in STATISTICS:
        assert f"{statistic.label} " in text
        assert statistic.says in text
        assert statistic.says_not in text
    assert "0.123 0.113 to 0.990, n = 128" in text  # distance ratio, synthetic → train
    assert "62.5% 50.0% to 75.0%, n = 128" in text
    assert "at most 98.7%" in text
    assert "8 of 8" in text
    assert "21.2 9 to 40, n = 112" in text
    assert "3 0.5 to 7.8, n = 112" in text


def test_each_pair_tells_measure_and_pose_and_lies_as_it_was_found(make_audit: MakeAudit) -> None:
    """The evidence holds the training image as it is; the page turns it by the pose."""
    folder = make_audit(poses=("quarter turn",))
    html = read(write_report(folder))
    shown = [picture.tobytes() for picture in pictures_in(html)]
    with np.load(folder / folders.EVIDENCE) as evidence:
        for train in evidence["train"]:
            assert np.rot90(train[0], 1).tobytes() in shown
            assert train[0].tobytes() not in shown
    assert html.count("Training image, turned") == 3
    assert "whitened" in visible(folder / folders.REPORT)
    assert "112 of them were found in another pose" in visible(folder / folders.REPORT)


def test_correlation_as_shown_is_that_of_the_two_pictures(make_audit: MakeAudit) -> None:
    """Mirrored pictures correlate perfectly once the match is mirrored back; one is brighter, which does not count."""
    first = np.random.default_rng(0).integers(0, 100, (3, 1, 8, 8), dtype=np.uint8)
    folder = make_audit(pictures=(first * 2 + 3, first[..., ::-1].copy()), poses=("left-right",))
    pairs = read_audit(folder, shareable=False).pairs
    assert pairs is not None
    assert pairs.correlation == pytest.approx([1.0, 1.0, 1.0], abs=1e-12)
    folder = make_audit("flat", pictures=(first, np.full_like(first, 7)))
    flat = read_audit(folder, shareable=False).pairs
    assert flat is not None
    assert np.isnan(flat.correlation).all()
    assert "correlation as shown undefined" in visible(write_report(folder))


def test_an_equal_image_is_not_turned(make_audit: MakeAudit) -> None:
    same = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    pairs = read_audit(make_audit(pictures=(same, same), poses=("half turn",)), shareable=False).pairs
    assert pairs is not None
    assert set(pairs.pose.tolist()) == {"as it is"}
    np.testing.assert_array_equal(pairs.train, same)


def test_flagged_pairs_come_first_and_small_p_values_next(make_audit: MakeAudit) -> None:
    folder = make_audit(pairs=4)
    with np.load(folder / folders.EVIDENCE) as evidence:
        arrays = dict(evidence)
    arrays["flagged"] = np.array([False, False, True, False])
    arrays["p_value"] = np.array([np.nan, 0.5, 0.25, 0.125])
    np.savez(folder / folders.EVIDENCE, **arrays)
    pairs = read_audit(folder, shareable=False).pairs
    assert pairs is not None
    assert pairs.train_index.tolist() == [14, 21, 7, 0]


def test_power_shows_what_each_measure_finds_alone(make_audit: MakeAudit) -> None:
    text = visible(write_report(make_audit()))
    assert "Caught by one measure alone" in text
    assert "shift, 1 px 7.8% 0.8% to 13.8% 4.7% 0% to 10.7% 25% 8% undefined" in text
    assert "raw weight 0.25 correlation of plain pixels" in text


@pytest.mark.parametrize("shareable", [False, True])
def test_best_matches_by_other_measures(make_audit: MakeAudit, shareable: bool) -> None:
    """Mean of the best only, and every fourth of 128 has another training image than by correlation."""
    folder = make_audit(reranked=True, undefined=2)
    text = visible(write_report(folder, shareable=shareable))
    # Image 124 is the last multiple of four that is defined: 32 of 126 differ.
    assert "structural similarity (SSIM) 0.750 0.750 to 0.750, n = 126 94 of 126" in text
    assert "Of the few training images" in text
    assert "Best matches by other measures" not in visible(write_report(make_audit("without")))


def test_an_announced_table_that_is_missing_is_named(make_audit: MakeAudit) -> None:
    folder = make_audit(reranked=True)
    edit_header(folder, lambda content: content.update(tables={folders.RERANKED: "0" * 64}))
    with pytest.raises(FolderError, match="changed since the audit"):
        write_report(folder)
    (folder / folders.RERANKED).unlink()
    with pytest.raises(FolderError, match=r"reranked\.parquet is missing"):
        write_report(folder)


@pytest.mark.parametrize("shareable", [False, True])
def test_an_audit_of_the_first_version_still_has_a_page(make_audit: MakeAudit, shareable: bool) -> None:
    text = visible(write_report(make_audit(modern=False), shareable=shareable))
    assert "made by an earlier version" in text
    assert "Mean highest correlation" in text
    assert "one measure alone" not in text
    assert "Distance ratio" not in text
    assert "found by" not in text
    assert "earlier version" not in visible(write_report(make_audit("modern"), shareable=shareable))


def test_diversity_stands_in_its_section_with_the_warning_first(make_audit: MakeAudit) -> None:
    page = write_report(make_audit(diversity="alike"))
    text = visible(page)
    section = text[text.index("Diversity The samples are alike: 62.0% (51.7% to 71.5%) of 100 samples") :]
    assert section.index("says little about a generator that draws one picture") < section.index("0.912 0.901 to 0.923")
    assert "0.734 0.721 to 0.745" in section
    assert "1.250 0.900 to 1.500" in section
    assert section.index("Diversity") < section.index("The pairs that look most like copies")
    varied = visible(write_report(make_audit("varied", diversity="varied")))
    assert "Diversity No sign that the samples are alike: 62.0%" in varied
    unclear = visible(write_report(make_audit("unclear", diversity="cannot tell"), shareable=True))
    assert "Diversity Whether the samples are alike cannot be told from 100 of them" in unclear


def test_an_audit_without_diversity_has_no_such_section(make_audit: MakeAudit, tmp_path: Path) -> None:
    both = [make_audit("old"), make_audit("new", diversity="varied")]
    assert read_audit(both[0], shareable=True).diversity is None
    assert "Diversity" not in visible(write_report(both[0]))
    html = read(write_report(both, out=tmp_path / "both.html"))
    # The second of the two has one, under a heading of the third rank.
    assert re.findall(r'<h(\d) id="([^"]*-diversity)">', html) == [("3", "audit-2-diversity")]
    assert html.index('id="audit-2"') < html.index('id="audit-2-diversity"')
    Page(html)


def test_undefined_diversity_is_a_word_and_an_unknown_one_damage(make_audit: MakeAudit) -> None:
    folder = make_audit(diversity="cannot tell")
    nothing = {"value": None, "low": None, "high": None, "n": 1, "method": "", "confidence": 0.95}
    names = ("samples_mean", "train_mean", "alike", "spread")
    edit_header(folder, lambda content: content["diversity"].update(dict.fromkeys(names, nothing), m=1))
    html = read(write_report(folder))
    assert "nan" not in visible(folder / "report.html").lower().split()
    assert html.count("undefined") >= 4
    edit_header(folder, lambda content: content["diversity"].update(verdict="splendid"))
    with pytest.raises(FolderError, match=r"audit\.json is damaged .*splendid"):
        write_report(folder)
    edit_header(folder, lambda content: content["diversity"].pop("verdict"))
    with pytest.raises(FolderError, match=r"audit\.json is damaged .*verdict"):
        write_report(folder)


def test_an_unknown_pose_is_a_damaged_audit(make_audit: MakeAudit) -> None:
    with pytest.raises(FolderError, match=r"evidence\.npz is damaged .*sideways"):
        write_report(make_audit(poses=("sideways",)))


def test_inspect_says_what_the_report_says(make_audit: MakeAudit) -> None:
    facts = inspect_folder(make_audit())
    assert "closer to train than to a holdout of the same size: 62.5% (50.0% to 75.0%)" in facts["statistics"]
    assert "copies among all that it would draw: at most 98.7%" in facts["statistics"]
    assert facts["measures"] == ["raw (weight 0.25)", "whitened (weight 1)", "equalized (weight 1)"]
    assert facts["power"][3] == (
        "shift, 1 px: 7.8% (0.8% to 13.8%) caught, 4.7% (0% to 10.7%) of holdout images changed alike "
        "(alone: raw 25%, whitened 8%, equalized undefined)"
    )
    old = inspect_folder(make_audit("old", modern=False, power=False))
    assert "measures" not in old
    assert "power" not in old


def test_inspect_names_a_damaged_header(make_audit: MakeAudit) -> None:
    folder = make_audit()
    edit_header(folder, lambda content: content.pop("verdict"))
    with pytest.raises(FolderError, match=r"audit\.json is damaged"):
        inspect_folder(folder)


def test_printed_lines_take_estimates_as_they_are() -> None:
    ratio = {"synthetic-train": Estimate(0.5, 0.25, 0.75, 8, "m")}
    nothing = Estimate(float("nan"), float("nan"), float("nan"), 0, "m")
    found = {"distance_ratio": ratio, "excess_over_holdout": nothing, "exposed_subjects_share": nothing}
    assert list(brief_lines(found)) == [
        ("excess over holdout", "undefined"),
        ("distance ratio, nearest to second-nearest subject, synthetic → train", "0.500 (0.250 to 0.750)"),
    ]


def test_estimates_in_words() -> None:
    plain = Estimate(0.5, float("nan"), float("nan"), 1, "m")
    assert format_estimate(plain, "share") == "50.0%"
    assert format_estimate(plain, "bound") == "undefined"
    assert format_estimate(Estimate(-0.25, -0.5, 0.0, 1, "m"), "correlation") == "−0.250 (−0.500 to 0.000)"
    assert [format_expected(value) for value in (3.0, 12.18, 2.96, 1234.5, float("nan"), None)] == [
        "3",
        "12.2",
        "3",
        "1,234.5",
        "undefined",
        "undefined",
    ]


@pytest.mark.parametrize("name", [folders.EVIDENCE, folders.MATCHES, folders.QUERIES, folders.EXPOSURE, "audit.json"])
@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_part_that_is_missing_or_damaged_is_named(make_audit: MakeAudit, name: str, damage: str) -> None:
    folder = make_audit()
    if damage == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:100])
    with pytest.raises(FolderError, match=re.escape(name)):
        write_report(folder)
    assert not (folder / folders.REPORT).exists()


@pytest.mark.parametrize("key", ["verdict", "estimates", "calibration", "counts", "channels", "name", "flagged"])
def test_a_header_that_lacks_something_is_refused(make_audit: MakeAudit, key: str) -> None:
    folder = make_audit()
    edit_header(folder, lambda content: content.pop(key))
    with pytest.raises(FolderError, match="audit again"):
        write_report(folder)


def test_pictures_that_do_not_fit_the_header_are_refused(make_audit: MakeAudit) -> None:
    folder = make_audit()
    edit_header(folder, lambda content: content["channels"].update(height=31))
    with pytest.raises(FolderError, match="as the header says"):
        write_report(folder)


def test_channels_are_drawn_and_masks_marked(make_audit: MakeAudit) -> None:
    folder = make_audit(channels=("t1", "t2", "mask"), compared=("t1", "t2"))
    html = read(write_report(folder))
    assert html.count("not compared") == 3
    assert html.count("channel mask") >= 3 * 4


def test_many_exposed_subjects_are_folded_away(make_audit: MakeAudit) -> None:
    html = read(write_report(make_audit(train_subjects=13)))
    assert "3 more subjects" in html
    assert html.count("<rect width=") == 13


def test_sixteen_bits_and_large_pictures(make_audit: MakeAudit) -> None:
    folder = make_audit(dtype="uint16", side=300, pairs=2)
    html = read(write_report(folder))
    assert "shown reduced" in html
    assert max(max(picture.shape[:2]) for picture in pictures_in(html)) == 150


def test_page_stays_small(make_audit: MakeAudit) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 5, 256, 256), dtype=np.uint8)
    names = ("t1", "t1ce", "t2", "flair", "mask")
    folder = make_audit(pictures=(noise, noise[::-1]), pairs=24, channels=names, compared=names[:4])
    page = write_report(folder)
    assert page.stat().st_size < PICTURE_BUDGET + 500_000
    assert re.search(r"Shown are \d+ of 24 pairs", read(page))


def test_comparison_puts_audits_side_by_side(make_audit: MakeAudit, tmp_path: Path) -> None:
    audits = [
        make_audit("one", name="diffusion", warnings=["look twice"]),
        make_audit("two", name="gaussian", copied=0.0, decision="no copies found", seed=1),
        make_audit("three", name="no holdout", copied=0.0, decision="cannot tell", holdout=0),
    ]
    page = write_report(audits, out=tmp_path / "out" / "report.html")
    html = read(page)
    assert html.count('<details class="audit">') == 3
    assert html.index("At a glance") < html.index("<details")
    assert html.count("with 1 warning, see its section") == 1
    assert (page.parent / "figures" / "comparison.svg").is_file()
    shared = read(write_report(audits, out=tmp_path / "shared.html", shareable=True))
    assert pictures_in(shared) == []


def test_comparison_needs_a_place(make_audit: MakeAudit) -> None:
    with pytest.raises(SettingsError, match="--out"):
        write_report([make_audit("one"), make_audit("two")])
    with pytest.raises(SettingsError):
        write_report([])


def test_a_place_that_cannot_be_written_is_named(make_audit: MakeAudit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="file"):
        write_report(make_audit(), out=tmp_path / "file" / "page.html")


def test_only_an_audit_that_says_so_has_no_banner(make_audit: MakeAudit) -> None:
    folder = make_audit(internal=False)
    assert "INTERNAL" not in read(write_report(folder))
    edit_header(folder, lambda content: content.pop("internal"))
    assert "INTERNAL" in read(write_report(folder))


def test_the_same_folder_gives_the_same_page(make_audit: MakeAudit, tmp_path: Path) -> None:
    folder = make_audit()
    first = read(write_report(folder, out=tmp_path / "a.html"))
    assert read(write_report(folder, out=tmp_path / "b.html")) == first


def test_report_does_not_import_torch(make_audit: MakeAudit) -> None:
    code = f"import sys; from unalike.report import write_report; write_report({str(make_audit())!r}); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_formats() -> None:
    assert [format_number(value) for value in (0.5, -0.25, float("nan"), None)] == [
        "0.500",
        "−0.250",
        "undefined",
        "undefined",
    ]
    assert [format_percent(value) for value in (0.875, 1.0, 0.0, None)] == [
        "87.5%",
        "100%",
        "0%",
        "undefined",
    ]
    assert [format_percent(value) for value in (0.9996, 0.0004)] == ["> 99.9%", "< 0.1%"]
    assert format_count(2559) == "2,559"
    assert [str(format_probability(value)) for value in (0.00621, 1.0, 0.05, float("nan"), 1e-9)] == [
        "0.0062",
        "1.0",
        "0.050",
        "undefined",
        "&lt;&nbsp;0.000001",
    ]


def test_chromium_finds_no_fault_and_no_sideways_scroll(make_audit: MakeAudit, tmp_path: Path) -> None:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("Chromium and its driver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    audits = [make_audit("one"), make_audit("two", channels=("t1", "mask"))]
    pages = [write_report(audits[0]), write_report(audits, out=tmp_path / "both.html")]
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        for page in pages:
            screen = {"width": 375, "height": 800, "deviceScaleFactor": 1, "mobile": True}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            browser.get(page.as_uri())
            browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
            assert browser.execute_script("return document.documentElement.scrollWidth") == 375
            assert browser.get_log("browser") == []
    finally:
        browser.quit()
