"""A genetic search: selection by tournament, uniform crossover, Gaussian mutation, elitism.

    task: adam@100 / ga                 hyperparameters, or an LSTM's weights, without a gradient
    task: lstm@20 / ga(own, steps=10)   learned optimizers that train themselves, under selection

Each generation the ``elite`` members with the lowest losses go on as they are. Every other place goes to a child: two
parents, each the best of ``tournament`` members drawn at random, mix coordinate by coordinate with probability
``crossover`` (else the child is as its first parent), and ``sigma`` times a standard normal draw is added. Mutation and
elitism are those of Such et al. 2017 (Deep neuroevolution, arXiv 1712.06567), who need no crossover; tournaments are
in Goldberg and Deb 1991, uniform crossover in Syswerda 1989.

With a ``rule``, every member takes ``steps`` updates of it on its own gradients before it is judged, and hands on what
it became: a memetic search, as population based training (Jaderberg et al. 2017, arXiv 1711.09846) of the members'
parameters. A copy of the best member rests, so that it is not lost when all that move run away. A rule that the
members themselves are, `levels.optimizers.own`, makes it the search of Metz et al. 2021 (arXiv 2101.07367): random
learned optimizers train themselves, and selection keeps those that do it well.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.hyper import Hyper, Log, hyper
from levels.bound_levels import Level
from levels.layout import Layout
from levels.restart import looked_at
from levels.base import Optimizer
from levels.optimizers.search import Population, Search, best, picked, repeated, require_sigma
from levels.config import format_value, require
from levels.base import Problem
from levels.tasks.nets import require_whole
from levels.tree import State, choose, map_leaves


class Lives(NamedTuple):
    """What members remember that a rule moves; leading dimensions ``[*batch, copies, P]``."""

    rule: State
    f: Tensor  # value where the member is
    g: Tensor  # [..., n] gradient there
    below: State  # the problem's


@dataclass(frozen=True, repr=False)
class GA(Search):
    """``rule``: what moves members by their gradients before they are judged, or none. ``steps``: its updates a
    generation, at least 1 with a rule. ``population``: members, at least 2. ``elite``: at least 1, and such that
    somebody is replaced. ``tournament``: members drawn for each parent, at least 1. ``crossover``: a probability.
    ``sigma``: of mutations, in the units of the parameters, above 0.

    Its parameters are sigma and then the rule's. The first generation is ``x`` and starts as the problem draws them;
    what is the same in all of these is mutated. A child begins with a fresh state of the rule and of the
    problem.
    """

    name = "ga"

    rule: Optimizer | None = None
    steps: int = 0
    population: int = 16
    sigma: float | Hyper = hyper(0.1, Log)
    elite: int = 2
    tournament: int = 3
    crossover: float = 0.5

    def __post_init__(self) -> None:
        require_sigma(self.name, self.sigma)
        super().__post_init__()
        require_whole(self.name, 2, population=self.population)
        require_whole(self.name, 1, elite=self.elite, tournament=self.tournament)
        what = f"elite must be less than the population {self.population - self.resting}, got {self.elite}"
        require(self.children >= 1, f"ga: {what}; somebody must be replaced")
        chance = self.crossover
        good = isinstance(chance, (int, float)) and not isinstance(chance, bool) and 0 <= chance <= 1
        require(good, f"ga: crossover must be a probability from 0 to 1, got {notate(chance)}")
        require(
            self.rule is None or isinstance(self.rule, Optimizer), f"ga: rule must be an optimizer, got {self.rule!r}"
        )
        require_whole(self.name, 0 if self.rule is None else 1, steps=self.steps)
        require(
            self.rule is not None or self.steps == 0, f"ga: {self.steps} steps of no rule; give it one, as ga(adam)"
        )
        blind = self.rule is not None and not self.rule.reads_grad
        require(not blind, f"ga: {self.rule} reads no gradient; members are moved by a rule that does, as adam")

    @property
    def size(self) -> int:
        """Members of a population."""
        return self.population

    @property
    def resting(self) -> int:
        """Members that no rule moves, where one moves the others: the best one as it was judged."""
        return 0 if self.rule is None else 1

    @property
    def children(self) -> int:
        """Members that are bred anew for each generation."""
        return self.population - self.resting - self.elite

    def bound(self, problem: Problem) -> GA:
        bound = super().bound(problem)
        if self.rule is not None:
            if isinstance(problem, Level):
                problem.level.gradient.check(problem)
            object.__setattr__(bound, "rule", self.rule.bound(bound.problem))
        return bound

    @cached_property
    def mover(self) -> Optimizer:
        """The rule, laid."""
        assert self.rule is not None
        return self.rule.over(self.below)

    @property
    def asking(self) -> int | Fraction:  # type: ignore[override]
        """A trial for each member; with a rule, what it costs to move them, and a first gradient for each child."""
        trials = super().asking
        if self.rule is None:
            return trials
        moves = (self.population - self.resting) * self.steps * (self.problem.cost + self.rule.asking)
        return trials + moves + self.children * (self.problem.starting + self.problem.cost)

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        rule = {} if self.rule is None else self.rule.shapes(below)
        return super().shapes(below) | {f"rule.{name}": shape for name, shape in rule.items()}

    def init(self, key: Tensor) -> Tensor:
        own = super().init(key)
        return own if self.rule is None else torch.cat((own, self.mover.init(key)), -1)

    def first(self, params: Tensor, state: Population, x: Tensor) -> Population:
        drawn, begun = keys.split(keys.fold_in(state.key, -1), 2).unbind(-1)
        state = state._replace(members=self.draw(params, x, drawn))
        return state._replace(memory=self._born(params, state.members, state.task, begun))

    def ask(self, params: Tensor, state: Population, x: Tensor, key: Tensor) -> Population:
        begun = state.generation == 0
        if not bool(begun.all()):
            members, lives = self._bred(params, state, key)
            state = state._replace(
                members=torch.where(begun[..., None, None], state.members, members),
                memory=choose(begun, state.memory, lives),
            )
        return state if self.rule is None else self._moved(params, state)

    def tell(self, params: Tensor, state: Population) -> tuple[Tensor, State]:
        return best(state), state.memory

    def _bred(self, params: Tensor, state: Population, key: Tensor) -> tuple[Tensor, Lives | None]:
        """The next generation, the elite first, and its lives."""
        order = state.losses.argsort(dim=-1, stable=True)
        chosen, begun = keys.split(key, 2).unbind(-1)
        children = self._children(params, picked(order, state.members), chosen)
        kept = torch.cat((order[..., : self.resting], order[..., : self.elite]), -1)
        members = torch.cat((picked(kept, state.members), children), -2)
        if self.rule is None:
            return members, None
        born = self._born(params, children, state.task, begun)
        return members, map_leaves(lambda a, b: torch.cat((a, b), key.dim()), picked(kept, state.memory), born)

    def _children(self, params: Tensor, ranked: Tensor, key: Tensor) -> Tensor:
        """``[*batch, copies, children, n]`` of members in the order of their losses."""
        count, (drawn, mated, moved) = self.children, keys.split(key, 3).unbind(-1)
        winners = keys.integers(drawn, (count, 2, self.tournament), self.population).amin(-1)
        one, other = picked(winners[..., 0], ranked), picked(winners[..., 1], ranked)
        chance = keys.uniform(mated, (count, 1 + ranked.shape[-1]), ranked.dtype)
        swapped = (chance[..., :1] < self.crossover) & (chance[..., 1:] < 0.5)
        return torch.where(swapped, other, one) + self.noise(params, moved, count)

    def _born(self, params: Tensor, members: Tensor, task: State, key: Tensor) -> Lives | None:
        """Lives that begin, for members ``[*batch, copies, k, n]``; all of a copy begin on the same problems."""
        if self.rule is None:
            return None
        count, dims = members.shape[-2], key.dim()
        rule = self.mover.begin_state(self._of_rule(params, key), members, keys.split(key, count))
        if self.on_task:
            below = repeated(task, dims, count)
        else:
            with looked_at():
                below = self._patient.init_state(members, key[..., None].expand(members.shape[:-1]))
        return Lives(rule, *self._asked(members, below))

    def _moved(self, params: Tensor, state: Population) -> Population:
        """The members after ``steps`` updates of the rule, each on its own gradients; the resting one as it was."""
        place = state.key.dim()  # of the members
        still, members = state.members.tensor_split([self.resting], -2)
        rule, f, g, below = map_leaves(lambda leaf: leaf.tensor_split([self.resting], place)[1], state.memory)
        own = self._of_rule(params, state.key)
        for _ in range(self.steps):
            members, rule = self.mover.update(own, f, g, rule, members)
            f, g, below = self._asked(members, below)
        lives = map_leaves(
            lambda old, new: torch.cat((old.narrow(place, 0, self.resting), new), place),
            state.memory,
            Lives(rule, f, g, below),
        )
        return state._replace(members=torch.cat((still, members), -2), memory=lives)

    def _asked(self, members: Tensor, below: State) -> tuple[Tensor, Tensor, State]:
        with looked_at():
            return self._patient.value_and_grad(members, below)

    def _of_rule(self, params: Tensor, key: Tensor) -> Tensor:
        """The rule's parameters for each copy of keys ``[*batch, copies]``: members are the copies that it works on."""
        own = params[..., params.shape[-1] - self.mover.layout.size :]
        return own[..., None, :].expand(*key.shape, -1)

    @cached_property
    def _patient(self) -> Problem:
        """The problem, stopped by no member that goes wrong."""
        return self.problem.patient if isinstance(self.problem, Level) else self.problem
