"""What a cell spent, and after how many uses that is paid back.

Everything is in base steps, which are gradients of the task for one copy; optimizer work is counted in them too. A use
is one run of ``steps`` on a new problem.

**Uses to break even.** The target is the loss that the tuned baseline ends a use with: the last of its curve, the
median over report problems. A learned optimizer reaches it at step s* of its own curve, so a use saves

    b* (1 + work of the baseline's step)  -  s* (1 + work of the learned step)

where b* is the step at which the baseline itself first reaches that loss: the last, unless it had stopped to fall.
Meta-training is paid back after (its cost - the baseline's tuning) / saving uses; after its cost / saving, if that
tuning counts as free; never, if the target is not reached or a use saves nothing. It is computed seed by seed. The
report gives the median and the range over seeds, which for five seeds holds the true median with probability 94%.
"""

import math
import statistics
from typing import NamedTuple

import numpy as np
import pandas as pd

from recursion.study.request import SPENT
from recursion.study.results import UNITS, Cell
from recursion.study.words import capital, number, plural, uses

USES = {"uses": ["uses", "low", "high"], "full": ["full", "full_low", "full_high"]}  # and their ends over seeds


class Ledger(NamedTuple):
    """What a run of a cell cost, mean over its runs; bytes are NaN where they were not measured.

    ``stages``: a row a stage that cost anything, in order, and a column a cost, as `Cell.costs` has them. ``levels``: a
    row a level, from 1, with base steps of its optimizer, seconds and most bytes in training. ``peak``: most bytes of
    the process.
    """

    cell: Cell
    stages: pd.DataFrame
    levels: pd.DataFrame
    peak: float

    @property
    def paid(self) -> pd.Series:
        """What the budget paid, by cost: all stages but reporting."""
        return self.stages[self.stages.index != "reporting"].sum()


class BreakEven(NamedTuple):
    """Of a cell against the tuned baseline. ``target``: loss; ``reached``: at which step; medians over seeds.

    ``units``: a row a unit of cost and the columns uses, low, high (over seeds), full, full_low, full_high (if tuning
    counts as free) and saving (of a use); infinite: never. ``never``: in how many of ``seeds``; ``unreached``: in most.
    """

    cell: Cell
    target: float
    reached: float
    steps: int
    units: pd.DataFrame
    never: int
    seeds: int
    unreached: bool

    @property
    def sentence(self) -> str:
        reaches = "does not reach" if math.isinf(self.reached) else "reaches"
        loss = f"the loss that the tuned baseline ends with ({number(self.target)})"
        text = f"{capital(self.cell.label)} {reaches} {loss}"
        if math.isinf(self.reached):
            return f"{text} in {self.steps} steps, so its meta-training is never paid back."
        text += f" at step {self.reached:g} of {self.steps}"
        if math.isinf(self.units.uses[UNITS[0]]):
            return f"{text}, but is never paid back: {self._why}."
        never = f" (never in {self.never} of {plural(self.seeds, 'seed')})" if self.never else ""
        full, gradients = self._after(UNITS[0], "full"), self._after(UNITS[1], "full")
        free = f"after {full} if the baseline's tuning counts as free, and {gradients} if only task gradients count"
        return f"{text} and breaks even after {self._after(UNITS[0])}{never}; {free}."

    @property
    def short(self) -> str:
        """The same in the answer."""
        if math.isinf(self.units.full[UNITS[0]]):
            return f"its meta-training is never paid back ({self._why})"
        full = self._after(UNITS[0], "full")
        return f"it breaks even after {self._after(UNITS[0])}, or {full} if tuning counts as free"

    @property
    def _why(self) -> str:
        return "the loss is not reached" if self.unreached else "a use costs as much as the baseline's, or more"

    def _after(self, unit: str, what: str = "uses") -> str:
        value, low, high = self.units.loc[unit, USES[what]]
        if math.isinf(value):
            return "never"
        text = "the first use" if value <= 1 else f"{uses(value)} uses"
        return text if uses(low) == uses(high) else f"{text} ({uses(low)} to {uses(high)} over seeds)"


def ledger(cell: Cell) -> Ledger:
    """All zeros if no run of the cell is done."""
    every, count, rows = (*SPENT, "reporting"), len(cell.done) or 1, cell.data.rows
    rows = rows[(rows.cell == cell.label) & rows.stage.isin(every)]
    deepest = max(rows[rows.measure == "optimizer work"].level, default=0)
    levels = rows[rows.stage == "training"].pivot_table("value", "level", "measure", "sum") / count
    levels = levels.reindex(index=range(-1, deepest + 1), columns=["optimizer work", "seconds", "peak bytes"])
    own = levels.loc[1:].fillna({"optimizer work": 0.0, "seconds": 0.0})
    stages = cell.costs("stage", every).reindex(every).dropna() / count
    return Ledger(cell, stages[(stages > 0).any(axis=1)], own, levels["peak bytes"][-1])


def break_even(cell: Cell, baseline: Cell) -> BreakEven | None:
    """None if the two have no seed in common that was measured."""
    ours, theirs = cell.curves("median loss").align(baseline.curves("median loss"), join="inner", axis=0)
    if ours.empty:
        return None
    target = theirs.iloc[:, -1]
    reached = _first(ours, target)
    saving = _costs(baseline, _first(theirs, target)) - _costs(cell, reached.replace(np.inf, 0.0))
    saving[np.isinf(reached)] = -np.inf
    whole, tuning = (each.costs()[[*UNITS]].reindex(ours.index, fill_value=0.0) for each in (cell, baseline))
    after, full = ((cost / saving).clip(lower=0.0).where(saving > 0, np.inf) for cost in (whole - tuning, whole))
    columns = {"uses": _median(after), "low": after.min(), "high": after.max(), "saving": _median(saving)}
    columns |= {"full": _median(full), "full_low": full.min(), "full_high": full.max()}
    return BreakEven(
        cell, float(target.median()), statistics.median_high(reached), theirs.shape[1] - 1, pd.DataFrame(columns),
        never=int(np.isinf(after[UNITS[0]]).sum()), seeds=len(ours), unreached=bool(np.isinf(reached).mean() > 0.5),
    )  # fmt: skip


def _first(curves: pd.DataFrame, target: pd.Series) -> pd.Series:
    """The first step of each seed at which its curve is at the target or below; infinite if there is none."""
    under_target = curves.le(target, axis=0)
    return under_target.idxmax(axis=1).astype(float).where(under_target.any(axis=1) & np.isfinite(target), np.inf)


def _costs(cell: Cell, steps: pd.Series) -> pd.DataFrame:
    """What so many steps of a use cost, a row a seed and a column a unit."""
    work, time = cell.use("work of a step"), cell.use("seconds of a step")
    return pd.DataFrame({UNITS[0]: (1 + work) * steps, UNITS[1]: steps, UNITS[2]: time * steps}).reindex(steps.index)


def _median(values: pd.DataFrame) -> pd.Series:
    """Of values that may be infinite: the upper of the middle two, so that never in half of the seeds is never."""
    return values.apply(statistics.median_high)
