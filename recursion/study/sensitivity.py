"""Sensitivity against height: over how many decades of step sizes does a tower of each height still do well?

As in Fig. 3 of Chandra et al. 2022 (Gradient Descent: The Ultimate Optimizer, arXiv 1909.13371), which draws the loss
against the step size that the topmost optimizer begins with. Here that is put into one number: the robust range, the
width in decades of the longest run of neighbouring step sizes on the grid whose interquartile mean loss is at most
`WITHIN` times the best loss on the whole grid, all heights together. Between grid points nothing is assumed, so a range
is known to the grid's spacing, and is *at least* that wide where it reaches the grid's end.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from recursion.statistics import Estimate, interquartile_mean, level
from recursion.study.comparing import PRIMARY
from recursion.study.results import Cell, Losses, Results
from recursion.study.words import MEASURES, number

WITHIN = (1.1, 2.0)  # times the best loss: nearly as good, and usable


@dataclass(frozen=True, kw_only=True)
class Range:
    """Of one height and one tolerance. ``decades``: NaN if no step size will do; ``spread``: over seeds.

    ``low``, ``high``: the step sizes at its ends; ``open``: whether it reaches an end of the grid.
    """

    within: float
    decades: float
    spread: tuple[float, float]
    low: float
    high: float
    open: bool

    @property
    def text(self) -> str:
        """In decades, with the range over seeds."""
        if math.isnan(self.decades):
            return "none"
        low, high = ("none" if math.isnan(each) else f"{each:.3g}" for each in self.spread)
        spread = "" if low == high else f" ({low} to {high} over seeds)"
        return f"{'at least ' if self.open else ''}{self.decades:.3g}{spread}"


@dataclass(frozen=True, kw_only=True)
class Height:
    """Towers of one height. ``losses``: by measure, one a step size; ``seconds``: of a step of use, mean and range."""

    height: int
    values: tuple[float, ...]
    losses: dict[str, tuple[Estimate, ...]]
    ranges: tuple[Range, ...]
    seconds: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Of one factor of the grid. ``others``: the other factors that these towers share. ``best``: over all heights."""

    factor: str
    others: dict[str, str]
    heights: tuple[Height, ...]
    best: float

    @property
    def sentences(self) -> Iterator[str]:
        """How the robust range and the time move with the height."""
        low, high = self.heights[0], self.heights[-1]
        tail = "" if not self.others else " (" + ", ".join(f"{k} {v}" for k, v in self.others.items()) + ")"
        for index, within in enumerate(WITHIN):
            parts = [f"{each.ranges[index].text} at height {each.height}" for each in self.heights]
            few = parts if len(parts) <= 4 else [parts[0], parts[len(parts) // 2], parts[-1]]
            yield (
                f"Robust range of {self.factor}{tail}, in decades with a mean loss of at most {within:g} times "
                f"the best ({number(self.best)}): {', '.join(few)}."
            )
        if low.seconds and high.seconds and high.height > low.height and low.seconds.value > 0:
            more = (high.seconds.value - low.seconds.value) / (high.height - low.height)
            yield (
                f"A step of use takes {1e3 * low.seconds.value:.3g} ms at height {low.height} and "
                f"{1e3 * high.seconds.value:.3g} ms at height {high.height}: {1e3 * more:.2g} ms for each level more."
            )


def is_step_size(factor: str) -> bool:
    """Whether a factor of the grid is about step sizes: ``lr``, ``lr*``, ``2.lr``, ``top.lr*``."""
    return factor.rpartition(".")[2].removesuffix("*") == "lr"


def sensitivities(results: Results) -> Iterator[Sensitivity]:
    """One for each factor that is about step sizes and each choice of the others."""
    for factor, _ in results.request.grid:
        if not is_step_size(factor):
            continue
        groups: dict[tuple[tuple[str, str], ...], list[Cell]] = defaultdict(list)
        for cell in results.cells:
            rest = tuple(sorted((k, v) for k, v in cell.factors.items() if k not in ("depth", factor)))
            if factor in cell.factors and _float(cell.factors[factor]) is not None:
                groups[rest].append(cell)
        for rest, cells in groups.items():
            found = _sensitivity(results, factor, dict(rest), cells)
            if found is not None:
                yield found


def _sensitivity(results: Results, factor: str, others: dict[str, str], cells: Sequence[Cell]) -> Sensitivity | None:
    by_height: dict[int, dict[float, Cell]] = defaultdict(dict)
    for cell in cells:
        value = _float(cell.factors[factor])
        if value is not None and results.losses(cell, "chosen", "report", PRIMARY) is not None:
            by_height[cell.depth or 0][value] = cell
    grids = {
        height: {value: _losses(results, cell, PRIMARY) for value, cell in sorted(found.items())}
        for height, found in sorted(by_height.items())
    }
    if not grids:
        return None
    best = min(_iqm(losses) for grid in grids.values() for losses in grid.values())
    bests = {
        seed: min(_iqm(losses, seed) for grid in grids.values() for losses in grid.values())
        for seed in sorted({seed for grid in grids.values() for losses in grid.values() for seed in losses.seeds})
    }
    return Sensitivity(
        factor=factor,
        others=others,
        best=best,
        heights=tuple(
            Height(
                height=height,
                values=tuple(grid),
                losses={measure: _estimates(results, by_height[height], measure) for measure in MEASURES},
                ranges=tuple(_range(grid, within, best, bests) for within in WITHIN),
                seconds=_seconds(results, list(by_height[height].values())),
            )
            for height, grid in grids.items()
        ),
    )


def _range(grid: dict[float, Losses], within: float, best: float, bests: dict[int, float]) -> Range:
    first, last = _longest(grid, within * best, None)
    values = list(grid)
    widths = [_width(values, *_longest(grid, within * each, seed)) for seed, each in bests.items()]
    known = [width for width in widths if not math.isnan(width)]
    lowest = math.nan if len(known) < len(widths) else min(known)
    return Range(
        within=within,
        decades=_width(values, first, last),
        spread=(lowest, max(known, default=math.nan)),
        low=values[first] if last >= first else math.nan,
        high=values[last] if last >= first else math.nan,
        open=last >= first and (first == 0 or last == len(values) - 1),
    )


def _longest(grid: dict[float, Losses], limit: float, seed: int | None) -> tuple[int, int]:
    """First and last index of the widest run of step sizes with a loss within the limit; last < first if none is."""
    values, widest, start = list(grid), (0, -1), None
    for index, losses in enumerate(grid.values()):
        good = _iqm(losses, seed) <= limit < math.inf
        start = (index if start is None else start) if good else None
        if start is not None and (
            widest[1] < widest[0] or values[index] / values[start] > values[widest[1]] / values[widest[0]]
        ):
            widest = (start, index)
    return widest


def _width(values: Sequence[float], first: int, last: int) -> float:
    return math.log10(values[last] / values[first]) if last >= first else math.nan


def _losses(results: Results, cell: Cell, measure: str) -> Losses:
    found = results.losses(cell, "chosen", "report", measure)
    assert found is not None
    return found


def _iqm(losses: Losses, seed: int | None = None) -> float:
    """Infinite for a seed that was not measured."""
    if seed is None:
        return float(interquartile_mean(losses.values.reshape(-1)))
    return float(interquartile_mean(losses.of([seed])[0])) if seed in losses.seeds else math.inf


def _estimates(results: Results, cells: dict[float, Cell], measure: str) -> tuple[Estimate, ...]:
    found = (results.losses(cells[value], "chosen", "report", measure) for value in sorted(cells))
    nothing = Estimate(math.nan, math.nan, math.nan)
    return tuple(nothing if losses is None else level(losses.values) for losses in found)


def _seconds(results: Results, cells: Sequence[Cell]) -> Estimate | None:
    found = [results.values(run, "use", None, "seconds of a step") for cell in cells for run in cell.done]
    times = np.concatenate(found) if found else np.zeros(0)
    return Estimate(float(np.median(times)), float(times.min()), float(times.max())) if times.size else None


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value > 0 and math.isfinite(value) else None
