"""The report: in the terminal, as files, and in a browser."""

import dataclasses
import functools
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console
from synthetic import Planted, findings_of, write_study
from test_findings import DIVERGED, SMALL, by_depth
from test_findings import HEIGHTS as LOW

from recursion.study.report import page, show, write
from recursion.study.request import Budget

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update")  # fmt: skip
CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
ARGV = ["tower", "ablate", "quadratic: lstm(hidden=4)@5 / <b> & 'adam'", "--depths", "1-3"]
HEIGHTS = dataclasses.replace(LOW, depths=(1, 2, 25), baseline=True)


def mixed(run):
    """A run diverged, another failed with a text that is not to be trusted."""
    failed = {"depth-3-seed-2": DIVERGED, "depth-2-seed-1": "<script>alert(1)</script> & a full disk"}
    return Planted(status="failed", why=failed[run.id]) if run.id in failed else by_depth(rescued=0.125)(run)


def by_height(run):
    off, height = math.log10(float(run.factors.get("lr*", 1))), run.depth or 9
    return Planted(loss=math.inf if off > height else 0.2 + 0.3 * (off < -height))


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The folders, the paths that were written, and what the terminal shows: of a study of depths and one of heights."""
    written = []
    for request, plant in ((SMALL, mixed), (HEIGHTS, by_height)):
        folder, out = write_study(tmp_path_factory.mktemp("report"), request, plant, argv=ARGV), io.StringIO()
        written.append((folder, write(folder, Console(file=out, width=120, force_terminal=False)), out.getvalue()))
    return written


class Outline(HTMLParser):
    """Tags that are opened and closed, ids, and everything that a page could load."""

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.loads, self.tags = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        loads = [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        self.loads += [value for value in loads if not value.startswith(("#", "data:"))]
        self.open += [] if tag in ("meta", "link", "br", "img", "hr") else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_loads_nothing_says_it_all_and_escapes_what_comes_from_a_study(reports):
    html, other = ((folder / "report.html").read_text() for folder, _, _ in reports)
    for each in (html, other):
        outline = Outline(each)
        assert outline.loads == []
        assert len(outline.ids) == len(set(outline.ids))
        assert "script" not in outline.tags
        assert not re.search(r"@import|url\(", each)
    text = " ".join(re.sub(r"<[^>]+>", " ", html).split())
    for words in (
        "In three sentences", "another level pays", "1 run diverged (infinite loss) and 1 run failed",
        "gradient is not finite at top step 41", "tuned baseline ends with", "No alarm.", "6 of 48 uses rescued",
        "tower ablate", "--depths 1-3", "torch 2.13.0", "reporting (not in the budget)",
        "peak memory", "is never dropped", "&lt;script&gt;alert(1)&lt;/script&gt; &amp; a full disk", "&lt;b&gt;",
    ):  # fmt: skip
        assert words in text, words
    assert html.index("In three sentences") < html.index("<nav")
    assert html.count("<figure>") == html.count('<img alt="') == html.count("<figcaption>")
    assert html.count("<details>") >= 4
    assert "Robust range" in other


def test_pictures_lie_beside_the_page_wherever_it_is_and_are_the_same_bytes_again(reports, tmp_path):
    (folder, paths, _), (heights, _, _) = reports
    names = {"mean-loss-by-depth", "final-loss-by-depth", "curves", "cost-benefit", "ledger", "gaps"}
    names |= {f"training-{level}" for level in (1, 2, 3)}
    assert {path.stem for path in paths} == names | {"report"}
    assert all(imread(path).shape[1] > 500 for path in paths[1:])
    assert {path.name for path in heights.glob("*.png")} == {"sensitivity-lrx.png", "robust-lrx.png", "time-lrx.png"}
    again = write(folder, Console(file=io.StringIO()), out=tmp_path / "new" / "report.html")
    assert again[0] == tmp_path / "new" / "report.html"
    assert {path.name: path.read_bytes() for path in again} == {path.name: path.read_bytes() for path in paths}
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot make .*file"):
        write(folder, Console(file=io.StringIO()), out=tmp_path / "file" / "page.html")


def test_the_terminal_has_the_table_and_the_sentences(reports):
    text = reports[0][2]
    row = next(line for line in text.splitlines() if line.strip().startswith("depth 2"))
    assert re.search(r"0\.4\d* \[0\.\d+, 0\.\d+\]", row)
    assert "3/4" in row
    for words in ("Depth 2 against depth 1: another level pays", "depth-3-seed-2", "Guard: depth 2", "Note: 1 run"):
        assert words in text


changed = functools.partial(dataclasses.replace, SMALL)
WAITING = Planted(status="waiting")
GRID = {"tower": "quadratic: sgd@1 / sgd", "depths": (1, 2), "grid": (("lr*", ("1", "10")),), "seeds": 2}
CASES = {
    "unfinished": (SMALL, lambda run: WAITING if run.seed else by_depth()(run), "not finished: 4 of 16 runs done"),
    "nothing yet": (SMALL, lambda run: WAITING, "not finished: 0 of 16"),
    "all failed": (SMALL, lambda run: Planted(status="failed", why="MemoryError"), "No run is done"),
    "all diverged": (SMALL, lambda run: Planted(status="failed", why=DIVERGED), "16 runs diverged"),
    "one seed": (changed(seeds=1), by_depth(), "one training seed"),
    "one problem": (changed(seeds=1, problems=1, select=1), by_depth(), "no interval"),
    "no baseline": (changed(baseline=False), by_depth(), "no tuned baseline"),
    "a search only": (changed(depths=(1,)), by_depth(), "Nothing was trained"),
    "infinite losses": (SMALL, by_depth(loss=math.inf), "inf"),
    "an alarm": (SMALL, by_depth(loss=2.2, gains={"train": 0.1}), "Alarm."),
    "a budget not spent": (changed(budget=Budget(amount=9e6)), by_depth(), "Not every cell spent"),
    "in seconds": (changed(depths=(1, 2), budget=Budget.parse("90s"), seeds=2), by_depth(), "90 seconds"),
    "a cell of a grid is missing": (
        changed(**GRID), lambda run: Planted(status="failed", why="?") if run.depth == 1 else Planted(), "height 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_study_has_a_page(name, tmp_path):
    request, plant, words = CASES[name]
    findings = findings_of(tmp_path, request, plant)
    show(findings, Console(file=io.StringIO()))
    html = page(tmp_path, findings, [])
    Outline(html)
    assert words in html
    assert "nan" not in re.sub(r"<style.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL).lower().split()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    if not CHROMIUM.exists() or not DRIVER.exists():
        pytest.skip("chromium and its driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(DRIVER)))
    yield driver
    driver.quit()


def look_at(browser, page, *, width=1200, scheme="light"):
    for log in ("browser", "performance"):
        browser.get_log(log)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    browser.get(page.as_uri())


def luminance(colour):
    channels = [float(part) for part in re.findall(r"[\d.]+", colour)[:3]]
    scaled = [c / (1 if "srgb" in colour else 255) for c in channels]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in scaled]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.slow
def test_it_renders_without_an_error_or_a_request_and_fits_a_narrow_window(browser, reports):
    for folder, _, _ in reports:
        look_at(browser, folder / "report.html")
        heights = "[...document.querySelectorAll('figure img')].map(e => e.getBoundingClientRect().height)"
        heights = browser.execute_script(f"return {heights}")
        assert len(heights) >= 3
        assert min(heights) > 150
        assert browser.get_log("browser") == []
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        urls = [each["request"]["url"] for each in sent if each["documentURL"].startswith("file:")]
        assert (folder / "report.html").as_uri() in urls
        assert all(url.startswith(("file:", "data:")) for url in urls)
        for width in (400, 320):
            look_at(browser, folder / "report.html", width=width)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
            assert browser.execute_script(f"return {wide}") >= 1  # tables scroll in their own box


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_both_be_read(browser, reports, scheme):
    look_at(browser, reports[0][0] / "report.html", scheme=scheme)

    def style(selector, name):
        script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        return browser.execute_script(script, selector, name)

    def contrast(selector, paper="body"):
        pair = luminance(style(selector, "color")), luminance(style(paper, "backgroundColor"))
        return (max(pair) + 0.05) / (min(pair) + 0.05)

    assert contrast("body") > 10
    assert min(contrast("figcaption"), contrast("nav a"), contrast(".good", ".good"), contrast(".wait", ".wait")) > 4.5
    paper = luminance(style("body", "backgroundColor"))
    assert paper > 0.9 if scheme == "light" else paper < 0.03
    assert style("figure img", "filter").startswith("none" if scheme == "light" else "invert(1) ")
