"""Optimizer: an update rule with parameters of its own.

Hand-made and learned rules differ only in how many parameters they have: an SGD has its step size, an LSTM
its weights. State is explicit, so that a window can be run again, differentiated, or given up.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from fractions import Fraction
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from levels.autodiff import Cotangents, differentiated, plus, pull_update
from levels.layout import Layout
from levels.config import Config
from levels.tree import State, leaves, with_leaves

if TYPE_CHECKING:
    from levels.base import Problem
    from levels.base import Step

Scope = Literal["coordinate", "tensor", "problem"]

Pulled = tuple[Tensor, list[Tensor | None], Tensor]
"""Cotangents of an update's ``params``, ``state`` (one for each tensor of it, None for zero) and ``x``."""


def forget(cls: type, base: type, rewritten: str, derived: str) -> None:
    """If ``cls`` rewrites one method of ``base`` but not another that follows from it, that one is as in ``base``."""
    if rewritten in vars(cls) and derived not in vars(cls):
        setattr(cls, derived, vars(base)[derived])


def totals(slope: Callable[[int], Tensor | None], steps: int) -> list[Tensor]:
    """For each update of a window up to the last that counts, the sum of ``slope(t)`` from there on: the cotangent of
    ``x`` after it, if updates add to ``x``."""
    dxs: list[Tensor] = []
    for t in reversed(range(steps)):
        dx = plus(dxs[-1] if dxs else None, slope(t))
        dxs += [] if dx is None else [dx]
    return dxs[::-1]


class Optimizer(Config):
    """An update rule; abstract. Throughout, ``params`` ``[*batch, m]`` are the optimizer's own and ``x``
    ``[*batch, copies, n]`` those of the problem below: one more dimension, the copies that one optimizer works on.

    Copies never mix: the update of one copy reads its own ``f``, ``g``, ``state`` and ``x``.

    A subclass that rewrites `update` inherits no derivative of the old one: `pullback`, `linearized` and `sweep` are as
    here, unless it writes them too.
    """

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        forget(cls, Optimizer, "update", "pullback")
        forget(cls, Optimizer, "update", "linearized")
        forget(cls, Optimizer, "pullback", "linearized")
        for rewritten in ("update", "pullback", "linearized"):
            forget(cls, Optimizer, rewritten, "sweep")
        forget(cls, Optimizer, "sweep", "replays")

    differentiable: bool = True
    """Whether `update` can be differentiated; if not, no level above can train this one by backpropagation."""

    scope: Scope = "problem"
    """What the update of one coordinate may read of ``g``, ``x`` and ``state``: of that coordinate only, of its tensor,
    or of the whole problem. It says how the work on a large model may be cut into pieces."""

    reads_loss: bool = False
    """Whether `update` reads ``f``; if not, it may be given anything."""

    reads_grad: bool = True
    """Whether `update` reads ``g``; if not, it is given zeros, and no gradient of the problem is made for it."""

    asking: int | Fraction = 0
    """Task gradients that an `update` costs by asking the problem itself (`levels.asking`), for each copy of the task;
    a mean where that varies."""

    hand_made: bool = False
    """Whether `update` is the same operations whatever the numbers are, a few of them to a coordinate: so that a step
    of many levels can be compiled whole."""

    compiles: bool = False
    """Whether `update` or its derivative has pieces that a compiler makes faster (`levels.compiled`)."""

    _laid: tuple[Layout, Layout] | None = None

    def pull_all(self, params: Tensor) -> Callable[..., Cotangents]:
        """`levels.derivatives.pull_update` of this rule at ``params``; one that has it in closed form says it here."""
        return partial(pull_update, self, params)

    def bound(self, problem: Problem) -> Optimizer:
        """This optimizer with what it must know of the problem that it will be laid over, beside the layout.

        Most need nothing. One that holds another for the whole problem binds that.
        """
        return self

    def over(self, below: Layout) -> Self:
        """This optimizer, laid over the parameters that ``below`` describes; ValueError if it does not fit them."""
        laid = copy.copy(self)
        for name in [name for name in vars(laid) if isinstance(getattr(type(self), name, None), cached_property)]:
            del laid.__dict__[name]
        object.__setattr__(laid, "_laid", (below, Layout.of(self.shapes(below), below.dtype, below.device)))
        return laid

    @property
    def below(self) -> Layout:
        """Layout of the parameters that this optimizer updates."""
        return self._layouts()[0]

    @property
    def layout(self) -> Layout:
        """Layout of the optimizer's own parameters; same dtype and device."""
        return self._layouts()[1]

    def _layouts(self) -> tuple[Layout, Layout]:
        if self._laid is None:
            raise ValueError(f"{self} is not laid over anything yet; call over(problem.layout) first")
        return self._laid

    @abstractmethod
    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the optimizer's own parameters when laid over ``below``."""

    @abstractmethod
    def init(self, key: Tensor) -> Tensor:
        """Fresh parameters of the optimizer, ``[*batch, m]`` for keys ``[*batch]``."""

    def start(self, params: Tensor, fresh: Callable[[Tensor], Tensor], key: Tensor) -> Tensor:
        """Where trajectories begin, ``[*batch, copies, n]`` for keys ``[*batch, copies]``: where the problem says.

        ``fresh(key)`` are the problem's own fresh parameters. An optimizer with a learned start says otherwise.
        """
        return fresh(key)

    @property
    def learns_start(self) -> bool:
        """Whether where trajectories begin depends on ``params``: whether there is a `start_pullback`."""
        return type(self).start_pullback is not Optimizer.start_pullback

    def start_pullback(self, params: Tensor, dx: Tensor, begun: Tensor) -> Tensor | None:
        """The vector-Jacobian product of `start`: ``[*batch, m]``, or None for zero, as where nothing is learned of it.

        ``dx`` ``[*batch, copies, n]`` is the cotangent of where the window began; ``begun`` ``[*batch, copies]`` tells
        the copies whose trajectory began there.
        """
        return None

    @abstractmethod
    def init_state(self, params: Tensor, x: Tensor) -> State:
        """What the rule remembers at the start of a trajectory; every tensor in it is ``[*batch, copies, ...]``."""

    def begin_state(self, params: Tensor, x: Tensor, key: Tensor) -> State:
        """`init_state` for a rule that draws random numbers, for keys ``[*batch, copies]``: it keeps them there."""
        return self.init_state(params, x)

    def penalty(self, params: Tensor) -> tuple[Tensor, Tensor] | None:
        """What it costs to hold these parameters: a value ``[*batch]`` and its gradient ``[*batch, m]``, or None.

        Both are added to the meta-loss of the level and to its gradient, however that was estimated.
        """
        return None

    def result(self, state: State, x: Tensor) -> Tensor:
        """What a trajectory has come to, ``[*batch, copies, n]``: where it stands, unless the rule knows better."""
        return x

    def metrics(self, state: State) -> dict[str, Tensor]:
        """What a user should hear of a state: counts and the like by name, ``[*batch, copies]`` each."""
        return {}

    @abstractmethod
    def update(self, params: Tensor, f: Tensor, g: Tensor, state: State, x: Tensor) -> tuple[Tensor, State]:
        """One step: the next ``x`` and the next state.

        ``f`` ``[*batch, copies]`` and ``g`` ``[*batch, copies, n]`` are the value and gradient at ``x``. Must be
        differentiable in ``params``, ``state`` and ``x`` for a level above to train it by backpropagation, and, for
        exact gradients, by `torch.func` and in ``f`` and ``g`` too.
        """

    def linearized(
        self, params: Tensor, f: Tensor, g: Tensor, state: State, x: Tensor
    ) -> tuple[Tensor, State, Callable[[Tensor, list[Tensor | None] | None], Pulled]]:
        """`update`, and its `pullback` as a function of ``dx`` and ``dstate``.

        This one begins anew there; an optimizer whose update makes what its pullback needs may hand it over instead.
        """
        return *self.update(params, f, g, state, x), partial(self.pullback, params, f, g, state, x)

    def updating(self, params: Tensor) -> Callable[..., tuple[Tensor, State]]:
        """`update` at ``params``, as a function of the rest, for a window of many: they are read once."""
        return partial(self.update, params)

    def linearizing(self, params: Tensor) -> Callable[..., tuple[Tensor, State, Callable[..., Pulled]]]:
        """`linearized` at ``params``, as a function of the rest; as `updating`."""
        return partial(self.linearized, params)

    def pullback(
        self,
        params: Tensor,
        f: Tensor,
        g: Tensor,
        state: State,
        x: Tensor,
        dx: Tensor,
        dstate: list[Tensor | None] | None,
    ) -> Pulled:
        """The vector-Jacobian product of one `update`, ``f`` and ``g`` being data.

        ``dx`` ``[*batch, copies, n]`` and ``dstate`` (one for each tensor of the state, None for zero) are the
        cotangents of what `update` returned. Returns those of ``params`` ``[*batch, m]``, ``state`` and ``x``.
        This one asks autograd, one step at a time; an optimizer with a closed form may say it instead, in operations
        that can be differentiated themselves.
        """
        if differentiated():
            slopes = pull_update(self, params, f, g, state, x, dx, dstate)
            return slopes.params, slopes.state, slopes.x
        tensors = leaves(state)
        smooth = [i for i, leaf in enumerate(tensors) if leaf.is_floating_point()]
        with torch.enable_grad():
            params, x = params.detach().requires_grad_(), x.detach().requires_grad_()
            for i in smooth:
                tensors[i] = tensors[i].detach().requires_grad_()
            new_x, new_state = self.update(params, f, g, with_leaves(state, tensors), x)
            outputs, cotangents = [new_x], [dx]
            for leaf, cotangent in zip(leaves(new_state), dstate or []):
                if cotangent is not None and leaf.requires_grad:
                    outputs.append(leaf)
                    cotangents.append(cotangent)
            inputs = [params, x, *(tensors[i] for i in smooth)]
            dparams, dx_old, *rest = torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)
        dstate_old: list[Tensor | None] = [None] * len(tensors)
        for i, cotangent in zip(smooth, rest):
            dstate_old[i] = cotangent
        return (
            torch.zeros_like(params) if dparams is None else dparams,
            dstate_old,
            torch.zeros_like(x) if dx_old is None else dx_old,
        )

    def sweep(
        self, params: Tensor, steps: list[Step], slope: Callable[[int], Tensor | None]
    ) -> tuple[Tensor | None, Tensor | None]:
        """The vector-Jacobian product of a window's updates, ``f`` and ``g`` being data: cotangents of ``params``
        ``[*batch, m]`` and of the first ``x`` ``[*batch, copies, n]``, None for zero.

        ``slope(t)`` is the derivative of what is pulled back in ``x`` after update t, counted from 0, None for zero.
        This one goes back a step at a time; an optimizer that can do better with the whole window says so instead.
        """
        dparams, dx, dstate = None, None, None
        for t in reversed(range(len(steps))):
            dx, step = plus(dx, slope(t)), steps[t]
            if dx is None:
                continue  # nothing that counts comes after this update
            pull = step.pull or partial(self.pullback, params, *step[:4])
            dp, dstate, dx = pull(dx, dstate)
            dparams = plus(dparams, dp)
        return dparams, dx

    def replays(self, g: Tensor) -> bool:
        """Whether `sweep` makes the states of a window again from its first one, for gradients like ``g``; then no
        other is kept."""
        return False
