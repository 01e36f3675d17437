"""A picture twice: a PNG for anywhere, and an SVG that goes into a page and follows its colours and fonts.

Pictures are drawn on a matplotlib ``Figure`` without its global state, in the style of ``pictures.mplstyle``. In the
SVG each colour is a CSS variable, which ``page.css`` sets in dark; text stays text, in the page's font. Pictures are
narrow, one panel each, so that a narrow window shows them at a size that can be read.
"""

import io
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from recursion.evaluate.reporting import COLOURS, DASHES
from recursion.evaluate.statistics import Estimate
from recursion.study.words import number

STYLE = str(files("recursion.study").joinpath("pictures.mplstyle"))
WIDTH, HEIGHT = 4.7, 3.5  # inches
INK, SOFT = "#1b1f24", "#8b929a"
MARKS = ("o", "s", "^", "D", "v", "P")
SHADES = 24  # of the sequence of colours for what is ordered
XML = 'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg"'


@dataclass(frozen=True, kw_only=True)
class Picture:
    """``name``: of its file, without ending. ``alt``: what it shows, for those who do not see it."""

    name: str
    alt: str
    png: bytes
    svg: str


@dataclass(frozen=True)
class Style:
    """How a cell looks, the same in all pictures."""

    colour: str
    dash: Any
    mark: str

    @property
    def line(self) -> dict[str, Any]:
        """Settings of a line."""
        return {"color": self.colour, "linestyle": self.dash}


Looks = dict[Any, Style]  # by name
BASE = Style(INK, (0, (4, 2)), "X")


@contextmanager
def drawn(pictures: list[Picture], name: str, title: str, alt: str, *, height: float = HEIGHT) -> Iterator[Axes]:
    """Axes to draw on, which become a picture at the end; labels of lines become a legend below."""
    with matplotlib.rc_context({"svg.hashsalt": name}, fname=STYLE):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_subplot()
        yield axes
        axes.set_title(title)
        handles, labels = axes.get_legend_handles_labels()
        longest = max(map(len, labels), default=0)
        columns = min(1 if longest > 34 else 2 if longest > 16 else 3, len(labels))
        if len(labels) > 1:
            figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", facecolor="white")
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    pictures.append(Picture(name=name, alt=alt, png=png.getvalue(), svg=_inline(svg.getvalue(), name)))


def looks_of(names: Sequence[Any]) -> Looks:
    """Colours that all can tell apart; beyond those, a sequence from dark to light. Any other name looks as `BASE`."""
    if len(names) <= len(COLOURS):
        styles = [Style(colour.lower(), dash, mark) for colour, dash, mark in zip(COLOURS, DASHES, MARKS)]
    else:
        styles = [Style(colour, "-", MARKS[i % len(MARKS)]) for i, colour in enumerate(sequence(len(names)))]
    return defaultdict(lambda: BASE, zip(names, styles))


def sequence(count: int) -> list[str]:
    """Colours for what is ordered."""
    steps = (round(place * (SHADES - 1) / max(count - 1, 1)) for place in range(count))
    return [str(to_hex(matplotlib.colormaps["viridis"](0.88 * step / (SHADES - 1)))) for step in steps]


def logarithmic(axes: Axes, values: Iterable[float], *, span: float = 10.0) -> None:
    """Logarithmic where all values are above 0 and span a decade (or ``span``)."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or not 0 < span * min(finite) < max(finite):
        return
    axes.set_yscale("log")
    few = max(finite) < 200 * min(finite)
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def reach(estimates: Iterable[Estimate]) -> list[float]:
    """Values and the ends of their intervals: all that must fit."""
    return [end for each in estimates for end in (each.value, each.low, each.high)]


def levels_along(axes: Axes, levels: Sequence[int]) -> None:
    """Numbers of levels along the horizontal axis, logarithmic where they go far."""
    if max(levels) > 12:
        axes.set_xscale("log")
    axes.set_xticks(levels, [str(level) for level in levels])
    axes.minorticks_off()


def whisker(axes: Axes, x: float, estimate: Estimate, style: Style, label: str | None) -> None:
    """A point with its interval; an end that is infinite is a sign above or below the point."""
    if not math.isfinite(estimate.value):
        return
    low, high = (end if math.isfinite(end) else estimate.value for end in (estimate.low, estimate.high))
    axes.vlines([x], [low], [high], color=style.colour, linewidth=1.6)
    axes.plot([x], [estimate.value], style.mark, color=style.colour, markersize=7, label=label, linestyle="none")
    for end, offset in ((estimate.low, -15), (estimate.high, 9)):
        if not math.isfinite(end):
            axes.annotate("∞", (x, estimate.value), (0, offset), textcoords="offset points", ha="center")


def drawable(values: Iterable[float]) -> list[float]:
    """Infinite values as gaps."""
    return [float(value) if math.isfinite(value) else math.nan for value in values]


def _inline(svg: str, name: str) -> str:
    """An SVG document as an element of a page: ids of its own, colours as variables, the page's font, no fixed size."""
    text = svg[svg.index("<svg ") :]
    box = re.findall(r'viewBox="[^"]*"', text)[0]
    for pattern, new in (
        (r"<svg width[^>]*>", f'<svg {box} {XML} stroke-linejoin="round" aria-hidden="true" focusable="false">'),
        (r"(?s)<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", ""),
        (r'\bid="', f'id="{name}-'),
        (r'(href="#|url\(#)', rf"\1{name}-"),
        (r"font-family:[^;\"]*", "font-family: inherit"),
        (r"font:\s*(?:bold|700) ([\d.]+)px [^;\"]*", r"font-weight: bold; font-size: \1px; font-family: inherit"),
        (r"font:\s*([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit"),
        (r"#([0-9a-fA-F]{6})\b", lambda match: f"var(--c{match[1].lower()}, {match[0]})"),
        (r">\s+<", "><"),
    ):
        text = re.sub(pattern, new, text)
    return text.strip()
