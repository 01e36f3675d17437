"""What a study found: plain data, nothing printed.

    findings = Findings(load(Path("runs/depths")))
    print(findings.answer[0])

The best depth is chosen on select problems and judged on report problems: to choose it on the problems that it is
judged on would flatter it.
"""

import math
from dataclasses import dataclass

import pandas as pd

from recursion.evaluate.statistics import Estimate, level
from recursion.study import costs, honesty
from recursion.study.comparing import Comparison, comparisons
from recursion.study.measurements import MEASURES, Cell, Measurements
from recursion.study.request import BASELINE
from recursion.study.results import Results
from recursion.study.sensitivity import sensitivities
from recursion.study.templates import say

SPENDING = (0.9, 1.05)  # of the budget: what counts as equal cost
CAVEATS = ("unfinished", "failures", "unequal", "one_seed", "without_baseline", "untrained")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of the table. ``losses``: interquartile means on report problems, by measure; none where nothing is done.

    ``below``, ``baseline``: against the cell one level lower, which differs in nothing else, and the tuned baseline.
    """

    cell: Cell
    losses: dict[str, Estimate]
    lower: Comparison | None
    baseline: Comparison | None
    ledger: costs.Ledger | None


class Findings:
    """Everything that the report says. Cells without a measurement are there, with nothing said of them.

    ``best``: the line that select problems prefer. ``checked``: runs of which it was checked whether a reported problem
    was trained on, and ``trained_on``, how many problems were. ``runs``: of all cells; ``done``, ``failed``: of these.
    """

    def __init__(self, results: Results) -> None:
        data = self.data = Measurements(results)
        self.runs = pd.concat([cell.runs for cell in data.cells])
        self.done, self.failed = (self.runs[self.runs.status == status] for status in ("done", "failed"))
        plain = [cell for cell in data.cells if not cell.is_baseline and not cell.on_grid]
        towers = [cell for cell in data.cells if cell.kind == "tower"]
        self.comparisons = list(comparisons(data, plain))
        self.lines = [_line(data, cell, self.comparisons) for cell in data.cells]
        self.plain = [line for line in self.lines if not line.cell.on_grid]
        preferred = honesty.preferred(data, plain)
        self.best = next((line for line in self.lines if line.cell is preferred), None)
        even = [costs.break_even(data, cell, data.baseline) for cell in plain if cell in towers and data.baseline]
        self.break_even = [each for each in even if each is not None]
        self.gaps = [gap for cell in towers if (gap := honesty.gap(data, cell)) is not None]
        self.guards = [guard for cell in data.cells if (guard := honesty.guard(data, cell)) is not None]
        self.alarms = list(honesty.alarms(data, self.gaps, [e for e in self.comparisons if e.factor != BASELINE]))
        checks = pd.concat([honesty.trained_on(data, cell) for cell in data.cells])
        self.checked, self.trained_on = len(checks), int(checks.sum())
        self.sensitivities = list(sensitivities(data))

    @property
    def answer(self) -> list[str]:
        """Does another level pay? In three sentences."""
        return [say(name, self) for name in ("depths", "baseline", "trust")]

    @property
    def caveats(self) -> list[str]:
        """What the findings cannot say, and why: a sentence each."""
        return list(filter(None, (say(name, self) for name in CAVEATS)))

    @property
    def sentences(self) -> list[str]:
        """All that is said of pairs, uses, sensitivity and the guard, in order."""
        pairs = [say("pair", each) for each in self.comparisons]
        uses = [say("break_even", each) for each in self.break_even]
        ranges = [say(name, each) for each in self.sensitivities for name in ("nearly_best", "usable", "slower")]
        return [*pairs, *uses, *filter(None, ranges), *(say("guard", each) for each in self.guards if each.rescued)]

    @property
    def lowest(self) -> dict[str, float]:
        """The lowest loss of all lines, by measure."""
        losses = {measure: [e.losses[measure] for e in self.lines if measure in e.losses] for measure in MEASURES}
        return {
            measure: min((each.value for each in estimates), default=math.inf) for measure, estimates in losses.items()
        }

    @property
    def unequal(self) -> list[tuple[str, float]]:
        """Cells that did not cost the budget, and which part of it. Towers that learn nothing cost nothing."""
        budget = self.data.request.budget
        ledgers = [line.ledger for line in self.plain if line.ledger is not None and budget.unit == "base steps"]
        parts = [(ledger.cell.label, ledger.spent / budget.amount) for ledger in ledgers]
        return [(label, part) for label, part in parts if part and not SPENDING[0] <= part <= SPENDING[1]]


def _line(data: Measurements, cell: Cell, compared: list[Comparison]) -> Line:
    losses = {measure: data.losses(cell, "chosen", "report", measure) for measure in MEASURES}
    ours = {each.factor: each for each in reversed(compared) if each.ours is cell}
    return Line(
        cell=cell,
        losses={measure: level(frame.to_numpy()) for measure, frame in losses.items() if not frame.empty},
        lower=ours.get("depth"),
        baseline=ours.get(BASELINE),
        ledger=costs.ledger(data, cell),
    )
