"""Depth three with another estimator on each level, against loops and naive autograd; relative, in float64.

The third level's gradient is compared too, so each tower stands under a topmost level that would move it. What is
backpropagated is nested graphs, what runs forward is one graph since the restart, and evolution is a loop over copies,
pairs and members that shares with the library where the numbers of a key come from, and nothing else.
"""

from typing import Any, NamedTuple

import pytest
import torch
from oracle import NaiveLevel, NaiveTask, Said, compare, error, naive, state_error
from parts import MOMENTUM, SMALL, levels_of, stacked
from torch import Tensor

from levels import Level, LevelState, keys
from levels.gradients.evolution import Antithetic
from recursion import Tower
from recursion.notation import parse

TOLERANCE = 1e-9
SIGNS = (1, -1)


# The oracle of evolution: a loop over copies, pairs and members.


class Draw(NamedTuple):
    """What a pair remembers."""

    noise: Tensor  # [m]
    seen: Tensor  # [m] sum of the draws of its trajectory
    key: Tensor  # []


class Swarm(list):  # of `Copy`, one for each particle: copies outermost, then pairs, then signs
    """The particles of a level, and what its pairs remember."""

    draws: list[Draw]


# Updates for which a draw is kept, and whether draws are summed: the table in `levels.gradients.evolution`.
SCHEDULES = {
    "full-es": (2, False), "truncated-es": (2, False), "pes": (2, True), "es-single": (4, True), "nres": (4, True)
}  # fmt: skip


class EvolutionLevel(NaiveLevel):
    """Truncated or summed draws."""

    def __init__(self, part: Level, problem: Any) -> None:
        super().__init__(part, problem)
        gradient = part.gradient
        self.pairs, self.sigma = gradient.pairs, gradient.sigma
        general = gradient.name == "evolution"
        self.period, self.summed = (gradient.noise, gradient.accumulate) if general else SCHEDULES[gradient.name]

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
                window = self.run(moved, swarm[2 * number + member])
                losses[sign] = self.meta([window]).detach()
                after.append(window.end)
            total = total + (losses[1] - losses[-1]) / (2 * self.sigma) * draw.seen
            values += losses.values()
            draws.append(self.next(draw, after[-1].age))
        after.draws, grad = draws, total.detach() / len(draws)
        return Said.apply(theta, sum(values) / len(values), grad), grad, after

    def next(self, draw: Draw, age: int) -> Draw:
        """What the pair remembers for its next window, its trajectory having this age."""
        key, ended = keys.fold_in(draw.key, 1), age >= self.level.episode_length
        drawn = ended or age % self.period == 0
        noise = keys.normal(key, draw.noise.shape, draw.noise.dtype) if drawn else draw.noise
        if not self.summed:
            return Draw(noise, noise, key)
        before = torch.zeros_like(noise) if ended else draw.seen
        return Draw(noise, before + noise if drawn else before, key)


def oracle_of(task: Any, *parts: Level) -> Any:
    """The oracle of levels stacked over ``task``."""
    problem = NaiveTask(task)
    for part in parts:
        evolves = isinstance(part.gradient, Antithetic)
        problem = EvolutionLevel(part, problem) if evolves else naive(problem, part)
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
    below = state.carry.problem_state
    if isinstance(below, LevelState):
        worst = max(worst, *(remembered(below, copy.problem_state, (*index, i)) for i, copy in enumerate(swarm)))
    return worst


def starts(state: LevelState) -> list[int]:
    """Copies in the first window of a trajectory, level 1 first."""
    mine = [int((state.carry.age == 2).sum())]
    return [*starts(state.carry.problem_state), *mine] if isinstance(state.carry.problem_state, LevelState) else mine


LIFE = "horizon=4"
FIRST, EXACT, FORWARD = LIFE, f"{LIFE}, gradient=exact", f"{LIFE}, gradient=forward"
MOVED, STEP, SLOW = "adam(0.1, eps=1e-3)", "sgd(0.3)", "sgd(0.02)"
TINY = "lstm(hidden=1, layers=1)"
TOWERS = [  # windows of two updates, lives of two windows
    f"{MOMENTUM}@2[{EXACT}, batch=2] / {MOVED}@2[{FIRST}] / {STEP}@2[{LIFE}, gradient=pes(sigma=0.1, pairs=2), batch=2]",
    f"{MOMENTUM}@2[{FORWARD}, batch=2, objective=mean-log] / {MOVED}@2[{FIRST}]"
    f" / {STEP}@2[{LIFE}, gradient=es-single(sigma=0.1), batch=2]",
    f"{TINY}@2[{LIFE}, gradient=pes(sigma=0.05, pairs=2), batch=2] / {SLOW}@2[{FIRST}, batch=2]"
    f" / {MOMENTUM}@2[{LIFE}, gradient=truncated-es(sigma=0.3)]",
    f"{MOVED}@2[{FIRST}, batch=2] / {MOMENTUM}@2[{EXACT}] / {STEP}@2[{LIFE}, gradient=pes(sigma=0.1), batch=2]",
    f"{TINY}@2[{FIRST}] / {MOMENTUM}@2[{FORWARD}, batch=2] / {STEP}@2[{LIFE}, gradient=nres(sigma=0.1), batch=2]",
    f"{MOMENTUM}@2[{EXACT}, batch=2] / {MOVED}@2[{FIRST}, clip=0.5] / {MOMENTUM}@2[{FORWARD}, batch=2]",
    f"{MOMENTUM}@2[{FIRST}] / {MOVED}@2[{EXACT}, batch=2] / {STEP}@2[{FORWARD}]",
    f"{TINY}@2[{LIFE}, gradient=es-single(sigma=0.05), batch=2, stagger=false]"
    f" / {SLOW}@2[{LIFE}, gradient=truncated-es(sigma=0.1), batch=2] / {MOMENTUM}@2[{FIRST}]",
    f"{MOMENTUM}@2[{FORWARD}, batch=2]"
    f" / {SLOW}@2[horizon=8, gradient=evolution(sigma=0.1, noise=4, accumulate=false), batch=2] / {MOVED}@2[{FIRST}]",
    f"{TINY}@2[horizon=2, gradient=full-es(sigma=0.05), batch=2] / {SLOW}@2[{FIRST}, batch=2]"
    f" / {MOMENTUM}@2[{LIFE}, gradient=pes(sigma=0.1)]",
    f"{MOMENTUM}@2[{LIFE}, gradient=bootstrapped(exact), ahead=5, batch=2]"
    f" / {STEP}@2[{LIFE}, gradient=es-single(sigma=0.1), ahead=3, batch=2] / {MOVED}@2[{FIRST}, ahead=3]",
    f"{MOMENTUM}@2[{EXACT}, ahead=3, batch=2] / {MOVED}@2[{FIRST}, ahead=4]"
    f" / {STEP}@2[{LIFE}, gradient=pes(sigma=0.1), ahead=3, batch=2]",
]


@pytest.mark.parametrize("levels", TOWERS)
def test_a_tower_of_three_estimators_is_its_oracle(levels):
    task, parts = levels_of(SMALL + levels)
    seen = []

    def also(state: LevelState, copies: Any, index: tuple[int, ...]) -> float:
        seen.append(starts(state))
        return remembered(state, copies, index)

    assert compare(stacked(task, parts), oracle_of(task, *parts), 4, also=also, seed=1) < TOLERANCE
    assert min(map(sum, zip(*seen))) > 1


# Under a topmost level.


@pytest.mark.parametrize("levels", TOWERS[:3])
def test_adam_on_top_moves_the_third_level_as_on_the_oracle(levels):
    """All that is carried at the four levels, after each step of the tower."""
    task, parts = levels_of(f"{SMALL}{levels} / adam(0.1)")
    tower, theirs = Tower(task, *parts), oracle_of(task, *parts)
    state = tower.init(seed=3)
    start, theta = state.carry.x, state.theta
    copies = theirs.start(theta, keys.split(keys.seed(3), 2)[1])
    for _ in range(2):
        state, _ = tower.step(state)
        copies = [theirs.run(theta, copy).end for copy in copies]
        level = LevelState(state.carry, None)
        assert max(state_error(level, copies), remembered(level, copies)) < TOLERANCE
    assert (state.carry.x - start).abs().max() > 0.01


OVER = [
    ("pes", "exact"),
    ("forward", "exact"),
    ("es-single", "first-order", "exact"),
    ("forward", "first-order", "exact"),
    ("truncated-es", "forward"),
    ("bootstrapped", "forward"),
]


@pytest.mark.parametrize("gradients", OVER, ids=" / ".join)
def test_what_cannot_be_differentiated_is_refused_however_deep(gradients):
    ahead = {"bootstrapped": ", ahead=4"}
    text = SMALL + " / ".join(f"sgd@2[{LIFE}, gradient={g}{ahead.get(g, '')}]" for g in gradients)
    what = f"level {len(gradients)} .*the level below, .*{gradients[0]}.* cannot be differentiated by"
    with pytest.raises(ValueError, match=what):
        parse(f"{text} / sgd")
    parse(text)
