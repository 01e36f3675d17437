"""A picture twice: a PNG for anywhere, and an SVG that goes into a page.

Pictures are drawn on a matplotlib ``Figure`` without its global state: a quiet grid, no box, one narrow panel, so that
a narrow window shows them at a size that can be read. In the SVG text stays text; ``page.css`` inverts it in dark.
"""

import io
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from recursion.evaluation.reporting import COLOURS, DASHES
from recursion.evaluation.statistics import Estimate
from recursion.study.words import number

WIDTH, HEIGHT = 4.7, 3.5  # inches
INK, SOFT = "#1b1f24", "#8b929a"
MARKS = ("o", "s", "^", "D", "v", "P")
SHADES = 24  # of the sequence of colours for what is ordered
STYLE: Any = {
    "figure.constrained_layout.use": True, "savefig.dpi": 130, "svg.fonttype": "none", "font.size": 10,
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.7,
    "legend.fontsize": 9, "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor", "hatch.color"), INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), SOFT),
}  # fmt: skip


class Picture(NamedTuple):
    """``name``: of its file, without ending. ``alt``: what it shows, for those who do not see it."""

    name: str
    alt: str
    caption: str
    png: bytes
    svg: bytes


class Style(NamedTuple):
    """How a cell looks, the same in all pictures. ``line``: settings of its lines."""

    colour: str
    dash: Any
    mark: str

    @property
    def line(self) -> dict[str, Any]:
        return {"color": self.colour, "linestyle": self.dash}


Looks = dict[Any, Style]  # by name
BASE = Style(INK, (0, (4, 2)), "X")


@contextmanager
def drawn(
    pictures: list[Picture], name: str, title: str, alt: str, caption: str, xlabel: str, ylabel: str, *,
    height: float = HEIGHT,
) -> Iterator[Axes]:  # fmt: skip
    """Axes to draw on, which become a picture at the end; labels of lines become a legend below."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_subplot()
        yield axes
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        handles, names = axes.get_legend_handles_labels()
        if len(names) > 1:
            longest = max(map(len, names))
            columns = min(1 if longest > 34 else 2 if longest > 16 else 3, len(names))
            figure.legend(handles, names, loc="outside lower center", ncols=columns)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", facecolor="white")
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    pictures.append(Picture(name, alt, caption, png.getvalue(), svg.getvalue()))


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
