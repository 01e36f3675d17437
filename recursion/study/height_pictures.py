"""Pictures of sensitivity against height, after Fig. 3 of Chandra et al. 2022."""

import numpy as np

from recursion.evaluate.reporting import COLOURS
from recursion.study.drawing import SOFT, Picture, drawable, drawn, levels_along, logarithmic, looks_of, sequence
from recursion.study.sensitivity import WITHIN, Sensitivity


def draw_heights(pictures: list[Picture], sensitivity: Sensitivity) -> None:
    """Loss against step size, robust range and time against height."""
    _losses(pictures, sensitivity)
    _robust(pictures, sensitivity)
    if all(height.seconds for height in sensitivity.heights) and len(sensitivity.heights) > 1:
        _time(pictures, sensitivity)


def _losses(pictures: list[Picture], sensitivity: Sensitivity) -> None:
    heights = sensitivity.heights
    values = np.concatenate([height.losses for height in heights])
    highest = max(values[np.isfinite(values)], default=1.0)
    names = " and ".join(", ".join(str(each.height) for each in heights).rsplit(", ", 1))
    alt = f"Mean loss against {sensitivity.factor} for heights {names}."
    with drawn(pictures, f"sensitivity-{sensitivity.slug}", "Sensitivity against height", alt, height=4.2) as axes:
        for place, (height, colour) in enumerate(zip(heights, sequence(len(heights))), 1):
            losses, label = height.losses, f"height {height.height}"
            axes.plot(losses.index, drawable(losses), "o-", color=colour, markersize=3.5, linewidth=1.6, label=label)
            gone = losses.index[np.isinf(losses)]
            axes.plot(gone, [1.15**place * highest] * len(gone), "x", color=colour, markersize=5)
        for within in WITHIN:
            axes.axhline(within * sensitivity.best, color=SOFT, linestyle=":", linewidth=1.2)
        axes.set_xscale("log")
        logarithmic(axes, values, span=5.0)
        axes.set(xlabel=f"{sensitivity.factor} at the start", ylabel="mean loss on report problems")


def _robust(pictures: list[Picture], sensitivity: Sensitivity) -> None:
    heights = [height.height for height in sensitivity.heights]
    widths = [f"{each.ranges[-1].text} at height {each.height}" for each in sensitivity.heights]
    alt = f"Robust range in decades, within {WITHIN[-1]:g} times the best: {'; '.join(widths)}."
    with drawn(pictures, f"robust-{sensitivity.slug}", "Robust range against height", alt) as axes:
        for index, (within, look) in enumerate(looks_of(WITHIN).items()):
            ranges = [height.ranges[index] for height in sensitivity.heights]
            ends = np.nan_to_num([[each.decades, each.low, each.high] for each in ranges]).T
            label = f"within {within:g} times the best"
            axes.plot(heights, ends[0], linewidth=1.6, label=label, **look.line)
            axes.vlines(heights, ends[1], ends[2], color=look.colour, alpha=0.5, linewidth=1.4)
            for height, decades, each in zip(heights, ends[0], ranges):
                axes.plot([height], [decades], "^" if each.open else "o", color=look.colour, markersize=6)
        levels_along(axes, heights)
        axes.set_ylim(bottom=-0.2)
        axes.set(xlabel="height (levels)", ylabel="decades of step sizes")


def _time(pictures: list[Picture], sensitivity: Sensitivity) -> None:
    heights = [height.height for height in sensitivity.heights]
    times = [height.seconds for height in sensitivity.heights if height.seconds]
    middles = [1e3 * each.value for each in times]
    alt = "; ".join(f"{middle:.3g} ms at height {height}" for height, middle in zip(heights, middles))
    with drawn(pictures, f"time-{sensitivity.slug}", "Time against height", f"Time of a step: {alt}.") as axes:
        axes.plot(heights, middles, color=COLOURS[0].lower(), marker="o", linewidth=1.6)
        axes.vlines(heights, [1e3 * e.low for e in times], [1e3 * e.high for e in times], color=SOFT, linewidth=1.2)
        levels_along(axes, heights)
        axes.set_ylim(bottom=0)
        axes.set(xlabel="height (levels)", ylabel="milliseconds of a step")
