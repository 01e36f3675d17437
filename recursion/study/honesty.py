"""What keeps a study honest: the gap between three splits of problems, alarms, and the guard at use.

The gain on a split is by how much the chosen snapshot is below the start of training, as the logarithm of the ratio of
their losses, paired by problem. Train problems train, select problems choose the snapshot, report problems are used
once. An optimizer that gains where it was trained or chosen, and not where it is reported, has learned the problems
and not the family: that is an alarm. A gain of which report problems show at least half, if only within their noise,
is none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from recursion.evaluate.statistics import Estimate, Values, difference, interquartile_mean, level
from recursion.evaluate.statistics import interval as estimated
from recursion.study.comparing import Comparison, contrast
from recursion.study.results import PRIMARY, SPLITS, Cell, Results
from recursion.study.words import interval, plural


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Of a cell: its gains, log of start over chosen loss, by split. Above 0 is better."""

    cell: Cell
    gains: dict[str, Estimate]

    @property
    def gap(self) -> float:
        """By how much the gain on report problems falls short of the larger of the others."""
        others = [self.gains[split].value for split in SPLITS[:2] if split in self.gains]
        with np.errstate(invalid="ignore"):
            return max(others) - self.gains["report"].value

    @property
    def alarming(self) -> list[str]:
        """Splits that show a gain of which report problems show less than half; none if these show a gain too."""
        report = self.gains["report"]
        gained = [split for split in SPLITS[:2] if split in self.gains and self.gains[split].sign > 0]
        return [split for split in gained if report.sign <= 0 and not report.value > self.gains[split].value / 2]

    @property
    def alarm(self) -> str:
        """What is wrong with an alarming gap."""
        gains = " and ".join(f"{split} problems (gain {interval(self.gains[split])})" for split in self.alarming)
        report = f"but not on report problems (gain {interval(self.gains['report'])})"
        learned = "what it learned is about the problems that it was trained or chosen on"
        return f"{self.cell.label} improves on {gains} {report}: {learned}"


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Of a cell's uses: how many fell back to the hand-made optimizer, and the loss with and without the guard."""

    cell: Cell
    rescued: int
    uses: int
    guarded: Estimate
    bare: Estimate

    @property
    def sentence(self) -> str:
        rescued, losses = f"{self.rescued} of {plural(self.uses, 'use')}", (interval(self.guarded), interval(self.bare))
        return f"Guard: {self.cell.label}: {rescued} rescued; mean loss guarded {losses[0]}, bare {losses[1]}."


def gap(data: Results, cell: Cell) -> Gap | None:
    """None where nothing was trained, or nothing is done."""
    gains = {}
    for split in SPLITS:
        start, chosen = (data.losses(cell, stage, split) for stage in ("start", "chosen"))
        start, chosen = start.align(chosen, join="inner")
        if not start.empty:
            gains[split] = gain(start.to_numpy(), chosen.to_numpy())
    return Gap(cell=cell, gains=gains) if "report" in gains and len(gains) > 1 else None


def guard(data: Results, cell: Cell) -> Guard | None:
    """None if no use was guarded. A training that diverged left nothing to use, so it is not in these numbers."""
    places = ("guarded", "rescued"), ("guarded", PRIMARY), ("chosen", PRIMARY)
    frames = [data.losses(cell, stage, "report", measure) for stage, measure in places]
    rescued, guarded, bare = (frame[frame.index.isin(cell.done.seed)].to_numpy() for frame in frames)
    if not (rescued.size and guarded.size and bare.size):
        return None
    return Guard(cell=cell, rescued=int(rescued.sum()), uses=rescued.size, guarded=level(guarded), bare=level(bare))


def alarms(data: Results, gaps: Sequence[Gap], pairs: Sequence[Comparison]) -> Iterator[str]:
    """Every alarm, a sentence each. ``pairs``: of cells with cells."""
    yield from (each.alarm for each in gaps if each.alarming)
    best = preferred(data, [cell for each in pairs for cell in (each.ours, each.theirs)])
    for each in pairs:
        if best is not None and best in (each.ours, each.theirs):
            yield from _misled(data, each.theirs if each.ours is best else each.ours, best)
    for cell in data.cells:
        count = int(trained_on(data, cell).sum())
        if count:
            yield f"{cell.label} was trained on {plural(count, 'problem')} of those that are reported"


def _misled(data: Results, other: Cell, best: Cell) -> Iterator[str]:
    """An alarm if report problems show less than half of the lead that select problems claim for the best cell."""
    contrasts = [contrast(data, best, other, split) for split in ("select", "report")]
    claimed, seen = (each and each.difference for each in contrasts)
    if claimed and seen and claimed.sign < 0 <= seen.sign and not seen.value < claimed.value / 2:
        claim = f"select problems prefer {best.label} to {other.label} (difference {interval(claimed)})"
        report = f"report problems do not (difference {interval(seen)})"
        yield f"{claim}, {report}: choosing among cells found what does not hold"


def trained_on(data: Results, cell: Cell) -> pd.Series:
    """Of each run that was checked, how many reported problems it was trained on."""
    return data.part(cell, "reporting", "report", "problems trained on").value


def preferred(data: Results, cells: Sequence[Cell]) -> Cell | None:
    """The cell with the lowest interquartile mean loss on select problems; the first of equals."""
    losses = [data.losses(cell, "chosen", "select").to_numpy() for cell in cells]
    means = [float(interquartile_mean(each.reshape(-1))) if each.size else np.nan for each in losses]
    return None if np.isnan(means).all() else cells[int(np.nanargmin(means))]


def gain(start: Values, chosen: Values) -> Estimate:
    """Log ratio; where losses are not all above 0, the difference as a part of the mean of the two sizes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if (start > 0).all() and (chosen > 0).all():
            gains = difference(np.log(start), np.log(chosen))
        else:
            part = 2 * (start - chosen) / (np.abs(start) + np.abs(chosen))
            one = 2.0 * (np.isinf(start) * 1.0 - np.isinf(chosen))
            gains = np.where(np.isinf(start) | np.isinf(chosen), one, np.where(start == chosen, 0.0, part))
    each = estimated(gains)
    # of one problem and one training, this gain is all that there is to know
    return each if gains.size > 1 else Estimate(each.value, each.value, each.value)
