"""Two cells on the same problems: which is lower, by how much, and how surely.

Runs are paired by problem and by seed. A seed that one of the two cells lacks is left out of the comparison and
counted; a seed that diverged is not lacking.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recursion.evaluate.statistics import Estimate, difference, improvement, interquartile_mean
from recursion.evaluate.statistics import interval as estimated
from recursion.study.request import BASELINE
from recursion.study.results import MEASURES, PRIMARY, Cell, Results
from recursion.study.words import capital, interval, number, plural, share

SIGNS = ("lower", "no difference shown", "higher")  # of a sign from -1
VERDICTS = {
    "depth": ("another level pays", "not shown that another level pays", "another level costs"),
    BASELINE: ("better", "not shown to be better", "worse"),
}


@dataclass(frozen=True, kw_only=True)
class Contrast:
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
        value, low, high = (abs(each) * scale for each in (gap.value, gap.low, gap.high))
        if math.isinf(value):
            return "more than any number: one of the two diverges"
        return f"{number(value)}{unit} [{number(min(low, high))}{unit}, {number(max(low, high))}{unit}]"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """``ours`` against ``theirs``, which differ in ``factor`` alone. ``contrasts``: by measure; ``lacking``: seeds."""

    factor: str
    ours: Cell
    theirs: Cell
    lacking: int
    contrasts: dict[str, Contrast]

    @property
    def main(self) -> Contrast:
        """The contrast of the primary measure."""
        return self.contrasts[PRIMARY]

    @property
    def sign(self) -> int:
        """-1 if ours is lower by the primary measure, 1 if it is higher, 0 if no difference is shown."""
        return self.main.difference.sign

    @property
    def subject(self) -> str:
        return f"{capital(self.ours.label)} against {self.theirs.label}"

    @property
    def verdict(self) -> str:
        return VERDICTS.get(self.factor, SIGNS)[self.sign + 1]

    @property
    def details(self) -> str:
        """The numbers behind the verdict."""
        main, final = self.main, self.contrasts.get("final loss")
        by = f"{SIGNS[self.sign + 1]} by {main.size}, " if self.sign else ""
        text = f"mean loss {by}difference {interval(main.difference)}, lower on {share(main.improvement)} of pairs"
        if final:
            text += f"; final loss: {SIGNS[final.difference.sign + 1]}, difference {interval(final.difference)}"
        return text + (f"; {plural(self.lacking, 'seed')} left out" if self.lacking else "")

    @property
    def step(self) -> str:
        """From one depth to the next, in the answer."""
        going = f"going from depth {self.theirs.depth} to {self.ours.depth}"
        if not self.sign:
            return f"{going} shows no difference in mean loss ({interval(self.main.difference)})"
        return f"{going} {'lowers' if self.sign < 0 else 'raises'} the mean loss by {self.main.size}"


def contrast(data: Results, ours: Cell, theirs: Cell, split: str, measure: str = PRIMARY) -> Contrast | None:
    """None if the two cells have no seed in common."""
    one, other = (data.losses(cell, "chosen", split, measure) for cell in (ours, theirs))
    one, other = one.align(other, join="inner")
    if one.empty:
        return None
    a, b = one.to_numpy(), other.to_numpy()
    return Contrast(
        difference=estimated(difference(a, b)), improvement=improvement(a, b),
        theirs=float(interquartile_mean(b.reshape(-1))), seeds=tuple(one.index),
    )  # fmt: skip


def comparisons(data: Results, cells: Sequence[Cell]) -> Iterator[Comparison]:
    """Neighbours by each factor, depths first, then each cell and the tuned baseline; if they share a seed."""
    depths = sorted({cell.factors["depth"] for cell in cells if "depth" in cell.factors}, key=int)
    factors = [("depth", depths), *data.request.grid]
    pairs = [(factor, cell, _before(cell, factor, [*values], cells)) for factor, values in factors for cell in cells]
    for factor, ours, theirs in [*pairs, *((BASELINE, cell, data.baseline) for cell in cells)]:
        if theirs is None:
            continue
        each = {measure: contrast(data, ours, theirs, "report", measure) for measure in MEASURES}
        known = {measure: one for measure, one in each.items() if one is not None}
        if PRIMARY in known:
            lacking = {*ours.runs.seed, *theirs.runs.seed} - {*known[PRIMARY].seeds}
            yield Comparison(factor=factor, ours=ours, theirs=theirs, lacking=len(lacking), contrasts=known)


def _before(cell: Cell, factor: str, order: list[str], cells: Sequence[Cell]) -> Cell | None:
    """The cell with the nearest earlier value of ``factor``, the same in all else; None if there is none.

    A deeper cut may have grid entries that a shallower one lacks.
    """
    here = cell.factors.get(factor)
    rest = cell.factors.items() - {(factor, here)}
    for value in reversed(order[: order.index(here)] if here in order else []):
        for other in cells:
            others = other.factors.items() - {(factor, value)}
            if other.factors.get(factor) == value and (others == rest or (factor == "depth" and others <= rest)):
                return other
    return None
