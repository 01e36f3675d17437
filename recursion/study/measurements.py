"""The measurements of a study by cell: losses as frames of seeds by problems, curves as frames of seeds by steps.

A training that diverged has no measurements but is not missing: its losses count as infinite on every problem. A run
that failed for another reason (memory, a disk, a bug), or is not done, is missing, and the report says so.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recursion.study.request import BASELINE
from recursion.study.results import Results

PRIMARY = "mean loss"  # snapshots are chosen by it
MEASURES = (PRIMARY, "final loss")
SPLITS = ("train", "select", "report")
SPENT = ("training", "selection", "deployment", "search")  # what a budget pays for, in this order
STAGES = (*SPENT, "reporting")
UNITS = ("base steps", "task gradients", "seconds")  # of cost
DIVERGED = "not finite"  # `levels.nonfinite.NonFiniteError` says so


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """Runs that differ only in their seed. ``runs``: their rows of `Results.runs`, by seed, and whether each diverged.

    ``factors``: depth and grid values as typed; empty for the baseline, whose ``depth`` is 0.
    """

    label: str
    kind: str
    depth: int
    factors: dict[str, str]
    tower: str
    runs: pd.DataFrame

    @property
    def done(self) -> pd.DataFrame:
        """The runs that have measurements."""
        return self.runs[self.runs.status == "done"]

    @property
    def diverged(self) -> pd.DataFrame:
        """The runs whose training came to numbers that are not finite."""
        return self.runs[self.runs.diverged]

    @property
    def is_baseline(self) -> bool:
        """Whether this is the tuned baseline."""
        return self.label == BASELINE

    @property
    def on_grid(self) -> bool:
        """Whether the cell is one of a grid of step sizes, which `sensitivity` reports."""
        return any(map(is_step_size, self.factors))


class Measurements:
    """``cells``: in the order of the request, the tuned baseline last."""

    def __init__(self, results: Results) -> None:
        self.request, self.rows = results.request, results.rows
        diverged = (results.runs.status == "failed") & results.runs.why.str.contains(DIVERGED, regex=False)
        groups = results.runs.assign(diverged=diverged).groupby("cell", sort=False)
        cells = [_cell(runs.sort_values("seed")) for _, runs in groups]
        self.cells = sorted(cells, key=lambda cell: cell.is_baseline)
        self.baseline = next((cell for cell in self.cells if cell.is_baseline), None)
        self._parts = dict(tuple(self.rows.groupby(["stage", "split", "measure"])))

    def part(self, cell: Cell, stage: str, split: str, measure: str) -> pd.DataFrame:
        """The rows of a cell that are about one thing."""
        rows = self._parts.get((stage, split, measure), self.rows[:0])
        return rows[rows.cell == cell.label]

    def losses(self, cell: Cell, stage: str, split: str, measure: str = PRIMARY) -> pd.DataFrame:
        """A row a seed and a column a problem; infinite for a run that diverged. Empty where nothing is measured."""
        problems = self._parts.get((stage, split, measure), self.rows[:0]).problem.unique()
        wide = self.part(cell, stage, split, measure).pivot(index="seed", columns="problem", values="value")
        wide = wide.reindex(columns=problems).dropna()
        return wide.reindex(wide.index.union(cell.diverged.seed), fill_value=np.inf)

    def curves(self, cell: Cell, measure: str) -> pd.DataFrame:
        """A row a seed and a column a step of a use on report problems, the start first."""
        rows = self.part(cell, "chosen", "report", measure)
        return rows.pivot(index="seed", columns="step", values="value").dropna()

    def single(self, cell: Cell, measure: str) -> pd.Series:
        """What each seed measured once of a use."""
        return self.part(cell, "use", "", measure).set_index("seed").value

    def costs(self, cell: Cell, stages: tuple[str, ...]) -> pd.DataFrame:
        """The rows of what these stages cost; level -1 is the process."""
        return self.rows[(self.rows.cell == cell.label) & (self.rows.split == "") & self.rows.stage.isin(stages)]

    def paid(self, cell: Cell, stages: tuple[str, ...] = SPENT) -> pd.DataFrame:
        """What the budget paid in these stages, a row a seed and a column a unit."""
        rows = self.costs(cell, stages)
        rows = rows[(rows.measure != "seconds") | (rows.level < 0)]  # each level's seconds are part of the process's
        sums = rows.pivot_table(index="seed", columns="measure", values="value", aggfunc="sum").fillna(0.0)
        sums = sums.reindex(columns=["task gradients", "optimizer work", "seconds"], fill_value=0.0)
        return sums.assign(**{UNITS[0]: sums["task gradients"] + sums["optimizer work"]})[list(UNITS)]


def is_step_size(factor: str) -> bool:
    """Whether a factor of the grid is about step sizes: ``lr``, ``lr*``, ``2.lr``, ``top.lr*``."""
    return factor.rpartition(".")[2].removesuffix("*") == "lr"


def _cell(runs: pd.DataFrame) -> Cell:
    one = runs.iloc[0]
    depth = 0 if pd.isna(one.depth) else int(one.depth)
    return Cell(label=one.cell, kind=one.kind, depth=depth, factors=one.factors, tower=one.tower, runs=runs)
