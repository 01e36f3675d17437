"""What was spent, and after how many uses it is paid back.

Everything is in base steps, which are gradients of the task for one copy; optimizer work is counted in them too. A use
is one run of ``steps`` on a new problem.

**Uses to break even.** The target is the loss that the tuned baseline ends a use with: the last of its curve, the
median over report problems. What was learned reaches it at step s* of its own curve, so a use saves

    b* (1 + work of the baseline's step)  -  s* (1 + work of the learned step)

where b* is the step at which the baseline itself first reaches that loss: the last, unless it had stopped to fall;

meta-training is paid back after (its cost - the baseline's tuning) / saving uses; or, against a baseline whose
tuning somebody else paid for, after its cost / saving. Never, if the target is not reached or a use saves nothing. It
is computed seed by seed; over seeds, the median and the range are given, which for five seeds holds the true median
with probability 94%.
"""

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recursion.statistics import Values
from recursion.study.results import SPENT, STAGES, Cell, Outcome, Results
from recursion.study.words import number, plural

UNITS = ("base steps", "task gradients", "seconds")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Mean over a cell's runs. ``work``: of each level's optimizer, from level 1."""

    name: str
    gradients: float
    work: tuple[float, ...]
    seconds: float

    @property
    def total(self) -> float:
        """Base steps in all."""
        return self.gradients + sum(self.work)


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Of a cell, mean over its runs. ``peak``: bytes of the process; ``levels``: seconds and peak bytes of each."""

    cell: Cell
    stages: tuple[Stage, ...]
    peak: float
    levels: tuple[tuple[float, float], ...]
    work_of_use: float  # of one update at use, in base steps
    seconds_of_use: float

    @property
    def spent(self) -> float:
        """Base steps that the budget paid for: all but reporting."""
        return sum(stage.total for stage in self.stages if stage.name in SPENT)

    @property
    def seconds(self) -> float:
        """Of the same."""
        return sum(stage.seconds for stage in self.stages if stage.name in SPENT)


@dataclass(frozen=True, kw_only=True)
class Uses:
    """In one unit of cost. Infinite: never. ``uses``: against the baseline's tuning; ``in_full``: against none.

    ``range``: lowest and highest over seeds; ``never``: seeds of which that is so, and ``why``.
    """

    unit: str
    uses: float
    range: tuple[float, float]
    in_full: float
    full_range: tuple[float, float]
    saving: float  # a use, median over seeds; -inf if the target is not reached
    never: int
    seeds: int
    why: str


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """Of a cell against the tuned baseline. ``target``: loss; ``reached``: at which step; medians over seeds."""

    cell: Cell
    target: float
    reached: float
    steps: int
    uses: dict[str, Uses]

    @property
    def clause(self) -> str:
        """In few words."""
        found = self.uses["base steps"]
        if math.isinf(found.in_full):
            return f"its meta-training is never paid back ({found.why})"
        tuned = _times(found.uses, found.range)
        return f"it breaks even after {tuned}, or {_times(found.in_full, found.full_range)} if tuning counts as free"

    @property
    def sentence(self) -> str:
        """With the range over seeds."""
        found = self.uses["base steps"]
        where = f"{self.cell.label} reaches the loss that the tuned baseline ends with ({number(self.target)})"
        if math.isinf(self.reached):
            where = where.replace("reaches", "does not reach")
            return f"{where} in {self.steps} steps, so its meta-training is never paid back."
        where += f" at step {self.reached:g} of {self.steps}"
        if math.isinf(found.uses):
            return f"{where}, but is never paid back: {found.why}."
        full = f"{_times(found.in_full, found.full_range)} if the baseline's tuning counts as free"
        never = f" (never in {found.never} of {plural(found.seeds, 'seed')})" if found.never else ""
        gradients = _times(self.uses["task gradients"].in_full, self.uses["task gradients"].full_range)
        return (
            f"{where} and breaks even after {_times(found.uses, found.range)}{never}; after {full}, "
            f"and {gradients} if only task gradients count."
        )


def ledger(results: Results, cell: Cell) -> Ledger | None:
    """None if no run of the cell is done."""
    if not cell.done:
        return None
    levels = range(1, results.levels(cell) + 1)
    stages = [_stage(results, cell, name, levels) for name in STAGES]
    return Ledger(
        cell=cell,
        stages=tuple(stage for stage in stages if stage.total or stage.seconds),
        peak=_mean(_peaks(results, run, -1) for run in cell.done),
        levels=tuple(
            (
                _mean(results.total(run, ("training",), "seconds", level) for run in cell.done),
                _mean(_peaks(results, run, level) for run in cell.done),
            )
            for level in levels
        ),
        work_of_use=_mean(_single(results, run, "work of a step") for run in cell.done),
        seconds_of_use=_mean(_single(results, run, "seconds of a step") for run in cell.done),
    )


def break_even(results: Results, cell: Cell, baseline: Cell) -> BreakEven | None:
    """None if the two have no seed in common that was measured."""
    pairs = list(_pairs(results, cell, baseline))
    if not pairs:
        return None
    return BreakEven(
        cell=cell,
        target=statistics.median(pair.target for pair in pairs),
        reached=_median([pair.reached for pair in pairs]),
        steps=pairs[0].steps,
        uses={unit: _uses(unit, pairs) for unit in UNITS},
    )


@dataclass(frozen=True)
class _Pair:
    """One seed: what was learned and the baseline. Costs by unit: of a step of use, of making it."""

    target: float
    reached: float
    theirs: float
    steps: int
    step: dict[str, tuple[float, float]]
    made: dict[str, tuple[float, float]]

    def saving(self, unit: str) -> float:
        ours, theirs = self.step[unit]
        return self.theirs * theirs - self.reached * ours if math.isfinite(self.reached) else -math.inf

    def uses(self, unit: str, *, in_full: bool = False) -> float:
        ours, theirs = self.made[unit]
        saving = self.saving(unit)
        return max(0.0, (ours if in_full else ours - theirs) / saving) if saving > 0 else math.inf


def _pairs(results: Results, cell: Cell, baseline: Cell) -> Iterator[_Pair]:
    theirs = {run.seed: run for run in baseline.done}
    ours_curves, their_curves = (results.curves(each, "median loss") for each in (cell, baseline))
    for run in cell.done:
        if run.seed not in ours_curves or run.seed not in their_curves:
            continue
        ours, other = ours_curves[run.seed], their_curves[run.seed]
        target = float(other[-1])
        at, their = _first(ours, target), _first(other, target)
        both = run, theirs[run.seed]
        yield _Pair(target, at, their, len(other) - 1, _of_step(results, *both), _of_making(results, *both))


def _first(curve: Values, target: float) -> float:
    """The first step at which a curve is at the target or below; infinite if there is none."""
    below = np.flatnonzero(curve <= target)
    return float(below[0]) if below.size and math.isfinite(target) else math.inf


def _of_step(results: Results, *runs: Outcome) -> dict[str, tuple[float, float]]:
    work = [_single(results, run, "work of a step") for run in runs]
    time = [_single(results, run, "seconds of a step") for run in runs]
    return {"base steps": (1 + work[0], 1 + work[1]), "task gradients": (1.0, 1.0), "seconds": (time[0], time[1])}


def _of_making(results: Results, *runs: Outcome) -> dict[str, tuple[float, float]]:
    gradients = [results.total(run, SPENT, "task gradients", 0) for run in runs]
    work = [results.total(run, SPENT, "optimizer work") for run in runs]
    time = [results.total(run, SPENT, "seconds") for run in runs]
    return {
        "base steps": (gradients[0] + work[0], gradients[1] + work[1]),
        "task gradients": (gradients[0], gradients[1]),
        "seconds": (time[0], time[1]),
    }


def _uses(unit: str, pairs: list[_Pair]) -> Uses:
    against = [pair.uses(unit) for pair in pairs]
    in_full = [pair.uses(unit, in_full=True) for pair in pairs]
    never = sum(map(math.isinf, against))
    unreached = sum(math.isinf(pair.reached) for pair in pairs)
    why = "the loss is not reached" if 2 * unreached > len(pairs) else "a use costs as much as the baseline's, or more"
    return Uses(
        unit=unit,
        uses=_median(against),
        range=(min(against), max(against)),
        in_full=_median(in_full),
        full_range=(min(in_full), max(in_full)),
        saving=_median([pair.saving(unit) for pair in pairs]),
        never=never,
        seeds=len(pairs),
        why=why if never else "",
    )


def _stage(results: Results, cell: Cell, name: str, levels: range) -> Stage:
    def mean(measure: str, level: int | None) -> float:
        return _mean(results.total(run, (name,), measure, level) for run in cell.done)

    work = tuple(mean("optimizer work", level) for level in levels)
    return Stage(name=name, gradients=mean("task gradients", 0), work=work, seconds=mean("seconds", None))


def _peaks(results: Results, run: Outcome, level: int) -> float:
    found = [row[3] for row in results.rows(run, "training", None, "peak bytes") if row[0] == level]
    return max(found, default=math.nan)


def _single(results: Results, run: Outcome, measure: str) -> float:
    found = results.values(run, "use", None, measure)
    return float(found[0]) if found.size else math.nan


def _mean(values: Iterator[float]) -> float:
    """Of those that were measured."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _median(values: list[float]) -> float:
    """Of values that may be infinite: the upper of the middle two, so that never in half of the seeds is never."""
    return statistics.median_high(values)


def _times(value: float, spread: tuple[float, float]) -> str:
    if math.isinf(value):
        return "never"
    uses = "the first use" if value <= 1 else f"{number(math.ceil(value))} uses"
    low, high = (number(math.ceil(max(each, 1))) if math.isfinite(each) else "never" for each in spread)
    return uses if low == high else f"{uses} ({low} to {high} over seeds)"
