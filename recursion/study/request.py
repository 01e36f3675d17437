"""What a study is asked for, and the runs that it comes to.

A cell is a cut of the tower with one value of each grid entry that concerns it; a run is a cell and a training seed.
All runs get the same budget and the same problems. Building a request builds every cell of it, so a mistake is
refused before anything runs.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from levels.fields import SHORT, clear
from levels.hyper import HyperparamOptimizer
from levels.reading import located
from recursion.evaluation.deploy import require_counts
from recursion.notation import parse
from recursion.spec import to_spec
from recursion.study.cuts import Grid, cells, require_trusted, task_of
from recursion.tower import Tower

BASELINE = "tuned baseline"
SPENT = ("training", "selection", "deployment", "search")  # stages that a budget pays for, in this order
LONGEST = 80  # characters of a cell's name in a run's id
Kind = Literal["tower", "search"]
Search = Literal["grid", "optuna"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Budget:
    """The whole cost of a run: base steps (gradients of the task for one copy, optimizer work included) or seconds.

    A run in base steps is the same wherever it is repeated; one in seconds is not. Written ``2e6`` and ``90s``.
    """

    amount: float
    unit: Literal["base steps", "seconds"] = "base steps"

    def __post_init__(self) -> None:
        if not 0 < self.amount < math.inf:
            raise ValueError(f"a budget must be a number above 0, got {self.amount}; as 2e6 base steps, or 90s")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The budget that ``2e6`` (base steps) or ``90s`` (seconds) stands for."""
        number = text.strip()
        try:
            amount = float(number.removesuffix("s"))
        except ValueError:
            amount = math.nan
        if math.isnan(amount):
            raise ValueError(f"a budget is written 2e6 (base steps) or 90s (seconds), got '{clear(text, SHORT)}'")
        return cls(amount=amount, unit="seconds" if number.endswith("s") else "base steps")

    def __repr__(self) -> str:
        brief = re.sub(r"e\+?(-?)0*", r"e\1", f"{self.amount:g}")
        amount = brief if float(brief) == self.amount else repr(float(self.amount)).removesuffix(".0")
        return f"{amount}s" if self.unit == "seconds" else amount


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run. ``id``: a name that a folder can have. ``cell``: the label that all its seeds share.

    ``kind``: ``tower`` trains ``tower`` and uses what it learned; ``search`` tunes its optimizer on its task, or, for
    the baseline, the hand-made optimizers. ``depth``: None for the baseline. ``factors``: depth and grid values as
    typed; empty for the baseline.
    """

    id: str
    kind: Kind
    cell: str
    depth: int | None
    factors: dict[str, str] = field(hash=False)
    tower: str
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Request:
    """A study. Raises ValueError, in one line, for what cannot be run.

    ``tower``: a tower or notation, in which ``...`` in front of the last level repeats the one before it as often as a
    depth needs. ``depths``: where it is cut. ``grid``: settings and the values that each takes, as text
    (`recursion.study.cuts`). ``seeds``: training seeds 0, 1, ... of each cell. ``baseline``: whether a cell of its own
    tunes hand-made ones. ``budget``: of each run. ``steps``: base steps of a use. ``problems``: reported on, once.
    ``select``: problems that snapshots are compared on. ``snapshots``: of a training, beside its start. ``search``: how
    hand-made optimizers are tuned. ``windows``: as `recursion.evaluation.deploy.learned` takes it.
    """

    tower: str | Tower
    depths: tuple[int, ...]
    grid: Grid = ()
    seeds: int = 5
    baseline: bool = True
    budget: Budget = Budget(amount=2e6)
    steps: int = 100
    problems: int = 64
    select: int = 32
    snapshots: int = 5
    search: Search = "grid"
    windows: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tower", _written(self.tower))
        names = ("steps", "problems", "select", "snapshots", "windows", "seeds")
        require_counts("", **{name: getattr(self, name) for name in names})
        if self.search not in get_args(Search):
            raise ValueError(f"search must be {' or '.join(get_args(Search))}, got {self.search!r}")
        self.runs()

    @classmethod
    def from_json(cls, data: Mapping[str, Any], trust: Sequence[str] = ()) -> Self:
        """What `plain` wrote. ValueError, in one line, if it is something else, or names code not in ``trust``."""
        try:
            grid = tuple((name, tuple(values)) for name, values in data["grid"])
            budget, depths = Budget.parse(data["budget"]), tuple(data["depths"])
            with located("the request"):
                require_trusted(data["tower"], grid, trust)
                return cls(**{**data, "budget": budget, "depths": depths, "grid": grid})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"this is not the request of a study: {error}") from error

    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that an unfinished study already compares all cells.

        A lone hand-made optimizer has nothing to learn, so it is tuned; unless the grid sets it.
        """
        text = str(self.tower)
        every, planned = cells(text, tuple(self.depths), self.grid), list[Run]()
        for (label, factors, tower), name in zip(every, _names([cell.factors for cell in every])):
            alone = tower.depth == 1 and isinstance(tower.levels[0].optimizer, HyperparamOptimizer)
            kind: Kind = "search" if alone and set(factors) == {"depth"} else "tower"
            about = {"cell": label, "depth": tower.depth, "factors": dict(factors), "tower": str(tower)}
            planned.append(Run(id=name, kind=kind, **about))
        if self.baseline:
            tuned = f"{task_of(text)}: adam"
            planned.append(Run(id="baseline", kind="search", cell=BASELINE, depth=None, factors={}, tower=tuned))
        seeds = range(self.seeds)
        return [dataclasses.replace(run, id=f"{run.id}-seed-{seed}", seed=seed) for seed in seeds for run in planned]


def plain(value: Run | Request) -> dict[str, Any]:
    """As JSON has it."""
    data = dataclasses.asdict(value) | ({"budget": repr(value.budget)} if isinstance(value, Request) else {})
    copied: dict[str, Any] = json.loads(json.dumps(data))
    return copied


def _written(tower: str | Tower) -> str:
    """A tower as notation. ValueError if it cannot be written so."""
    text = str(tower)
    if isinstance(tower, Tower):
        fix = "name the task by its file, as mytask.py:wine, and parts of your own by their module"
        with contextlib.suppress(ValueError):
            if to_spec(tower) == to_spec(parse(text)):
                return text
        raise ValueError(f"{text} cannot be written as notation, and a study runs in processes of its own; {fix}")
    return text


def _names(every: Sequence[Mapping[str, str]]) -> list[str]:
    """A name for each cell's runs, from its factors; a hash tells two apart that would be alike, or too long."""
    texts = ["-".join(f"{name}-{value}" for name, value in factors.items()) for factors in every]
    names = [re.sub(r"[^A-Za-z0-9._+]+", "-", text.replace("*", "x")).strip("-") for text in texts]
    often = Counter(name.lower() for name in names)
    return [
        name if often[name.lower()] == 1 and len(name) <= LONGEST
        else f"{name[:LONGEST]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        for name, text in zip(names, texts)
    ]  # fmt: skip
