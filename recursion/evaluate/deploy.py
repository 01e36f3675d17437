"""What a tower learned, put to work on problems that it never saw.

A tower of depth 2 trains the optimizer at level 1, and that is what it learned. A deeper one trains the optimizer
under its top, which is a trainer: it is put to work on a fresh tower below, as that tower's top, and then the same
question is asked again. A tower that moves all levels at every step and never restarts learns nothing to be
kept: it *is* the optimizer, and is run afresh on each problem.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.bound_levels import STATE
from levels.layout import Layout
from levels.level import Level
from levels.restart import NonFiniteError, Skip
from levels.base import Optimizer
from levels.config import require
from levels.base import Problem
from levels.tasks.task import Split, Task
from levels.tree import State
from recursion.evaluate.observed import Observed
from recursion.tower import Tower, TowerState

CHUNK = 2**17  # most task parameters in flight in `run`; a learned optimizer's state is tens of times that
CHOOSING_PROBLEMS, CHOOSING_STEPS = 8, 100  # by which `learned` chooses among the optimizers that came up on the way


class Learned(NamedTuple):
    """What a tower's training came to."""

    params: Tensor  # [copies, m] of the optimizer at level 1
    base_steps: int  # task gradients spent to get them out of the tower, each copy counted; 0 at depth 2


class Afresh(NamedTuple):
    """A tower run as an optimizer, once for each of P problems."""

    losses: Tensor  # [steps + 1, 1, P]
    key: Tensor  # int64 [P]; `run` with these keys sees the same problems
    base_steps: int


@torch.no_grad()
def run(optimizer: Optimizer, params: Tensor, task: Problem, key: Tensor, steps: int) -> Tensor:
    """Losses ``[steps + 1, S, P]``, the one at the start first, of S settings of an optimizer on the same P problems.

    ``params`` ``[S, m]`` stay fixed; ``key`` ``[P]`` names the problems of ``task``. A loss is as it comes, NaN as inf.
    Raises ValueError if ``params`` do not fit the optimizer laid over the task.
    """
    require(steps >= 1, f"steps must be at least 1, got {steps}")
    n, optimizer = task.layout.size, optimizer.bound(task).over(task.layout)
    problems = max(1, min(len(key), CHUNK // n))
    settings = max(1, CHUNK // (n * problems))
    rows = []
    for some in torch.split(params, settings):
        columns = [_run(optimizer, some, task, part, steps) for part in torch.split(key, problems)]
        rows.append(torch.cat(columns, dim=-1))
    return torch.cat(rows, dim=1)


def _run(optimizer: Optimizer, params: Tensor, task: Problem, key: Tensor, steps: int) -> Tensor:
    return _as_inf(torch.stack([point.f for point in walk(optimizer, params, task, key, steps)]))


class Point(NamedTuple):
    """A place that a run came by; leading dimensions ``[S, P]``."""

    x: Tensor  # [S, P, n]
    f: Tensor
    below: State  # with which the task was asked there
    state: State  # the optimizer's


def walk(optimizer: Optimizer, params: Tensor, task: Problem, key: Tensor, steps: int) -> Iterator[Point]:
    """The start and what follows it in ``steps`` updates, as `run` has it, of an optimizer laid over the task."""
    for_params, for_state = keys.split(key.expand(len(params), -1), 2).unbind(-1)  # [S, P] each
    x = optimizer.start(params, task.init, for_params)
    state = optimizer.begin_state(params, x, keys.fold_in(key.expand(len(params), -1), STATE))
    asked = task.init_state(x, for_state)
    f, g, below = task.value_and_grad(x, asked)
    yield Point(x, f, asked, state)
    for _ in range(steps):
        x, state = optimizer.update(params, f, g, state, x)
        asked = below
        f, g, below = task.value_and_grad(x, asked)
        yield Point(x, f, asked, state)


def learned(tower: Tower, state: TowerState, *, windows: int | None = None, seed: int) -> Learned:
    """What the tower's training produced for level 1.

    Where there are towers below, each is run for ``windows`` of its steps (None: as long as its top level lived between
    two restarts in training, see `trained_windows`). A run that diverges ends there. Of the optimizers at level 1 that
    came up on the way, the one with the lowest mean loss on validation problems is kept, as one would in practice.

    ``seed``: of the fresh towers below; they draw from the task as the tower has it (its training split). Raises
    ValueError for a tower of depth 1, which trains no optimizer; NonFiniteError if a tower below diverges at once.
    """
    require(tower.depth >= 2, f"{tower}: a tower of depth 1 trains no optimizer; put a level on top, as in '/ adam'")
    require(windows is None or windows >= 1, f"windows must be at least 1, got {windows}")
    trained = tower.result(state)  # [copies, m] of the optimizer under the top
    if tower.depth == 2:
        return Learned(trained, 0)
    under, watched = tower.under(), Watched(tower.task)
    counted = Tower(watched, *under.levels)
    count = windows or trained_windows(tower.levels[-2])
    found, spent = [], 0
    for params in trained:
        ways = _run_under(counted, params, count, seed)
        below = learned(under, ways[-1], windows=windows, seed=seed) if under.depth > 2 else _best(under, ways, seed)
        found.append(below.params)
        spent += below.base_steps
    return Learned(torch.cat(found), watched.base_steps + spent)


def trained_windows(level: Level) -> int:
    """Windows of ``level`` from a start to the next restart in training; 20 if it never restarts."""
    return 20 if level.episode_length is None else level.episode_length // level.unroll


def _run_under(under: Tower, params: Tensor, count: int, seed: int) -> list[TowerState]:
    """States after each step of a fresh run; fewer than ``count`` if it diverges."""
    state = under.init(seed, params=params)
    states: list[TowerState] = []
    for _ in range(count):
        try:
            state, _report = under.step(state)
        except NonFiniteError:
            if not states:
                raise
            break
        states.append(state)
    return states


def _best(tower: Tower, states: Sequence[TowerState], seed: int) -> Learned:
    """Of the parameters that a tower of depth 2 came by, copy for copy those that do best on validation problems."""
    task = tower.task
    if not isinstance(task, (Task, Observed)):
        raise TypeError(f"choosing by validation problems needs a task with splits, got {task!r}")
    candidates = torch.stack([state.carry.x for state in states])  # [states, copies, m]
    key = keys.split(keys.fold_in(keys.seed(seed, device=candidates.device), 2), CHOOSING_PROBLEMS)
    losses = run(tower.levels[0].optimizer, candidates.flatten(0, 1), task.on("validation"), key, CHOOSING_STEPS)
    means = losses[1:].mean((0, 2)).reshape(candidates.shape[:2])  # [states, copies]
    best = means.argmin(0)
    return Learned(candidates[best, torch.arange(len(best), device=best.device)], losses.numel())


def is_optimizer(tower: Tower) -> bool:
    """Whether the tower itself is the optimizer: it has one level, or none looks beyond 1 update or ever restarts."""
    return tower.depth == 1 or all(level.reach == 1 and level.episode_length is None for level in tower.levels)


@torch.no_grad()
def run_afresh(
    tower: Tower,
    task: Problem,
    problems: int,
    steps: int,
    *,
    seed: int,
    params: Tensor | None,
    key: Tensor | None = None,
) -> Afresh:
    """The whole tower run on each of ``problems`` problems of ``task`` by itself, for ``steps`` base steps.

    All at once: the topmost level holds one copy for each problem, every level below one copy of what it works on.
    ``params`` ``[m]``: of the topmost optimizer, if not its own. ``key`` ``[problems]``: the problems, those that `run`
    sees with it; None lets ``seed`` draw them. A copy whose loss or gradient is not finite has diverged: its losses are
    inf from there on. Raises ValueError if the tower is no optimizer (see `is_optimizer`).
    """
    require(is_optimizer(tower), f"{tower}: it has windows or restarts, so it is to be evaluated by what it learned")
    require(steps >= 1, f"steps must be at least 1, got {steps}")
    fits = key is None or key.shape == (problems,)
    require(fits, f"key must name {problems} problems, got shape {[] if key is None else list(key.shape)}")
    watched = Watched(task, record=True)
    *lower, top = alone(tower).levels
    whole = Tower(watched, *lower, dataclasses.replace(top, batch=problems))
    state = _started(whole, seed, params, key)  # start-up makes depth - 1 steps
    key = whole.carries(state)[0].key.flatten()
    for _ in range(steps + 1 - len(watched.losses)):
        state, _report = whole.step(state)
    losses = torch.stack(watched.losses[: steps + 1])
    return Afresh(losses[:, None], key, watched.base_steps)


def alone(tower: Tower) -> Tower:
    """The tower as an optimizer of one problem: one copy at each level, no restarts, what diverges is skipped."""
    levels = (dataclasses.replace(level, batch=1, unroll=1, horizon=None, nonfinite=Skip()) for level in tower.levels)
    return Tower(tower.task, *levels)


def _started(whole: Tower, seed: int, params: Tensor | None, key: Tensor | None) -> TowerState:
    """The state at the start, in which the copies of the task have the keys ``key`` ``[copies of the topmost level]``.

    A copy hands the second half of its key to what it holds one of: up the tower, keys are those of which halves are.
    """
    if key is None:
        return whole.init(seed, params=params)
    for _ in whole.levels[1:]:
        key = keys.unfold_in(keys.unfold_in(key, 1), 2)
    own = whole.top.init(keys.split(keys.seed(seed, device=key.device), 2)[0])
    params = own if params is None else params
    return TowerState(params, whole.top.begin(params, key), torch.zeros((), dtype=torch.int64))


class Subject(NamedTuple):
    """What there is to evaluate of a tower: parameters learned for level 1, or the tower itself as an optimizer."""

    tower: Tower
    itself: bool
    params: list[Tensor]  # learned: [copies, m] for each state; itself: [1, m] of the top, those that differ
    base_steps: int

    @classmethod
    def of(cls, tower: Tower, states: Sequence[TowerState], *, windows: int | None, seed: int) -> Subject:
        """From states after training, one for each training seed."""
        if is_optimizer(tower):
            distinct = torch.unique(torch.stack([state.params for state in states]), dim=0)
            return cls(tower, True, list(distinct[:, None]), 0)
        found = [learned(tower, state, windows=windows, seed=seed) for state in states]
        return cls(tower, False, [each.params for each in found], sum(each.base_steps for each in found))

    @property
    def sizes(self) -> list[int]:
        """Copies of each training seed."""
        return [len(params) for params in self.params]

    def losses(self, task: Task, problems: int, steps: int, seed: int) -> tuple[Tensor, Tensor, int]:
        """Losses ``[steps + 1, S, P]`` on problems of ``task``, the keys ``[P]`` of these, and base steps spent."""
        if self.itself:
            runs = [run_afresh(self.tower, task, problems, steps, seed=seed, params=each[0]) for each in self.params]
            return torch.cat([r.losses for r in runs], dim=1), runs[0].key, sum(r.base_steps for r in runs)
        key = keys.split(keys.seed(seed, device=task.layout.device), problems)
        losses = run(self.tower.levels[0].optimizer, torch.cat(self.params), task, key, steps)
        return losses, key, losses.numel()

    def misfit(self, task: Task) -> str | None:
        """Why this cannot work on ``task``; None if it can."""
        if self.itself:
            return None
        optimizer, have = self.tower.levels[0].optimizer, self.params[0].shape[-1]
        needed = optimizer.bound(task).over(task.layout).layout.size
        return None if needed == have else f"{optimizer} takes {needed} parameters on {task}, {have} were learned"


class Watched(Problem):
    """A problem whose gradients are counted and, with ``record``, its losses kept.

    A recorded copy that diverges answers value 1 and gradient 0 from then on: it is over, and cannot spoil its
    neighbours nor ask for a restart.
    """

    def __init__(self, problem: Problem, *, record: bool = False) -> None:
        self.problem, self.record = problem, record
        self.copies, self.judging, self.cost = problem.copies, problem.judging, problem.cost
        self.spent = [0]  # base steps, shared with those `on` another split
        self.losses: list[Tensor] = []  # [P] each

    @property
    def layout(self) -> Layout:
        return self.problem.layout

    def init(self, key: Tensor) -> Tensor:
        return self.problem.init(key)

    def init_state(self, params: Tensor, key: Tensor) -> State:
        if self.losses:
            raise ArithmeticError("a level above level 1 met a meta-loss that is not finite; is its objective a log?")
        return self.problem.init_state(params, key)

    def value_and_grad(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        value, grad, state = self.problem.value_and_grad(params, state)
        self.spent[0] += value.numel()
        if self.record:
            over = ~torch.isfinite(value) | ~torch.isfinite(grad).all(-1)
            if self.losses:
                over |= torch.isinf(self.losses[-1]).reshape(over.shape)
            self.losses.append(value.masked_fill(over, torch.inf).flatten())
            value, grad = value.masked_fill(over, 1.0), grad.masked_fill(over[..., None], 0.0)
        return value, grad, state

    @property
    def base_steps(self) -> int:
        """Gradients counted so far."""
        return self.spent[0]

    def on(self, split: Split) -> Watched:
        return self._counting(self.problem.on(split))

    @property
    def beside(self) -> Watched:
        return self._counting(self.problem)

    def _counting(self, problem: Problem) -> Watched:
        """Another problem whose gradients count as this one's do; its losses are not kept."""
        other = Watched(problem)
        other.spent = self.spent
        return other

    def evaluate_from_scratch(self, params: Tensor, key: Tensor) -> Tensor:
        self.spent[0] += int(key.numel() * self.problem.trying)
        return self.problem.evaluate_from_scratch(params, key)

    def outer_value_and_grad(self, params: Tensor, f: Tensor, g: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        self.spent[0] += self.judging * f.numel()
        return self.problem.outer_value_and_grad(params, f, g, state)

    def __repr__(self) -> str:
        return repr(self.problem)


def _as_inf(losses: Tensor) -> Tensor:
    return losses.masked_fill(losses.isnan(), torch.inf)
