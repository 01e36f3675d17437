"""The pictures of a study, from its findings; each is left out where there is nothing to draw.

A cell has one colour, dash and mark in all of them. Cells of a grid of step sizes are in the pictures of sensitivity
and in no other: there are too many of them. Those are after Fig. 3 of Chandra et al. 2022.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from recursion.evaluation.reporting import COLOURS
from recursion.study import drawing
from recursion.study.comparing import Gap
from recursion.study.drawing import HEIGHT, INK, SOFT, Looks, Picture, drawable, drawn, logarithmic, looks_of, whisker
from recursion.study.findings import Findings, Line
from recursion.study.request import SPENT, Budget
from recursion.study.results import MEASURES, PRIMARY, SPLITS, UNITS, Cell
from recursion.study.sensitivity import WITHIN, Sensitivity
from recursion.study.words import capital, interval, listing, number

LETTER = 0.065  # inches of a letter of a long name below an axis
MOST = 16  # cells that a picture has room for
LEVELS = 4  # whose training is drawn, and whose work has a part of its own
PARTS = 6  # of a cost that have a colour of their own; the next are hatched
BAND = ("lower quartile", "median loss", "upper quartile")


def draw(findings: Findings) -> list[Picture]:
    """All that there is something to draw for, in the order of the page."""
    pictures: list[Picture] = []
    lines = [line for line in findings.plain[-MOST:] if PRIMARY in line.losses]
    lines = [] if all(line.cell.is_baseline for line in lines) else lines
    looks = looks_of([line.cell.label for line in findings.plain[-MOST:] if not line.cell.is_baseline])
    for measure in MEASURES if lines else ():
        _against_depth(pictures, lines, measure, looks)
    _use(pictures, lines, looks)
    for each in findings.sensitivities:
        _sensitivity(pictures, each)
        _robust(pictures, each)
        _time(pictures, each)
    paying = [line for line in lines if line.ledger.paid[UNITS[0]] > 0]
    if paying:
        _benefit(pictures, paying, looks)
        _ledger(pictures, paying, findings.data.request.budget)
    for level in range(1, LEVELS + 1):
        _training(pictures, lines, level, looks)
    gaps = [gap for gap in findings.gaps if not gap.cell.on_grid][:MOST]
    if gaps and lines:
        _gaps(pictures, gaps)
    return pictures


def _against_depth(pictures: list[Picture], lines: list[Line], measure: str, looks: Looks) -> None:
    """One point a cell; cells that share all factors but depth are joined."""
    values = [f"{line.cell.label} {interval(line.losses[measure])}" for line in lines]
    cells = sorted((line for line in lines if not line.cell.is_baseline), key=lambda line: line.cell.depth)
    series: dict[frozenset[tuple[str, str]], list[Line]] = defaultdict(list)
    for line in cells:
        series[frozenset(line.cell.factors.items() - {("depth", line.cell.factors["depth"])})].append(line)
    caption = f"Interquartile mean of the {measure} on problems never trained on, with 95% intervals over problems and "
    caption += "seeds; the dashed line and its band are the tuned baseline."
    with drawn(
        pictures, f"{measure.replace(' ', '-')}-by-depth", f"{capital(measure)} against depth",
        f"{capital(measure)} by cell: {'; '.join(values)}.", caption, "depth (levels)", f"{measure} on report problems",
    ) as axes:  # fmt: skip
        for joined in series.values():
            depths, losses = [line.cell.depth for line in joined], [line.losses[measure] for line in joined]
            axes.plot(depths, drawable(loss.value for loss in losses), color=SOFT, linewidth=1.0)
            for line, loss in zip(joined, losses):
                whisker(axes, line.cell.depth, loss, looks[line.cell.label], line.cell.label)
        for line in lines:
            ours = line.losses[measure]
            if line.cell.is_baseline and math.isfinite(ours.value):
                axes.axhline(ours.value, linewidth=1.4, label=line.cell.label, **drawing.BASE.line)
                axes.axhspan(*drawable([ours.low, ours.high]), color=SOFT, alpha=0.16, linewidth=0)
        drawing.levels_along(axes, sorted({line.cell.depth for line in cells}))
        logarithmic(axes, drawing.reach(line.losses[measure] for line in lines))
        axes.margins(x=0.1)


def _curves(
    pictures: list[Picture], name: str, title: str, about: str, caption: str, along: str, looks: Looks,
    curves: dict[str, pd.Series], bands: Sequence[tuple[str, pd.Series, pd.Series]] = (), form: str | None = None,
) -> None:  # fmt: skip
    """A line a cell, of losses by what is ``along`` the horizontal axis, written in ``form``; bands around some."""
    if not curves:
        return
    ends = "; ".join(f"{label} ends at {number(losses.iloc[-1])}" for label, losses in curves.items())
    with drawn(pictures, name, title, f"{about}: {ends}.", caption, along, "loss") as axes:
        for label, losses in curves.items():
            axes.plot(losses.index, drawable(losses), linewidth=1.6, label=label, **looks[label].line)
        logarithmic(axes, pd.concat(list(curves.values())))
        axes.margins(x=0.01)
        for label, low, high in bands:
            colour = looks[label].colour
            axes.fill_between(low.index, drawable(low), drawable(high), color=colour, alpha=0.12, linewidth=0)
        if form:
            axes.xaxis.set_major_formatter(form)


def _use(pictures: list[Picture], lines: list[Line], looks: Looks) -> None:
    """Loss at use: medians over seeds of the median and quartiles over problems."""
    every = [(line.cell.label, *(line.cell.curves(name).median() for name in BAND)) for line in lines]
    bands = [(label, low, high) for label, low, _, high in every if len(low)]
    curves = {label: middle for label, _, middle, _ in every if len(middle)}
    caption = "What was learned, put to use on report problems: median over problems and seeds, band from the lower to "
    caption += "the upper quartile over problems."
    title, about, along = "Loss at use", "Loss against base steps of a use", "base steps of a use"
    _curves(pictures, "curves", title, about, caption, along, looks, curves, bands)


def _training(pictures: list[Picture], lines: list[Line], level: int, looks: Looks) -> None:
    """The loss below a level while its tower was trained, medians over seeds, against the part that is done."""
    curves = {}
    for line in lines:
        rows = line.cell.part("training", "train", "loss").query(f"level == {level}").sort_values(["seed", "step"])
        seeds = rows.groupby("seed")
        points = rows.assign(point=seeds.cumcount())[seeds.cumcount() < seeds.size().min()].groupby("point")
        if len(points) > 1:
            curves[line.cell.label] = points.value.median().set_axis(points.step.first() / rows.step.max())
    title, about = f"Training: loss below level {level}", f"Training loss below level {level}"
    caption = f"Loss of what level {level} works on, while its tower was trained: median over seeds."
    _curves(pictures, f"training-{level}", title, about, caption, "part of the training", looks, curves, form="{x:.0%}")


def _gaps(pictures: list[Picture], gaps: list[Gap]) -> None:
    alt = f"Gain by split: {'; '.join(f'{gap.cell.label}, gap {number(gap.gap)}' for gap in gaps)}."
    caption = "By how much the chosen snapshot is below the start of training, on problems that trained it, chose it, "
    caption += "and report on it. Above zero is a gain; train or select above zero and report not is an alarm."
    title, label, looks = "The gap between the splits", "gain (log of start / chosen)", looks_of(SPLITS)
    names, crowded = [gap.cell.label for gap in gaps], len(gaps) > 5
    room = LETTER * max(map(len, names)) if crowded else 0.0
    with drawn(pictures, "gaps", title, alt, caption, "", label, height=HEIGHT + room) as axes:
        for place, gap in enumerate(gaps):
            for offset, (split, gain) in enumerate(gap.gains.items(), -1):
                whisker(axes, place + 0.2 * offset, gain, looks[split], None if place else f"{split} problems")
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xticks(range(len(gaps)), names, rotation=90 if crowded else 0, fontsize=8 if crowded else None)
        axes.margins(x=0.12)


def _benefit(pictures: list[Picture], lines: list[Line], looks: Looks) -> None:
    """Loss of the snapshots against what had been spent by then; at the end the reported loss."""
    ends = [(line.cell, line.ledger.paid[UNITS[0]], line.losses[PRIMARY]) for line in lines]
    says = "; ".join(f"{cell.label} {number(loss.value)} at {number(spent)}" for cell, spent, loss in ends)
    alt, title = f"Mean loss against total cost in base steps: {says}.", "Cost against benefit"
    caption = "Lines: mean loss of the snapshots on select problems, when that much had been spent on training. "
    caption += "Points: mean loss on report problems against all that was spent, with 95% intervals."
    labels = "total cost (base steps, optimizer work counted)", "mean loss"
    with drawn(pictures, "cost-benefit", title, alt, caption, *labels) as axes:
        for cell, spent, loss in ends:
            points, look = _snapshots(cell), looks[cell.label]
            axes.plot(points.cost, drawable(points.value), linewidth=1.3, alpha=0.8, **look.line)
            whisker(axes, spent, loss, look, cell.label)
        logarithmic(axes, drawing.reach(loss for _, _, loss in ends))
        axes.set_xlim(left=0)
        _in_thousands(axes)


def _snapshots(cell: Cell) -> pd.DataFrame:
    """Mean cost and loss over seeds, snapshot by snapshot, as far as all seeds have it."""
    rows = cell.part("snapshot", "select", PRIMARY).sort_values("step")
    steps = cell.done.set_index("seed").facts.map(lambda facts: facts.get("steps") or 1)
    cost = cell.costs(stages=("training",))[UNITS[0]]
    rows = rows.assign(cost=rows.step * rows.seed.map(cost / steps), place=rows.groupby("seed").cumcount())
    points = rows.groupby("place")[["cost", "value"]]
    return points.mean()[points.size() == len(steps)]


def _ledger(pictures: list[Picture], lines: list[Line], budget: Budget) -> None:
    """Stacked bars: task gradients and optimizer work of training, then all else; the budget as a line."""
    parts = {}
    for line in reversed(lines):
        stages, work = line.ledger.stages.T.reindex(columns=SPENT, fill_value=0.0), line.ledger.levels["optimizer work"]
        levels = {f"optimizer of level {level}": work.get(level, 0.0) for level in range(1, LEVELS + 1)}
        rest = {f"optimizers above level {LEVELS}": work[LEVELS:].sum()}
        parts[line.cell.label] = {"task gradients": stages["training"]["task gradients"]} | levels | rest
        parts[line.cell.label] |= stages.loc[UNITS[0], [*SPENT[1:]]]
    bars = pd.DataFrame(parts).T
    bars = bars.loc[:, (bars > 0).any()]
    totals = [f"{label} {number(total)}" for label, total in bars.sum(axis=1).iloc[::-1].items()]
    alt = f"Total cost in base steps: {'; '.join(totals)}."
    caption = "Base steps of a run, mean over seeds: gradients of the task, and the work of each level's optimizer in "
    caption += "the same unit; what tunes a hand-made rule is search."
    height = 1.9 + 0.34 * len(lines) + 0.2 * math.ceil(bars.shape[1] / 2)
    title, looks = "Where the cost went", list(looks_of(range(PARTS)).values())
    with drawn(pictures, "ledger", title, alt, caption, "base steps", "", height=height) as axes:
        before = bars.cumsum(axis=1) - bars
        for place, name in enumerate(bars):
            colour, hatch = looks[place % PARTS].colour, "///" if place >= PARTS else None
            axes.barh(bars.index, bars[name], 0.62, before[name], color=colour, hatch=hatch, label=name)
        if budget.unit == "base steps":
            axes.axvline(budget.amount, color=INK, linestyle=":", linewidth=1.4, label="budget")
        _in_thousands(axes)
        axes.grid(visible=False, axis="y")


def _in_thousands(axes: Axes) -> None:
    """Large numbers along the horizontal axis as 500k and 1.5M."""
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _sensitivity(pictures: list[Picture], each: Sensitivity) -> None:
    """Loss against step size."""
    values = np.concatenate([height.losses for height in each.heights])
    highest = max(values[np.isfinite(values)], default=1.0)
    alt = f"Mean loss against {each.factor} for heights {listing([str(height.height) for height in each.heights])}."
    factors = "; ".join([each.factor, *each.others])
    caption = f"Mean loss against the step size that all levels begin with ({factors}), a line for each "
    caption += f"height; crosses are divergence, dotted lines {WITHIN[0]:g} and {WITHIN[1]:g} times the best loss."
    name, title, labels = f"sensitivity-{each.slug}", "Sensitivity against height", f"{each.factor} at the start"
    with drawn(pictures, name, title, alt, caption, labels, "mean loss on report problems", height=4.2) as axes:
        for place, (height, colour) in enumerate(zip(each.heights, drawing.sequence(len(each.heights))), 1):
            losses, label = height.losses, f"height {height.height}"
            axes.plot(losses.index, drawable(losses), "o-", color=colour, markersize=3.5, linewidth=1.6, label=label)
            gone = losses.index[np.isinf(losses)]
            axes.plot(gone, [1.15**place * highest] * len(gone), "x", color=colour, markersize=5)
        for within in WITHIN:
            axes.axhline(within * each.best, color=SOFT, linestyle=":", linewidth=1.2)
        axes.set_xscale("log")
        logarithmic(axes, values, span=5.0)


def _robust(pictures: list[Picture], each: Sensitivity) -> None:
    heights = [height.height for height in each.heights]
    widths = "; ".join(f"{height.ranges[-1].text} at height {height.height}" for height in each.heights)
    alt = f"Robust range in decades, within {WITHIN[-1]:g} times the best: {widths}."
    caption = "Width of the longest run of step sizes on the grid whose mean loss is within the tolerance of the best; "
    caption += "bars are the range over seeds, and triangles reach the end of the grid: at least that wide."
    labels = "height (levels)", "decades of step sizes"
    with drawn(pictures, f"robust-{each.slug}", "Robust range against height", alt, caption, *labels) as axes:
        for within, look, ranges in zip(WITHIN, looks_of(WITHIN).values(), zip(*(one.ranges for one in each.heights))):
            ends = np.nan_to_num([[one.decades, one.low, one.high] for one in ranges]).T
            axes.plot(heights, ends[0], linewidth=1.6, label=f"within {within:g} times the best", **look.line)
            axes.vlines(heights, ends[1], ends[2], color=look.colour, alpha=0.5, linewidth=1.4)
            for height, decades, one in zip(heights, ends[0], ranges):
                axes.plot([height], [decades], "^" if one.open else "o", color=look.colour, markersize=6)
        drawing.levels_along(axes, heights)
        axes.set_ylim(bottom=-0.2)


def _time(pictures: list[Picture], each: Sensitivity) -> None:
    if len(each.heights) < 2 or not all(height.seconds for height in each.heights):
        return
    heights = [height.height for height in each.heights]
    times = 1e3 * np.array([drawing.reach([height.seconds]) for height in each.heights if height.seconds]).T
    alt = "; ".join(f"{middle:.3g} ms at height {height}" for height, middle in zip(heights, times[0]))
    caption = "Wall time of one base step at use: median over runs, bars from the fastest to the slowest."
    name, title, label = f"time-{each.slug}", "Time against height", "milliseconds of a step"
    with drawn(pictures, name, title, f"Time of a step: {alt}.", caption, "height (levels)", label) as axes:
        axes.plot(heights, times[0], color=COLOURS[0].lower(), marker="o", linewidth=1.6)
        axes.vlines(heights, times[1], times[2], color=SOFT, linewidth=1.2)
        drawing.levels_along(axes, heights)
        axes.set_ylim(bottom=0)
