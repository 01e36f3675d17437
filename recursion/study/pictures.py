"""The pictures of an ablation, from its results and findings; each is left out where there is nothing to draw.

A cell has one colour, dash and mark in all of them. Cells of a grid of step sizes are in the pictures of sensitivity
and in no other: there are too many of them.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from recursion.statistics import Values
from recursion.study.comparing import BASELINES, PRIMARY
from recursion.study.cost_pictures import benefit, ledger
from recursion.study.drawing import (
    BASE,
    INK,
    SOFT,
    Picture,
    Style,
    draw,
    drawable,
    finish,
    logarithmic,
    reach,
    styles,
    whisker,
)
from recursion.study.findings import Findings, Line
from recursion.study.height_pictures import height_pictures
from recursion.study.honesty import SPLITS
from recursion.study.results import Cell, Results
from recursion.study.sensitivity import is_step_size
from recursion.study.words import MEASURES, capital, interval, number

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
        yield from height_pictures(found)
    if any(line.cell.label != BASELINES for line in measured):
        yield from benefit(results, measured, looks)
        yield from ledger(results, measured)
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
        logarithmic(axes, reach(line.losses[measure] for line in lines if measure in line.losses))
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
