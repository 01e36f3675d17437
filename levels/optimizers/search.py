"""Search: update rules that read losses instead of gradients, and move a population instead of a point.

    one update = one generation:     members <- ask(...),     losses <- all members judged,     x <- tell(...)

A population is one more batch dimension, ``[*batch, copies, P, n]``; each copy has its own, and they never mix. All
members of a generation are judged on common random numbers, each generation on others:

- over a level, a member's loss is that of a whole episode of the level below, from fresh starts, on problems that a
  fresh key draws (`Problem.evaluate_from_scratch`). Such losses are noisy, so the members that were best before are
  judged again with the next generation.
- over a task, members are judged on the copy's own problem and data: as the task would have answered the level.

No gradient is used, so what lies below may be anything: losses that jump, black boxes, other searches.
"""

import math
from abc import abstractmethod
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from levels import keys
from levels.base import OptimizerTraits, Problem, is_level
from levels.fields import Positive, fits, format_value, require
from levels.hyper import Hyper, HyperparamOptimizer
from levels.layout import Layout
from levels.optimizers.partition import asked, problem_key
from levels.tree import State, map_leaves


class Population(NamedTuple):
    """What a search remembers; leading dimensions ``[*batch, copies]``."""

    members: Tensor  # [..., P, n] the last generation as it was judged; before the first, what it will begin from
    losses: Tensor  # [..., P]; inf before the first
    generation: Tensor  # int64, generations judged
    key: Tensor  # int64
    task: State  # the task's, for the copy; None over a level
    memory: State  # the subclass's


class Search(HyperparamOptimizer):
    """Abstract. A subclass has a hyperparameter ``sigma``, a size, and says where a population begins (`first`), what
    is judged next (`ask`) and what follows from it (`tell`). A level above trains it by evolution. Raises ValueError,
    when bound to a layout alone.
    """

    sigma: Hyper | float

    def __post_init__(self) -> None:
        start = self.sigma.start if isinstance(self.sigma, Hyper) else self.sigma
        what = f"{self.name}: sigma must be a number above 0, got {format_value(self.sigma)}"
        require(fits(start, Positive), f"{what}; without it nothing varies")
        super().__post_init__()

    @property
    def traits(self) -> OptimizerTraits:
        evals = self.size * self.site.traits.scratch_evals if isinstance(self.site, Problem) else 0
        return OptimizerTraits(differentiable=False, reads_grad=False, evals=evals)

    @property
    @abstractmethod
    def size(self) -> int:
        """P, members of a population."""

    def first(self, theta: Tensor, state: Population, x: Tensor) -> Population:
        """The state before the first generation, members and memory filled in, for ``x`` ``[*batch, copies, n]``."""
        return state

    @abstractmethod
    def ask(self, theta: Tensor, state: Population, x: Tensor, key: Tensor) -> Population:
        """The state with the members that are to be judged, drawn from keys ``[*batch, copies]``; losses as before."""

    @abstractmethod
    def tell(self, theta: Tensor, state: Population) -> tuple[Tensor, State]:
        """The next ``x`` and memory, now that the members of ``state`` have been judged."""

    def bind(self, site: Problem | Layout) -> Self:
        bound = super().bind(site)
        asked(bound)
        return bound

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> Population:
        members = x[..., None, :].expand(*key.shape, self.size, -1)
        losses = x.new_full((*key.shape, self.size), math.inf)
        task = self.problem.init_state(x, problem_key(key)) if self.on_task else None
        return self.first(theta, Population(members, losses, torch.zeros_like(key), key, task, None), x)

    @torch.no_grad()
    def update(self, theta: Tensor, x: Tensor, state: Population, f: Tensor, g: Tensor) -> tuple[Tensor, Population]:
        drawn, judged = keys.split(keys.fold_in(state.key, state.generation), 2).unbind(-1)
        state = self.ask(theta, state, x, drawn)
        losses, task = self._judged(state, judged)
        state = state._replace(losses=losses, generation=state.generation + 1, task=task)
        x, memory = self.tell(theta, state)
        return x, state._replace(memory=memory)

    def metrics(self, state: Population) -> dict[str, Tensor]:
        spread = state.members.var(-2, correction=0).mean(-1).sqrt()
        lost = torch.isinf(state.losses).double().mean(-1)
        return {"best trial": state.losses.amin(-1), "spread": spread, "lost": lost}

    @cached_property
    def problem(self) -> Problem:
        """The problem that members are parameters of."""
        return asked(self)

    @property
    def on_task(self) -> bool:
        """Whether the problem below is a task."""
        return not is_level(self.problem)

    def noise(self, theta: Tensor, key: Tensor, count: int) -> Tensor:
        """Normal with deviation sigma: ``[*batch, copies, count, n]`` for keys ``[*batch, copies]``."""
        sigma = self.read(theta)["sigma"][..., None, :]
        return sigma * keys.normal(key, (count, self.problem.layout.size), self.problem.layout.dtype)

    def draw(self, theta: Tensor, x: Tensor, key: Tensor) -> Tensor:
        """Members ``[*batch, copies, P, n]`` for keys ``[*batch, copies]``: ``x``, and starts that the problem draws.

        Coordinates that are equal in all starts, as hyperparameters are, get noise.
        """
        drawn, moved = keys.split(key, 2).unbind(-1)
        fresh = self.problem.init(keys.split(drawn, self.size))
        same = (fresh == fresh[..., :1, :]).all(-2, keepdim=True)
        fresh = torch.where(same, fresh + self.noise(theta, moved, self.size), fresh)
        return torch.cat((x[..., None, :], fresh[..., 1:, :]), -2)

    def _judged(self, state: Population, key: Tensor) -> tuple[Tensor, State]:
        """Losses ``[*batch, copies, P]``, inf if not finite, and the task's state behind them."""
        members = state.members
        if not self.on_task:
            return self.problem.evaluate_from_scratch(members, key[..., None].expand(members.shape[:-1])), None
        f, g, task = self.problem.value_and_grad(members, repeated(state.task, key.dim(), self.size))
        losses, _, task = self.problem.outer_value_and_grad(members, task, f, g)
        one = map_leaves(lambda leaf: leaf.select(key.dim(), 0), task)  # the task's state does not depend on members
        return torch.where(torch.isfinite(losses), losses, math.inf), one


def repeated(state: State, dims: int, count: int) -> State:
    """A state with ``dims`` leading dimensions, alike for each member: one more dimension of ``count`` behind them."""
    return map_leaves(lambda leaf: leaf.unsqueeze(dims).expand(*leaf.shape[:dims], count, *leaf.shape[dims:]), state)


def picked(rows: Tensor, state: State) -> Any:
    """Members by number, ``rows`` ``[*batch, copies, k]``, of a state whose leaves are ``[*batch, copies, P, ...]``."""

    def pick(leaf: Tensor) -> Tensor:
        index = rows.reshape(rows.shape + (1,) * (leaf.dim() - rows.dim()))
        return leaf.gather(rows.dim() - 1, index.expand(*rows.shape, *leaf.shape[rows.dim() :]))

    return map_leaves(pick, state)


def best(state: Population) -> Tensor:
    """The member with the lowest loss, the first among equals: ``[*batch, copies, n]``."""
    chosen: Tensor = picked(state.losses.argmin(-1, keepdim=True), state.members)
    return chosen.squeeze(-2)
