"""Pictures of what was spent: against the loss that it brought, and on which stage."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from recursion.study.costs import Ledger
from recursion.study.drawing import INK, Looks, Picture, drawable, drawn, logarithmic, looks_of, reach, whisker
from recursion.study.findings import Line
from recursion.study.measurements import PRIMARY, SPENT, UNITS, Measurements
from recursion.study.request import Budget
from recursion.study.words import number

LEVELS = 4  # whose work has a part of its own
PARTS = 6  # that have a colour of their own; the next are hatched


def draw_benefit(pictures: list[Picture], data: Measurements, lines: list[Line], looks: Looks) -> None:
    """Loss of the snapshots against what had been spent by then; at the end the reported loss."""
    costs = {line.cell.label: line.ledger.spent for line in lines if line.ledger is not None and line.ledger.spent > 0}
    paying = {line.cell.label: line for line in lines if line.cell.label in costs}
    ends = [f"{label} {number(each.losses[PRIMARY].value)} at {number(costs[label])}" for label, each in paying.items()]
    if not paying:
        return
    alt = f"Mean loss against total cost in base steps: {'; '.join(ends)}."
    with drawn(pictures, "cost-benefit", "Cost against benefit", alt) as axes:
        for label, line in paying.items():
            points = _snapshots(data, line)
            axes.plot(points.cost, drawable(points.value), linewidth=1.3, alpha=0.8, **looks[label].line)
            whisker(axes, costs[label], line.losses[PRIMARY], looks[label], label)
        logarithmic(axes, reach(line.losses[PRIMARY] for line in paying.values()))
        axes.set_xlim(left=0)
        _in_thousands(axes)
        axes.set(xlabel="total cost (base steps, optimizer work counted)", ylabel="mean loss")


def _snapshots(data: Measurements, line: Line) -> pd.DataFrame:
    """Mean cost and loss over seeds, snapshot by snapshot, as far as all seeds have it."""
    rows = data.part(line.cell, "snapshot", "select", PRIMARY).sort_values("step")
    steps = line.cell.done.set_index("seed").facts.map(lambda facts: facts.get("steps") or 1)
    cost = data.paid(line.cell, ("training",))[UNITS[0]]
    rows = rows.assign(cost=rows.step * rows.seed.map(cost / steps), place=rows.groupby("seed").cumcount())
    points = rows.groupby("place")[["cost", "value"]]
    return points.mean()[points.size() == len(steps)]


def draw_ledger(pictures: list[Picture], budget: Budget, lines: list[Line]) -> None:
    """Stacked bars: task gradients and optimizer work of training, then all else; the budget as a line."""
    ledgers = [line.ledger for line in lines if line.ledger is not None and line.ledger.spent > 0]
    if not ledgers:
        return
    parts = pd.DataFrame({ledger.cell.label: _parts(ledger) for ledger in ledgers})
    parts = parts[(parts > 0).any(axis=1)]
    totals = [f"{label} {number(total)}" for label, total in parts.sum().items()]
    alt = f"Total cost in base steps: {'; '.join(totals)}."
    height = 1.9 + 0.34 * len(ledgers) + 0.2 * math.ceil(len(parts) / 2)
    looks = list(looks_of(range(PARTS)).values())
    with drawn(pictures, "ledger", "Where the cost went", alt, height=height) as axes:
        bars = parts.loc[:, ::-1].T
        before = bars.cumsum(axis=1) - bars
        for place, name in enumerate(bars):
            colour, hatch = looks[place % PARTS].colour, "///" if place >= PARTS else None
            axes.barh(bars.index, bars[name], 0.62, before[name], color=colour, hatch=hatch, label=name)
        if budget.unit == "base steps":
            axes.axvline(budget.amount, color=INK, linestyle=":", linewidth=1.4, label="budget")
        axes.set(xlabel="base steps")
        _in_thousands(axes)
        axes.grid(visible=False, axis="y")


def _parts(ledger: Ledger) -> dict[str, float]:
    work = [*ledger.work("training"), *[0.0] * LEVELS]
    levels = {f"optimizer of level {level}": work[level - 1] for level in range(1, LEVELS + 1)}
    rest = {f"optimizers above level {LEVELS}": sum(work[LEVELS:])}
    stages = {stage: ledger.total(stage) for stage in SPENT if stage != "training"}
    return {"task gradients": ledger.gradients("training")} | levels | rest | stages


def _in_thousands(axes: Axes) -> None:
    """Large numbers along the horizontal axis as 500k and 1.5M."""
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
