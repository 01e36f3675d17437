"""Sensitivity against height: over how many decades of step sizes does a tower of each height still do well?

As in Fig. 3 of Chandra et al. 2022 (Gradient Descent: The Ultimate Optimizer, arXiv 1909.13371), which draws the loss
against the step size that the topmost optimizer begins with. Here that is put into one number: the robust range, the
width in decades of the longest run of neighbouring step sizes on the grid whose interquartile mean loss is at most
`WITHIN` times the best loss on the whole grid, all heights together. Between grid points nothing is assumed, so a range
is known to the grid's spacing, and is *at least* that wide where it reaches the grid's end.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from recursion.evaluation.statistics import Estimate, interquartile_mean
from recursion.study.results import Cell, Results, is_step_size
from recursion.study.words import number

WITHIN = (1.1, 2.0)  # times the best loss: nearly as good, and usable
ALL = -1  # the column of all seeds together, beside the seeds


class Range(NamedTuple):
    """Of one height and one tolerance. ``decades``: NaN if no step size will do; ``low``, ``high``: over seeds.

    ``open``: whether it reaches an end of the grid.
    """

    decades: float
    low: float
    high: float
    open: bool

    @property
    def text(self) -> str:
        """In decades, with the range over seeds if they differ."""
        width, low, high = ("none" if math.isnan(each) else f"{each:.3g}" for each in self[:3])
        spread = "" if width == "none" or low == high else f" ({low} to {high} over seeds)"
        return f"{'at least ' if self.open else ''}{width}{spread}"


class Height(NamedTuple):
    """Towers of one height. ``losses``: interquartile mean loss by step size; ``ranges``: one a tolerance.

    ``name``: in tables. ``seconds``: of a step of use: median and range over runs.
    """

    height: int
    name: str
    losses: pd.Series
    ranges: tuple[Range, ...]
    seconds: Estimate | None


class Sensitivity(NamedTuple):
    """Of one factor of the grid. ``others``: the other factors that these towers share. ``best``: over all heights."""

    factor: str
    others: tuple[str, ...]
    heights: tuple[Height, ...]
    best: float

    @property
    def slug(self) -> str:
        """In the names of its pictures."""
        words = [self.factor.replace("*", "x"), *(each.replace(" ", "-", 1) for each in self.others)]
        return "-".join(words).replace(".", "-")

    def sentence(self, index: int) -> str:
        """The robust range at one tolerance."""
        parts = [f"{height.ranges[index].text} at height {height.height}" for height in self.heights]
        few = parts if len(parts) <= 4 else [parts[0], parts[len(parts) // 2], parts[-1]]
        others = f" ({', '.join(self.others)})" if self.others else ""
        most = f"a mean loss of at most {WITHIN[index]:g} times the best ({number(self.best)})"
        return f"Robust range of {self.factor}{others}, in decades with {most}: {', '.join(few)}."

    @property
    def slower(self) -> str:
        """By how much each level slows a step; nothing where it is not known."""
        low, high = self.heights[0], self.heights[-1]
        if not (low.seconds and high.seconds and high.height > low.height and low.seconds.value > 0):
            return ""
        first, last = 1e3 * low.seconds.value, 1e3 * high.seconds.value
        times = f"{first:.3g} ms at height {low.height} and {last:.3g} ms at height {high.height}"
        return f"A step of use takes {times}: {(last - first) / (high.height - low.height):.2g} ms for each level more."

    @property
    def sentences(self) -> list[str]:
        """All that is said."""
        return [self.sentence(0), self.sentence(1), *filter(None, [self.slower])]


def sensitivities(data: Results) -> Iterator[Sensitivity]:
    """One for each factor that is about step sizes and each choice of the others."""
    for factor in (name for name, _ in data.request.grid if is_step_size(name)):
        groups: dict[tuple[str, ...], dict[tuple[int, float], Cell]] = defaultdict(dict)
        for cell in data.cells:
            value = float(pd.to_numeric(cell.factors.get(factor), errors="coerce"))
            if 0 < value < math.inf and not cell.losses("chosen", "report").empty:
                rest = sorted(f"{name} {each}" for name, each in cell.factors.items() if name not in ("depth", factor))
                groups[tuple(rest)][cell.depth, value] = cell
        for others, cells in groups.items():
            losses = pd.DataFrame({place: _by_seed(cell) for place, cell in cells.items()}).T.sort_index()
            losses = losses.fillna(np.inf)  # seeds that were not measured
            best, heights = losses.min(), []
            for height, grid in losses.groupby(level=0):
                grid, name = grid.droplevel(0), ", ".join([f"height {height}", *others])
                times = pd.concat([cell.use("seconds of a step") for at, cell in cells.items() if at[0] == height])
                seconds = Estimate(times.median(), times.min(), times.max()) if len(times) else None
                ranges = tuple(_range(grid, within * best) for within in WITHIN)
                heights.append(Height(int(height), name, grid[ALL], ranges, seconds))
            yield Sensitivity(factor, others, tuple(heights), float(best[ALL]))


def _by_seed(cell: Cell) -> pd.Series:
    """The interquartile mean loss of a cell, of all seeds together and of each."""
    losses = cell.losses("chosen", "report")
    means = interquartile_mean(losses.to_numpy())
    return pd.Series({ALL: float(interquartile_mean(losses.to_numpy().reshape(-1)))} | dict(zip(losses.index, means)))


def _range(grid: pd.DataFrame, limits: pd.Series) -> Range:
    """Of losses ``grid`` by step size and seed."""
    ends = {seed: _longest(grid[seed], limit) for seed, limit in limits.items()}
    decades = pd.Series({seed: math.log10(run[-1] / run[0]) if run else math.nan for seed, run in ends.items()})
    seeds = decades.drop(ALL)
    is_open = bool({*ends[ALL]} & {grid.index[0], grid.index[-1]})
    return Range(decades[ALL], seeds.min(skipna=False), seeds.max(), is_open)  # from NaN, if nothing will do for a seed


def _longest(losses: pd.Series, limit: float) -> list[float]:
    """The widest run of neighbouring step sizes with a loss within the limit, the first of equals; may be empty."""
    good = (losses <= limit) & np.isfinite(limit)
    runs = [list(run.index) for _, run in losses[good].groupby((~good).cumsum())]
    return max(runs, key=lambda run: run[-1] / run[0], default=[])
