"""Depth three with another estimator on each level, against loops and naive autograd; relative, in float64.

The third level's gradient is compared too, so each tower stands under a topmost level that would move it. What is
backpropagated is nested graphs, what runs forward is one graph since the restart, and evolution is a loop over copies,
pairs and members that shares with the library where the numbers of a key come from, and nothing else.
"""

from typing import Any, NamedTuple

import pytest
import torch
from exact_oracle import ExactLevel, ExactTask, Word, exactly
from exact_parts import MOMENTUM, lstm, quadratic, stacked
from exact_parts import level as exact
from oracle import compare, error, settled, state_error
from torch import Tensor

from levels import (
    NRES,
    PES,
    SGD,
    Adam,
    Bootstrapped,
    ESSingle,
    Estimator,
    Evolution,
    Exact,
    FirstOrder,
    Forward,
    FullES,
    Level,
    LevelState,
    MeanLog,
    TruncatedES,
    keys,
)
from levels.gradients.evolution import Antithetic
from recursion import Tower

TOLERANCE = 1e-9
SIGNS = (1, -1)


def level(optimizer: object, gradient: Estimator, **settings: object) -> Level:
    """A window of two updates, a life of two windows."""
    return exact(optimizer, 2, **{"gradient": gradient, "horizon": 4, **settings})


# The oracle of evolution: a loop over copies, pairs and members.


class Draw(NamedTuple):
    """What a pair remembers."""

    noise: Tensor  # [m]
    seen: Tensor  # [m] sum of the draws of its trajectory
    key: Tensor  # []


class Swarm(list):  # of `Copy`, one for each particle: copies outermost, then pairs, then signs
    """The particles of a level, and what its pairs remember."""

    draws: list[Draw]


PERIODS = {FullES: 2, TruncatedES: 2, PES: 2, ESSingle: 4, NRES: 4}  # updates for which a draw is kept


class EvolutionLevel(ExactLevel):
    """Truncated or summed draws, by the table in `levels.gradients.evolution`."""

    def __init__(self, part: Level, problem_state: Any) -> None:
        super().__init__(part, problem_state)
        gradient = part.gradient
        self.true, self.pairs, self.sigma = False, gradient.pairs, gradient.sigma
        general = isinstance(gradient, Evolution)
        self.period = gradient.noise if general else PERIODS[type(gradient)]
        self.summed = gradient.accumulate if general else isinstance(gradient, (PES, ESSingle, NRES))

    def start(self, theta: Tensor, key: Tensor) -> Swarm:
        swarm, draws = Swarm(), []
        for copy, begun in enumerate(super().start(theta, key)):
            for pair in range(self.pairs):
                own = keys.fold_in(keys.fold_in(key, -1), 1 + copy * self.pairs + pair)
                noise = keys.normal(own, (len(theta),), theta.dtype)
                draws.append(Draw(noise, noise, own))
                swarm += [begun, begun]  # the same problem for both, and for all pairs of a copy
        swarm.draws = draws
        return swarm

    def ask(self, theta: Tensor, swarm: Swarm) -> tuple[Tensor, Tensor, Swarm]:
        after, values, total, draws = Swarm(), [], torch.zeros_like(theta), []
        for number, draw in enumerate(swarm.draws):
            losses = {}
            for member, sign in enumerate(SIGNS):
                moved = (theta + sign * self.sigma * draw.noise).detach()
                run = self.run(moved, swarm[2 * number + member])
                losses[sign] = self.meta(run[0]).detach()
                after.append(run[4])
            total = total + (losses[1] - losses[-1]) / (2 * self.sigma) * draw.seen
            values += losses.values()
            draws.append(self.next(draw, after[-1].age))
        after.draws, grad = draws, total.detach() / len(draws)
        return Word.apply(theta, sum(values) / len(values), grad), grad, after

    def next(self, draw: Draw, age: int) -> Draw:
        """What the pair remembers for its next window, its trajectory having this age."""
        key, ended = keys.fold_in(draw.key, 1), age >= self.level.episode_length
        drawn = ended or age % self.period == 0
        noise = keys.normal(key, draw.noise.shape, draw.noise.dtype) if drawn else draw.noise
        if not self.summed:
            return Draw(noise, noise, key)
        before = torch.zeros_like(noise) if ended else draw.seen
        return Draw(noise, before + noise if drawn else before, key)


def naive(task: Any, *parts: Level) -> Any:
    """The oracle of levels stacked over ``task``."""
    problem = task
    for part in parts:
        evolves = isinstance(part.gradient, Antithetic)
        problem = EvolutionLevel(part, problem) if evolves else exactly(problem, part)
    return problem


# What is carried everywhere, draws included.


def remembered(state: LevelState, swarm: Any, index: tuple[int, ...] = ()) -> float:
    """Largest error over the draws of all levels of evolution."""
    worst = 0.0
    if isinstance(swarm, Swarm):
        for place, draw in enumerate(swarm.draws):
            at = (*index, place)
            assert int(state.memory.key[at]) == int(draw.key)
            worst = max(worst, error(state.memory.noise[at], draw.noise), error(state.memory.seen[at], draw.seen))
    if isinstance(state.carry.problem_state, LevelState):
        return max(
            worst,
            *(remembered(state.carry.problem_state, copy.problem_state, (*index, i)) for i, copy in enumerate(swarm)),
        )
    return worst


def starts(state: LevelState) -> list[int]:
    """Copies in the first window of a trajectory, level 1 first."""
    mine = [int((state.carry.age == 2).sum())]
    return [*starts(state.carry.problem_state), *mine] if isinstance(state.carry.problem_state, LevelState) else mine


MOVED, STEP, SMALL = Adam(0.1, eps=1e-3), SGD(0.3), SGD(0.02)
TOWERS = {
    "exact, first-order, pes": (
        level(MOMENTUM, Exact(), batch=2),
        level(MOVED, FirstOrder()),
        level(STEP, PES(sigma=0.1, pairs=2), batch=2),
    ),
    "forward, first-order, es-single": (
        level(MOMENTUM, Forward(), batch=2, objective=MeanLog()),
        level(MOVED, FirstOrder()),
        level(STEP, ESSingle(sigma=0.1), batch=2),
    ),
    "pes, first-order, truncated-es": (
        level(lstm(1), PES(sigma=0.05, pairs=2), batch=2),
        level(SMALL, FirstOrder(), batch=2),
        level(MOMENTUM, TruncatedES(sigma=0.3)),
    ),
    "first-order, exact, pes": (
        level(MOVED, FirstOrder(), batch=2),
        level(MOMENTUM, Exact()),
        level(STEP, PES(sigma=0.1), batch=2),
    ),
    "first-order, forward, nres": (
        level(lstm(1), FirstOrder()),
        level(MOMENTUM, Forward(), batch=2),
        level(STEP, NRES(sigma=0.1), batch=2),
    ),
    "exact, first-order, forward": (
        level(MOMENTUM, Exact(), batch=2),
        level(MOVED, FirstOrder(), clip=0.5),
        level(MOMENTUM, Forward(), batch=2),
    ),
    "first-order, exact, forward": (
        level(MOMENTUM, FirstOrder()),
        level(MOVED, Exact(), batch=2),
        level(STEP, Forward()),
    ),
    "es-single, truncated-es, first-order": (
        level(lstm(1), ESSingle(sigma=0.05), batch=2, stagger=False),
        level(SMALL, TruncatedES(sigma=0.1), batch=2),
        level(MOMENTUM, FirstOrder()),
    ),
    "forward, evolution, first-order": (
        level(MOMENTUM, Forward(), batch=2),
        level(SMALL, Evolution(sigma=0.1, noise=4, accumulate=False), batch=2, horizon=8),
        level(MOVED, FirstOrder()),
    ),
    "full-es, first-order, pes": (
        level(lstm(1), FullES(sigma=0.05), horizon=2, batch=2),
        level(SMALL, FirstOrder(), batch=2),
        level(MOMENTUM, PES(sigma=0.1)),
    ),
    "with ahead: bootstrapped, es-single, first-order": (
        level(MOMENTUM, Bootstrapped(Exact()), lookahead=5, batch=2),
        level(STEP, ESSingle(sigma=0.1), lookahead=3, batch=2),
        level(MOVED, FirstOrder(), lookahead=3),
    ),
    "with ahead: exact, first-order, pes": (
        level(MOMENTUM, Exact(), lookahead=3, batch=2),
        level(MOVED, FirstOrder(), lookahead=4),
        level(STEP, PES(sigma=0.1), lookahead=3, batch=2),
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_of_three_estimators_is_its_oracle(name):
    task = quadratic(2)
    seen = []

    def also(state: LevelState, copies: Any, index: tuple[int, ...]) -> float:
        seen.append(starts(state))
        return remembered(state, copies, index)

    assert compare(stacked(task, TOWERS[name]), naive(ExactTask(task), *TOWERS[name]), 4, also=also, seed=1) < TOLERANCE
    assert min(map(sum, zip(*seen))) > 1


# Under a topmost level.


@pytest.mark.parametrize("name", list(TOWERS)[:3])
def test_adam_on_top_moves_the_third_level_as_on_the_oracle(name):
    """All that is carried at the four levels, after each step of the tower."""
    task, top = quadratic(2), exact(Adam(0.1), 1)
    tower, theirs = Tower(task, *TOWERS[name], top), naive(ExactTask(task), *TOWERS[name], top)
    state = tower.init(seed=3)
    start, theta = state.carry.x, state.theta
    copies = theirs.start(theta, keys.split(keys.seed(3), 2)[1])
    for _ in range(2):
        state, _ = tower.step(state)
        copies = [theirs.run(theta, copy)[-1] for copy in copies]
        laid = LevelState(state.carry, None)
        assert max(state_error(laid, settled(copies)), remembered(laid, copies)) < TOLERANCE
    assert (state.carry.x - start).abs().max() > 0.01


OVER = {
    "exact over pes": (PES(), Exact()),
    "exact over forward": (Forward(), Exact()),
    "exact over es-single, with one in between": (ESSingle(), FirstOrder(), Exact()),
    "exact over forward, with one in between": (Forward(), FirstOrder(), Exact()),
    "forward over truncated-es": (TruncatedES(), Forward()),
    "forward over bootstrapped": (Bootstrapped(), Forward()),
}


@pytest.mark.parametrize("name", OVER)
def test_what_cannot_be_differentiated_is_refused_however_deep(name):
    levels = [
        level(STEP, gradient, lookahead=4 if isinstance(gradient, Bootstrapped) else None) for gradient in OVER[name]
    ]
    what = f"level {len(levels)} .*the level below, .*{levels[0].gradient.name}.* cannot be differentiated by"
    with pytest.raises(ValueError, match=what):
        Tower(quadratic(2), *levels, exact(STEP, 1))
    Tower(quadratic(2), *levels)
