"""The evidence desk: what is packed into the page, and in a real browser without a network, what its controls do."""

from __future__ import annotations

import base64
import importlib
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unalike import folders
from unalike.report import audit_view, write_report
from unalike.report import desk as desk_module
from unalike.report.desk import PACKINGS, digest_script, find_shift, make_desk, move, read_script
from unalike.report.read import Audit, read_audit

MakeAudit = Callable[..., Path]
HOSTILE = "</script><script>alert('x')</script><!-- & \u2028"


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are no part of the desk, and the slowest to draw."""
    monkeypatch.setattr(audit_view, "_draw_figures", lambda *_, **__: {})


def add_to_evidence(folder: Path, **arrays: np.ndarray) -> Path:
    """Change arrays of an audit's evidence, or add some."""
    with np.load(folder / folders.EVIDENCE) as evidence:
        kept = dict(evidence)
    np.savez(folder / folders.EVIDENCE, **(kept | arrays))
    return folder


def blocks(html: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="desk-(\w+)">(.*?)</script>', html, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def unpack(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def slow_shift(first: np.ndarray, second: np.ndarray) -> tuple[tuple[int, int], float]:
    """Every shift tried one by one, the smallest first."""
    reach = max(1, round(min(first.shape[1:]) / 32))
    steps = sorted(range(-reach, reach + 1), key=abs)
    best: tuple[tuple[int, int], float] = ((0, 0), -2.0)
    for down, across in sorted(((d, a) for d in steps for a in steps), key=lambda each: abs(each[0]) + abs(each[1])):
        height, width = first.shape[1:]
        one = first[:, max(down, 0) : height + min(down, 0), max(across, 0) : width + min(across, 0)]
        other = second[:, max(-down, 0) : height - max(down, 0), max(-across, 0) : width - max(across, 0)]
        r = np.corrcoef(one.ravel().astype(float), other.ravel().astype(float))[0, 1]
        if r > best[1] + 1e-9:
            best = (down, across), float(r)
    return best


@pytest.mark.parametrize("planted", [(0, 0), (2, -1), (-2, 2), (1, 0)])
def test_a_planted_shift_is_found(planted: tuple[int, int]) -> None:
    big = np.random.default_rng(1).integers(0, 256, (1, 72, 76), dtype=np.uint8)
    down, across = planted
    second = big[:, 4:68, 4:72]
    first = big[:, 4 - down : 68 - down, 4 - across : 72 - across]
    shift, r = find_shift(first, second)
    assert shift == planted
    assert r == pytest.approx(1.0, abs=1e-9)
    moved = move(second, shift)
    inside = np.s_[:, 2:-2, 2:-2]
    np.testing.assert_array_equal(moved[inside], first[inside])


@pytest.mark.parametrize(("shape", "dtype"), [((1, 32, 32), "uint8"), ((3, 70, 96), "uint8"), ((2, 64, 65), "uint16")])
def test_shifts_are_those_of_trying_each(shape: tuple[int, ...], dtype: str) -> None:
    random = np.random.default_rng(5)
    for _ in range(4):
        base = random.normal(size=(shape[0], shape[1] + 8, shape[2] + 8)).cumsum(axis=1).cumsum(axis=2)
        base = (base - base.min()) / np.ptp(base) * np.iinfo(dtype).max
        across = int(random.integers(0, 4))
        first, second = (
            np.clip(np.rint(part + random.normal(0, np.iinfo(dtype).max / 40, shape)), 0, None).astype(dtype)
            for part in (base[:, 4:-4, 4:-4], base[:, 3:-5, across : across + shape[2]])
        )
        shift, r = find_shift(first, second)
        expected, value = slow_shift(first, second)
        assert shift == expected
        assert r == pytest.approx(value, abs=1e-8)


def test_a_constant_picture_has_no_shift() -> None:
    flat, other = np.full((1, 32, 32), 7, dtype=np.uint8), np.arange(1024, dtype=np.uint16).reshape(1, 32, 32)
    shift, r = find_shift(flat, other)
    assert shift == (0, 0)
    assert np.isnan(r)


def test_ties_go_to_the_smallest_shift() -> None:
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (1, 64, 32))  # every even shift lies as well
    assert find_shift(stripes, stripes)[0] == (0, 0)


def test_moving_brings_in_black() -> None:
    image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3)
    assert move(image, (1, -1))[0].tolist() == [[0, 0, 0], [2, 3, 0], [5, 6, 0]]


def test_the_page_holds_each_pair_and_its_very_pixels(make_audit: MakeAudit) -> None:
    folder = make_audit(pairs=9, poses=("left-right", "as it is"))
    html = write_report(folder).read_text(encoding="utf-8")
    found = blocks(html)
    facts, pictures = found["facts"], found["pictures"]
    assert facts["audit"] == folders.digest_of(folder, kind="audit")
    pairs = read_audit(folder, shareable=False).pairs
    assert pairs is not None
    assert [each["query"] for each in facts["pairs"]] == pairs.synthetic_index.tolist()
    for row, each in enumerate(facts["pairs"]):
        synthetic, train, before, after = each["pictures"][0]
        np.testing.assert_array_equal(unpack(pictures[synthetic]), pairs.synthetic[row, 0])
        np.testing.assert_array_equal(unpack(pictures[train]), move(pairs.train[row, 0], tuple(each["shift"])))
        assert (before >= 0, after >= 0) == tuple(pairs.neighbour_valid[row].tolist())
        assert each["turned"] == (pairs.pose[row] != "as it is")
        assert each["p"] == pytest.approx(pairs.p_value[row], abs=1e-8)


def test_a_training_image_that_was_copied_twice_is_stored_once(make_audit: MakeAudit) -> None:
    train = np.random.default_rng(0).integers(0, 256, (1, 1, 16, 16), dtype=np.uint8).repeat(4, axis=0)
    synthetic = train.copy()
    synthetic[:, 0, 5, 5] = range(4)
    found = blocks(write_report(make_audit(pictures=(synthetic, train), pairs=4, volumes=False)).read_text())
    assert len(found["pictures"]) == 5 - int((synthetic == train).all(axis=(1, 2, 3)).sum())


def test_classes_are_told_and_older_audits_have_none(make_audit: MakeAudit) -> None:
    older = write_report(make_audit("older")).read_text(encoding="utf-8")
    assert blocks(older)["facts"]["classes"] == []
    assert 'id="desk-class"' not in older
    assert 'value="class"' not in older
    assert "class of the" not in older
    # Only what training images are can be filtered by.
    drawn = add_to_evidence(make_audit("drawn"), synthetic_label=np.asarray(["a", "", "a"]))
    html = write_report(drawn).read_text(encoding="utf-8")
    assert 'id="desk-class"' not in html
    assert [each.get("syntheticClass") for each in blocks(html)["facts"]["pairs"]] == ["a", None, "a"]
    labelled = add_to_evidence(make_audit("labelled"), train_label=np.asarray(["", HOSTILE, "<b>"]))
    html = write_report(labelled).read_text(encoding="utf-8")
    facts = blocks(html)["facts"]
    assert facts["classes"] == [HOSTILE, "<b>", ""]
    assert {each.get("trainClass", "") for each in facts["pairs"]} == {"", "<b>", HOSTILE}
    assert "<b></option>" not in html
    assert html.count("<script") == 3


def test_an_audit_keeps_the_classes_of_its_pairs() -> None:
    run = pytest.importorskip("unalike.audit.run")
    folder, nobody = (
        SimpleNamespace(
            images=np.zeros((4, 1, 2, 2)),
            read=lambda rows: np.zeros((len(rows), 1, 2, 2), dtype=np.uint8),
            column=lambda name, labels=labels: np.asarray(labels if name == "label" else list("abcd")),
            numbers=lambda name: np.arange(4),
        )
        for labels in (["", "benign", "pre", "pro"], [""] * 4)
    )
    found = SimpleNamespace(
        calibration=SimpleNamespace(p_values=np.array([0.9, 0.1, 0.5]), flagged=np.array([False, True, True])),
        culprits=np.array([0, 2, 3]),
    )
    for drawn, expected in ((folder, ["pre", "benign"]), (nobody, ["", ""])):
        copied = SimpleNamespace(
            highest=np.array([0.2, 0.9, 0.8]),
            queries=SimpleNamespace(folder=drawn, rows=np.array([3, 2, 1])),
            references=SimpleNamespace(folder=folder, rows=np.arange(4)),
        )
        evidence = run._gather_evidence(copied, found, 2)
        assert evidence["synthetic_label"].tolist() == expected
        assert evidence["train_label"].tolist() == ["pre", "pro"]
        assert evidence["synthetic_label"].dtype.kind == evidence["train_label"].dtype.kind == "U"
        np.savez(io.BytesIO(), allow_pickle=False, **evidence)  # as an audit writes them


def test_undefined_numbers_are_left_out(make_audit: MakeAudit) -> None:
    first = np.random.default_rng(0).integers(0, 100, (3, 1, 8, 8), dtype=np.uint8)
    folder = make_audit(pictures=(first, np.full_like(first, 7)), holdout=0, copied=0.0, decision="cannot tell")
    facts = blocks(write_report(folder).read_text())["facts"]
    assert facts["canFlag"] is False
    assert all(not {"correlation", "laid", "p", "q"} & set(each) for each in facts["pairs"])


def test_only_the_one_script_may_run_and_its_digest_is_right(make_audit: MakeAudit) -> None:
    html = write_report(make_audit()).read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert f"script-src '{digest_script(script)}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not re.search(r'\son\w+="', html)
    assert digest_script("") == "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="  # of nothing, well known


def test_the_script_asks_no_network_and_makes_no_markup() -> None:
    script = read_script()
    for word in ("fetch", "XMLHttpRequest", "WebSocket", "EventSource", "import(", "innerHTML", "http", "</", "<!--"):
        assert word not in script


def test_hostile_names_stay_text_in_the_data(make_audit: MakeAudit) -> None:
    html = write_report(make_audit(name=HOSTILE)).read_text(encoding="utf-8")
    assert blocks(html)["facts"]["name"] == HOSTILE
    assert html.count("<script") == html.count("</script>") == 3
    assert "alert('x')</script" not in html


def test_shareable_and_comparison_pages_have_no_desk(make_audit: MakeAudit, tmp_path: Path) -> None:
    both = [make_audit("one"), make_audit("two", seed=1)]
    shared = write_report(both[0], shareable=True)
    for page in (shared, write_report(both, out=tmp_path / "both.html")):
        html = page.read_text(encoding="utf-8")
        assert "<script" not in html
        assert "script-src" not in html
        assert 'id="desk' not in html
        assert ".desk" not in html
    assert make_desk(read_audit(make_audit("none", pairs=0), shareable=False), budget=10**6) is None
    html = shared.read_text(encoding="utf-8")
    pairs = read_audit(both[0], shareable=False).pairs
    assert pairs is not None
    data = [base64.b64encode(each[0].tobytes()).decode()[:40] for each in (*pairs.synthetic, *pairs.train)]
    desk = make_desk(read_audit(both[0], shareable=False), budget=10**6)
    assert desk is not None
    data += [each[:60] for each in json.loads(desk.pictures)] + sorted(desk.subjects)
    assert not [each for each in data if each in html]
    assert "data:image" not in html


def test_without_script_the_first_pairs_stand_and_what_is_missing_is_said(make_audit: MakeAudit) -> None:
    html = write_report(make_audit(pairs=9)).read_text(encoding="utf-8")
    assert html.count('<article class="pair"') == 6
    assert re.search(r"<noscript>.*needs JavaScript", html)
    assert "Shown are 6 of 9 pairs" in html
    assert re.search(r'<div class="desk"[^>]* hidden>', html)


def noise_audit(make_audit: MakeAudit, **changes: Any) -> Audit:
    noise = np.random.default_rng(0).integers(0, 256, (8, 1, 260, 260), dtype=np.uint8)
    return read_audit(make_audit(pictures=(noise, noise[::-1]), pairs=8, **changes), shareable=False)


def test_the_packing_follows_the_budget_and_the_page_says_so(
    make_audit: MakeAudit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_module, "find_shift", lambda *_: ((0, 0), 0.5))
    audit = noise_audit(make_audit)
    # 260 pixels a side are halved to 130 for 256, and to 87 for 128.
    rich, poor, none = (make_desk(audit, budget=budget) for budget in (10**7, 250_000, 12_000))
    assert rich is not None
    assert poor is not None
    assert none is not None
    assert unpack(json.loads(rich.pictures)[0]).shape == (130, 130)
    assert "reduced to a half of their 260 × 260" in rich.notes[0]
    assert not any("WebP" in note for note in rich.notes)
    assert any("WebP" in note and "faint differences" in note for note in poor.notes)
    assert json.loads(poor.facts)["type"] == "image/webp"
    for desk, budget in ((rich, 10**7), (poor, 250_000), (none, 12_000)):
        assert len(desk.pictures) <= budget + 2
    last = json.loads(none.facts)["pairs"]
    assert 0 < sum("pictures" in each for each in last) < 8
    assert any("pairs have no pictures" in note for note in none.notes)
    assert any("Slices before and after" in note for note in none.notes)


def test_small_pictures_are_never_enlarged(make_audit: MakeAudit) -> None:
    desk = make_desk(read_audit(make_audit(side=20), shareable=False), budget=10**6)
    assert desk is not None
    assert {unpack(each).shape for each in json.loads(desk.pictures)} == {(20, 20)}
    assert desk.notes == ()
    assert PACKINGS[0].quality == 0


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("Chromium and its driver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run"):
        options.add_argument(f"--{flag}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.add_argument("--window-size=1300,1000")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.set_script_timeout(120)
    yield found
    found.quit()


class Desk:
    """The desk in the browser, as a steward has it before them."""

    def __init__(self, browser: Any, page: Path) -> None:
        self.browser = browser
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(page.as_uri())
        self.run("document.getElementById('desk').scrollIntoView()")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def of(self, name: str) -> Any:
        return self.browser.find_element("id", f"desk-{name}")

    def press(self, *keys: str) -> None:
        """Press keys one by one, whatever has the focus; those before the last of a word are held."""
        chains = importlib.import_module("selenium.webdriver").ActionChains
        for word in keys:
            chain = chains(self.browser)
            for held in word[:-1]:
                chain.key_down(held)
            chain.send_keys(word[-1])
            for held in word[:-1]:
                chain.key_up(held)
            chain.perform()

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)

    def fill(self, name: str, value: str) -> None:
        self.run(
            "const field = document.getElementById('desk-' + arguments[0]); field.value = arguments[1];"
            "for (const each of ['input', 'change']) field.dispatchEvent(new Event(each, { bubbles: true }))",
            name,
            value,
        )

    @property
    def title(self) -> str:
        return str(self.of("title").text)

    @property
    def queries(self) -> list[int]:
        texts = self.run(
            "return [...document.querySelectorAll('#desk-list b > span:first-child')].map(e => e.textContent)"
        )
        return [int(text.removeprefix("Synthetic ").replace(",", "")) for text in texts]

    @property
    def pressed(self) -> list[str]:
        return self.run(
            "return [...document.querySelectorAll('button[data-decision][aria-pressed=true]')]"
            ".map(each => each.dataset.decision)"
        )

    def text(self, name: str) -> str:
        return str(self.run("return document.getElementById('desk-' + arguments[0]).textContent", name))

    def drawn(self, figure: str) -> tuple[int, int]:
        """A checksum of a canvas's pixels and how many values they take, once it has been drawn."""
        script = """
            const c = document.querySelector(`[data-figure=${arguments[0]}]`);
            if (!c.width || !c.height) return [0, 0];
            const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            let sum = 0;
            for (let i = 0; i < pixels.length; i += 4) sum = (sum * 31 + pixels[i] + 7 * pixels[i + 2]) % 1000003;
            return [sum, new Set(pixels.filter((_, i) => i % 4 < 3)).size];"""
        for _ in range(200):
            found = self.run(script, figure)
            if found[1] > 1:
                return found[0], found[1]
            time.sleep(0.02)
        raise AssertionError(f"{figure} was never drawn")

    def export(self) -> dict[str, Any]:
        """What Export decisions hands to the browser, and the name of the file."""
        self.run(
            "window.caught = []; const make = URL.createObjectURL;"
            "URL.createObjectURL = blob => { window.caught.push(blob); return 'about:blank#' };"
            "HTMLAnchorElement.prototype.click = function () { window.saved = this.download }; "
        )
        self.click("#desk-export")
        text = self.browser.execute_async_script(
            "const done = arguments[0]; caught.length ? caught[0].text().then(done) : done('')"
        )
        return {"file": json.loads(text) if text else None, "name": self.run("return window.saved")}

    def give(self, document: Any) -> str:
        """Import a file; what the page then says."""
        self.run("document.getElementById('desk-message').textContent = ''")
        self.run(
            "const box = new DataTransfer(); box.items.add(new File([arguments[0]], 'decisions.json'));"
            "const field = document.getElementById('desk-file'); field.files = box.files;"
            "field.dispatchEvent(new Event('change'))",
            document if isinstance(document, str) else json.dumps(document),
        )
        for _ in range(200):
            if said := self.text("message"):
                return said
            time.sleep(0.02)
        raise AssertionError("nothing was said")


@pytest.fixture(scope="module")
def opened(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Desk]:
    """Open a page; what it kept from earlier tests is forgotten first."""

    def open_page(page: Path) -> Desk:
        if browser.current_url == page.as_uri():
            browser.execute_script("localStorage.clear()")
        return Desk(browser, page)

    return open_page


@pytest.fixture(scope="module")
def written() -> list[Path]:
    """The page below, once it was written: drawing its figures takes longest."""
    return []


@pytest.fixture
def page(make_audit: MakeAudit, written: list[Path]) -> Path:
    """Twelve pairs, five flagged, of eight subjects and two classes; each with a p-value and similarity of its own."""
    if not written:
        folder = make_audit(pairs=12, synthetic=40, copied=0.5, channels=("t1", "mask"), compared=("t1",))
        add_to_evidence(
            folder,
            flagged=np.arange(12) < 5,
            p_value=np.linspace(0.01, 0.9, 12),
            similarity=np.linspace(0.99, 0.44, 12)[::-1],
            synthetic_label=np.asarray(["glioma"] * 12),
            train_label=np.asarray(["", "no tumour", "glioma"] * 4),
        )
        written.append(write_report(folder))
    return written[0]


def facts_of(page: Path) -> dict[str, Any]:
    found: dict[str, Any] = blocks(page.read_text(encoding="utf-8"))["facts"]
    return found


def test_no_request_no_error_and_first_pair_drawn(opened: Callable[..., Desk], page: Path) -> None:
    desk = opened(page)
    facts = facts_of(page)
    assert desk.queries == [each["query"] for each in facts["pairs"]]
    assert desk.text("count") == "All 12 pairs shown"
    assert f"{facts['pairs'][0]['query']} and training image {facts['pairs'][0]['reference']}" in desk.title
    assert desk.drawn("synthetic")[1] > 20
    assert desk.drawn("difference")[1] > 5
    requests = [json.loads(each["message"])["message"] for each in desk.browser.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in requests if each["method"] == "Network.requestWillBeSent"]
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert {url for url in asked if url.startswith("file")} <= {page.as_uri()}
    assert desk.browser.get_log("browser") == []


def test_keys_and_buttons_decide_and_step(opened: Callable[..., Desk], page: Path) -> None:
    desk = opened(page)
    titles = [desk.title]
    desk.press("c")
    assert desk.pressed == ["copy"]
    desk.press("j", "n")
    titles.append(desk.title)
    assert desk.pressed == ["not a copy"]
    desk.press("j", "u")
    assert desk.pressed == ["unsure"]
    assert "3 of 5 flagged pairs decided, 3 of 12 pairs in all" in desk.text("progress")
    desk.press("x")
    assert desk.pressed == []
    desk.press("k", "k")
    assert desk.title == titles[0]
    assert desk.pressed == ["copy"]
    desk.click('button[data-decision="unsure"]')
    assert desk.pressed == ["unsure"]
    desk.click("#desk-clear")
    assert desk.pressed == []
    desk.click("#desk-next")
    assert desk.title == titles[1]
    desk.click("#desk-back")
    assert desk.title == titles[0]
    desk.run("document.querySelector('#desk-list button[aria-current]').focus()")
    desk.press("\ue015")  # arrow down
    assert desk.title == titles[1]
    assert desk.run("return document.activeElement.getAttribute('aria-current')") == "true"
    assert desk.run("return document.querySelectorAll('#desk-list button[tabindex=\"0\"]').length") == 1
    desk.click("#desk-onward")
    desk.press("c")
    assert desk.title not in titles


def test_letters_are_text_while_a_field_has_the_focus(opened: Callable[..., Desk], page: Path) -> None:
    desk = opened(page)
    title = desk.title
    desk.press("/")
    desk.press("c", "j", "?")
    assert desk.run("return document.activeElement.id") == "desk-find"
    assert desk.run("return document.activeElement.value") == "cj?"
    assert desk.text("count") == "0 of 12 pairs shown"
    desk.click("#desk-reset")
    desk.press("\ue00c")  # escape
    assert desk.title == title
    assert desk.pressed == []
    desk.of("note").send_keys("cnux")
    assert desk.pressed == []
    desk.run("document.activeElement.blur()")
    desk.press("?")
    assert desk.run("return document.getElementById('desk-help').open")
    desk.click("#desk-single")
    desk.click("#desk-close")
    desk.press("c")
    assert desk.pressed == []  # single keys were switched off


def test_filters_and_orders(opened: Callable[..., Desk], page: Path) -> None:
    desk = opened(page)
    pairs = facts_of(page)["pairs"]
    for name in ("similarity", "correlation"):
        desk.fill("sort", name)
        assert desk.queries == [each["query"] for each in sorted(pairs, key=lambda each: -each[name])]
    desk.fill("sort", "subject")
    assert desk.queries == [each["query"] for each in sorted(pairs, key=lambda each: each["subject"])]
    desk.fill("sort", "query")
    assert desk.queries == sorted(each["query"] for each in pairs)
    desk.fill("sort", "class")
    ranks = {"glioma": 0, "no tumour": 1, "": 2}
    assert desk.queries == [each["query"] for each in sorted(pairs, key=lambda each: ranks[each.get("trainClass", "")])]
    desk.fill("sort", "p")
    choices = desk.run("return [...document.getElementById('desk-class').options].map(each => each.text)")
    assert choices == ["all", "glioma", "no tumour", "none"]
    for choice, name in enumerate(("glioma", "no tumour", "")):
        desk.fill("class", str(choice))
        assert desk.queries == [each["query"] for each in pairs if each.get("trainClass", "") == name]
        assert desk.text("count") == "4 of 12 pairs shown"
        told = desk.text("numbers")
        assert "synthetic classglioma" in told
        assert (f"training class{name}" in told) if name else ("training class" not in told)
    desk.click("#desk-reset")
    assert len(desk.queries) == 12
    desk.fill("flagged", "yes")
    assert desk.queries == [each["query"] for each in pairs[:5]]
    assert desk.text("count") == "5 of 12 pairs shown"
    desk.fill("flagged", "no")
    assert len(desk.queries) == 7
    desk.click("#desk-reset")
    desk.fill("from", "0.6")
    desk.fill("to", "0.8")
    assert set(desk.queries) == {each["query"] for each in pairs if 0.6 <= each["similarity"] <= 0.8}
    desk.click("#desk-reset")
    desk.fill("find", pairs[3]["subject"].upper())
    assert set(desk.queries) == {each["query"] for each in pairs if each["subject"] == pairs[3]["subject"]}
    desk.click("#desk-reset")
    desk.run("document.querySelector('#desk-list button').click()")
    desk.press("c")
    desk.fill("state", "copy")
    assert desk.queries == [pairs[0]["query"]]
    desk.fill("state", "undecided")
    assert len(desk.queries) == 11
    assert desk.run("return document.getElementById('desk-count').getAttribute('aria-live')") == "polite"


def test_the_table_of_subjects_leads_to_their_pairs(opened: Callable[..., Desk], page: Path) -> None:
    desk = opened(page)
    subject = desk.run("return document.querySelectorAll('button.filter')[1].dataset.subject")
    desk.run("document.querySelectorAll('button.filter')[1].click()")
    assert set(desk.queries) == {each["query"] for each in facts_of(page)["pairs"] if each["subject"] == subject}
    assert desk.run("return document.getElementById('desk-list').contains(document.activeElement)")


def test_views_zoom_and_channels(opened: Callable[..., Desk], page: Path) -> None:
    desk = opened(page)
    whole, difference = desk.drawn("synthetic"), desk.drawn("difference")
    seen = "return [...document.querySelectorAll('#desk-stage figure')].filter(e => !e.hidden)"
    seen += ".map(e => e.querySelector('canvas').dataset.figure)"
    assert desk.run(seen)[:3] == ["synthetic", "train", "difference"]
    desk.press("+", "+")
    assert desk.text("zoom") == "2.3×"
    zoomed = desk.drawn("synthetic")
    assert zoomed != whole
    assert desk.drawn("difference") != difference
    desk.run("document.querySelector('#desk-list button[aria-current]').focus()")
    title = desk.title
    desk.press("\ue008\ue014")  # shift and arrow right: the picture moves, the pair stays
    assert desk.drawn("synthetic") != zoomed
    assert desk.title == title
    desk.press("-")
    assert desk.text("zoom") == "1.5×"
    desk.click("#desk-fit")
    assert desk.text("zoom") == "1×"
    assert desk.drawn("synthetic") == whole
    desk.press("o")
    assert desk.run(seen)[0] == "over"
    half = desk.drawn("over")
    desk.fill("opacity", "100")
    assert desk.drawn("over") != half
    desk.press("b")
    assert desk.run("return document.getElementById('desk-mix').hidden")
    desk.press("s")
    assert desk.run(seen)[:2] == ["synthetic", "train"]
    row = "return document.querySelector('#desk-list img').src"
    listed = desk.run(row)
    desk.fill("channel", "1")
    for _ in range(200):
        if desk.drawn("synthetic") != whole:
            break
        time.sleep(0.02)
    for _ in range(200):
        if desk.run(row) != listed:
            break
        time.sleep(0.02)
    found = blocks(page.read_text(encoding="utf-8"))
    assert desk.run(row).endswith("," + found["pictures"][found["facts"]["pairs"][0]["pictures"][1][0]])
    assert "channel mask" in desk.run("return document.querySelector('[data-figure=train]').getAttribute('aria-label')")


def test_nothing_blinks_by_itself_where_motion_is_unwelcome(opened: Callable[..., Desk], page: Path) -> None:
    desk = opened(page)
    media = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    desk.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    caption = "return document.querySelector('[data-figure=over]').previousSibling.textContent"
    try:
        desk.run(
            "window.timers = 0; const real = setInterval;"
            "window.setInterval = (...all) => { timers += 1; return real(...all) }"
        )
        desk.press("b")
        assert (desk.run("return timers"), desk.run(caption)) == (0, "Synthetic")
        desk.press("b")
        assert desk.run(caption) == "Training"
    finally:
        desk.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    desk.press("s", "b")
    assert desk.run("return timers") == 1


def test_decisions_are_exported_kept_and_read_back(opened: Callable[..., Desk], page: Path) -> None:
    desk = opened(page)
    facts = facts_of(page)
    desk.click("#desk-export")
    assert "Nothing is decided" in desk.text("message")
    desk.press("c")
    desk.of("note").send_keys('a "note" of ours')
    desk.run("document.activeElement.blur()")
    desk.press("j", "j", "n")
    assert desk.export()["file"] is None
    assert "Write your name first" in desk.text("message")
    desk.fill("by", "Dr Example")
    assert "not exported yet" in desk.text("progress")
    assert desk.run("return !dispatchEvent(new Event('beforeunload', { cancelable: true }))")
    caught = desk.export()
    document = caught["file"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", document.pop("made"))
    first, third = facts["pairs"][0], facts["pairs"][2]
    expected = {
        "kind": "decisions",
        "schema": 1,
        "audit": folders.digest_of(page.parent, kind="audit"),
        "name": facts["name"],
        "by": "Dr Example",
        "pairs": [
            {"query": first["query"], "reference": first["reference"], "decision": "copy", "note": 'a "note" of ours'},
            {"query": third["query"], "reference": third["reference"], "decision": "not a copy", "note": ""},
        ],
    }
    assert document == expected
    assert caught["name"] == "decisions-diffusion-8-subjects.json"
    assert desk.run("return dispatchEvent(new Event('beforeunload', { cancelable: true }))")

    again = Desk(desk.browser, page)  # a later visit
    assert again.pressed == ["copy"]
    assert again.run("return document.getElementById('desk-by').value") == "Dr Example"
    assert "2 of 5 flagged" in again.text("progress")

    fresh = opened(page)
    assert fresh.pressed == []
    assert fresh.give(expected) == "2 decisions of Dr Example imported."
    assert fresh.pressed == ["copy"]
    assert fresh.run("return document.getElementById('desk-note').value") == 'a "note" of ours'
    document = fresh.export()["file"]
    document.pop("made")
    assert document == expected


def test_files_that_do_not_belong_here_are_refused(opened: Callable[..., Desk], page: Path) -> None:
    desk = opened(page)
    pair = facts_of(page)["pairs"][0]
    entry = {"query": pair["query"], "reference": pair["reference"], "decision": "copy", "note": ""}
    good = {
        "kind": "decisions",
        "schema": 1,
        "audit": facts_of(page)["audit"],
        "name": "n",
        "by": "b",
        "pairs": [entry],
    }
    refused: list[tuple[Any, str]] = [
        (good | {"audit": "0" * 64, "name": "another"}, "about another audit (another)"),
        (good | {"kind": "policy"}, "no file of decisions"),
        (good | {"schema": 2}, "no file of decisions"),
        (good | {"pairs": [entry, entry | {"query": 10**6}]}, "Nothing was imported"),
        (good | {"pairs": [entry | {"decision": "perhaps"}]}, "Nothing was imported"),
        ("{", "not JSON"),
    ]
    for document, said in refused:
        assert said in desk.give(document)
        assert desk.run("return document.getElementById('desk-message').classList.contains('bad')")
        assert desk.pressed == []
        assert desk.run("return localStorage.length") == 0
    assert "1 decision of b imported" in desk.give(good)


def test_a_page_that_may_keep_nothing_says_so(opened: Callable[..., Desk], page: Path) -> None:
    desk = opened(page)
    desk.run("Storage.prototype.setItem = () => { throw new Error('forbidden') }")
    desk.press("c")
    assert desk.pressed == ["copy"]
    assert not desk.run("return document.getElementById('desk-unkept').hidden")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(opened: Callable[..., Desk], page: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_core_python.selenium").Axe()
    desk = opened(page)
    desk.press("c", "j", "n", "j", "u", "o")
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    desk.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    try:
        # Thousands of dots in figures take it long; colours alone differ between the schemes.
        only = {"runOnly": ["color-contrast"]} if scheme == "dark" else {"preload": 0}
        found = axe.run(desk.browser, context={"exclude": [["svg"]]}, options=only)["violations"]
    finally:
        desk.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert [
        (each["id"], each["nodes"][0]["target"]) for each in found if each["impact"] in ("serious", "critical")
    ] == []


def test_print_has_still_pairs_and_no_controls(opened: Callable[..., Desk], page: Path) -> None:
    desk = opened(page)
    seen = "const at = s => getComputedStyle(document.querySelector(s)).display; return [at('#desk'), at('.still')]"
    assert desk.run(seen) == ["block", "none"]
    desk.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert desk.run(seen) == ["none", "block"]
    finally:
        desk.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_without_javascript_the_still_pairs_are_read(browser: Any, page: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page.as_uri())
        assert browser.find_element("css selector", ".still article").is_displayed()
        assert not browser.find_element("id", "desk").is_displayed()
        assert "needs JavaScript" in browser.find_element("css selector", ".still").text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
