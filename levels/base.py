"""The four interfaces: Problem, Optimizer, Estimator, Objective. Everything in a tower is one of them.

Shapes, throughout. ``[*batch]`` stands for any leading dimensions, also none. A problem has n parameters
``x [*batch, n]``. An optimizer has m parameters of its own, ``theta [*batch, m]``, and updates several copies of a
problem at once: ``x [*batch, copies, n]``, ``f [*batch, copies]``, ``g [*batch, copies, n]``. Copies never mix: an
answer about a copy depends on its own key, parameters and state only. Inputs are never changed in place.

Derivatives. Value and gradient are functions of the parameters exactly when these require grad and autograd is on
(`levels.autodiff.is_followed`); otherwise they are data. A state is always a constant.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from levels.config import Config
from levels.layout import Layout
from levels.traits import EstimatorTraits as EstimatorTraits
from levels.traits import Evals as Evals
from levels.traits import OptimizerTraits as OptimizerTraits
from levels.traits import ProblemTraits as ProblemTraits
from levels.tree import State, in_brief

Split = Literal["train", "validation", "test"]
Evaluate = Callable[..., Any]  # (problem, x, problem_state, answer=None) -> Answer: how a window asks its problem
STATE = 3  # folded into a copy's key for what its optimizer draws; 1 and 2 are its halves, for x and the problem
RESET = -1  # the age of a copy that restarts before its next window, whatever the horizon


@in_brief
class Carry(NamedTuple):
    """What a window hands to the next one; constants for every derivative. Leading dimensions ``[*batch, copies]``."""

    x: Tensor  # [*batch, copies, n] parameters of the problem below
    state: State  # the optimizer's
    f: Tensor  # [*batch, copies] value at x
    g: Tensor  # [*batch, copies, n] gradient at x
    problem_state: State  # the problem's
    age: Tensor  # int64, updates since the trajectory began; RESET: restart before the next window
    key: Tensor  # int64
    skipped: Tensor  # int64, windows in which the copy failed and was skipped


class Answer(NamedTuple):
    """What a problem answers at ``x``."""

    f: Tensor  # [*batch, copies] value, which the optimizer reads
    g: Tensor  # [*batch, copies, n] gradient, which the optimizer reads
    problem_state: State  # the problem's next state
    loss: Tensor  # [*batch, copies] what the meta-loss counts: f, or the loss on other data
    slope: Tensor  # [*batch, copies, n] its gradient: g, or that of the loss on other data


class Step(NamedTuple):
    """One update of a window: what stands after it."""

    x: Tensor  # [*batch, copies, n]
    state: State  # the optimizer's
    answer: Answer  # the problem's, at x


class Window(NamedTuple):
    """A window that was run."""

    start: Carry  # with the copies that restarted before the window
    steps: list[Step]  # one an update
    losses: Tensor  # [T, *batch, copies] what the meta-loss counts
    was_skipped: Tensor | None = None  # [*batch, copies] copies that failed and stood still; None: no copy did


@in_brief
class LevelState(NamedTuple):
    """State of a level."""

    carry: Carry  # what a window hands to the next one
    memory: Any  # what the estimator remembers; None: nothing
    norm: Tensor | None = None  # float64 [*batch] of the last gradient before clipping; None: the level does not clip


class Problem(ABC):
    """Parameters, a loss and its gradient, for any number of copies at once. A task is one, a `Level` is one."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """Names and shapes of the parameters; ``layout.size`` is their number n."""

    @property
    def traits(self) -> ProblemTraits:
        """What levels must know of it."""
        return ProblemTraits()

    @abstractmethod
    def init(self, key: Tensor) -> Tensor:
        """Fresh parameters ``[*batch, n]`` for int64 keys ``[*batch]``."""

    @abstractmethod
    def init_state(self, params: Tensor, key: Tensor) -> State:
        """State of fresh copies with parameters ``[*batch, n]`` and keys ``[*batch]``; leaves ``[*batch, ...]``."""

    @abstractmethod
    def value_and_grad(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Value ``[*batch]`` and gradient ``[*batch, n]`` at ``params`` ``[*batch, n]``, and the next state."""

    def value(self, params: Tensor, state: State) -> tuple[Tensor, State]:
        """Value ``[*batch]`` alone, for optimizers that read no gradient; the state advances as in both."""
        value, _, state = self.value_and_grad(params, state)
        return value, state

    def outer_value_and_grad(self, params: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor, State]:
        """What the meta-loss counts at ``params``: ``f`` and ``g``, just answered there, or a loss on other data."""
        return f, g, state

    @torch.no_grad()
    def evaluate_from_scratch(self, params: Tensor, key: Tensor) -> Tensor:
        """Losses ``[*batch]``, inf where not finite, on what keys ``[*batch]`` draw; equal keys draw equal problems."""
        state = self.init_state(params, key)
        f, g, state = self.value_and_grad(params, state)
        value = self.outer_value_and_grad(params, state, f, g)[0]
        return torch.where(torch.isfinite(value), value, torch.inf)

    def on(self, split: Split) -> Self:
        """The same problem on another split of its task's data; itself if there are no splits."""
        return self


@dataclass(frozen=True, repr=False)
class Optimizer(Config, ABC):
    """An update rule with parameters ``theta`` of its own: a step size, the weights of an LSTM.

    Before use it is bound to its ``site``: the problem that it works on, or a layout where there is none (an export).
    """

    site: Problem | Layout | None = field(default=None, kw_only=True, compare=False, metadata={"unwritten": True})

    @property
    def traits(self) -> OptimizerTraits:
        """What levels must know of it."""
        return OptimizerTraits()

    @abstractmethod
    def shapes(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the optimizer's own parameters over parameters with this ``layout``."""

    @abstractmethod
    def init(self, key: Tensor) -> Tensor:
        """Fresh parameters ``[*batch, m]`` for int64 keys ``[*batch]``."""

    @abstractmethod
    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> State:
        """State at the start of trajectories, for keys ``[*batch, copies]``; leaves ``[*batch, copies, ...]``."""

    @abstractmethod
    def update(self, theta: Tensor, x: Tensor, state: State, f: Tensor, g: Tensor) -> tuple[Tensor, State]:
        """The next ``x`` and state; ``f``, ``g`` belong to ``x``. Autograd must be able to differentiate it twice."""

    def init_x(self, theta: Tensor, key: Tensor) -> Tensor:
        """Where trajectories begin, ``[*batch, copies, n]`` for keys ``[*batch, copies]``: as the problem says."""
        assert isinstance(self.site, Problem), "over a layout alone, the caller says where to start"
        return self.site.init(key)

    def result(self, state: State, x: Tensor) -> Tensor:
        """The final parameters ``[*batch, copies, n]``. Override to return the best iterate instead."""
        return x

    def penalty(self, theta: Tensor) -> Tensor | None:
        """What the level adds to its meta-loss: ``[*batch]``, or None for nothing."""
        return None

    def metrics(self, state: State) -> dict[str, Tensor]:
        """Numbers to report about a state, by name: ``[*batch, copies]`` each."""
        return {}

    def bind(self, site: Problem | Layout) -> Self:
        """This optimizer for the parameters of ``site``. Raises ValueError if it does not fit them."""
        bound = replace(self, site=site)
        bound.shapes(bound.param_layout)  # refuses here what does not fit
        return bound

    @cached_property
    def param_layout(self) -> Layout:
        """Layout of the parameters that it updates."""
        if self.site is None:
            raise ValueError(f"{self} is not bound yet; call bind(problem) or bind(layout) first")
        return self.site.layout if isinstance(self.site, Problem) else self.site

    @cached_property
    def layout(self) -> Layout:
        """Layout of its own parameters; same dtype and device."""
        given = self.param_layout
        return Layout.of(self.shapes(given), given.dtype, given.device)


class LevelLike(Protocol):
    """What estimators and rules may ask of a level: its settings, and how to run it."""

    @property
    def optimizer(self) -> Optimizer: ...
    @property
    def problem(self) -> Problem: ...
    @property
    def unroll(self) -> int: ...
    @property
    def lookahead(self) -> int | None: ...
    @property
    def copies(self) -> int: ...
    @property
    def episode_length(self) -> int | None: ...
    @property
    def stagger(self) -> bool: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def nonfinite(self) -> Any: ...
    def begin(self, theta: Tensor, key: Tensor) -> Carry: ...
    def window(self, theta: Tensor, carry: Carry, evaluate: Evaluate, skip: Tensor | None = None) -> Iterator[Step]: ...


def is_level(problem: object) -> bool:
    """Whether the parameters of a problem are those of an optimizer."""
    return hasattr(problem, "optimizer")


class Estimator(Config, ABC):
    """How a level gets the gradient of its meta-loss. ``theta`` ``[*batch, m]`` are its optimizer's parameters."""

    @property
    def traits(self) -> EstimatorTraits:
        """What levels must know of it."""
        return EstimatorTraits()

    @abstractmethod
    def init(self, level: LevelLike, theta: Tensor, key: Tensor) -> LevelState:
        """State at the start, for keys ``[*batch]``."""

    @abstractmethod
    def value_and_grad(self, level: LevelLike, theta: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        """Meta-loss ``[*batch]`` of the next window, its gradient ``[*batch, m]``, and the state behind it."""

    def value(self, level: LevelLike, theta: Tensor, state: LevelState) -> tuple[Tensor, LevelState]:
        """`value_and_grad` without the gradient, for an optimizer above that reads none."""
        value, _, state = self.value_and_grad(level, theta, state)
        return value, state

    def check(self, level: LevelLike) -> None:
        """Raise ValueError, with what to use instead, if this cannot estimate gradients of ``level``."""

    def evals(self, level: LevelLike) -> Evals:
        """Task gradients that a window of ``level`` costs, restarts apart, for each copy of the task."""
        traits, span = level.problem.traits, level.lookahead or level.unroll
        each = traits.evals + traits.outer_evals + level.optimizer.traits.evals
        return span * each

    def metrics(self, state: LevelState) -> dict[str, Tensor]:
        """Numbers to report about a state, by name: ``[*batch]`` each."""
        return {}


class Objective(Config, ABC):
    """How the losses of a window become one meta-loss; elementwise in all but the first dimension."""

    @abstractmethod
    def value(self, losses: Tensor) -> Tensor:
        """The meta-loss ``[...]`` of losses ``[T, ...]``, the loss after the first update first."""

    def weights(self, losses: Tensor) -> Tensor:
        """Derivative of `value` in ``losses``, as a function of them where they are followed: ``[T, ...]``."""
        again = torch.is_grad_enabled() and losses.requires_grad
        with torch.enable_grad():
            at = losses.view_as(losses) if again else losses.detach().requires_grad_()
            return torch.autograd.grad(self.value(at).sum(), at, create_graph=again)[0]
