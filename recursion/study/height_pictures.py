"""Pictures of sensitivity against height, after Fig. 3 of Chandra et al. 2022."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from recursion.study.comparing import PRIMARY
from recursion.study.drawing import (
    SOFT,
    Picture,
    draw,
    drawable,
    finish,
    logarithmic,
    sequence,
    styles,
)
from recursion.study.sensitivity import WITHIN, Sensitivity
from recursion.study.words import listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def height_pictures(found: Sensitivity) -> Iterator[Picture]:
    """Loss against step size, robust range and time against height."""
    colours = sequence(len(found.heights))
    tail = "-".join([found.factor.replace("*", "x"), *(f"{k}-{v}" for k, v in found.others.items())]).replace(".", "-")
    known = [height.losses[PRIMARY] for height in found.heights]
    highest = max((e.value for row in known for e in row if math.isfinite(e.value)), default=1.0)

    def losses(axes: "Axes") -> None:
        for place, (height, colour) in enumerate(zip(found.heights, colours)):
            values = [each.value for each in height.losses[PRIMARY]]
            label = f"height {height.height}"
            axes.plot(
                height.values, drawable(values), color=colour, marker="o", markersize=3.5, linewidth=1.6, label=label
            )
            gone = [x for x, value in zip(height.values, values) if not math.isfinite(value)]
            axes.plot(gone, [1.15 ** (1 + place) * highest] * len(gone), "x", color=colour, markersize=5)
        for within in WITHIN:
            axes.axhline(within * found.best, color=SOFT, linestyle=":", linewidth=1.2)
        axes.set_xscale("log")
        logarithmic(axes, [e.value for row in known for e in row], span=5.0)
        finish(axes, f"{found.factor} at the start", "mean loss on report problems")

    shared = "".join(f"; {name} {value}" for name, value in found.others.items())
    yield draw(
        f"sensitivity-{tail}",
        "Sensitivity against height",
        f"Mean loss against the step size that all levels begin with ({found.factor}{shared}), a line for each height; "
        f"crosses are divergence, dotted lines {listed([f'{within:g}' for within in WITHIN])} times the best loss.",
        f"Mean loss against {found.factor} for heights {listed([str(h.height) for h in found.heights])}.",
        losses,
        height=4.2,
    )
    yield _robust(found, tail)
    if all(height.seconds for height in found.heights) and len(found.heights) > 1:
        yield _time(found, tail)


def _robust(found: Sensitivity, tail: str) -> Picture:
    heights = [height.height for height in found.heights]

    def panel(axes: "Axes") -> None:
        for index, (within, style) in enumerate(zip(WITHIN, styles(len(WITHIN)))):
            ranges = [height.ranges[index] for height in found.heights]
            decades = [0.0 if math.isnan(each.decades) else each.decades for each in ranges]
            label = f"within {within:g} times the best"
            axes.plot(heights, decades, color=style.colour, linestyle=style.dash, linewidth=1.6, label=label)
            for height, value, each in zip(heights, decades, ranges):
                axes.plot([height], [value], "^" if each.open else "o", color=style.colour, markersize=6)
                low, high = (0.0 if math.isnan(end) else end for end in each.spread)
                axes.vlines([height], [low], [high], color=style.colour, alpha=0.5, linewidth=1.4)
        _heights(axes, heights)
        axes.set_ylim(bottom=-0.2)
        finish(axes, "height (levels)", "decades of step sizes")

    said = [f"{height.ranges[-1].text} at height {height.height}" for height in found.heights]
    return draw(
        f"robust-{tail}",
        "Robust range against height",
        "Width of the longest run of step sizes on the grid whose mean loss is within the tolerance of the best; bars "
        "are the range over seeds, and triangles reach the end of the grid: at least that wide.",
        f"Robust range in decades, within {WITHIN[-1]:g} times the best: {'; '.join(said)}.",
        panel,
    )


def _time(found: Sensitivity, tail: str) -> Picture:
    heights = [height.height for height in found.heights]
    times = [height.seconds for height in found.heights if height.seconds]

    def panel(axes: "Axes") -> None:
        axes.plot(heights, [1e3 * each.value for each in times], color=styles(1)[0].colour, marker="o", linewidth=1.6)
        axes.vlines(heights, [1e3 * e.low for e in times], [1e3 * e.high for e in times], color=SOFT, linewidth=1.2)
        _heights(axes, heights)
        axes.set_ylim(bottom=0)
        finish(axes, "height (levels)", "milliseconds of a step")

    said = [f"{1e3 * each.value:.3g} ms at height {height}" for height, each in zip(heights, times)]
    caption = "Wall time of one base step at use: median over runs, bars from the fastest to the slowest."
    return draw(f"time-{tail}", "Time against height", caption, f"Time of a step: {'; '.join(said)}.", panel)


def _heights(axes: "Axes", heights: Sequence[int]) -> None:
    if max(heights) > 12:
        axes.set_xscale("log")
    axes.set_xticks(heights, [str(height) for height in heights])
    axes.minorticks_off()
