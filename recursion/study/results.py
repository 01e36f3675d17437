"""A store read into arrays: the cells of an ablation, and what each of their runs measured.

A training that diverged has no measurements but is not missing: its losses count as infinite on every problem. A run
that failed for another reason (memory, a disk, a bug), or is not done, is missing, and is said to be.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recursion.statistics import Values
from recursion.study.request import BASELINE, Request
from recursion.study.store import Record, Store

DIVERGED = "not finite"  # what `levels.nonfinite.NonFiniteError` says
SPENT = ("training", "selection", "deployment", "search")  # what a budget pays for, in this order
STAGES = (*SPENT, "reporting")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run and what became of it. ``status``: waiting, running, done or failed; ``why`` it failed."""

    id: str
    seed: int
    status: str
    why: str
    facts: dict[str, Any]
    spec: str
    version: str | None
    torch: str | None
    python: str | None
    machine: str | None
    threads: int | None
    seconds: float | None

    @property
    def diverged(self) -> bool:
        """Whether its training came to numbers that are not finite."""
        return self.status == "failed" and DIVERGED in self.why


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Runs that differ only in their seed. ``factors``: depth and grid values as typed; empty for the baseline."""

    label: str
    kind: str
    depth: int | None
    factors: dict[str, str]
    tower: str
    runs: tuple[Outcome, ...]

    @property
    def done(self) -> tuple[Outcome, ...]:
        """Its runs that have measurements."""
        return tuple(run for run in self.runs if run.status == "done")


@dataclass(frozen=True)
class Losses:
    """Of a cell: values ``[seeds, problems]`` and which seeds they are."""

    seeds: tuple[int, ...]
    values: Values

    def of(self, seeds: Iterable[int]) -> Values:
        """The rows of these seeds."""
        return self.values[[self.seeds.index(seed) for seed in seeds]]


class Results:
    """What a store holds. ``cells``: in the order of the request, the tuned baseline last."""

    def __init__(self, meta: dict[str, str], cells: Sequence[Cell], rows: Iterable[Sequence[Any]]) -> None:
        self.meta = meta
        self.request = Request.from_json(meta["request"])
        self.cells = tuple(cells)
        self._rows: dict[tuple[str, str, str | None, str], list[tuple[int, int, int, float]]] = defaultdict(list)
        for run, stage, split, level, problem, step, measure, value in rows:
            place = tuple(-1 if each is None else int(each) for each in (level, problem, step))
            found = math.inf if value is None else float(value)  # SQLite keeps no NaN: it becomes NULL
            self._rows[run, stage, split, measure].append((*place, found))  # type: ignore[arg-type]
        for found_rows in self._rows.values():
            found_rows.sort(key=lambda row: row[:3])

    @property
    def baseline(self) -> Cell | None:
        """The tuned baseline, if it was asked for."""
        return next((cell for cell in self.cells if cell.label == BASELINE), None)

    def rows(self, run: Outcome, stage: str, split: str | None, measure: str) -> list[tuple[int, int, int, float]]:
        """Level, problem, step (-1 where it does not apply) and value, in that order."""
        return self._rows.get((run.id, stage, split, measure), [])

    def values(self, run: Outcome, stage: str, split: str | None, measure: str) -> Values:
        """The values alone."""
        return np.array([row[3] for row in self.rows(run, stage, split, measure)])

    def losses(self, cell: Cell, stage: str, split: str, measure: str) -> Losses | None:
        """By seed and problem; infinite for a run that diverged. None if there is nothing measured."""
        found = {run.seed: self.values(run, stage, split, measure) for run in cell.done}
        found = {seed: values for seed, values in found.items() if values.size}
        width = max((len(values) for values in found.values()), default=0) or self._width(stage, split, measure)
        found = {seed: values for seed, values in found.items() if len(values) == width}
        found |= {run.seed: np.full(width, np.inf) for run in cell.runs if run.diverged and width}
        if not found:
            return None
        seeds = tuple(sorted(found))
        return Losses(seeds, np.stack([found[seed] for seed in seeds]))

    def curves(self, cell: Cell, measure: str) -> dict[int, Values]:
        """For each seed, how the loss fell on report problems: one value a step, the start first."""
        found = {run.seed: self.values(run, "chosen", "report", measure) for run in cell.done}
        return {seed: values for seed, values in found.items() if values.size}

    def total(self, run: Outcome, stages: Iterable[str], measure: str, level: int | None = None) -> float:
        """Sum of a cost over stages, of one level or (None) of all; seconds are those of the process."""
        wanted = -1 if measure == "seconds" and level is None else level
        return sum(
            row[3] for stage in stages for row in self._cost(run, stage, measure) if wanted is None or row[0] == wanted
        )

    def levels(self, cell: Cell) -> int:
        """The highest level that anything was measured of."""
        rows = (row for run in cell.done for stage in STAGES for row in self._cost(run, stage, "optimizer work"))
        return max((row[0] for row in rows), default=0)

    def _cost(self, run: Outcome, stage: str, measure: str) -> list[tuple[int, int, int, float]]:
        return self.rows(run, stage, None, measure)

    def _width(self, stage: str, split: str, measure: str) -> int:
        """Problems of this split, from any run: a cell whose every training diverged measured none itself."""
        widths = (len(self.values(run, stage, split, measure)) for cell in self.cells for run in cell.done)
        return max(widths, default=0)


def read(folder: Path) -> Results:
    """What the folder's store holds. ValueError or OSError, in one line, if it has none, or one of another kind."""
    with Store.open(folder, readonly=True) as store:
        specs = dict(store.connection.execute("select id, spec from runs"))
        return Results(store.meta(), _cells(store.runs(), specs), store.rows())


def _cells(records: Sequence[Record], specs: dict[str, str]) -> list[Cell]:
    by_label: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_label[record.run.cell].append(record)
    return [
        Cell(
            label=label,
            kind=found[0].run.kind,
            depth=found[0].run.depth,
            factors=found[0].run.factors,
            tower=found[0].run.tower,
            runs=tuple(_outcome(each, specs[each.run.id]) for each in sorted(found, key=lambda each: each.run.seed)),
        )
        for label, found in sorted(by_label.items(), key=lambda item: item[0] == BASELINE)
    ]


def _outcome(record: Record, spec: str) -> Outcome:
    about = {name: value for name, value in record.about.items() if name != "started"}
    return Outcome(
        id=record.run.id,
        seed=record.run.seed,
        status=record.status,
        why=record.why or "",
        facts=record.facts,
        spec=spec,
        **about,
    )
