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
from PIL import Image

from unalike import folders
from unalike.errors import FolderError, SettingsError
from unalike.report import write_report
from unalike.report.page import (
    PICTURE_BUDGET,
    format_count,
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
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "form", "base"}
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


def test_hostile_names_are_text(make_audit: MakeAudit, tmp_path: Path) -> None:
    folder = make_audit(name=HOSTILE, headline=HOSTILE, warnings=[HOSTILE], settings={HOSTILE: HOSTILE})
    for html in (
        read(write_report(folder, title=HOSTILE)),
        read(write_report([folder, folder], out=tmp_path / "both.html")),
    ):
        assert "script" not in {tag for tag, _ in Page(html).tags}
        assert "<script" not in html
        assert 'alert("x")' in "".join(Page(html).text)


def test_shareable_page_shows_nobody(make_audit: MakeAudit) -> None:
    folder = make_audit(settings={"level": 0.05, "cohort": "/hospital/doe-john", "best": 5, "power": True})
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
    assert "data:" not in Page(html).values("src")
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
