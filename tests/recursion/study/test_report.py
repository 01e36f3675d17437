"""The report: in the terminal, as files, and in a browser."""

import dataclasses
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console
from synthetic import Told, write_study
from test_findings import DIVERGED, SMALL, VALUES, by_depth

from recursion.study.findings import Findings
from recursion.study.page import page
from recursion.study.report import show, write
from recursion.study.request import Request
from recursion.study.results import load

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
ARGV = ["tower", "ablate", "quadratic: lstm(hidden=4)@5 / <b> & 'adam'", "--depths", "1-3"]


def reported(folder, width=120):
    out = io.StringIO()
    paths = write(folder, Console(file=out, width=width, force_terminal=False))
    return paths, out.getvalue()


def mixed(run):
    """A run diverged, another failed with a text that is not to be trusted."""
    if run.id == "depth-3-seed-2":
        return Told(status="failed", why=DIVERGED)
    if run.id == "depth-2-seed-1":
        return Told(status="failed", why="<script>alert(1)</script> & a full disk")
    return by_depth(rescued=0.125)(run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("report"), SMALL, mixed, argv=ARGV)


@pytest.fixture(scope="module")
def written(folder):
    """The paths, and what the terminal shows."""
    return reported(folder)


@pytest.fixture(scope="module")
def heights(tmp_path_factory):
    request = Request(
        tower="quadratic: sgd@1 / ... / sgd", depths=(1, 2, 25), grid=(("lr*", VALUES),), seeds=2, problems=8, select=4,
        steps=20,
    )  # fmt: skip

    def tell(run):
        off = math.log10(float(run.factors.get("lr*", 1)))
        return Told(loss=math.inf if off > (run.depth or 9) else 0.2 + 0.3 * (off < -(run.depth or 9)))

    made = write_study(tmp_path_factory.mktemp("heights"), request, tell)
    reported(made)
    return made


class Outline(HTMLParser):
    """Tags that are opened and closed, ids, and everything that a page could load."""

    VOID = ("meta", "link", "br", "img", "hr")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.loads, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.loads += [
            value for name, value in attrs
            if name in ("src", "href", "xlink:href", "srcset") and not value.startswith("#")
        ]  # fmt: skip
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def outline(html):
    found = Outline()
    found.feed(html)
    assert found.open == []
    return found


def test_the_page_is_whole_and_loads_nothing(folder, written, heights):
    for made in (folder, heights):
        html = (made / "report.html").read_text()
        found = outline(html)
        assert set(found.loads) == {"data:,"}
        assert len(found.ids) == len(set(found.ids))
        assert "script" not in found.tags
        assert "@import" not in html
        assert not re.search(r"url\((?!#)", html)


def test_what_comes_from_a_study_is_escaped(folder, written):
    html = (folder / "report.html").read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; a full disk" in html
    assert "&lt;b&gt;" in html


def test_the_page_says_it_all(folder, written):
    html = (folder / "report.html").read_text()
    text = re.sub(r"<[^>]+>", " ", html)
    for words in (
        "In three sentences", "another level pays", "1 run diverged (infinite loss) and 1 run failed",
        "gradient is not finite at top step 41", "tuned baseline ends with", "No alarm.", "6 of 48 uses rescued",
        "tower ablate", "--depths 1-3", "torch 2.13.0", "reporting (not in the budget)",
        "peak memory", "is never dropped",
    ):  # fmt: skip
        assert words in " ".join(text.split()), words
    assert html.index("In three sentences") < html.index("<nav")
    assert html.count("<figure>") == html.count('role="img"') == html.count("<figcaption>")
    assert html.count("<details>") >= 4


def test_pictures_lie_beside_the_page(written, heights):
    paths, _ = written
    names = [path.name for path in paths]
    for name in ("report", "mean-loss-by-depth", "curves", "cost-benefit", "ledger", "training-1", "gaps"):
        assert any(each.startswith(name) for each in names)
    for path in paths[1:]:
        assert imread(path).shape[1] > 500
    assert {path.name for path in heights.glob("*.png")} == {"sensitivity-lrx.png", "robust-lrx.png", "time-lrx.png"}
    assert "Robust range" in (heights / "report.html").read_text()


def test_the_terminal_has_the_table_and_the_sentences(written):
    _, text = written
    row = next(line for line in text.splitlines() if line.strip().startswith("depth 2"))
    assert re.search(r"0\.4\d* \[0\.\d+, 0\.\d+\]", row)
    assert "3/4" in row
    for words in ("Depth 2 against depth 1: another level pays", "depth-3-seed-2", "Guard: depth 2", "Note: 1 run"):
        assert words in text


def test_another_place_and_the_same_bytes_again(folder, written, tmp_path):
    again = write(folder, Console(file=io.StringIO()), out=tmp_path / "new" / "report.html")
    assert again[0] == tmp_path / "new" / "report.html"
    assert {path.name: path.read_bytes() for path in again} == {path.name: path.read_bytes() for path in written[0]}


ONE = dataclasses.replace(SMALL, seeds=1)
CASES = {
    "unfinished": (
        SMALL,
        lambda run: by_depth()(run) if run.seed == 0 else Told(status="waiting"),
        "not finished: 4 of 16 runs done",
    ),
    "nothing yet": (SMALL, lambda run: Told(status="waiting"), "not finished: 0 of 16"),
    "all failed": (SMALL, lambda run: Told(status="failed", why="MemoryError"), "No run is done"),
    "all diverged": (SMALL, lambda run: Told(status="failed", why=DIVERGED), "16 runs diverged"),
    "one seed": (ONE, by_depth(), "one training seed"),
    "one problem": (dataclasses.replace(ONE, problems=1, select=1), by_depth(), "no interval"),
    "no baseline": (dataclasses.replace(SMALL, baseline=False), by_depth(), "no tuned baseline"),
    "a search only": (dataclasses.replace(SMALL, depths=(1,)), by_depth(), "Nothing was trained"),
    "infinite losses": (SMALL, by_depth(loss=math.inf), "inf"),
    "an alarm": (SMALL, by_depth(loss=2.2, gains={"train": 0.1}), "Alarm."),
    "a budget not spent": (
        dataclasses.replace(SMALL, budget=type(SMALL.budget)(amount=9e6)),
        by_depth(),
        "Not every cell spent",
    ),
    "in seconds": (
        Request(tower=SMALL.tower, depths=(1, 2), budget=type(SMALL.budget).parse("90s"), seeds=2),
        by_depth(),
        "90 seconds",
    ),
}


def without_pictures(folder, request, tell):
    """The page's words; the terminal's are written too."""
    findings = Findings(load(write_study(folder, request, tell)))
    show(findings, Console(file=io.StringIO()))
    return page(folder, findings, [])


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_ablation_has_a_page(name, tmp_path):
    request, tell, words = CASES[name]
    html = without_pictures(tmp_path, request, tell)
    outline(html)
    assert words in html
    text = re.sub(r"<style.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL)
    assert "nan" not in text.lower().split()


def test_a_grid_with_a_cell_that_is_missing_has_a_page(tmp_path):
    request = Request(
        tower="quadratic: sgd@1 / sgd",
        depths=(1, 2),
        grid=(("lr*", ("1", "10")),),
        seeds=2,
        problems=8,
        select=4,
        steps=20,
    )
    tell = lambda run: Told(status="failed", why="MemoryError") if run.depth == 1 else Told()  # noqa: E731
    assert "height 2" in without_pictures(tmp_path, request, tell)


@pytest.mark.parametrize("kind", ["none", "empty", "foreign", "garbled"])
def test_a_folder_without_a_study_is_one_clear_line(kind, tmp_path):
    texts = {"empty": "", "garbled": "not JSON", "foreign": '{"format": "other"}'}
    if kind in texts:
        (tmp_path / "study.json").write_text(texts[kind])
    with pytest.raises((ValueError, OSError)) as caught:
        reported(tmp_path)
    assert "\n" not in str(caught.value)
    assert "study.json" in str(caught.value)


def test_a_place_that_cannot_be_written_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot make .*file"):
        write(folder, Console(file=io.StringIO()), out=tmp_path / "file" / "page.html")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    if not CHROMIUM.exists() or not DRIVER.exists():
        pytest.skip("chromium and its driver are not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=str(DRIVER)))
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
    channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def colour(browser, selector, name):
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    return browser.execute_script(script, selector, name)


@pytest.mark.slow
def test_it_renders_without_an_error_or_a_request(browser, folder, written, heights):
    for made in (folder, heights):
        look_at(browser, made / "report.html")
        assert browser.execute_script("return document.querySelectorAll('figure svg').length") >= 3
        assert browser.execute_script(
            "return [...document.querySelectorAll('figure svg')].every(e => e.getBoundingClientRect().height > 150)"
        )
        assert browser.get_log("browser") == []
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        urls = [each["request"]["url"] for each in sent if each["documentURL"].startswith("file:")]
        assert (made / "report.html").as_uri() in urls
        assert [url for url in urls if not url.startswith(("file:", "data:"))] == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 320])
def test_a_narrow_window_does_not_scroll_sideways(browser, folder, written, heights, width):
    for made in (folder, heights):
        look_at(browser, made / "report.html", width=width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        wide = browser.execute_script(
            "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
        )
        assert wide >= 1  # tables scroll in their own box


@pytest.mark.slow
def test_light_and_dark_can_both_be_read(browser, folder, written):
    seen = {}
    for scheme in ("light", "dark"):
        look_at(browser, folder / "report.html", scheme=scheme)
        paper = colour(browser, "body", "backgroundColor")
        seen[scheme] = paper
        assert contrast(paper, colour(browser, "body", "color")) > 10
        assert contrast(paper, colour(browser, "figcaption", "color")) > 4.5
        ink, filtered = luminance(colour(browser, "figure svg text", "fill")), colour(browser, "figure svg", "filter")
        assert ink < 0.02
        assert filtered.startswith("none" if scheme == "light" else "invert(1) ")
        assert contrast(paper, colour(browser, "nav a", "color")) > 4.5
        for banner in (".good", ".wait"):
            assert contrast(colour(browser, banner, "backgroundColor"), colour(browser, banner, "color")) > 4.5
    assert luminance(seen["light"]) > 0.9
    assert luminance(seen["dark"]) < 0.03
