"""What an ablation found: plain data, nothing printed.

    findings = find(read(Path("runs/depths")))
    print(findings.answer[0])

The best depth is chosen on select problems and judged on report problems: to choose it on the problems that it is
judged on would flatter it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recursion.statistics import Estimate, level
from recursion.study import comparing, costs, honesty
from recursion.study.comparing import BASELINES, PRIMARY, Comparison
from recursion.study.costs import BreakEven, Ledger
from recursion.study.honesty import Gap, Guard
from recursion.study.results import Cell, Results
from recursion.study.sensitivity import Sensitivity, is_step_size, sensitivities
from recursion.study.words import MEASURES, capital, interval, listed, plural

CLAUSES = 4  # neighbouring depths that a sentence has room for


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of the table. ``losses``: interquartile means on report problems, by measure; none where nothing is done.

    ``below``, ``baseline``: against the cell one level lower, which differs in nothing else, and the tuned baseline.
    """

    cell: Cell
    losses: dict[str, Estimate]
    selected: float | None
    below: Comparison | None
    baseline: Comparison | None
    ledger: Ledger | None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that failed, and why. ``diverged``: counted as infinite loss; else left out."""

    run: str
    cell: str
    why: str
    diverged: bool


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that the report says.

    ``best``: the cell that select problems prefer. ``checked``: runs of which it was checked whether a reported problem
    was trained on, and ``trained_on``, how many were.
    """

    lines: tuple[Line, ...]
    comparisons: tuple[Comparison, ...]
    best: Line | None
    break_even: tuple[BreakEven, ...]
    gaps: tuple[Gap, ...]
    guards: tuple[Guard, ...]
    alarms: tuple[str, ...]
    checked: int
    trained_on: int
    sensitivities: tuple[Sensitivity, ...]
    failures: tuple[Failure, ...]
    statuses: dict[str, int]

    @property
    def finished(self) -> bool:
        """Whether no run is still to be done."""
        return not (self.statuses.get("waiting", 0) or self.statuses.get("running", 0))

    @property
    def answer(self) -> tuple[str, str, str]:
        """Does another level pay? In three sentences."""
        return _depths(self), _against_baseline(self), _trust(self)


def find(results: Results) -> Findings:
    """All findings. Cells without a measurement are there, with nothing said of them."""
    compared = tuple(_comparisons(results))
    baseline = results.baseline
    lines = tuple(_line(results, cell, compared) for cell in results.cells)
    plain = _plain(results)
    chosen = honesty.preferred(results, plain)
    towers = [cell for cell in results.cells if cell.kind == "tower"]
    gaps = [found for cell in towers if (found := honesty.gap(results, cell)) is not None]
    even = [costs.break_even(results, cell, baseline) for cell in plain if cell in towers] if baseline else []
    checked, trained_on = honesty.checks(results)
    statuses: dict[str, int] = {}
    for cell in results.cells:
        for run in cell.runs:
            statuses[run.status] = statuses.get(run.status, 0) + 1
    cells_compared = [each for each in compared if each.factor != BASELINES]
    return Findings(
        lines=lines,
        comparisons=compared,
        best=next((line for line in lines if chosen is not None and line.cell.label == chosen.label), None),
        break_even=tuple(each for each in even if each is not None),
        gaps=tuple(gaps),
        guards=tuple(each for cell in results.cells if (each := honesty.guard(results, cell)) is not None),
        alarms=tuple(honesty.alarms(results, gaps, cells_compared)),
        checked=checked,
        trained_on=trained_on,
        sensitivities=tuple(sensitivities(results)),
        failures=tuple(_failures(results)),
        statuses=statuses,
    )


def _plain(results: Results) -> list[Cell]:
    """Cells but the baseline and those of a grid of step sizes, which `sensitivity` is about."""
    return [cell for cell in results.cells if cell.label != BASELINES and not any(map(is_step_size, cell.factors))]


def _line(results: Results, cell: Cell, compared: Sequence[Comparison]) -> Line:
    found = {measure: results.losses(cell, "chosen", "report", measure) for measure in MEASURES}
    ours = [each for each in compared if each.ours.label == cell.label]
    return Line(
        cell=cell,
        losses={measure: level(losses.values) for measure, losses in found.items() if losses is not None},
        selected=honesty.selected(results, cell),
        below=next((each for each in ours if each.factor == "depth"), None),
        baseline=next((each for each in ours if each.factor == BASELINES), None),
        ledger=costs.ledger(results, cell),
    )


def _comparisons(results: Results) -> Iterator[Comparison]:
    """Neighbours by each factor, then each cell and the baseline."""
    cells = _plain(results)
    for factor, ours, theirs in comparing.neighbours(results, cells):
        if found := comparing.compare(results, ours, theirs, factor):
            yield found
    for cell in cells:
        if results.baseline and (found := comparing.compare(results, cell, results.baseline, BASELINES)):
            yield found


def _failures(results: Results) -> Iterator[Failure]:
    for cell in results.cells:
        for run in cell.runs:
            if run.status == "failed":
                yield Failure(run=run.id, cell=cell.label, why=run.why, diverged=run.diverged)


def _depths(found: Findings) -> str:
    """The neighbouring depths in one sentence; of a sensitivity grid, its robust ranges."""
    if found.sensitivities:
        return list(found.sensitivities[0].sentences)[-2 if found.sensitivities[0].heights[0].seconds else -1]
    pairs = [each for each in found.comparisons if each.factor == "depth"]
    if not pairs:
        return "No two depths can be compared yet."
    if len(pairs) <= CLAUSES and all(set(each.ours.factors) == {"depth"} for each in pairs):
        return f"On problems never trained on, {'; '.join(_clause(each) for each in pairs)}."
    return f"On problems never trained on, {_counts(pairs)}."


def _clause(each: Comparison) -> str:
    main = each.contrasts[PRIMARY]
    before, after = each.theirs.depth, each.ours.depth
    going = f"going from depth {before} to {after}"
    if not each.sign:
        return f"{going} shows no difference in mean loss ({interval(main.difference)})"
    size = comparing.percent(main)
    return f"{going} {'lowers' if each.sign < 0 else 'raises'} the mean loss by {size}"


def _counts(pairs: Sequence[Comparison]) -> str:
    parts = []
    for sign, words in ((-1, "lower"), (0, "not shown to be different"), (1, "higher")):
        names = [f"{each.ours.label} (against {each.theirs.label})" for each in pairs if each.sign == sign]
        few = listed(names) if len(names) <= CLAUSES else plural(len(names), "cut")
        parts += [f"{words} for {few}"] if names else []
    return f"the mean loss with another level, in {plural(len(pairs), 'pair')}, is {'; '.join(parts)}"


def _against_baseline(found: Findings) -> str:
    if found.sensitivities and found.best is None:
        sentences = list(found.sensitivities[0].sentences)
        return sentences[-1] if found.sensitivities[0].heights[0].seconds else sentences[0]
    if found.best is None:
        return "No cell is measured on select problems yet, so none is best."
    against, label = found.best.baseline, found.best.cell.label
    if against is None:
        return f"Select problems prefer {label}; there is no tuned baseline to hold it against."
    main = against.contrasts[PRIMARY]
    verdict = {
        -1: f"lower than the tuned baseline's by {comparing.percent(main)}",
        0: f"not shown to differ from the tuned baseline's (difference {interval(main.difference)})",
        1: f"higher than the tuned baseline's by {comparing.percent(main)}",
    }[against.sign]
    uses = next((each for each in found.break_even if each.cell.label == label), None)
    paid = "" if uses is None else f"; {uses.clause}"
    return capital(f"{label}, which select problems prefer, has a mean loss {verdict}{paid}.")


def _trust(found: Findings) -> str:
    if found.alarms:
        return f"Alarm: {found.alarms[0]}" + (f" (and {len(found.alarms) - 1} more)." if len(found.alarms) > 1 else ".")
    parts = []
    if found.gaps:
        gaps = [each.gap for each in found.gaps if not math.isnan(each.gap)]
        parts.append("no alarm" + (f" (largest gap between splits {max(gaps):.2g} in log loss)" if gaps else ""))
    if found.checked and not found.trained_on:
        parts.append(f"none of the reported problems was trained on ({plural(found.checked, 'run')} checked)")
    if found.guards:
        rescued, uses = sum(each.rescued for each in found.guards), sum(each.uses for each in found.guards)
        parts.append(f"the guard rescued {rescued} of {plural(uses, 'use')}")
    if not parts:
        return "No gap between splits was measured, and no guard was at work."
    return capital("; ".join(parts) + ".")
