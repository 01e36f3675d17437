"""Several optimizers on one level, by the names of the tensors below (L2L 2016, section 3.3: one LSTM for
convolutional layers, another for dense ones).

    by-name(["conv*", "*"], [lstm, lstm(hidden=10)])

A tensor goes to the first pattern that its name matches (shell wildcards). The parameters of the level are those of all
its optimizers, one after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from levels.layout import Layout
from levels.base import Optimizer
from levels.config import require
from levels.tree import leaves


class Share(NamedTuple):
    """One optimizer's share of the coordinates."""

    rule: Optimizer  # laid over its tensors
    rows: Tensor  # int64 [k], its coordinates among the n
    params: slice  # its parameters among the level's


@dataclass(frozen=True, repr=False)
class Partition(Optimizer):
    """``patterns`` and ``optimizers``: as many of the one as of the other; together they must match every tensor."""

    name = "by-name"

    patterns: tuple[str, ...]
    optimizers: tuple[Optimizer, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "patterns", tuple(self.patterns))
        object.__setattr__(self, "optimizers", tuple(self.optimizers))
        counts = f"{len(self.patterns)} patterns but {len(self.optimizers)} optimizers"
        require(len(self.patterns) == len(self.optimizers) > 0, f"by-name: {counts}; give one optimizer a pattern")

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """If all of them are."""
        return all(rule.differentiable for rule in self.optimizers)

    @property
    def reads_loss(self) -> bool:  # type: ignore[override]
        """If any of them does."""
        return any(rule.reads_loss for rule in self.optimizers)

    @property
    def compiles(self) -> bool:  # type: ignore[override]
        """If any of them does."""
        return any(rule.compiles for rule in self.optimizers)

    def over(self, below: Layout) -> Self:
        laid = super().over(below)
        _ = laid.shares  # a rule that needs a level of its own says so now
        return laid

    def shapes(self, below: Layout) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for place, (rule, names) in enumerate(zip(self.optimizers, self._names(below))):
            part = Layout(tuple(entry for entry in below.entries if entry[0] in names), below.dtype, below.device)
            shapes |= {f"{place}.{name}": shape for name, shape in rule.shapes(part).items()}
        return shapes

    def init(self, key: Tensor) -> Tensor:
        return torch.cat([share.rule.init(key) for share in self.shares], dim=-1)

    def init_state(self, params: Tensor, x: Tensor) -> tuple[Any, ...]:
        return tuple(s.rule.init_state(params[..., s.params], x[..., s.rows]) for s in self.shares)

    def penalty(self, params: Tensor) -> tuple[Tensor, Tensor] | None:
        charges = [s.rule.penalty(params[..., s.params]) for s in self.shares]
        if all(penalty is None for penalty in charges):
            return None
        nothing = params.new_zeros(params.shape[:-1])
        values = [nothing if penalty is None else penalty[0] for penalty in charges]
        own = (params[..., s.params] for s in self.shares)
        slopes = [torch.zeros_like(part) if penalty is None else penalty[1] for part, penalty in zip(own, charges)]
        return torch.stack(values).sum(0), torch.cat(slopes, dim=-1)

    def metrics(self, state: tuple[Any, ...]) -> dict[str, Tensor]:
        said = [s.rule.metrics(own) for s, own in zip(self.shares, state)]
        return {f"{place}.{name}": value for place, metrics in enumerate(said) for name, value in metrics.items()}

    def update(
        self, params: Tensor, f: Tensor, g: Tensor, state: tuple[Any, ...], x: Tensor
    ) -> tuple[Tensor, tuple[Any, ...]]:
        parts, states = [], []
        for s, own in zip(self.shares, state):
            part, new = s.rule.update(params[..., s.params], f, g[..., s.rows], own, x[..., s.rows])
            parts.append(part)
            states.append(new)
        return self._together(parts), tuple(states)

    def pullback(
        self,
        params: Tensor,
        f: Tensor,
        g: Tensor,
        state: tuple[Any, ...],
        x: Tensor,
        dx: Tensor,
        dstate: list[Tensor | None] | None,
    ) -> tuple[Tensor, list[Tensor | None], Tensor]:
        dparams, dold, dxs, place = [], [], [], 0
        for s, own in zip(self.shares, state):
            count = len(leaves(own))
            theirs = dstate[place : place + count] if dstate else None
            rows = s.rows
            dp, ds, dx_old = s.rule.pullback(
                params[..., s.params], f, g[..., rows], own, x[..., rows], dx[..., rows], theirs
            )
            dparams.append(dp)
            dold += ds
            dxs.append(dx_old)
            place += count
        return torch.cat(dparams, dim=-1), dold, self._together(dxs)

    @cached_property
    def shares(self) -> list[Share]:
        """What each optimizer has, in order; those with no tensor have none."""
        below, spans, shares, start = self.below, {}, [], 0
        for (name, _), size in zip(below.entries, below.sizes):
            spans[name] = torch.arange(start, start + size, device=below.device)
            start += size
        start = 0
        for rule, names in zip(self.optimizers, self._names(below)):
            part = Layout(tuple(entry for entry in below.entries if entry[0] in names), below.dtype, below.device)
            laid = rule.over(part)
            own = slice(start, start + laid.layout.size)
            shares.append(Share(laid, torch.cat([spans[name] for name in names]), own))
            start = own.stop
        return shares

    @cached_property
    def _back(self) -> Tensor:
        """Where each coordinate lies among the shares' joined ones."""
        return torch.cat([share.rows for share in self.shares]).argsort()

    def _together(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts), dim=-1)[..., self._back]

    def _names(self, below: Layout) -> list[list[str]]:
        found: list[list[str]] = [[] for _ in self.patterns]
        for name, _ in below.entries:
            matches = [place for place, pattern in enumerate(self.patterns) if fnmatchcase(name, pattern)]
            require(bool(matches), f'by-name: no pattern matches the tensor {name!r}; end with "*" for the rest')
            found[matches[0]].append(name)
        for pattern, names in zip(self.patterns, found):
            known = ", ".join(name for name, _ in below.entries)
            require(bool(names), f"by-name: no tensor is left for the pattern {pattern!r}; there are {known}")
        return found
