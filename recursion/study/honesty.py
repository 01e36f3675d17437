"""What keeps an ablation honest: the gap between three splits of problems, alarms, and the guard at use.

The gain on a split is by how much the chosen snapshot is below the start of training, as the logarithm of the ratio of
their losses, paired by problem. Train problems train, select problems choose the snapshot, report problems are looked
at once. An optimizer that gains where it was trained or chosen, and not where it is reported, has learned the problems
and not the family: that sets off the alarm. A gain of which report problems show at least half, if only within their
noise, does not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from recursion.statistics import Estimate, Values, difference, interquartile_mean, level
from recursion.statistics import interval as estimated
from recursion.study.comparing import PRIMARY, Comparison, contrast
from recursion.study.results import Cell, Results
from recursion.study.words import interval, number, plural

SPLITS = ("train", "select", "report")


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
    def alarm(self) -> str | None:
        """A sentence, if train or select problems show a gain, and report problems neither a gain nor half of that."""
        report = self.gains["report"]
        shown = [split for split in SPLITS[:2] if split in self.gains and self.gains[split].sign > 0]
        shown = [split for split in shown if not report.value > self.gains[split].value / 2]
        if report.sign > 0 or not shown:
            return None
        where = " and ".join(f"{split} problems (gain {interval(self.gains[split])})" for split in shown)
        return (
            f"{self.cell.label} improves on {where} but not on report problems (gain {interval(report)}): what it "
            "learned is about the problems that it was trained or chosen on"
        )


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
        """How often, and what it comes to."""
        return (
            f"{self.cell.label}: {self.rescued} of {plural(self.uses, 'use')} rescued; "
            f"mean loss guarded {interval(self.guarded)}, bare {interval(self.bare)}"
        )


def gap(results: Results, cell: Cell) -> Gap | None:
    """None where nothing was trained, or nothing is done."""
    gains = {}
    for split in SPLITS:
        start, chosen = (results.losses(cell, stage, split, PRIMARY) for stage in ("start", "chosen"))
        if start is None or chosen is None:
            continue
        seeds = sorted(set(start.seeds) & set(chosen.seeds))
        a, b = start.of(seeds), chosen.of(seeds)
        if seeds and a.shape == b.shape:
            gains[split] = _gain(a, b)
    return Gap(cell=cell, gains=gains) if "report" in gains and len(gains) > 1 else None


def guard(results: Results, cell: Cell) -> Guard | None:
    """None if no use was guarded. A training that diverged left nothing to use, so it is not in these numbers."""
    places = ("guarded", "rescued"), ("guarded", PRIMARY), ("chosen", PRIMARY)
    found = [results.losses(cell, stage, "report", measure) for stage, measure in places]
    seeds = {run.seed for run in cell.done}
    rows = [losses.of(seed for seed in losses.seeds if seed in seeds) for losses in found if losses is not None]
    if len(rows) < len(found) or not all(values.size for values in rows):
        return None
    rescued, guarded, bare = rows
    return Guard(
        cell=cell,
        rescued=int(rescued.sum()),
        uses=rescued.size,
        guarded=level(guarded),
        bare=level(bare),
    )


def alarms(results: Results, gaps: Sequence[Gap], compared: Sequence[Comparison]) -> Iterator[str]:
    """Every alarm, a sentence each."""
    yield from (each.alarm for each in gaps if each.alarm)
    yield from _of_selection(results, compared)
    for cell in results.cells:
        count = int(sum(values.sum() for values in _trained_on(results, [cell])))
        if count:
            yield f"{cell.label} was trained on {plural(count, 'problem')} of those that are reported"


def checks(results: Results) -> tuple[int, int]:
    """Runs of which it was checked that no reported problem was trained on, and how many such problems there were."""
    found = [values for values in _trained_on(results, results.cells) if values.size]
    return len(found), int(sum(values.sum() for values in found))


def _trained_on(results: Results, cells: Sequence[Cell]) -> Iterator[Values]:
    for cell in cells:
        yield from (results.values(run, "reporting", "report", "problems trained on") for run in cell.done)


def _of_selection(results: Results, compared: Sequence[Comparison]) -> Iterator[str]:
    """The cell that select problems prefer, where report problems show less than half of its lead on a neighbour."""
    best = preferred(results, [cell for each in compared for cell in (each.ours, each.theirs)])
    for each in compared:
        if best is None or best.label not in (each.ours.label, each.theirs.label):
            continue
        other = each.theirs if best.label == each.ours.label else each.ours
        found = [contrast(results, best, other, split, PRIMARY) for split in ("select", "report")]
        if None in found:
            continue
        claimed, shown = (each[0].difference for each in found if each is not None)
        if claimed.sign < 0 <= shown.sign and not shown.value < claimed.value / 2:
            yield (
                f"select problems prefer {best.label} to {other.label} (difference {interval(claimed)}), report "
                f"problems do not (difference {interval(shown)}): choosing among cells found what does not hold"
            )


def preferred(results: Results, cells: Sequence[Cell]) -> Cell | None:
    """The cell with the lowest interquartile mean loss on select problems; the first of equals."""
    found = [(selected(results, cell), index) for index, cell in enumerate(cells)]
    known = [(value, index) for value, index in found if value is not None]
    return cells[min(known)[1]] if known else None


def selected(results: Results, cell: Cell) -> float | None:
    """Interquartile mean loss on select problems."""
    losses = results.losses(cell, "chosen", "select", PRIMARY)
    return None if losses is None else float(interquartile_mean(losses.values.reshape(-1)))


def gap_in_words(each: Gap) -> str:
    """Gains by split, and the gap."""
    gains = ", ".join(f"{split} {interval(gain)}" for split, gain in each.gains.items())
    return f"{each.cell.label}: gain {gains}; gap {number(each.gap)}"


def _gain(start: Values, chosen: Values) -> Estimate:
    """Log ratio; where losses are not all above 0, the difference as a part of the mean of the two sizes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if (start > 0).all() and (chosen > 0).all():
            gains = difference(np.log(start), np.log(chosen))
        else:
            part = 2 * (start - chosen) / (np.abs(start) + np.abs(chosen))
            one = 2.0 * (np.isinf(start) * 1.0 - np.isinf(chosen))
            gains = np.where(np.isinf(start) | np.isinf(chosen), one, np.where(start == chosen, 0.0, part))
    found = estimated(gains)
    if gains.size == 1:  # one problem and one training: this gain is all that there is to know
        return Estimate(found.value, found.value, found.value)
    return found
