"""Measuring growth: run a level beside a perturbed copy of itself, and read their distance at every update.

Differences are finite, so they must be small against curvature and large against rounding. They begin at the square
root of the machine precision, relative to the typical size of each tensor (half the digits on either side), and are
scaled back to that after every update: x, the optimizer's state, loss and gradient alike. What the problem below
carries is scaled too, but never stretched: it is no part of what has one size. A perturbation that one update shrinks
to rounding counts as shrunk by that square root, and begins anew. Within a window of a level *below* nothing is scaled:
if that level is chaotic, differences are no longer small when they come up, and the rate above it is too low, if
anything. Both runs restart at once, as the level does; a copy that restarts is perturbed anew, and the update across a
restart is not counted. Nothing is differentiated, so black boxes and all estimators can be probed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys, restart
from levels.autodiff import as_data
from levels.base import Carry, Window
from levels.faults import Skip
from levels.level import Level
from levels.tree import choose, leaves, map_leaves, with_leaves
from recursion.evaluation.statistics import Estimate, estimate

ENOUGH = 20  # updates, by default


class Plan(NamedTuple):
    """How many updates of a level are run: those of windows in which perturbations align, and of those counted."""

    aligned: int  # updates
    updates: int  # those that align, too
    windows: int  # counted

    @classmethod
    def of(cls, unroll: int, windows: int | None) -> Plan:
        """A quarter as many windows align as are counted."""
        counted = max(4, math.ceil(ENOUGH / unroll)) if windows is None else windows
        aligning = math.ceil(counted / 4)
        return cls(aligning * unroll, (aligning + counted) * unroll, counted)


class Logs(NamedTuple):
    """Logarithms of one update's factor, ``[updates, copies]``, all batch dimensions in one; NaN where not counted."""

    real: Tensor
    as_data: Tensor


@torch.no_grad()
def follow(level: Level, theta: Tensor, carry: Carry, key: Tensor, updates: int, tell: Callable[[float], None]) -> Logs:
    """Run a level beside itself, perturbed: once as it is, once with the gradients of the unperturbed run.

    A first update, which is not counted, shows with which state the problem below was asked.
    """
    length = None if level.episode_length is None else max(level.episode_length, 2)
    single = replace(level, unroll=1, horizon=length, lookahead=None, nonfinite=Skip()).over(level.problem)
    evaluate = partial(as_data, outer=False, grad=single.optimizer.traits.reads_grad)
    base, window = restart.run(single, theta, carry, evaluate)
    ruler = _Ruler(base)
    real = data = _beside(single, ruler, base, window, keys.fold_in(key, 0))
    logs: list[list[Tensor]] = []
    for t in range(1, updates + 1):
        before, skipped = [ruler.distance(base, each) for each in (real, data)], base.skipped
        base, window = restart.run(single, theta, base, evaluate)
        real, _ = restart.run(single, theta, real, evaluate, keep=False)
        x, state = single.optimizer.update(theta, data.x, data.state, window.start.f, window.start.g)
        data = base._replace(x=x, state=state)
        after = [ruler.distance(base, each) for each in (real, data)]
        new, least = (window.start.age == 0) | (base.skipped > skipped), ruler.target(base) * ruler.step
        fresh = [new | (b == 0) | ~torch.isfinite(a) for b, a in zip(before, after)]
        factors = [torch.maximum(a, least) / b for b, a in zip(before, after)]
        logs.append([factor.log().masked_fill(f, math.nan) for factor, f in zip(factors, fresh)])
        again_from = [again | (gap < least) for again, gap in zip(fresh, after)]
        real, data = (ruler.renewed(base, each) for each in (real, data))
        if bool(again_from[0].any()) or bool(again_from[1].any()):
            anew = _beside(single, ruler, base, window, keys.fold_in(key, t))
            real, data = (choose(mask, anew, each) for mask, each in zip(again_from, (real, data)))
        tell(t / updates)
    return Logs(*(torch.stack(each).flatten(1) for each in zip(*logs)))


def rate(logs: Tensor, plan: Plan) -> Estimate:
    """The mean rate with its interval, of logs ``[updates, copies]`` without those that align; NaN if none is left."""
    counted = logs[plan.aligned :]
    for units in (counted.nanmean(0), counted.reshape(plan.windows, -1).nanmean(1), counted.flatten()):
        units = units[~units.isnan()]
        if len(units) > 1:
            break
    return estimate(units.numpy(force=True)[None]) if len(units) else Estimate(math.nan, -math.inf, math.inf)


def path_of(logs: Tensor) -> tuple[float, ...]:
    """Log growth after each update, from 0 on, mean over copies; updates that are not counted leave it as it is."""
    return (0.0, *logs.nanmean(1).nan_to_num(nan=0.0).cumsum(0).tolist())


class _Ruler:
    """Measures how far two carries of a level lie apart in what the level itself moves: x and the optimizer's state.

    Each tensor counts alike, in units of its size when the probe began: the median over copies of the root of its mean
    square, or 1 where that is 0. Units that grow would hide growth.
    """

    def __init__(self, carry: Carry) -> None:
        self.dims = carry.x.dim() - 1
        self.smooth = [i for i, leaf in enumerate(leaves((carry.x, carry.state))) if leaf.is_floating_point()]
        sizes = [self._mean_square(leaf).sqrt().flatten().nanmedian() for leaf in self._floats(carry)]
        self.sizes = [float(size) if 0 < float(size) < math.inf else 1.0 for size in sizes]
        self.step = math.sqrt(torch.finfo(carry.x.dtype).eps)

    def distance(self, one: Carry, other: Carry) -> Tensor:
        """Float64 ``[*batch, copies]``."""
        return self._norm([b.double() - a.double() for a, b in zip(self._floats(one), self._floats(other))])

    def target(self, carry: Carry) -> Tensor:
        """The distance at which perturbations of a carry are kept: `step`, or more of one that has grown itself."""
        return self.step * self._norm(self._floats(carry)).clamp_min(1.0)

    def renewed(self, base: Carry, other: Carry) -> Carry:
        """``other`` brought back to the distance at which it is kept, if rounding has not swallowed the difference."""
        distance, target = self.distance(base, other), self.target(base)
        return _scaled(base, other, torch.where(distance >= target * self.step, target / distance, 1.0))

    def moved(self, carry: Carry, key: Tensor) -> Carry:
        """x and state perturbed at random by about `step`; entries of the state in proportion, so none crosses 0."""
        new = leaves((carry.x, carry.state))
        for i in self.smooth[1:]:
            noise = keys.normal(keys.fold_in(key, i), tuple(new[i].shape), new[i].dtype)
            new[i] = new[i] + self.step * noise * new[i]
        size = self._mean_square(carry.x).sqrt().clamp_min(self.sizes[0])[..., None].to(carry.x.dtype)
        new[0] = carry.x + self.step * size * keys.normal(key, tuple(carry.x.shape), carry.x.dtype)
        x, state = with_leaves((carry.x, carry.state), new)
        return carry._replace(x=x, state=state)

    def _floats(self, carry: Carry) -> list[Tensor]:
        tensors = leaves((carry.x, carry.state))
        return [tensors[i] for i in self.smooth]

    def _norm(self, tensors: list[Tensor]) -> Tensor:
        squares = [self._mean_square(tensor / size) for tensor, size in zip(tensors, self.sizes)]
        return torch.stack(squares).mean(0).sqrt()

    def _mean_square(self, leaf: Tensor) -> Tensor:
        entries = leaf.double().reshape(*leaf.shape[: self.dims], -1)
        return entries.square().sum(-1) / max(1, entries.shape[-1])


def _beside(level: Level, ruler: _Ruler, base: Carry, window: Window, key: Tensor) -> Carry:
    """``base``, to which ``window`` of one update led, perturbed; the problem is asked there as it was asked before."""
    moved = ruler.moved(base, key)
    f, g, problem_state = level.problem.value_and_grad(moved.x, window.start.problem_state)
    return ruler.renewed(base, moved._replace(f=f, g=g, problem_state=problem_state))


def _scaled(base: Carry, other: Carry, factor: Tensor) -> Carry:
    """``other``, its differences from ``base`` times ``factor`` ``[*batch, copies]``; those below are never stretched.

    What is stretched must stay on its side of 0, for it may be a running mean of squares: such an entry stays as it is.
    """

    def scale(factor: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if a is b or not a.is_floating_point():
            return a
        moved = a + factor.reshape(factor.shape + (1,) * (a.dim() - factor.dim())).to(a.dtype) * (b - a)
        low, high = torch.minimum(a, b), torch.maximum(a, b)
        crossed = ((moved < 0) & (low >= 0)) | ((moved > 0) & (high <= 0))
        return torch.where(crossed, b, moved)

    inside = map_leaves(partial(scale, factor.clamp_max(1.0)), base.problem_state, other.problem_state)
    scaled: Carry = map_leaves(partial(scale, factor), base, other._replace(problem_state=base.problem_state))
    return scaled._replace(problem_state=inside)
