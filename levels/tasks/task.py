"""Task: the problem at the bottom, a family of problems. Each key draws one: a matrix, a start, minibatches.

A family has three splits that share nothing: problems (and data) to train on, to tune on, and to report on.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from levels import keys
from levels.autodiff import is_followed
from levels.base import Problem, Split
from levels.config import Config
from levels.fields import changed, listed, unwritten
from levels.tasks.data import SPLITS as SPLITS
from levels.tree import State

SPLIT_SALT = 1 << 40  # folded into keys for each split; no part draws from keys folded with numbers of this size
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Task(Config, Problem):
    """A family of problems; abstract. ``split``: which of its three parts is drawn from. ``dtype``: float32 or float64.
    ``device``: where it and all levels above compute, as torch names it; not written down (see `to`).

    A task writes `layout`, `init`, `init_state` and `value_and_grad`, and draws from ``self.own(key)``, so that splits
    never share a seed.
    """

    split: Split = "train"
    dtype: Literal["float32", "float64"] = "float32"
    device: str = unwritten("cpu")
    origin: str = unwritten("")  # what notation calls a task that a file or module of the user's makes

    has_data: ClassVar[bool] = False
    """Whether splits are other data for the same problems: parameters trained on one can be evaluated on another."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_device(self.name, self.device)

    def __repr__(self) -> str:
        if not self.origin:
            return super().__repr__()
        named = listed({name: value for name, value in changed(self).items() if name in ("split", "dtype")})
        return f"{self.origin}({named})" if named else self.origin

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` as torch names it."""
        return DTYPES[self.dtype]

    def to(self, device: torch.device | str) -> Self:
        """The same family on another device: draws are equal, answers to rounding. ValueError if it is missing.

        Your own task must move the tensors that it keeps; those made for keys and layouts are on the device already.
        """
        return dataclasses.replace(self, device=str(device))

    def on(self, split: Split) -> Self:
        """The same family, another split."""
        return dataclasses.replace(self, split=split)

    def own(self, key: Tensor) -> Tensor:
        """Keys of this split: the same key draws unrelated problems in another one."""
        return keys.fold_in(key, SPLIT_SALT + SPLITS.index(self.split))

    def evaluated(self) -> Self:
        """The family as it is evaluated and not trained: modules in evaluation mode. By default itself."""
        return self

    def remembering(self, state: State, training: State) -> State:
        """The state with what a copy in training remembers beside its parameters: running statistics, constants."""
        return state

    def hands_out(self) -> list[tuple[Tensor, ...]]:
        """The examples of this split: groups of columns, a row of each group being one example.

        Splits of a task with data are told apart by them. Empty where there is no data, or no rows.
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

    @abstractmethod
    def loss(self, params: Tensor, state: State) -> tuple[Tensor, State]:
        """Loss ``[*batch]`` at ``params`` ``[*batch, n]``, each copy's from its own, and the next state."""

    def value_and_grad(self, params: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        followed = is_followed(params)
        with torch.enable_grad():
            at = params.view_as(params) if followed else params.detach().requires_grad_()
            value, state = self.loss(at, state)
            (grad,) = torch.autograd.grad(value.sum(), at, create_graph=followed)
        return (value if followed else value.detach()), grad, state

    @torch.no_grad()
    def value(self, params: Tensor, state: State) -> tuple[Tensor, State]:
        return self.loss(params, state)
