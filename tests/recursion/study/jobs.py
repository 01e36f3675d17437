"""Tiny runs of a study for the tests: quadratics of four numbers, LSTMs of four units."""

from pathlib import Path
from typing import Any

from recursion.study.job import perform
from recursion.study.request import Budget, Request, Run

LEARNED = "quadratic(4): lstm(hidden=4)@4[batch=2] / lstm(hidden=4)@2 / adam"
UNREPEATED = {"seconds", "seconds of a step", "peak bytes"}


def tiny(tower: str = LEARNED, depths: tuple[int, ...] = (2,), budget: str = "4e4", **settings: Any) -> Request:
    """A request of a second or two."""
    given = {"seeds": 1, "steps": 10, "problems": 6, "select": 4, "snapshots": 3, "baseline": False} | settings
    return Request(tower=tower, depths=depths, budget=Budget.parse(budget), **given)


def done(request: Request, folder: Path, number: int = 0, tell: Any = None) -> tuple[Run, dict[str, Any]]:
    """A run of the request, performed."""
    run = request.runs()[number]
    return run, perform(run, request, folder / run.id, tell or (lambda what, fraction: None))


def repeated(found: dict[str, Any]) -> list[list[Any]]:
    """The rows that must be the same whenever a run is repeated."""
    return [row for row in found["rows"] if row[5] not in UNREPEATED]


def values(found: dict[str, Any], stage: str, measure: str, split: str | None = None) -> list[float]:
    """The values of a measure, in the order of its rows."""
    return [row[6] for row in found["rows"] if row[0] == stage and row[5] == measure and split in (None, row[1])]
