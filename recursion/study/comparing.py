"""Two cells on the same problems: which is lower, by how much, and how surely.

Runs are paired by problem and by seed. A seed that one of the two cells lacks is left out of the comparison and
counted; a seed that diverged is not lacking.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recursion.evaluate.statistics import Estimate, difference, improvement, interquartile_mean
from recursion.evaluate.statistics import interval as estimated
from recursion.study.measurements import MEASURES, PRIMARY, Cell, Measurements
from recursion.study.request import BASELINE
from recursion.study.words import number


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
        relative = 0 < self.theirs < math.inf
        scale, unit = (100 / self.theirs, "%") if relative else (1.0, "")
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


def contrast(data: Measurements, ours: Cell, theirs: Cell, split: str, measure: str = PRIMARY) -> Contrast | None:
    """None if the two cells have no seed in common."""
    one, other = (data.losses(cell, "chosen", split, measure) for cell in (ours, theirs))
    one, other = one.align(other, join="inner")
    if one.empty:
        return None
    a, b = one.to_numpy(), other.to_numpy()
    return Contrast(
        difference=estimated(difference(a, b)),
        improvement=improvement(a, b),
        theirs=float(interquartile_mean(b.reshape(-1))),
        seeds=tuple(one.index),
    )


def compare(data: Measurements, ours: Cell, theirs: Cell, factor: str) -> Comparison | None:
    """None if the two cells have no seed in common."""
    contrasts = {measure: contrast(data, ours, theirs, "report", measure) for measure in MEASURES}
    known = {measure: each for measure, each in contrasts.items() if each is not None}
    if PRIMARY not in known:
        return None
    lacking = {*ours.runs.seed, *theirs.runs.seed} - {*known[PRIMARY].seeds}
    return Comparison(factor=factor, ours=ours, theirs=theirs, lacking=len(lacking), contrasts=known)


def comparisons(data: Measurements, cells: Sequence[Cell]) -> Iterator[Comparison]:
    """Neighbours by each factor, depths first, then each cell and the tuned baseline."""
    pairs = list(_neighbours(data, cells))
    pairs += [(BASELINE, cell, data.baseline) for cell in cells if data.baseline is not None]
    yield from (each for factor, ours, theirs in pairs if (each := compare(data, ours, theirs, factor)) is not None)


def _neighbours(data: Measurements, cells: Sequence[Cell]) -> Iterator[tuple[str, Cell, Cell]]:
    """Factor, cell and the cell one value before it, which is the same in all else."""
    depths = sorted({cell.factors["depth"] for cell in cells if "depth" in cell.factors}, key=int)
    for factor, values in [("depth", depths), *data.request.grid]:
        for cell in cells:
            before = _before(cell, factor, list(values), cells)
            if before is not None:
                yield factor, cell, before


def _before(cell: Cell, factor: str, order: list[str], cells: Sequence[Cell]) -> Cell | None:
    """The nearest earlier value that has such a cell. A deeper cut may have grid entries that a shallower lacks."""
    here = cell.factors.get(factor)
    if here not in order:
        return None
    rest = cell.factors.items() - {(factor, here)}
    for value in reversed(order[: order.index(here)]):
        for other in cells:
            others = other.factors.items() - {(factor, value)}
            if other.factors.get(factor) == value and (others == rest or (factor == "depth" and others <= rest)):
                return other
    return None
