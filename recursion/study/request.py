"""Request: everything that decides an ablation's numbers, and the runs that it comes to.

    request = Request(tower="digits-mlp: lstm@20 / lstm@5 / adam", depths=(1, 2, 3), seeds=5)
    for run in request.runs():
        ...

A cell is a cut of the tower with one value of each grid entry that concerns it; a run is a cell and a training seed.
All runs are given the same budget and the same problems. What is wrong with a request is said when it is built, for
every cell of it is built then: nothing is refused after an hour. Both classes go to JSON and back.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Self

from levels.hyper import HandMade
from recursion.baselines import BASELINES
from recursion.study.cuts import Cell, Grid, cells, task_of

BASELINE = "tuned baseline"
RULES = tuple(map(repr, BASELINES.values()))  # that the baseline is chosen from
SEARCHES = ("grid", "optuna")
LONGEST = 80  # characters of a run's id
AMOUNT = re.compile(r"(?P<amount>[^s]+?)(?P<seconds>\s*s)?")


@dataclass(frozen=True, kw_only=True, repr=False)
class Budget:
    """What a run may cost in all: base steps, which are gradients of the task for one copy, or seconds.

    Base steps count the optimizers' work too, so a run is the same wherever it is repeated; seconds are not. Written
    ``2e6`` and ``90s``.
    """

    amount: float
    unit: Literal["base steps", "seconds"] = "base steps"

    def __post_init__(self) -> None:
        number = isinstance(self.amount, (int, float)) and not isinstance(self.amount, bool)
        if not number or not 0 < self.amount < math.inf:
            raise ValueError(f"a budget must be a number above 0, got {self.amount}; as 2e6 base steps, or 90s")
        if self.unit not in ("base steps", "seconds"):
            raise ValueError(f"a budget is in base steps or seconds, got {self.unit!r}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The budget that ``2e6`` (base steps) or ``90s`` (seconds) says. ValueError if it says neither."""
        found = AMOUNT.fullmatch(text.strip())
        try:
            amount = float(found["amount"]) if found else math.nan
        except ValueError:
            amount = math.nan
        if not found or math.isnan(amount):
            raise ValueError(f"a budget is written 2e6 (base steps) or 90s (seconds), got '{text}'")
        return cls(amount=amount, unit="seconds" if found["seconds"] else "base steps")

    def __repr__(self) -> str:
        exact = repr(float(self.amount)).removesuffix(".0")
        brief = re.sub(r"e\+?(-?)0*", r"e\1", f"{self.amount:g}")
        amount = brief if float(brief) == self.amount else exact
        return f"{amount}s" if self.unit == "seconds" else amount


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run. ``id``: a name that a folder can have. ``cell``: its label for people, shared by all its seeds.

    ``kind``: ``tower`` to train ``tower`` and use what it learned, ``search`` to tune the hand-made ``rules`` on its
    task. ``depth``: of the cut; None for the baseline. ``factors``: depth and grid values, as typed; empty for the
    baseline.
    """

    id: str
    kind: Literal["tower", "search"]
    cell: str
    depth: int | None
    factors: dict[str, str]
    tower: str
    rules: tuple[str, ...]
    seed: int

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The run that `to_json` wrote."""
        data = _read(text, cls)
        return cls(**data | {"rules": tuple(data["rules"])})


@dataclass(frozen=True, kw_only=True)
class Request:
    """An ablation. Raises ValueError, in one line, for what cannot be run.

    ``tower``: notation; ``...`` in front of the last level repeats the one before it as often as a depth needs.
    ``depths``: where it is cut. ``grid``: names of settings and the values that each takes, as text (see
    `recursion.study.cuts`). ``seeds``: training seeds 0, 1, ... of each cell. ``budget``: of each run. ``steps``:
    base steps of a use. ``problems``: that are reported on, once. ``select``: problems that snapshots are compared on.
    ``snapshots``: in a training, beside its start. ``search``: how hand-made rules are tuned. ``baseline``: whether
    the hand-made rules are tuned too, in a cell of their own. ``windows``: as `recursion.deploy.learned` takes it.
    """

    tower: str
    depths: tuple[int, ...]
    grid: Grid = ()
    seeds: int = 5
    budget: Budget = Budget(amount=2e6)
    steps: int = 100
    problems: int = 64
    select: int = 32
    snapshots: int = 5
    search: Literal["grid", "optuna"] = "grid"
    baseline: bool = True
    windows: int | None = None

    def __post_init__(self) -> None:
        for name in ("seeds", "steps", "problems", "select", "snapshots"):
            _check_count(name, getattr(self, name))
        if self.windows is not None:
            _check_count("windows", self.windows)
        if self.search not in SEARCHES:
            raise ValueError(f"search must be {' or '.join(SEARCHES)}, got {self.search!r}")
        for name in ("depths", "grid"):
            if not isinstance(getattr(self, name), tuple):
                raise ValueError(f"{name} must be a tuple, got {getattr(self, name)!r}")
        if not isinstance(self.baseline, bool):
            raise ValueError(f"baseline must be true or false, got {self.baseline!r}")
        self.cells()

    def cells(self) -> tuple[Cell, ...]:
        """The cells, all built; the baseline is none of them."""
        return _cells(self.tower, self.depths, self.grid)

    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that whatever is finished early compares all cells."""
        made = [_of_cell(cell, name) for cell, name in zip(self.cells(), _names(self.cells()))]
        made += [self._baseline()] if self.baseline else []
        return [
            dataclasses.replace(run, id=f"{run.id}-seed-{seed}", seed=seed)
            for seed in range(self.seeds)
            for run in made
        ]

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(dataclasses.asdict(self) | {"budget": repr(self.budget)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The request that `to_json` wrote. ValueError, in one line, if it is none."""
        data = _read(text, cls)
        try:
            grid = tuple((str(name), tuple(map(str, values))) for name, values in data["grid"])
            depths, budget = tuple(data["depths"]), Budget.parse(data["budget"])
        except (AttributeError, TypeError) as error:
            raise ValueError(f"this is not a request of an ablation: {error}") from error
        return cls(**data | {"grid": grid, "depths": depths, "budget": budget})

    def _baseline(self) -> Run:
        tower = f"{task_of(self.tower)}: adam"
        return Run(
            id="baseline", kind="search", cell=BASELINE, depth=None, factors={}, tower=tower, rules=RULES, seed=0
        )  # fmt: skip


@cache
def _cells(tower: str, depths: tuple[int, ...], grid: Grid) -> tuple[Cell, ...]:
    """`cells`; a worker reads one request for each run."""
    return tuple(cells(tower, depths, grid))


def _of_cell(cell: Cell, name: str) -> Run:
    """A cell's run. A lone hand-made rule has nothing to learn, so it is tuned; unless the grid says how it is set."""
    rule = cell.tower.levels[-1].optimizer
    tuned = cell.tower.depth == 1 and isinstance(rule, HandMade) and set(cell.factors) == {"depth"}
    return Run(
        id=name,
        kind="search" if tuned else "tower",
        cell=cell.label,
        depth=cell.tower.depth,
        factors=dict(cell.factors),
        tower=str(cell.tower),
        rules=(repr(rule),) if tuned else (),
        seed=0,
    )


def _names(found: tuple[Cell, ...]) -> list[str]:
    """A name for each cell's runs; where two would be alike, or one too long, a hash tells them apart."""
    texts = ["-".join(f"{name}-{value}" for name, value in cell.factors.items()) for cell in found]
    names = [re.sub(r"[^A-Za-z0-9._+]+", "-", text.replace("*", "x")).strip("-") for text in texts]
    often = Counter(name.lower() for name in names)
    return [
        name if often[name.lower()] == 1 and len(name) <= LONGEST
        else f"{name[:LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        for name, text in zip(names, texts)
    ]  # fmt: skip


def _read(text: str, cls: type) -> dict[str, Any]:
    """The JSON object whose fields are those of ``cls``."""
    what = f"this is not a {cls.__name__.lower()} of an ablation"
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{what}: broken JSON, {error}") from error
    if not isinstance(data, Mapping):
        raise ValueError(f"{what}: expected an object, got {str(data)[:40]}")
    names = [field.name for field in dataclasses.fields(cls)]
    wrong = sorted(set(data) ^ set(names))
    if wrong:
        raise ValueError(
            f"{what}: it has {', '.join(names)}, got {wrong[0]!r} {'more' if wrong[0] in data else 'less'}"
        )
    return dict(data)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
