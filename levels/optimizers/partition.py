"""Several optimizers on one level, by the names of the tensors below (L2L 2016, section 3.3: one LSTM for
convolutional layers, another for dense ones).

    by-name(["conv*", "*"], [lstm, lstm(hidden=10)])

A tensor goes to the first pattern that its name matches (shell wildcards). The parameters of the level are those of all
its optimizers, one after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from levels import keys
from levels.base import STATE, Optimizer, OptimizerTraits, Problem, Split
from levels.fields import require
from levels.layout import Layout
from levels.optimizers.wrap import Moved, Wrapper
from levels.tree import State


@dataclass(frozen=True)
class Restricted(Problem):
    """Some tensors of a problem, by ``names``: their layout and start. A loss takes all tensors, so there is none."""

    problem: Problem
    names: tuple[str, ...]

    @property
    def layout(self) -> Layout:
        return selected(self.problem.layout, self.names)

    def init(self, key: Tensor) -> Tensor:
        return self.problem.init(key)[..., rows_of(self.problem.layout, self.names)]

    def init_state(self, params: Tensor, key: Tensor) -> NoReturn:
        raise ValueError(f"{', '.join(self.names)} alone have no loss; give the optimizer a level of its own")

    def value_and_grad(self, params: Tensor, state: State) -> NoReturn:
        self.init_state(params, params)

    def on(self, split: Split) -> Self:
        return replace(self, problem=self.problem.on(split))


@dataclass(frozen=True, repr=False)
class Partition(Wrapper):
    """``patterns`` and ``optimizers``: as many of the one as of the other; together they must match every tensor.

    Each optimizer may have a learned start, for its tensors. Raises ValueError, when bound, for one that asks the
    problem.
    """

    name = "by-name"
    several_starts = True

    patterns: tuple[str, ...]
    optimizers: tuple[Optimizer, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = f"{len(self.patterns)} patterns but {len(self.optimizers)} optimizers"
        require(len(self.patterns) == len(self.optimizers) > 0, f"by-name: {counts}; give one optimizer a pattern")

    @property
    def traits(self) -> OptimizerTraits:
        """Which optimizer updates a coordinate depends on its place, so no part of the problem may be updated alone."""
        return super().traits._replace(locality="global")

    def site_of(self, number: int, site: Problem | Layout) -> Problem | Layout:
        names = self._names(site.layout if isinstance(site, Problem) else site)[number]
        return Restricted(site, names) if isinstance(site, Problem) else selected(site, names)

    def part(self, number: int, x: Tensor) -> Tensor:
        return x[..., self.rows[number]]

    def init_x(self, theta: Tensor, key: Tensor) -> Tensor:
        if not self.traits.learns_init:
            return super().init_x(theta, key)
        return self._together([one.init_x(own, key) for one, own in zip(self.optimizers, self.split_theta(theta)[1:])])

    def combine(self, own_theta: Tensor, x: Tensor, moves: Sequence[Tensor], own: Any, f: Tensor, g: Tensor) -> Moved:
        return self._together(moves), None

    def result(self, state: tuple[Any, ...], x: Tensor) -> Tensor:
        pairs = enumerate(zip(self.optimizers, state[1:]))
        return self._together([one.result(inner, self.part(number, x)) for number, (one, inner) in pairs])

    @cached_property
    def rows(self) -> list[Tensor]:
        """The coordinates of each optimizer among the n."""
        return [rows_of(self.param_layout, names) for names in self._names(self.param_layout)]

    def _together(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts), dim=-1)[..., self._places]

    @cached_property
    def _places(self) -> Tensor:
        """Where each coordinate lies among the joined ones of all optimizers."""
        return torch.cat(self.rows).argsort()

    def _names(self, layout: Layout) -> list[tuple[str, ...]]:
        """The tensors of each optimizer."""
        left = [name for name, _ in layout.entries]
        known, matched = ", ".join(left), []
        for pattern in self.patterns:
            matched.append(tuple(name for name in left if fnmatchcase(name, pattern)))
            left = [name for name in left if name not in matched[-1]]
        if left:
            raise ValueError(f'by-name: no pattern matches the tensor {left[0]!r}; end with "*" for the rest')
        for pattern, names in zip(self.patterns, matched):
            require(bool(names), f"by-name: no tensor is left for the pattern {pattern!r}; there are {known}")
        return matched


def selected(layout: Layout, names: Sequence[str]) -> Layout:
    """The layout of some tensors."""
    return Layout(tuple(entry for entry in layout.entries if entry[0] in names), layout.dtype, layout.device)


def rows_of(layout: Layout, names: Sequence[str]) -> Tensor:
    """The coordinates of some tensors, in the order of the layout: int64 ``[k]``."""
    spans = torch.split_with_sizes(torch.arange(layout.size, device=layout.device), layout.sizes)
    return torch.cat([span for (name, _), span in zip(layout.entries, spans) if name in names])


def problem_key(key: Tensor) -> Tensor:
    """The key of a copy's problem state, as `Level.begin` draws it, from the key of its optimizer's state."""
    return keys.split(keys.unfold_in(key, STATE), 2)[..., 1]


def asked(optimizer: Optimizer, purpose: str = "asks the problem that it works on") -> Problem:
    """The problem that a bound optimizer may ask.

    Raises ValueError if it is bound to a layout alone (`recursion.exported`), or to some tensors of a problem.
    """
    site, fix = optimizer.site, "give it a level of its own"
    alone = "some tensors of it have no loss" if isinstance(site, Restricted) else "it was bound to a layout alone"
    require(isinstance(site, Problem) and not isinstance(site, Restricted), f"{optimizer} {purpose}; {alone}, {fix}")
    return site  # type: ignore[return-value]
