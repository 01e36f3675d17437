"""A genetic search: selection by tournament, uniform crossover, Gaussian mutation, elitism.

    task: adam@100 / ga                 hyperparameters, or an LSTM's weights, without a gradient
    task: lstm@20 / ga(own, steps=10)   learned optimizers that train themselves, under selection

Each generation the ``elite`` members with the lowest losses stay as they are. Every other place goes to a child: two
parents, each the best of ``tournament`` members drawn at random, mix coordinate by coordinate with probability
``crossover`` (else the child is as its first parent), and ``sigma`` times a standard normal draw is added. Mutation and
elitism are those of Such et al. 2017 (Deep neuroevolution, arXiv 1712.06567), who need no crossover; tournaments are
in Goldberg and Deb 1991, uniform crossover in Syswerda 1989.

With an ``inner`` optimizer, every member takes ``steps`` updates of it on its own gradients before it is judged, and
its children inherit the result: a memetic search, as population based training (Jaderberg et al. 2017,
arXiv 1711.09846). A copy of the best member stays as it was judged, in case that all the others diverge. With
`levels.optimizers.self_update` inside, this is the search of Metz et al. 2021 (arXiv 2101.07367): random learned
optimizers train themselves, and selection keeps those that do it well.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, NamedTuple, Self

import torch
from torch import Tensor

from levels import keys
from levels.base import Optimizer, OptimizerTraits, Problem, is_level
from levels.episode import tolerant
from levels.fields import AtLeast, Count, UnitInterval, Whole, require, setting
from levels.hyper import Hyper, Log, hyper
from levels.layout import Layout
from levels.optimizers.search import Population, Search, best, picked, repeated
from levels.tree import State, choose, map_leaves


class Lives(NamedTuple):
    """What members remember that an inner optimizer moves; leading dimensions ``[*batch, copies, P]``."""

    inner: State
    f: Tensor  # value where the member is
    g: Tensor  # [..., n] gradient there
    problem_state: State  # the problem's


@dataclass(frozen=True, repr=False)
class GA(Search):
    """``inner``: an optimizer that moves members by their gradients before they are judged, or none. ``steps``: its
    updates a generation. ``population``: members. ``elite``: members that stay, less than the population.
    ``tournament``: members drawn for each parent. ``crossover``: a probability. ``sigma``: of mutations, in the units
    of the parameters, above 0.

    Its parameters are sigma and then those of ``inner``. The first generation is ``x`` and starts as the problem draws
    them; coordinates that are equal in all of these are mutated. A child begins with a fresh state of ``inner`` and of
    the problem.
    """

    name = "ga"

    inner: Optimizer | None = setting(None, word="rule")
    steps: Whole = 0
    population: Annotated[int, AtLeast(2)] = 16
    sigma: Hyper | float = hyper(0.1, Log)
    elite: Count = 2
    tournament: Count = 3
    crossover: UnitInterval = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        what = f"elite must be less than the population {self.population - self.resting}, got {self.elite}"
        require(self.children >= 1, f"ga: {what}; a generation needs at least one child")
        if self.inner is None:
            require(self.steps == 0, f"ga: {self.steps} steps of no optimizer; give it one, as ga(adam)")
            return
        require(self.steps >= 1, f"ga: steps must be a whole number of at least 1, got {self.steps}")
        what = f"ga: {self.inner} reads no gradient; members are moved by an optimizer that does, as adam"
        require(self.inner.traits.reads_grad, what)
        what = f"ga: members do not begin where {self.inner} starts; put the search inside of the start"
        require(not self.inner.traits.learns_init, what)

    @property
    def size(self) -> int:
        return self.population

    @property
    def resting(self) -> int:
        """Members that do not move, where an inner optimizer moves the others: the best one as it was judged."""
        return 0 if self.inner is None else 1

    @property
    def children(self) -> int:
        """Children of each generation."""
        return self.population - self.resting - self.elite

    @property
    def traits(self) -> OptimizerTraits:
        """With ``inner``, evals are also the gradients of its updates, and a first one for each child."""
        traits = super().traits
        if self.inner is None or not isinstance(self.site, Problem):
            return traits
        given = self.site.traits
        moves = (self.population - self.resting) * self.steps * (given.evals + self.inner.traits.evals)
        return traits._replace(evals=traits.evals + moves + self.children * (given.init_evals + given.evals))

    def bind(self, site: Problem | Layout) -> Self:
        if self.inner is None:
            return super().bind(site)
        bound = super(GA, replace(self, inner=self.inner.bind(site))).bind(site)
        level: Any = bound.problem
        if is_level(level):
            level.gradient.check(level)
        return bound

    def shapes(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        inner = {} if self.inner is None else self.inner.shapes(layout)
        return super().shapes(layout) | {f"inner.{name}": shape for name, shape in inner.items()}

    def init(self, key: Tensor) -> Tensor:
        own = super().init(key)
        return own if self.inner is None else torch.cat((own, self.inner.init(key)), -1)

    def penalty(self, theta: Tensor) -> Tensor | None:
        return None if self.inner is None else self.inner.penalty(self._inner_theta(theta))

    def metrics(self, state: Population) -> dict[str, Tensor]:
        inner = {} if self.inner is None else self.inner.metrics(state.memory.inner)
        return {name: value.double().mean(-1) for name, value in inner.items()} | super().metrics(state)

    def first(self, theta: Tensor, state: Population, x: Tensor) -> Population:
        drawn, for_memory = keys.split(keys.fold_in(state.key, -1), 2).unbind(-1)
        state = state._replace(members=self.draw(theta, x, drawn))
        return state._replace(memory=self._begin(theta, state.members, state.task, for_memory))

    def ask(self, theta: Tensor, state: Population, x: Tensor, key: Tensor) -> Population:
        is_first = state.generation == 0
        if not is_first.all():
            members, lives = self._next_generation(theta, state, key)
            members = torch.where(is_first[..., None, None], state.members, members)
            state = state._replace(members=members, memory=choose(is_first, state.memory, lives))
        return state if self.inner is None else self._moved(theta, state)

    def tell(self, theta: Tensor, state: Population) -> tuple[Tensor, State]:
        return best(state), state.memory

    def _next_generation(self, theta: Tensor, state: Population, key: Tensor) -> tuple[Tensor, Lives | None]:
        """The next generation, the elite first, and its lives."""
        order = state.losses.argsort(dim=-1, stable=True)
        chosen, for_memory = keys.split(key, 2).unbind(-1)
        children = self._children(theta, picked(order, state.members), chosen)
        best_ones = torch.cat((order[..., : self.resting], order[..., : self.elite]), -1)
        members = torch.cat((picked(best_ones, state.members), children), -2)
        if self.inner is None:
            return members, None
        young = self._begin(theta, children, state.task, for_memory)
        return members, map_leaves(lambda a, b: torch.cat((a, b), key.dim()), picked(best_ones, state.memory), young)

    def _children(self, theta: Tensor, ranked: Tensor, key: Tensor) -> Tensor:
        """``[*batch, copies, children, n]`` of members in the order of their losses."""
        count, (drawn, mated, moved) = self.children, keys.split(key, 3).unbind(-1)
        winners = keys.integers(drawn, (count, 2, self.tournament), self.population).amin(-1)
        one, other = picked(winners[..., 0], ranked), picked(winners[..., 1], ranked)
        chance = keys.uniform(mated, (count, 1 + ranked.shape[-1]), ranked.dtype)
        swapped = (chance[..., :1] < self.crossover) & (chance[..., 1:] < 0.5)
        return torch.where(swapped, other, one) + self.noise(theta, moved, count)

    def _begin(self, theta: Tensor, members: Tensor, task: State, key: Tensor) -> Lives | None:
        """Lives that begin, for members ``[*batch, copies, k, n]``; all of a copy begin on the same problems."""
        if self.inner is None:
            return None
        count = members.shape[-2]
        inner = self.inner.init_state(self._by_copy(theta, key), members, keys.split(key, count))
        if self.on_task:
            problem_state = repeated(task, key.dim(), count)
        else:
            problem_state = self._tolerant.init_state(members, key[..., None].expand(members.shape[:-1]))
        return Lives(inner, *self._tolerant.value_and_grad(members, problem_state))

    def _moved(self, theta: Tensor, state: Population) -> Population:
        """The members after ``steps`` updates, each on its own gradients; the resting one as it was."""
        assert self.inner is not None
        place, own = state.key.dim(), self._by_copy(theta, state.key)  # place: the dimension of the members
        still, members = state.members.tensor_split([self.resting], -2)
        inner, f, g, problem_state = map_leaves(lambda leaf: leaf.tensor_split([self.resting], place)[1], state.memory)
        for _ in range(self.steps):
            members, inner = self.inner.update(own, members, inner, f, g)
            f, g, problem_state = self._tolerant.value_and_grad(members, problem_state)
        rest = map_leaves(lambda leaf: leaf.narrow(place, 0, self.resting), state.memory)
        lives = map_leaves(lambda a, b: torch.cat((a, b), place), rest, Lives(inner, f, g, problem_state))
        return state._replace(members=torch.cat((still, members), -2), memory=lives)

    def _inner_theta(self, theta: Tensor) -> Tensor:
        """The parameters of ``inner`` among all."""
        assert self.inner is not None
        return theta[..., theta.shape[-1] - self.inner.layout.size :]

    def _by_copy(self, theta: Tensor, key: Tensor) -> Tensor:
        """The parameters of ``inner`` for each copy of keys ``[*batch, copies]``: it works on the members as copies."""
        return self._inner_theta(theta)[..., None, :].expand(*key.shape, -1)

    @cached_property
    def _tolerant(self) -> Problem:
        """The problem, in which a member that diverges raises no error."""
        problem: Problem = tolerant(self.problem)
        return problem
