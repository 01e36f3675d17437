"""Pictures of what was spent: against what it brought, and on what."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from recursion.study.comparing import PRIMARY
from recursion.study.drawing import (
    INK,
    Picture,
    Style,
    draw,
    drawable,
    finish,
    in_thousands,
    logarithmic,
    reach,
    styles,
    whisker,
)
from recursion.study.findings import Line
from recursion.study.results import SPENT, Results
from recursion.study.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


LEVELS = 4  # whose work has a part of its own


def benefit(results: Results, lines: Sequence[Line], looks: dict[str, Style]) -> Iterator[Picture]:
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
        logarithmic(axes, reach(line.losses[PRIMARY] for line in drawn))
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


def ledger(results: Results, lines: Sequence[Line]) -> Iterator[Picture]:
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
