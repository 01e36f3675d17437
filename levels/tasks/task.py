"""Task: the problem at the bottom, a family of problems of which every key names one.

A family has three splits that share nothing: problems (and data) to train on, to tune on, and to report on.
What varies over the family (a matrix, a start, the minibatches) is drawn from the key of each copy.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from levels import keys
from levels.autodiff import differentiated
from levels.config import Config, require, unwritten
from levels.base import Problem
from levels.traced import traced
from levels.tree import State

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SPLIT_SALT = 1 << 40  # away from what anybody else folds into a key
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Task(Config, Problem):
    """A family of problems; abstract. ``split``: which of its three parts is drawn from. ``dtype``: float32 or float64.
    ``device``: where it computes, as torch names it, and all levels above with it: not part of what a task is, so it is
    not written down with it (see `to`).

    A task implements `layout`, `init_params`, `init_state` and `value_and_grad`, and draws its problems from
    ``self.own(key)``, so that splits never share a seed.
    """

    split: Split = "train"
    dtype: str = "float32"
    device: str = unwritten("cpu")

    has_data: ClassVar[bool] = False
    """Whether splits are other data for the same problems: parameters trained on one can be asked about on another."""

    traceable: ClassVar[bool] = False
    """Whether what it answers is a function of its inputs and the settings only, tensors throughout: it takes no number
    out of a tensor, and reads nothing that changes from call to call. Then it can be compiled (`levels.traced` and
    `recursion.fused`). Not inherited: a class says it of itself."""

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        cls.traceable = vars(cls).get("traceable", False)

    def __post_init__(self) -> None:
        require(self.split in SPLITS, f"{self.name}: split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        require(self.dtype in DTYPES, f"{self.name}: dtype must be float32 or float64, got {self.dtype!r}")
        require_device(self.name, self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` as torch names it."""
        return DTYPES[self.dtype]

    def to(self, device: torch.device | str) -> Self:
        """The same family on another device: draws are the same, answers are to rounding. ValueError if it is missing.

        Tensors that a task of your own keeps must be moved by it; those made for keys and layouts are there already.
        """
        return dataclasses.replace(self, device=str(device))

    def on(self, split: Split) -> Self:
        """The same family, another split."""
        return dataclasses.replace(self, split=split)

    def own(self, key: Tensor) -> Tensor:
        """Keys of this split: the same key draws unrelated problems in another one."""
        return keys.fold_in(key, SPLIT_SALT + SPLITS.index(self.split))

    def hands_out(self) -> list[tuple[Tensor, ...]]:
        """The examples that this split is made of: groups of columns, a row of each group being one example.

        Splits of a task with data are told apart by them. Empty where there is no data, or where it is drawn in a way
        that has no rows.
        """
        return []

    def variants(self) -> dict[str, Task]:
        """Families further away, by a short label: what an optimizer trained here is also tried on."""
        return {}


def require_device(who: str, device: str) -> None:
    """ValueError unless torch can hold tensors on ``device`` here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # as torch is built for the device, or not
        has = "cuda" if torch.cuda.is_available() else "no GPU"
        raise ValueError(f"{who}: device must be one that torch has here ({has}), got {device!r}; use cpu") from error


class LossTask(Task):
    """A task given by a differentiable loss; the gradient is autograd's. Abstract."""

    @cached_property
    def traces(self) -> dict[Hashable, Callable[..., Any]]:
        """What was compiled of this task, for `levels.traced`."""
        return {}

    @abstractmethod
    def loss(self, params: Tensor, state: State) -> tuple[Tensor, State]:
        """Loss ``[*batch]`` at ``params`` ``[*batch, n]``, each copy's from its own, and the next state."""

    def value_and_grad(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        if differentiated():
            return self._composed(params, state)
        return self._answer(params, state)

    def bend(self, params: Tensor, state: State, v: Tensor) -> Tensor:
        return super().bend(params, state, v) if differentiated() else self._bent(params, state, v)

    @traced
    def _answer(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """`value_and_grad` by autograd."""
        with torch.enable_grad():
            leaf = params.detach().requires_grad_()
            value, state = self.loss(leaf, state)
            (grad,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), grad, state

    @traced
    def _bent(self, params: Tensor, state: State, v: Tensor) -> Tensor:
        """`bend` by autograd twice."""
        with torch.enable_grad():
            leaf = params.detach().requires_grad_()
            (grad,) = torch.autograd.grad(self.loss(leaf, state)[0].sum(), leaf, create_graph=True)
            (bent,) = torch.autograd.grad(grad, leaf, v, materialize_grads=True) if grad.requires_grad else (0 * v,)
        return bent

    def _composed(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """`value_and_grad` for `torch.func` to differentiate; slower."""

        def total(params: Tensor) -> tuple[Tensor, tuple[Tensor, State]]:
            value, new = self.loss(params, state)
            return value.sum(), (value, new)

        grad, (value, state) = torch.func.grad(total, has_aux=True)(params)
        return value, grad, state
