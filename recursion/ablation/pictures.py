"""The pictures of an ablation, from its results and findings; each is left out where there is nothing to draw.

A cell has one colour, dash and mark in all of them. Cells of a grid of step sizes are in the pictures of sensitivity
and in no other: there are too many of them.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from recursion.ablation.comparing import BASELINES, PRIMARY
from recursion.ablation.drawing import (
    BASE,
    INK,
    SOFT,
    Picture,
    Style,
    draw,
    drawable,
    finish,
    in_thousands,
    logarithmic,
    sequence,
    styles,
    whisker,
)
from recursion.ablation.findings import Findings, Line
from recursion.ablation.honesty import SPLITS
from recursion.ablation.results import SPENT, Cell, Results
from recursion.ablation.sensitivity import WITHIN, Sensitivity, is_step_size
from recursion.ablation.words import MEASURES, capital, interval, listed, number
from recursion.statistics import Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 16  # cells that a picture has room for
LEVELS = 4  # whose training is drawn


def pictures(results: Results, findings: Findings) -> Iterator[Picture]:
    """All that there is something to draw for, in the order of the page."""
    lines = [line for line in findings.lines if not any(map(is_step_size, line.cell.factors))][-MOST:]
    looks = _looks(lines)
    measured = [line for line in lines if PRIMARY in line.losses]
    if any(line.cell.label != BASELINES for line in measured):
        yield from (_against_depth(measured, measure, looks) for measure in MEASURES)
        yield from _curves(results, measured, looks)
    for found in findings.sensitivities:
        yield from _sensitivity(found)
    if any(line.cell.label != BASELINES for line in measured):
        yield from _benefit(results, measured, looks)
        yield from _ledger(results, measured)
        yield from _training(results, measured, looks)
        yield from _gaps(findings)


def _looks(lines: Sequence[Line]) -> dict[str, Style]:
    names = [line.cell.label for line in lines if line.cell.label != BASELINES]
    return dict(zip(names, styles(len(names)))) | {BASELINES: BASE}


def _against_depth(lines: Sequence[Line], measure: str, looks: dict[str, Style]) -> Picture:
    """One point a cell; cells that share all factors but depth are joined."""
    cells = [line for line in lines if line.cell.label != BASELINES and measure in line.losses]
    base = next((line for line in lines if line.cell.label == BASELINES and measure in line.losses), None)
    series: dict[str, list[Line]] = defaultdict(list)
    for line in cells:
        series[_rest(line.cell)].append(line)

    def panel(axes: "Axes") -> None:
        for found in series.values():
            ordered = sorted(found, key=lambda line: line.cell.depth or 0)
            depths = [line.cell.depth or 0 for line in ordered]
            axes.plot(depths, drawable([line.losses[measure].value for line in ordered]), color=SOFT, linewidth=1.0)
            for depth, line in zip(depths, ordered):
                whisker(axes, depth, line.losses[measure], looks[line.cell.label], label=line.cell.label)
        if base is not None and math.isfinite(base.losses[measure].value):
            ours = base.losses[measure]
            axes.axhline(ours.value, color=INK, linestyle=BASE.dash, linewidth=1.4, label=BASELINES)
            axes.axhspan(*drawable([ours.low, ours.high]), color=SOFT, alpha=0.16, linewidth=0)
        depths = sorted({line.cell.depth or 0 for line in cells})
        if depths and max(depths) > 12:
            axes.set_xscale("log")
        axes.set_xticks(depths, [str(depth) for depth in depths], minor=False)
        axes.minorticks_off()
        logarithmic(axes, [line.losses[measure].value for line in lines if measure in line.losses])
        axes.margins(x=0.1)
        finish(axes, "depth (levels)", f"{measure} on report problems")

    values = [f"{line.cell.label} {interval(line.losses[measure])}" for line in lines if measure in line.losses]
    return draw(
        f"{measure.replace(' ', '-')}-by-depth",
        f"{capital(measure)} against depth",
        f"Interquartile mean of the {measure} on problems never trained on, with 95% intervals over problems and "
        "seeds; the dashed line and its band are the tuned baseline.",
        f"{capital(measure)} by cell: {'; '.join(values)}.",
        panel,
    )


def _curves(results: Results, lines: Sequence[Line], looks: dict[str, Style]) -> Iterator[Picture]:
    """Loss at use: medians over seeds of the median and quartiles over problems."""
    found = {line.cell.label: [_middle(results, line.cell, name) for name in _BAND] for line in lines}
    curves = {label: band for label, band in found.items() if band[1] is not None}
    if not curves:
        return

    def panel(axes: "Axes") -> None:
        for label, (low, middle, high) in curves.items():
            style = looks[label]
            assert middle is not None
            steps = range(len(middle))
            axes.plot(steps, drawable(middle), color=style.colour, linestyle=style.dash, linewidth=1.8, label=label)
            if low is not None and high is not None:
                axes.fill_between(steps, drawable(low), drawable(high), color=style.colour, alpha=0.12, linewidth=0)
        logarithmic(axes, [value for _, middle, _ in curves.values() if middle is not None for value in middle])
        axes.margins(x=0.01)
        finish(axes, "base steps of a use", "loss")

    ends = [f"{label} ends at {number(band[1][-1])}" for label, band in curves.items() if band[1] is not None]
    yield draw(
        "curves",
        "Loss at use",
        "What was learned, put to use on report problems: median over problems and seeds, band from the lower to the "
        "upper quartile over problems.",
        f"Loss against base steps of a use: {'; '.join(ends)}.",
        panel,
    )


_BAND = ("lower quartile", "median loss", "upper quartile")


def _middle(results: Results, cell: Cell, measure: str) -> Values | None:
    curves = list(results.curves(cell, measure).values())
    if not curves or len({len(curve) for curve in curves}) > 1:
        return None
    return np.asarray(np.median(np.stack(curves), 0))


def _sensitivity(found: Sensitivity) -> Iterator[Picture]:
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


def _benefit(results: Results, lines: Sequence[Line], looks: dict[str, Style]) -> Iterator[Picture]:
    """Loss of the snapshots against what had been spent by then; at the end the reported loss."""
    drawn = [line for line in lines if line.ledger is not None and line.ledger.spent > 0]
    if not drawn:
        return

    def panel(axes: "Axes") -> None:
        for line in drawn:
            assert line.ledger is not None
            style = looks[line.cell.label]
            costs, losses = _snapshots(results, line)
            axes.plot(costs, drawable(losses), color=style.colour, linestyle=style.dash, linewidth=1.3, alpha=0.8)
            whisker(axes, line.ledger.spent, line.losses[PRIMARY], style, label=line.cell.label)
        logarithmic(axes, [line.losses[PRIMARY].value for line in drawn])
        axes.set_xlim(left=0)
        in_thousands(axes)
        finish(axes, "total cost (base steps, optimizer work counted)", "mean loss")

    said = [f"{e.cell.label} {number(e.losses[PRIMARY].value)} at {number(e.ledger.spent)}" for e in drawn if e.ledger]
    yield draw(
        "cost-benefit",
        "Cost against benefit",
        "Lines: mean loss of the snapshots on select problems, when that much had been spent on training. Points: mean "
        "loss on report problems against all that was spent, with 95% intervals.",
        f"Mean loss against total cost in base steps: {'; '.join(said)}.",
        panel,
    )


def _snapshots(results: Results, line: Line) -> tuple[list[float], list[float]]:
    """Mean cost and loss over seeds, snapshot by snapshot."""
    points: list[list[tuple[float, float]]] = []
    for run in line.cell.done:
        rows = results.rows(run, "snapshot", "select", PRIMARY)
        steps = float(run.facts.get("steps") or max((row[2] for row in rows), default=1) or 1)
        cost = results.total(run, ("training",), "task gradients", 0) + results.total(
            run, ("training",), "optimizer work"
        )
        points.append([(row[2] / steps * cost, row[3]) for row in rows])
    count = min(map(len, points), default=0)
    means = [np.mean([each[i] for each in points], 0) for i in range(count)]
    return [float(mean[0]) for mean in means], [float(mean[1]) for mean in means]


def _ledger(results: Results, lines: Sequence[Line]) -> Iterator[Picture]:
    """Stacked bars: task gradients and optimizer work of training, then all else; the budget as a line."""
    drawn = [line for line in lines if line.ledger is not None and line.ledger.spent > 0]
    if not drawn:
        return
    parts = {line.cell.label: _parts(line) for line in drawn}
    found = {name for each in parts.values() for name in each}
    names = sorted(
        found,
        key=lambda name: (name in SPENT, SPENT.index(name) if name in SPENT else 0, name != "task gradients", name),
    )
    looks = dict(zip(names, [*styles(6), *styles(6)]))
    budget = results.request.budget

    def panel(axes: "Axes") -> None:
        labels = list(parts)[::-1]
        left = np.zeros(len(labels))
        for index, name in enumerate(names):
            widths = np.array([parts[label].get(name, 0.0) for label in labels])
            hatch = "///" if index >= 6 else None
            axes.barh(labels, widths, left=left, color=looks[name].colour, label=name, height=0.62, hatch=hatch)
            left += widths
        if budget.unit == "base steps":
            axes.axvline(budget.amount, color=INK, linestyle=":", linewidth=1.4, label="budget")
        finish(axes, "base steps", "")
        in_thousands(axes)
        axes.grid(visible=False, axis="y")

    said = [f"{label} {number(sum(each.values()))}" for label, each in parts.items()]
    yield draw(
        "ledger",
        "Where the cost went",
        "Base steps of a run, mean over seeds: gradients of the task, and the work of each level's optimizer in the "
        "same unit; what tunes a hand-made rule is search.",
        f"Total cost in base steps: {'; '.join(said)}.",
        panel,
        height=1.9 + 0.34 * len(parts) + 0.2 * math.ceil(len(names) / 2),
    )


def _parts(line: Line) -> dict[str, float]:
    assert line.ledger is not None
    parts: dict[str, float] = {}
    for stage in line.ledger.stages:
        if stage.name == "training":
            parts["task gradients"] = stage.gradients
            for level, work in enumerate(stage.work, 1):
                name = f"optimizer of level {level}" if level <= LEVELS else f"optimizers above level {LEVELS}"
                parts[name] = parts.get(name, 0.0) + work
        elif stage.name in SPENT:
            parts[stage.name] = stage.total
    return {name: value for name, value in parts.items() if value > 0}


def _training(results: Results, lines: Sequence[Line], looks: dict[str, Style]) -> Iterator[Picture]:
    """One picture a level: the loss below it while it was trained, medians over seeds."""
    for level in range(1, LEVELS + 1):
        found = {line.cell.label: _below(results, line.cell, level) for line in lines}
        drawn = {label: curve for label, curve in found.items() if len(curve[0]) > 1}
        if drawn:
            yield _training_of(level, drawn, looks)


def _training_of(level: int, drawn: dict[str, tuple[list[float], list[float]]], looks: dict[str, Style]) -> Picture:
    def panel(axes: "Axes") -> None:
        for label, (done, losses) in drawn.items():
            style = looks[label]
            axes.plot(done, drawable(losses), color=style.colour, linestyle=style.dash, linewidth=1.4, label=label)
        logarithmic(axes, [loss for _, losses in drawn.values() for loss in losses])
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.margins(x=0.01)
        finish(axes, "part of the training", "loss")

    ends = [f"{label} ends at {number(losses[-1])}" for label, (_, losses) in drawn.items()]
    return draw(
        f"training-{level}",
        f"Training: loss below level {level}",
        f"Loss of what level {level} works on, while its tower was trained: median over seeds.",
        f"Training loss below level {level}: {'; '.join(ends)}.",
        panel,
    )


def _below(results: Results, cell: Cell, level: int) -> tuple[list[float], list[float]]:
    """Part of the training that is done, and the loss."""
    runs = [[row for row in results.rows(run, "training", "train", "loss") if row[0] == level] for run in cell.done]
    runs = [rows for rows in runs if rows]
    count = min(map(len, runs), default=0)
    last = max((rows[-1][2] for rows in runs), default=1) or 1
    losses = [float(np.median([rows[i][3] for rows in runs])) for i in range(count)]
    return [runs[0][i][2] / last for i in range(count)] if runs else [], losses


def _gaps(findings: Findings) -> Iterator[Picture]:
    gaps = [gap for gap in findings.gaps if not any(map(is_step_size, gap.cell.factors))][:MOST]
    if not gaps:
        return
    looks = dict(zip(SPLITS, styles(3)))

    def panel(axes: "Axes") -> None:
        for place, gap in enumerate(gaps):
            for offset, (split, gain) in enumerate(gap.gains.items()):
                x = place + 0.2 * (offset - 1)
                whisker(axes, x, gain, looks[split], label=f"{split} problems" if place == 0 else None)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xticks(range(len(gaps)), [gap.cell.label for gap in gaps])
        if len(gaps) > 5:
            axes.tick_params(axis="x", labelrotation=90)
        axes.margins(x=0.12)
        finish(axes, "", "gain (log of start / chosen)")

    said = [f"{gap.cell.label}, gap {number(gap.gap)}" for gap in gaps]
    yield draw(
        "gaps",
        "The gap between the splits",
        "By how much the chosen snapshot is below the start of training, on problems that trained it, chose it, and "
        "report on it. Above zero is a gain; train or select above zero and report not is an alarm.",
        f"Gain by split: {'; '.join(said)}.",
        panel,
    )


def _rest(cell: Cell) -> str:
    return str(sorted((name, value) for name, value in cell.factors.items() if name != "depth"))
