"""The evidence page with a thousand pairs in Chromium, the network off: its size, and how long a steward waits.

    python benchmarks/evidence_page.py              # 32 × 32 and 256 × 256 pixels
    python benchmarks/evidence_page.py --side 32    # one of them
    python benchmarks/evidence_page.py --pairs 200

The audit is made up as the tests make theirs, and its pairs are pictures of noise on a smooth ground: they pack worse
than real images do, so a real page is smaller. Numbers are of one run on this machine; compare them side by side only.

* first paint: the browser's own first-contentful-paint.
* usable: from the start of the navigation until list and first pair are there and keys work.
* frames: the list is scrolled from end to end by script, 120 pixels a frame; the longest and the mean time between
  two frames. Beside it the same with nothing to do: on a busy machine no page does better.
* writing it: seconds of the processor, figures and the rest of the page included.
* next pair: from pressing j until the frame in which the pair's pictures are drawn; median of 40.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from unalike.report import write_report

ROOT = Path(__file__).resolve().parents[1]

FRAMES = """
const done = arguments[arguments.length - 1], list = document.getElementById('desk-list'), by = arguments[0];
const times = []; let last = performance.now(), frames = 0;
list.scrollTop = 0;
const end = list.scrollHeight - list.clientHeight - 1;
const step = now => {
  times.push(performance.now() - last); last = performance.now(); list.scrollTop += by; frames += 1;
  if (frames < 400 && (!by || by * frames < end)) requestAnimationFrame(step);
  else done([Math.max(...times.slice(2)), times.slice(2).reduce((a, b) => a + b, 0) / (times.length - 2)]);
};
requestAnimationFrame(step);
"""
NEXT = """
const done = arguments[0], times = [];
const canvas = document.querySelector('[data-figure=difference]').getContext('2d');
const real = CanvasRenderingContext2D.prototype.drawImage; let drawn = () => {};
CanvasRenderingContext2D.prototype.drawImage = function (...all) {
  real.apply(this, all); if (this === canvas) drawn();
};
const press = () => {
  const start = performance.now();
  drawn = () => { drawn = () => {}; requestAnimationFrame(() => {
    times.push(performance.now() - start);
    if (times.length < 40) setTimeout(press, 30); else done(times.sort((a, b) => a - b)[20]);
  }); };
  document.getElementById('desk').dispatchEvent(new KeyboardEvent('keydown', { key: 'j', bubbles: true }));
};
press();
"""


def make_pairs(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise on a smooth ground, and the same with noise of its own: (count, 1, side, side) each."""
    random = np.random.default_rng(side)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    ground = 60 + 120 * np.exp(-2 * (x * x + y * y))
    train = np.empty((count, 1, side, side), dtype=np.uint8)
    synthetic = np.empty_like(train)
    for place in range(count):
        image = ground * random.uniform(0.7, 1.2) + random.normal(0, 12, (side, side))
        train[place, 0] = np.clip(image, 0, 255)
        synthetic[place, 0] = np.clip(image + random.normal(0, 6, (side, side)), 0, 255)
    return synthetic, train


def make_audit(folder: Path, count: int, side: int) -> Path:
    """Write an audit folder with so many pairs, as the tests of the page make theirs."""
    spec = importlib.util.spec_from_file_location("made_up", ROOT / "tests" / "report" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    made_up = importlib.util.module_from_spec(spec)
    sys.modules["made_up"] = made_up
    spec.loader.exec_module(made_up)
    pictures = make_pairs(count, side)
    # Slices beside the training image, as volumes have, double the pictures.
    audit = made_up.FakeAudit(synthetic=count, pairs=count, pictures=pictures, train=7 * count, train_subjects=60)
    return Path(audit.write(folder))


def start_browser(profile: Path) -> Any:
    """Chromium without a network and without a window."""
    from selenium import webdriver

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        sys.exit("Chromium and its driver are not installed (Debian: apt-get install chromium chromium-driver).")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run"):
        options.add_argument(f"--{flag}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.add_argument("--window-size=1440,1000")
    options.add_argument(f"--user-data-dir={profile}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_script_timeout(300)
    return browser


def measure(page: Path, profile: Path) -> list[str]:
    """Open a page and look at the clock; a row of the table."""
    browser = start_browser(profile)
    try:
        begun = "return document.getElementById('desk').dataset.ready === 'true'"
        watch = "new MutationObserver(() => { const d = document.getElementById('desk');"
        watch += " if (d && d.dataset.ready && !window.usable) window.usable = performance.now() })"
        watch += ".observe(document, { subtree: true, childList: true, attributes: true })"
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": watch})
        browser.get(page.as_uri())
        while not browser.execute_script(begun):
            time.sleep(0.05)
        paints = "return performance.getEntriesByType('paint').map(each => [each.name, each.startTime])"
        paint = dict(browser.execute_script(paints)).get("first-contentful-paint", float("nan"))
        usable = browser.execute_script("return window.usable")
        browser.execute_script("document.getElementById('desk').scrollIntoView()")
        time.sleep(0.5)
        still = browser.execute_async_script(FRAMES, 0)
        longest, mean = browser.execute_async_script(FRAMES, 120)
        following = browser.execute_async_script(NEXT)
    finally:
        browser.quit()
    return [
        f"{page.stat().st_size / 1e6:.1f} MB",
        f"{paint / 1000:.2f} s",
        f"{usable / 1000:.2f} s",
        f"{longest:.0f} / {mean:.1f} ms",
        f"{still[0]:.0f} / {still[1]:.1f} ms",
        f"{following:.0f} ms",
    ]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--side", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--keep", type=Path, help="keep the pages in this folder")
    chosen = parser.parse_args()
    print(f"{platform.machine()}, {platform.system()}, {chosen.pairs} pairs with slices beside each\n")
    print("| pixels | size | first paint | usable | frames: longest / mean | nothing to do | next pair | writing it |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as room:
        for side in chosen.side:
            folder = make_audit(Path(room) / f"audit-{side}", chosen.pairs, side)
            start = time.process_time()
            page = write_report(folder)
            seconds = time.process_time() - start
            if chosen.keep:
                chosen.keep.mkdir(parents=True, exist_ok=True)
                page = Path(shutil.copy(page, chosen.keep / f"page-{side}.html"))
            row = measure(page, Path(room) / f"profile-{side}")
            print(f"| {side} × {side} | {' | '.join(row)} | {seconds:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
