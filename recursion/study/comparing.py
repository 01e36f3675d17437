"""Two cells on the same problems, which is lower and how surely; and what keeps such a comparison honest.

Runs are paired by problem and by seed. A seed that one of the two cells lacks is left out of the comparison and
counted; a seed that diverged is not lacking.

The gain on a split is by how much the chosen snapshot is below the start of training, as the logarithm of the ratio of
their losses, paired by problem. Train problems train, select problems choose the snapshot, report problems are used
once. An optimizer that gains where it was trained or chosen, and not where it is reported, has learned the problems
and not the family: that is an alarm. A gain of which report problems show at least half, if only within their noise,
is none.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from recursion.evaluation.statistics import Estimate, Values, difference, improvement, interquartile_mean, level
from recursion.evaluation.statistics import interval as estimated
from recursion.study.request import BASELINE
from recursion.study.results import MEASURES, PRIMARY, SPLITS, Cell, Results
from recursion.study.words import capital, interval, number, plural, share

SIGNS = ("lower", "no difference shown", "higher")  # of a sign from -1
VERDICTS = {
    "depth": ("another level pays", "not shown that another level pays", "another level costs"),
    BASELINE: ("better", "not shown to be better", "worse"),
}


class Contrast(NamedTuple):
    """One measure: ours less theirs (interquartile mean of paired differences), and the probability of improvement.

    ``theirs``: their interquartile mean, to say which part of it the difference is.
    """

    difference: Estimate
    improvement: Estimate
    theirs: float
    seeds: tuple[int, ...]

    @property
    def size(self) -> str:
        """The size of a difference whose sign is said in words: in percent of their loss, or as it is."""
        scale, unit = (100 / self.theirs, "%") if 0 < self.theirs < math.inf else (1.0, "")
        gap = self.difference
        value, *ends = (abs(each) * scale for each in (gap.value, gap.low, gap.high))
        if math.isinf(value):
            return "more than any number: one of the two diverges"
        return f"{number(value)}{unit} [{number(min(ends))}{unit}, {number(max(ends))}{unit}]"


class Comparison(NamedTuple):
    """``ours`` against ``theirs``, which differ in ``factor`` alone, by the primary measure and by the final loss.

    ``lacking``: how many seeds one of the two lacks.
    """

    factor: str
    ours: Cell
    theirs: Cell
    lacking: int
    main: Contrast
    final: Contrast

    @property
    def sign(self) -> int:
        """-1 if ours is lower by the primary measure, 1 if it is higher, 0 if no difference is shown."""
        return self.main.difference.sign

    @property
    def verdict(self) -> str:
        return VERDICTS.get(self.factor, SIGNS)[self.sign + 1]

    @property
    def parts(self) -> tuple[str, str, str]:
        """What is compared, the verdict, and the numbers behind it."""
        main, final = self.main, self.final.difference
        by = f"{SIGNS[self.sign + 1]} by {main.size}, " if self.sign else ""
        text = f"mean loss {by}difference {interval(main.difference)}, lower on {share(main.improvement)} of pairs"
        text += f"; final loss: {SIGNS[final.sign + 1]}, difference {interval(final)}"
        text += f"; {plural(self.lacking, 'seed')} left out" if self.lacking else ""
        return f"{capital(self.ours.label)} against {self.theirs.label}", self.verdict, text

    @property
    def step(self) -> str:
        """From one depth to the next, in the answer."""
        going = f"going from depth {self.theirs.depth} to {self.ours.depth}"
        if not self.sign:
            return f"{going} shows no difference in mean loss ({interval(self.main.difference)})"
        return f"{going} {'lowers' if self.sign < 0 else 'raises'} the mean loss by {self.main.size}"


def contrast(ours: Cell, theirs: Cell, split: str, measure: str = PRIMARY) -> Contrast | None:
    """None if the two cells have no seed in common."""
    one, other = ours.losses("chosen", split, measure).align(theirs.losses("chosen", split, measure), join="inner")
    if one.empty:
        return None
    a, b = one.to_numpy(), other.to_numpy()
    middle = float(interquartile_mean(b.reshape(-1)))
    return Contrast(estimated(difference(a, b)), improvement(a, b), middle, tuple(one.index))


def comparisons(data: Results, cells: Sequence[Cell]) -> Iterator[Comparison]:
    """Neighbours by each factor, depths first, then each cell and the tuned baseline; if they share a seed."""
    depths = sorted({cell.factors["depth"] for cell in cells if "depth" in cell.factors}, key=int)
    pairs = [(factor, cell, _before(cell, factor, values, cells))
             for factor, values in (("depth", depths), *data.request.grid) for cell in cells]  # fmt: skip
    for factor, ours, theirs in [*pairs, *((BASELINE, cell, data.baseline) for cell in cells)]:
        main, final = (theirs and contrast(ours, theirs, "report", measure) for measure in MEASURES)
        if theirs and main and final:
            lacking = {*ours.runs.seed, *theirs.runs.seed} - {*main.seeds}
            yield Comparison(factor, ours, theirs, len(lacking), main, final)


def _before(cell: Cell, factor: str, values: Sequence[str], cells: Sequence[Cell]) -> Cell | None:
    """The cell with the nearest earlier value of ``factor``, the same in all else; None if there is none.

    A deeper cut may have grid entries that a shallower one lacks.
    """

    def place(cell: Cell) -> int:
        return values.index(cell.factors[factor]) if factor in cell.factors else -1

    def rest(cell: Cell) -> set[tuple[str, str]]:
        return {(name, value) for name, value in cell.factors.items() if name != factor}

    alike = set.__le__ if factor == "depth" else set.__eq__
    earlier = [other for other in cells if 0 <= place(other) < place(cell) and alike(rest(other), rest(cell))]
    return max(earlier, key=place, default=None)


class Gap(NamedTuple):
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


def gap(cell: Cell) -> Gap | None:
    """None where nothing was trained, or nothing is done."""
    gains = {}
    for split in SPLITS:
        start, chosen = cell.losses("start", split).align(cell.losses("chosen", split), join="inner")
        if not start.empty:
            gains[split] = gain(start.to_numpy(), chosen.to_numpy())
    return Gap(cell, gains) if "report" in gains and len(gains) > 1 else None


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


class Guard(NamedTuple):
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


def guard(cell: Cell) -> Guard | None:
    """None if no use was guarded. A training that diverged left nothing to use, so it is not in these numbers."""
    places = ("guarded", "rescued"), ("guarded", PRIMARY), ("chosen", PRIMARY)
    frames = [cell.losses(stage, "report", measure) for stage, measure in places]
    rescued, guarded, bare = (frame[frame.index.isin(cell.done.seed)].to_numpy() for frame in frames)
    return Guard(cell, int(rescued.sum()), rescued.size, level(guarded), level(bare)) if rescued.size else None


def alarms(cells: Sequence[Cell], gaps: Sequence[Gap], pairs: Sequence[Comparison]) -> Iterator[str]:
    """Every alarm, a sentence each: of gaps; of the best of ``pairs`` of cells, if report problems show less than half
    of the lead that select problems claim for it; of problems that were trained on.
    """
    for each in gaps:
        if each.alarming:
            gains = " and ".join(f"{split} problems (gain {interval(each.gains[split])})" for split in each.alarming)
            report = f"but not on report problems (gain {interval(each.gains['report'])})"
            learned = "what it learned is about the problems that it was trained or chosen on"
            yield f"{each.cell.label} improves on {gains} {report}: {learned}"
    best = preferred([cell for pair in pairs for cell in (pair.ours, pair.theirs)])
    for pair in (pair for pair in pairs if best in (pair.ours, pair.theirs)):
        other = pair.theirs if pair.ours is best else pair.ours
        contrasts = (best and contrast(best, other, split) for split in ("select", "report"))
        claim, shown = (each and each.difference for each in contrasts)
        if best and claim and shown and claim.sign < 0 <= shown.sign and not shown.value < claim.value / 2:
            prefer = f"select problems prefer {best.label} to {other.label} (difference {interval(claim)})"
            report = f"report problems do not (difference {interval(shown)})"
            yield f"{prefer}, {report}: choosing among cells found what does not hold"
    for cell in cells:
        count = int(cell.trained_on.sum())
        if count:
            yield f"{cell.label} was trained on {plural(count, 'problem')} of those that are reported"


def preferred(cells: Sequence[Cell]) -> Cell | None:
    """The cell with the lowest interquartile mean loss on select problems; the first of equals."""
    losses = [cell.losses("chosen", "select").to_numpy() for cell in cells]
    means = [float(interquartile_mean(each.reshape(-1))) if each.size else np.nan for each in losses]
    return None if np.isnan(means).all() else cells[int(np.nanargmin(means))]
