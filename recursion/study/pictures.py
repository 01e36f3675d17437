"""The pictures of a study, from its findings; each is left out where there is nothing to draw.

A cell has one colour, dash and mark in all of them. Cells of a grid of step sizes are in the pictures of sensitivity
and in no other: there are too many of them.
"""

import math
from collections import defaultdict

import pandas as pd

from recursion.study import drawing
from recursion.study.cost_pictures import draw_benefit, draw_ledger
from recursion.study.drawing import INK, SOFT, Looks, Picture, drawable, drawn, logarithmic, looks_of, whisker
from recursion.study.findings import Findings, Line
from recursion.study.height_pictures import draw_heights
from recursion.study.measurements import MEASURES, PRIMARY, SPLITS, Measurements
from recursion.study.words import capital, interval, number

MOST = 16  # cells that a picture has room for
LEVELS = 4  # whose training is drawn
BAND = ("lower quartile", "median loss", "upper quartile")


def draw(findings: Findings) -> list[Picture]:
    """All that there is something to draw for, in the order of the page."""
    pictures: list[Picture] = []
    shown = findings.plain[-MOST:]
    looks = looks_of([line.cell.label for line in shown if not line.cell.is_baseline])
    lines = [line for line in shown if PRIMARY in line.losses]
    measured = any(not line.cell.is_baseline for line in lines)
    if measured:
        for measure in MEASURES:
            _against_depth(pictures, [line for line in lines if measure in line.losses], measure, looks)
        _curves(pictures, findings.data, lines, looks)
    for each in findings.sensitivities:
        draw_heights(pictures, each)
    if measured:
        draw_benefit(pictures, findings.data, lines, looks)
        draw_ledger(pictures, findings.data.request.budget, lines)
        for level in range(1, LEVELS + 1):
            _training(pictures, findings.data, lines, level, looks)
        _gaps(pictures, findings)
    return pictures


def _against_depth(pictures: list[Picture], lines: list[Line], measure: str, looks: Looks) -> None:
    """One point a cell; cells that share all factors but depth are joined."""
    values = [f"{line.cell.label} {interval(line.losses[measure])}" for line in lines]
    title, alt = f"{capital(measure)} against depth", f"{capital(measure)} by cell: {'; '.join(values)}."
    cells = sorted((line for line in lines if not line.cell.is_baseline), key=lambda line: line.cell.depth)
    series: dict[str, list[Line]] = defaultdict(list)
    for line in cells:
        series[str(sorted(line.cell.factors.items() - {("depth", line.cell.factors["depth"])}))].append(line)
    with drawn(pictures, f"{measure.replace(' ', '-')}-by-depth", title, alt) as axes:
        for joined in series.values():
            losses = drawable(line.losses[measure].value for line in joined)
            axes.plot([line.cell.depth for line in joined], losses, color=SOFT, linewidth=1.0)
            for line in joined:
                whisker(axes, line.cell.depth, line.losses[measure], looks[line.cell.label], line.cell.label)
        for line in (line for line in lines if line.cell.is_baseline):
            ours = line.losses[measure]
            if math.isfinite(ours.value):
                axes.axhline(ours.value, linewidth=1.4, label=line.cell.label, **drawing.BASE.line)
                axes.axhspan(*drawable([ours.low, ours.high]), color=SOFT, alpha=0.16, linewidth=0)
        drawing.levels_along(axes, sorted({line.cell.depth for line in cells}))
        logarithmic(axes, drawing.reach(line.losses[measure] for line in lines))
        axes.margins(x=0.1)
        axes.set(xlabel="depth (levels)", ylabel=f"{measure} on report problems")


def _curves(pictures: list[Picture], data: Measurements, lines: list[Line], looks: Looks) -> None:
    """Loss at use: medians over seeds of the median and quartiles over problems."""
    bands = {line.cell.label: [data.curves(line.cell, name).median() for name in BAND] for line in lines}
    bands = {label: band for label, band in bands.items() if len(band[1])}
    ends = [f"{label} ends at {number(middle.iloc[-1])}" for label, (_, middle, _) in bands.items()]
    if not bands:
        return
    with drawn(pictures, "curves", "Loss at use", f"Loss against base steps of a use: {'; '.join(ends)}.") as axes:
        for label, (low, middle, high) in bands.items():
            axes.plot(middle.index, drawable(middle), linewidth=1.8, label=label, **looks[label].line)
            colour = looks[label].colour
            axes.fill_between(low.index, drawable(low), drawable(high), color=colour, alpha=0.12, linewidth=0)
        logarithmic(axes, pd.concat([middle for _, middle, _ in bands.values()]))
        axes.margins(x=0.01)
        axes.set(xlabel="base steps of a use", ylabel="loss")


def _training(pictures: list[Picture], data: Measurements, lines: list[Line], level: int, looks: Looks) -> None:
    """The loss below a level while its tower was trained, medians over seeds, against the part that is done."""
    curves = {}
    for line in lines:
        rows = data.part(line.cell, "training", "train", "loss")
        rows = rows[rows.level == level].sort_values(["seed", "step"])
        rows = rows.assign(point=rows.groupby("seed").cumcount())
        points = rows[rows.point < rows.groupby("seed").size().min()].groupby("point")
        if len(points) > 1:
            curves[line.cell.label] = points.value.median().set_axis(points.step.first() / rows.step.max())
    ends = [f"{label} ends at {number(losses.iloc[-1])}" for label, losses in curves.items()]
    if not curves:
        return
    alt = f"Training loss below level {level}: {'; '.join(ends)}."
    with drawn(pictures, f"training-{level}", f"Training: loss below level {level}", alt) as axes:
        for label, losses in curves.items():
            axes.plot(losses.index, drawable(losses), linewidth=1.4, label=label, **looks[label].line)
        logarithmic(axes, pd.concat(list(curves.values())))
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.margins(x=0.01)
        axes.set(xlabel="part of the training", ylabel="loss")


def _gaps(pictures: list[Picture], findings: Findings) -> None:
    gaps = [gap for gap in findings.gaps if not gap.cell.on_grid][:MOST]
    looks = looks_of(SPLITS)
    values = [f"{gap.cell.label}, gap {number(gap.gap)}" for gap in gaps]
    if not gaps:
        return
    with drawn(pictures, "gaps", "The gap between the splits", f"Gain by split: {'; '.join(values)}.") as axes:
        for place, gap in enumerate(gaps):
            for offset, (split, gain) in enumerate(gap.gains.items(), -1):
                whisker(axes, place + 0.2 * offset, gain, looks[split], None if place else f"{split} problems")
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xticks(range(len(gaps)), [gap.cell.label for gap in gaps])
        axes.tick_params(axis="x", labelrotation=90 if len(gaps) > 5 else 0)
        axes.margins(x=0.12)
        axes.set(ylabel="gain (log of start / chosen)")
