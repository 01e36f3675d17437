"""Mix: two estimates of one gradient, each entry weighted by its inverse variance (Metz et al. 2019,
arXiv 1810.10180).

    w = v_second / (v_first + v_second)              dtheta = w g_first + (1 - w) g_second

Where windows are smooth, backpropagation is precise and takes over; where they are chaotic its gradients explode, and
evolution does. The paper reads variances off the minibatch of one step; here they are running variances over
windows, for an estimator hands over one gradient. A window is weighted by what was known before it, so that weights
do not depend on the noise that they weigh; of noise that is kept over windows (PES, ES-Single) they still do a little.
Inverse variance knows nothing of bias: a truncated estimator brings its share of it along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.base import Estimator, LevelState
from levels.config import format_value, require

if TYPE_CHECKING:
    from levels.bound_levels import Level
    from levels.level import Level


class Track(NamedTuple):
    """Running statistics of one estimator's gradient, in float64: ``[*batch, m]``."""

    windows: Tensor  # with a finite gradient, so far
    mean: Tensor
    variance: Tensor


class Both(NamedTuple):
    """What a mixture remembers; the carry of ``first`` is the level's."""

    first: object
    second: LevelState
    tracks: tuple[Track, Track]


@dataclass(frozen=True, repr=False)
class Mix(Estimator):
    """``first`` and ``second``: estimators, as ``mix(first-order, es-single)``. ``decay``: of the running variances
    for each window, between 0 and 1; until 1 / (1 - decay) windows have run they are plain averages.

    Both keep copies of their own with independent problems, so the cost is the sum of the two; what a tower reports of
    this level and those below are the first one's copies. The value is the mean of both. An entry that is not finite
    in one gradient has weight 0 there; where both are not finite, the level's policy is asked. Weights are halves
    until both have three windows behind them.
    """

    name = "mix"

    first: Estimator
    second: Estimator
    decay: float = 0.95

    def __post_init__(self) -> None:
        for field in ("first", "second"):
            value = getattr(self, field)
            require(isinstance(value, Estimator), f"mix: {field} must be an Estimator, got {notate(value)}")
        good = isinstance(self.decay, (int, float)) and not isinstance(self.decay, bool) and 0 < self.decay < 1
        require(good, f"mix: decay must be a number between 0 and 1, got {notate(self.decay)}")

    def evaluations(self, level: Level, judging: int = 0) -> int:
        return self.first.evaluations(level, judging) + self.second.evaluations(level, judging)

    def updates(self, level: Level) -> int:
        return self.first.updates(level) + self.second.updates(level)

    def metrics(self, state: LevelState) -> dict[str, Tensor]:
        memory: Both = state.memory
        return self.first.metrics(LevelState(state.carry, memory.first)) | self.second.metrics(memory.second)

    def check(self, level: Level) -> None:
        self.first.check(level)
        self.second.check(level)

    def init_state(self, level: Level, params: Tensor, key: Tensor) -> LevelState:
        for_first, for_second = keys.split(key, 2).unbind(-1)
        first = self.first.init_state(level, params, for_first)
        second = self.second.init_state(level, params, for_second)
        zeros = torch.zeros_like(params, dtype=torch.float64)
        track = Track(zeros, zeros, zeros)
        return LevelState(first.carry, Both(first.memory, second, (track, track)))

    def value_and_grad(self, level: Level, params: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        memory: Both = state.memory
        value, grad, first = self.first.value_and_grad(level, params, LevelState(state.carry, memory.first))
        other_value, other_grad, second = self.second.value_and_grad(level, params, memory.second)
        weight = _weight(*memory.tracks, grad, other_grad)
        mixed = _times(weight, grad) + _times(1 - weight, other_grad)
        tracks = self._follow(memory.tracks[0], grad), self._follow(memory.tracks[1], other_grad)
        return (value + other_value) / 2, mixed, LevelState(first.carry, Both(first.memory, second, tracks))

    def _follow(self, track: Track, grad: Tensor) -> Track:
        """Statistics with one more gradient; entries that are not finite leave theirs as they are."""
        finite = torch.isfinite(grad)
        windows = track.windows + finite
        share = torch.where(finite, torch.clamp(1 / windows.clamp_min(1), min=1 - self.decay), 0.0)
        off = torch.where(finite, grad, 0.0).double() - track.mean
        return Track(windows, track.mean + share * off, (1 - share) * (track.variance + share * off.square()))


def _weight(first: Track, second: Track, grad: Tensor, other: Tensor) -> Tensor:
    """Weight ``[*batch, m]`` of the first gradient; 1/2 where nothing is known, 0 or 1 where one is not finite."""
    total = first.variance + second.variance
    known = (torch.minimum(first.windows, second.windows) >= 3) & (total > 0)
    weight = torch.where(known, second.variance / total.where(total > 0, 1.0), 0.5).to(grad.dtype)
    usable, other_usable = torch.isfinite(grad), torch.isfinite(other)
    return torch.where(usable == other_usable, weight, usable.to(grad.dtype))


def _times(weight: Tensor, grad: Tensor) -> Tensor:
    """The product, with 0 times what is not finite being 0."""
    return torch.where(weight == 0, 0.0, weight * grad)
