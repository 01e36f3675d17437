"""Tiny runs of a study for the tests: quadratics of four numbers, LSTMs of four units."""

from recursion.study.job import perform
from recursion.study.request import Budget, Request

LEARNED = "quadratic(4): lstm(hidden=4)@4[batch=2] / lstm(hidden=4)@2 / adam"
UNREPEATED = {"seconds", "seconds of a step", "peak bytes"}


def tiny(tower=LEARNED, depths=(2,), budget="4e4", **settings):
    """A request of a second or two."""
    given = {"seeds": 1, "steps": 10, "problems": 6, "select": 4, "snapshots": 3, "baseline": False} | settings
    return Request(tower=tower, depths=depths, budget=Budget.parse(budget), **given)


def done(request, folder, number=0, tell=lambda what, fraction: None):
    """A run of the request, performed: the run, its rows and its facts."""
    run = request.runs()[number]
    result = perform(run, request, folder / run.id, tell)
    return run, result["rows"], result["facts"]


def repeated(rows):
    """The rows that must be the same whenever a run is repeated."""
    return [row for row in rows if row[5] not in UNREPEATED]


def values(rows, stage, measure, split=None):
    """The values of a measure, in the order of its rows."""
    return [row[6] for row in rows if row[0] == stage and row[5] == measure and split in (None, row[1])]
