"""Problem: anything with parameters, a loss and a gradient. A task is one; a level laid over a problem is one.

Four questions, and a tower needs no others: what are the parameters, where do they begin, what does one copy
remember, and what is **value and gradient at given parameters, with the state advanced**.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from levels.autodiff import push
from levels.layout import Layout
from levels.tree import State

if TYPE_CHECKING:
    from levels.base import Optimizer
    from levels.tasks.task import Split


class Problem(ABC):
    """Parameters, a loss and its gradient, for any number of copies at once.

    ``[*batch]`` below stands for any leading dimensions, also none. Copies do not see each other: what a copy
    answers depends on its own key, parameters and state only. Inputs are never changed in place.
    """

    copies: int = 1
    """How many copies a level with an unroll should hold of it, if nobody says otherwise."""

    differentiable: bool = True
    """Whether `value_and_grad` can itself be differentiated, by `torch.func`; exact gradients above need that."""

    judging: int = 0
    """Evaluations that `judge` costs, beside that of `value_and_grad`."""

    cost: int | Fraction = 1
    """Task gradients that `value_and_grad` costs, for each copy of the task; a mean where that varies."""

    starting: int | Fraction = 0
    """Task gradients that `init_state` costs, for each copy of the task."""

    symmetric: bool = True
    """Whether the gradient is the derivative of the value, so that its own derivative is symmetric."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """Names and shapes of the parameters; ``layout.size`` is their number ``n``."""

    @property
    def rule(self) -> Optimizer | None:
        """The optimizer whose parameters these are, laid over what it updates; None for a task."""
        return None

    @abstractmethod
    def init(self, key: Tensor) -> Tensor:
        """Fresh parameters ``[*batch, n]`` for int64 keys ``[*batch]``."""

    @abstractmethod
    def init_state(self, params: Tensor, key: Tensor) -> State:
        """Fresh state for parameters ``[*batch, n]`` and keys ``[*batch]``; every tensor in it is ``[*batch, ...]``."""

    @abstractmethod
    def value_and_grad(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Value ``[*batch]`` and gradient ``[*batch, n]`` at ``params`` ``[*batch, n]``, and the state advanced."""

    def bend(self, params: Tensor, state: State, v: Tensor) -> Tensor:
        """The derivative of the gradient at ``params`` along ``v``, its Hessian times ``v``: all ``[*batch, n]``.

        Forward mode over the answer, so nothing is kept of how the gradient was made; a problem that has a quicker way
        says so here. Asked for only where `symmetric`.
        """

        def gradient(params: Tensor) -> Tensor:
            return self.value_and_grad(params, state)[1]

        return push(gradient, params, v)[1]  # type: ignore[no-any-return]

    def outer_value_and_grad(self, params: Tensor, f: Tensor, g: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """What a level above counts at ``params``: a value, its gradient, and the state behind it.

        ``f``, ``g`` and ``state`` are what `value_and_grad` just answered there: what the optimizer reads. Counted is
        the same, unless a problem judges by other data than it trains on (`levels.tasks.held_out`).
        """
        return f, g, state

    def value(self, params: Tensor, state: State) -> tuple[Tensor, State]:
        """Value ``[*batch]`` alone, for those who do not read the gradient; the state is advanced as by the two."""
        value, _, state = self.value_and_grad(params, state)
        return value, state

    def on(self, split: Split) -> Self:
        """The same problem, drawn from another split of its task; itself if there are no splits."""
        return self

    @property
    def beside(self) -> Problem:
        """This problem for those who ask at parameters of their own choice (`levels.asking`), beside what a run asks.

        Itself, unless somebody keeps what a run was answered.
        """
        return self

    @torch.no_grad()
    def evaluate_from_scratch(self, params: Tensor, key: Tensor) -> Tensor:
        """How good parameters ``[*batch, n]`` are on what keys ``[*batch]`` draw: losses ``[*batch]``.

        One that is not finite is inf. Equal keys are equal trials, so parameters compare. No state is kept.
        """
        state = self.init_state(params, key)
        f, g, state = self.value_and_grad(params, state)
        value = self.outer_value_and_grad(params, f, g, state)[0]
        return torch.where(torch.isfinite(value), value, torch.inf)

    @property
    def trying(self) -> int | Fraction:
        """Task gradients that a `trial` costs, for each copy of the task."""
        return self.starting + self.cost * (1 + self.judging)
