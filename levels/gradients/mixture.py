"""Mix: two estimates of one gradient, each entry weighted by its inverse variance (Metz et al. 2019,
arXiv 1810.10180).

    w = v_second / (v_first + v_second)              dtheta = w g_first + (1 - w) g_second

Where windows are smooth, backpropagation is precise and has the larger weight; where they are chaotic its gradients
explode, and evolution has it. The paper reads variances off the minibatch of one step; here they are running variances
over windows, for an estimator returns one gradient. The weights of a window come from the windows before it, so they do
not depend on the noise that they weigh; with noise that is kept over windows (PES, ES-Single) they still do a little.
Inverse variance does not see bias: a truncated estimator brings its share of it along.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.base import Estimator, EstimatorTraits, LevelLike, LevelState
from levels.fields import Probability


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

    Both keep copies of their own with independent problems, so the cost is the sum of the two; a tower reports the
    first one's copies, of this level and those below. The value is the mean of both. An entry that is not finite in one
    gradient has weight 0 there; where it is finite in neither, the level's policy decides. Weights are halves until
    both have three windows behind them.
    """

    name = "mix"

    first: Estimator
    second: Estimator
    decay: Probability = 0.95

    @property
    def traits(self) -> EstimatorTraits:
        chooses = self.first.traits.chooses_lookahead or self.second.traits.chooses_lookahead
        return EstimatorTraits(chooses_lookahead=chooses)

    def evals(self, level: LevelLike) -> int | Fraction:
        return self.first.evals(level) + self.second.evals(level)

    def metrics(self, state: LevelState) -> dict[str, Tensor]:
        memory: Both = state.memory
        return self.first.metrics(LevelState(state.carry, memory.first)) | self.second.metrics(memory.second)

    def check(self, level: LevelLike) -> None:
        self.first.check(level)
        self.second.check(level)

    def init(self, level: LevelLike, theta: Tensor, key: Tensor) -> LevelState:
        for_first, for_second = keys.split(key, 2).unbind(-1)
        first = self.first.init(level, theta, for_first)
        second = self.second.init(level, theta, for_second)
        zeros = torch.zeros_like(theta, dtype=torch.float64)
        track = Track(zeros, zeros, zeros)
        return LevelState(first.carry, Both(first.memory, second, (track, track)))

    @torch.no_grad()
    def value_and_grad(self, level: LevelLike, theta: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        memory: Both = state.memory
        value, grad, first = self.first.value_and_grad(level, theta, LevelState(state.carry, memory.first))
        other_value, other_grad, second = self.second.value_and_grad(level, theta, memory.second)
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
