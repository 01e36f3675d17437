"""What a study found: plain data, nothing printed.

The best depth is chosen on select problems and judged on report problems: to choose it on the problems that it is
judged on would flatter it.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import pandas as pd

from recursion.evaluation.statistics import Estimate, level
from recursion.study import comparing, costs
from recursion.study.comparing import Comparison
from recursion.study.request import BASELINE
from recursion.study.results import MEASURES, UNITS, Cell, Results
from recursion.study.sensitivity import sensitivities
from recursion.study.words import capital, interval, listing, number, plural

SPENDING = (0.9, 1.05)  # of the budget: what counts as equal cost
CHANGES = {-1: "lower", 0: "not shown to be different", 1: "higher"}  # by the sign of a difference


class Line(NamedTuple):
    """A row of the table. ``losses``: interquartile means on report problems, by measure; none where nothing is done.

    ``lower``, ``baseline``: against the cell one level lower, which differs in nothing else, and the tuned baseline.
    """

    cell: Cell
    losses: dict[str, Estimate]
    lower: Comparison | None
    baseline: Comparison | None
    ledger: costs.Ledger


def lowest(lines: Sequence[Line]) -> dict[str, float]:
    """The lowest loss of some lines, by measure."""
    losses = {name: [line.losses[name].value for line in lines if name in line.losses] for name in MEASURES}
    return {name: min(values, default=math.inf) for name, values in losses.items()}


class Findings:
    """Everything that the report says. Cells without a measurement are there, with nothing said of them.

    ``best``: the line that select problems prefer. ``checked``: runs of which it was checked whether a reported problem
    was trained on, and ``trained_on``, how many problems were. ``done``, ``failed``: of all runs. ``caveats``: what the
    findings cannot say, and why, a sentence each.
    """

    def __init__(self, data: Results) -> None:
        self.data, cells, runs = data, data.cells, pd.concat([cell.runs for cell in data.cells])
        self.done, self.failed = (runs[runs.status == status] for status in ("done", "failed"))
        plain = [cell for cell in cells if not cell.is_baseline and not cell.on_grid]
        towers = [cell for cell in cells if cell.kind == "tower"]
        self.comparisons = list(comparing.comparisons(data, plain))
        self.lines = [self._line(cell) for cell in cells]
        self.plain = [line for line in self.lines if not line.cell.on_grid]
        preferred = comparing.preferred(plain)
        self.best = next((line for line in self.lines if line.cell is preferred), None)
        pairs = [(cell, data.baseline) for cell in plain if cell in towers and data.baseline]
        self.break_even = [each for pair in pairs if (each := costs.break_even(*pair)) is not None]
        self.gaps = [gap for cell in towers if (gap := comparing.gap(cell)) is not None]
        self.guards = [guard for cell in cells if (guard := comparing.guard(cell)) is not None]
        self.rescued, self.uses = (sum(getattr(each, name) for each in self.guards) for name in ("rescued", "uses"))
        self.alarms = list(comparing.alarms(cells, self.gaps, [e for e in self.comparisons if e.factor != BASELINE]))
        checks = pd.concat([cell.trained_on for cell in cells])
        self.checked, self.trained_on = len(checks), int(checks.sum())
        self.sensitivities = list(sensitivities(data))
        self.caveats = list(self._caveats())

    @property
    def answer(self) -> list[str]:
        """Does another level pay? In three sentences."""
        return [self._depths(), self._baseline(), f"{capital(self._trust())}."]

    @property
    def sentences(self) -> list[str]:
        """All that is said of pairs, uses, sensitivity and the guard, in order."""
        pairs = ["{}: {}; {}.".format(*each.parts) for each in self.comparisons]
        ranges = [text for each in self.sensitivities for text in each.sentences]
        guards = [each.sentence for each in self.guards if each.rescued]
        return [*pairs, *(each.sentence for each in self.break_even), *ranges, *guards]

    def _line(self, cell: Cell) -> Line:
        losses = {measure: cell.losses("chosen", "report", measure) for measure in MEASURES}
        means = {measure: level(frame.to_numpy()) for measure, frame in losses.items() if not frame.empty}
        ours = {each.factor: each for each in reversed(self.comparisons) if each.ours is cell}
        return Line(cell, means, ours.get("depth"), ours.get(BASELINE), costs.ledger(cell))

    def _depths(self) -> str:
        pairs = [each for each in self.comparisons if each.factor == "depth"]
        if self.sensitivities:
            return self.sensitivities[0].sentence(1)
        if not pairs:
            return "No two depths can be compared yet."
        if len(pairs) <= 4 and all(len(each.ours.factors) == 1 for each in pairs):
            return f"On problems never trained on, {'; '.join(each.step for each in pairs)}."
        parts = []
        for sign, group in groupby(sorted(pairs, key=lambda each: each.sign), key=lambda each: each.sign):
            cuts = [f"{each.ours.label} (against {each.theirs.label})" for each in group]
            parts.append(f"{CHANGES[sign]} for {listing(cuts) if len(cuts) <= 4 else plural(len(cuts), 'cut')}")
        what = f"the mean loss with another level, in {plural(len(pairs), 'pair')}"
        return f"On problems never trained on, {what}, is {'; '.join(parts)}."

    def _baseline(self) -> str:
        if self.best is None:
            ranges = self.sensitivities[:1]
            nothing = "No cell is measured on select problems yet, so none is best."
            return (ranges[0].slower or ranges[0].sentence(0)) if ranges else nothing
        label, against = self.best.cell.label, self.best.baseline
        if against is None:
            return f"Select problems prefer {label}; there is no tuned baseline to hold it against."
        differs = f"not shown to differ from the tuned baseline's (difference {interval(against.main.difference)})"
        if against.sign:
            differs = f"{CHANGES[against.sign]} than the tuned baseline's by {against.main.size}"
        parts = [f"{capital(label)}, which select problems prefer, has a mean loss {differs}"]
        return "; ".join([*parts, *(each.short for each in self.break_even if each.cell is self.best.cell)]) + "."

    def _trust(self) -> str:
        if self.alarms:
            more = f" (and {len(self.alarms) - 1} more)" if self.alarms[1:] else ""
            return f"Alarm: {self.alarms[0]}{more}"
        parts = []
        if self.gaps:
            largest = max((each.gap for each in self.gaps if not math.isnan(each.gap)), default=None)
            gap = "" if largest is None else f" (largest gap between splits {largest:.2g} in log loss)"
            parts.append(f"no alarm{gap}")
        if self.checked and not self.trained_on:
            parts.append(f"none of the reported problems was trained on ({plural(self.checked, 'run')} checked)")
        if self.uses:
            parts.append(f"the guard rescued {self.rescued} of {plural(self.uses, 'use')}")
        return "; ".join(parts) or "No gap between splits was measured, and no guard was at work"

    def _caveats(self) -> Iterator[str]:
        done, count, request = len(self.done), len(self.data.runs), self.data.request
        if count > done + len(self.failed):
            so_far = f"{done} of {plural(count, 'run')} done"
            yield f"This ablation is not finished: {so_far}. Run its command again to go on."
        elif not done:
            yield "No run is done, so there is nothing to report but why."
        diverged = int(self.failed.diverged.sum())
        counts = {"diverged (infinite loss)": diverged}
        counts["failed for another reason (left out)"] = len(self.failed) - diverged
        failures = [f"{plural(some, 'run')} {how}" for how, some in counts.items() if some]
        if failures:
            yield f"{' and '.join(failures)}, see the failed runs."
        in_steps = request.budget.unit == "base steps"
        parts = {line.cell.label: line.ledger.paid[UNITS[0]] / request.budget.amount for line in self.plain if in_steps}
        unequal = [f"{label} {number(100 * part)}%" for label, part in parts.items()
                   if part and not SPENDING[0] <= part <= SPENDING[1]]  # fmt: skip
        if unequal:  # towers that learn nothing cost nothing, and are not meant
            more = f" and {plural(len(unequal) - 8, 'cell')} more" if unequal[8:] else ""
            spent = f"Not every cell spent the whole budget: {listing(unequal[:8])}{more}."
            yield f"{spent} A search ends early when nothing is left to try."
        if request.seeds == 1:
            yield "There is one training seed, so intervals are over problems and say nothing about another training."
        if self.data.baseline is None:
            nothing = "nothing is said about whether any depth beats a hand-made optimizer"
            yield f"There is no tuned baseline, so {nothing}."
        if all(cell.kind != "tower" for cell in self.data.cells):
            yield "Nothing was trained: all cells are hand-made rules that were tuned."
