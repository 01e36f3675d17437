"""A picture twice: a PNG for anywhere, and an SVG that goes into a page and follows its colours and fonts.

Pictures are drawn on a matplotlib ``Figure`` without its global state. In the SVG each colour is a CSS variable, so one
drawing is right in light and in dark; text stays text, in the page's font. Pictures are narrow, one panel each, so that
a narrow window shows them at a size that can be read.
"""

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recursion.reporting import COLOURS, DASHES, DPI
from recursion.statistics import Estimate
from recursion.study.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.7, 3.5  # inches
INK, SOFT, PAPER = "#1b1f24", "#8b929a", "#fefefe"
MARKS = ("o", "s", "^", "D", "v", "P")
# Light and dark: ink, what is less important, paper, and the colours of Okabe and Ito as they are and lighter.
DARK = {
    INK: "#e8e6e1", SOFT: "#7f8892", PAPER: "#171a1e",
    "#0072b2": "#5aaee6", "#e69f00": "#f2b73d", "#009e73": "#3cc79b",
    "#cc79a7": "#e59cc5", "#56b4e9": "#a5dcff", "#d55e00": "#ff8a4c",
}  # fmt: skip
SHADES = 24  # of the sequence of colours for what is ordered


@dataclass(frozen=True, kw_only=True)
class Picture:
    """``name``: of its file, without ending. ``alt``: what it shows, for those who do not see it."""

    name: str
    title: str
    caption: str
    alt: str
    png: bytes
    svg: str


@dataclass(frozen=True)
class Style:
    """How a cell looks, the same in all pictures."""

    colour: str
    dash: Any
    mark: str


def draw(
    name: str, title: str, caption: str, alt: str, panel: Callable[["Axes"], None], *, height: float = HEIGHT
) -> Picture:
    """A picture of one panel; its lines' labels become a legend below it."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none", "svg.hashsalt": name, "text.color": INK, "axes.edgecolor": SOFT, "axes.labelcolor": INK,
        "xtick.color": SOFT, "ytick.color": SOFT, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": SOFT,
        "axes.titlesize": 11, "font.size": 10, "legend.fontsize": 9,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        panel(axes)
        axes.set_title(title, loc="left", fontweight="bold")
        _legend(figure, axes)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=DPI, facecolor="white")
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Picture(
        name=name, title=title, caption=caption, alt=alt, png=png.getvalue(), svg=_inline(svg.getvalue(), name)
    )


def styles(count: int) -> list[Style]:
    """One for each of ``count`` cells: colours that all can tell apart; beyond those, a sequence from dark to light."""
    if count <= len(COLOURS):
        return [Style(COLOURS[i].lower(), DASHES[i], MARKS[i]) for i in range(count)]
    return [Style(colour, "-", MARKS[i % len(MARKS)]) for i, colour in enumerate(sequence(count))]


def sequence(count: int) -> list[str]:
    """Colours for what is ordered."""
    return [_shade(round(i * (SHADES - 1) / max(count - 1, 1)), 0.0, 0.88) for i in range(count)]


BASE = Style(INK, (0, (4, 2)), "X")


def colours() -> dict[str, str]:
    """Every colour of light and its colour in dark."""
    return DARK | {_shade(i, 0.0, 0.88): _shade(i, 0.32, 1.0) for i in range(SHADES)}


def finish(axes: "Axes", x: str, y: str) -> None:
    """Labels, a quiet grid, no box."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def logarithmic(axes: "Axes", values: Sequence[float], *, span: float = 10.0) -> None:
    """Logarithmic where all values are above 0 and span a decade (or ``span``)."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    finite = [value for value in values if math.isfinite(value)]
    if not finite or not 0 < span * min(finite) < max(finite):
        return
    axes.set_yscale("log")
    few = max(finite) < 200 * min(finite)
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def reach(found: Iterable[Estimate]) -> list[float]:
    """Values and the ends of their intervals: all that must fit."""
    return [end for each in found for end in (each.value, each.low, each.high)]


def in_thousands(axes: "Axes") -> None:
    """Large numbers along the horizontal axis as 500k and 1.5M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def whisker(axes: "Axes", x: float, found: Estimate, style: Style, *, label: str | None = None) -> None:
    """A point with its interval; an interval that has no end reaches out of the picture's upper or lower side."""
    if not math.isfinite(found.value):
        return
    low, high = (end if math.isfinite(end) else found.value for end in (found.low, found.high))
    axes.vlines([x], [low], [high], color=style.colour, linewidth=1.6)
    axes.plot([x], [found.value], style.mark, color=style.colour, markersize=7, label=label, linestyle="none")
    for end, mark in ((found.low, "v"), (found.high, "^")):
        if not math.isfinite(end):
            axes.annotate(
                "∞", (x, found.value), (0, 9 if mark == "^" else -15), textcoords="offset points", ha="center"
            )


def drawable(values: Iterable[float]) -> list[float]:
    """Infinite values as gaps."""
    return [float(value) if math.isfinite(value) else math.nan for value in values]


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        columns = 1 if max(map(len, labels)) > 34 else 2 if max(map(len, labels)) > 16 else 3
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), frameon=False)


def _shade(index: int, low: float, high: float) -> str:
    """Of viridis."""
    import matplotlib
    from matplotlib.colors import to_hex

    return str(to_hex(matplotlib.colormaps["viridis"](low + (high - low) * index / (SHADES - 1))))


def _inline(svg: str, name: str) -> str:
    """An SVG document as an element of a page: ids of its own, colours as variables, the page's font, no fixed size."""
    found = re.search(r"<svg .*</svg>", svg, re.DOTALL)
    assert found is not None
    text = re.sub(r"<metadata>.*?</metadata>", "", found[0], flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r"font-family:[^;\"]*", "font-family: inherit", text)
    text = re.sub(r"font:\s*(?:(bold|700) )?([\d.]+)px [^;\"]*", _font, text)
    text = re.sub(r"#[0-9a-fA-F]{6}\b", lambda match: f"var(--c{match[0][1:].lower()}, {match[0]})", text)
    text = re.sub(r"<svg ([^>]*?)>", _opening, text, count=1)
    return re.sub(r">\s+<", "><", text)


def _font(match: re.Match[str]) -> str:
    weight = "font-weight: bold; " if match[1] else ""
    return f"{weight}font-size: {match[2]}px; font-family: inherit"


def _opening(match: re.Match[str]) -> str:
    kept = re.search(r'viewBox="[^"]*"', match[1])
    assert kept is not None
    names = 'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg"'
    return f'<svg {kept[0]} {names} stroke-linejoin="round" aria-hidden="true" focusable="false">'
