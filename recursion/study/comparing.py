"""Two cells on the same problems: who is lower, by how much, and how surely.

Runs are paired by problem and by seed. A seed that one of the two cells lacks is left out of the comparison and
counted; a seed that diverged is not lacking.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recursion.statistics import Estimate, difference, improvement, interquartile_mean
from recursion.statistics import interval as estimated
from recursion.study.results import Cell, Results
from recursion.study.words import MEASURES, interval, number, plural, share

BASELINES = "tuned baseline"  # the factor of a comparison with it
PRIMARY = "mean loss"  # what snapshots are chosen by


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One measure: ours less theirs (interquartile mean of paired differences), and the probability of improvement."""

    measure: str
    difference: Estimate
    improvement: Estimate
    theirs: float  # their interquartile mean, to say what the difference is a part of

    @property
    def relative(self) -> Estimate | None:
        """The difference as a part of their loss."""
        if not 0 < self.theirs < math.inf:
            return None
        return Estimate(*(each / self.theirs for each in _three(self.difference)))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """``ours`` against ``theirs``, which differ in ``factor`` alone. ``contrasts``: by measure."""

    factor: str
    ours: Cell
    theirs: Cell
    seeds: int
    lacking: int
    contrasts: dict[str, Contrast]

    @property
    def sign(self) -> int:
        """-1 if ours is lower by the primary measure, 1 if it is higher, 0 if no difference is shown."""
        return self.contrasts[PRIMARY].difference.sign

    @property
    def subject(self) -> str:
        """Who is compared with whom."""
        return f"{self.ours.label} against {self.theirs.label}"

    @property
    def verdict(self) -> str:
        """What it comes to, by the primary measure."""
        words = {
            "depth": ("another level pays", "not shown that another level pays", "another level costs"),
            BASELINES: ("better", "not shown to be better", "worse"),
        }
        return words.get(self.factor, ("lower", "no difference shown", "higher"))[self.sign + 1]

    @property
    def details(self) -> str:
        """The numbers, with intervals."""
        main, final = self.contrasts[PRIMARY], self.contrasts.get("final loss")
        by = {-1: f"lower by {percent(main)}, ", 0: "", 1: f"higher by {percent(main)}, "}[self.sign]
        text = f"mean loss {by}difference {interval(main.difference)}, lower on {share(main.improvement)} of pairs"
        if final is not None:
            words = {-1: "lower", 0: "no difference shown", 1: "higher"}[final.difference.sign]
            text += f"; final loss: {words}, difference {interval(final.difference)}"
        return text + (f"; {plural(self.lacking, 'seed')} left out" if self.lacking else "")

    @property
    def sentence(self) -> str:
        """All of it."""
        return f"{self.subject}: {self.verdict}; {self.details}."


def compare(results: Results, ours: Cell, theirs: Cell, factor: str) -> Comparison | None:
    """None if they have no seed in common."""
    contrasts, seeds, lacking = {}, 0, 0
    for measure in MEASURES:
        found = contrast(results, ours, theirs, "report", measure)
        if found is None:
            continue
        contrasts[measure], seeds, lacking = found
    if PRIMARY not in contrasts:
        return None
    return Comparison(factor=factor, ours=ours, theirs=theirs, seeds=seeds, lacking=lacking, contrasts=contrasts)


def contrast(results: Results, ours: Cell, theirs: Cell, split: str, measure: str) -> tuple[Contrast, int, int] | None:
    """The contrast, how many seeds it is over, and how many of either cell were left out."""
    one, other = (results.losses(cell, "chosen", split, measure) for cell in (ours, theirs))
    if one is None or other is None or one.values.shape[1] != other.values.shape[1]:
        return None
    seeds = sorted(set(one.seeds) & set(other.seeds))
    if not seeds:
        return None
    a, b = one.of(seeds), other.of(seeds)
    found = Contrast(
        measure=measure,
        difference=estimated(difference(a, b)),
        improvement=improvement(a, b),
        theirs=float(interquartile_mean(b.reshape(-1))),
    )
    return found, len(seeds), len({run.seed for cell in (ours, theirs) for run in cell.runs} - set(seeds))


def neighbours(results: Results, cells: Sequence[Cell]) -> Iterator[tuple[str, Cell, Cell]]:
    """Factor, cell and the cell one value before it, which is the same in all else; depths first."""
    values = {name: list(entries) for name, entries in results.request.grid}
    for factor in ("depth", *values):
        order = values.get(factor) or sorted({c.factors["depth"] for c in cells if "depth" in c.factors}, key=int)
        for cell in cells:
            before = _before(cell, factor, order, cells)
            if before is not None:
                yield factor, cell, before


def _before(cell: Cell, factor: str, order: Sequence[str], cells: Sequence[Cell]) -> Cell | None:
    """The nearest earlier value that has such a cell. A deeper cut may have grid entries that a shallower lacks."""
    here = cell.factors.get(factor)
    if here not in order:
        return None
    rest = {name: value for name, value in cell.factors.items() if name != factor}
    for value in reversed(order[: order.index(here)]):
        for other in cells:
            others = {name: each for name, each in other.factors.items() if name != factor}
            fits = others == rest or (factor == "depth" and others.items() <= rest.items())
            if other.factors.get(factor) == value and fits:
                return other
    return None


def percent(found: Contrast) -> str:
    """The size of a difference whose sign is said in words: in percent of their loss, or as it is."""
    relative = found.relative
    value, low, high = (abs(each) for each in _three(relative or found.difference))
    low, high = min(low, high), max(low, high)
    if math.isinf(value):
        return "more than any number: one of the two diverges"
    if relative is None:
        return f"{number(value)} [{number(low)}, {number(high)}]"
    return f"{number(100 * value)}% [{number(100 * low)}%, {number(100 * high)}%]"


def _three(found: Estimate) -> tuple[float, float, float]:
    return found.value, found.low, found.high
