"""Evolution strategies: the gradient of a level from losses alone, under random perturbations of its parameters.

One estimator, in the form of Li et al. 2023 (arXiv 2304.12180, section 3), covers the family. A pair of particles runs
the same window with parameters ``theta + sigma u`` and ``theta - sigma u``, the draw ``u`` standard normal:

    dtheta = mean over pairs and copies of     seen * (L_plus - L_minus) / (2 sigma)

``L`` is the meta-loss of the window. ``seen`` is the sum of all draws that the trajectory has met since it began, for
all of them moved the loss; with the present draw alone, what came before the window is cut off. So two settings say
it all: for how many updates a draw is kept, and whether draws are summed.

    method                                          noise      accumulate    estimates the gradient of
    full ES: one window a trajectory                any        either        the whole trajectory's loss
    truncated ES (Metz et al. 2019)                 window     false         each window alone: biased, as truncation is
    PES (Vicol, Metz, Sohl-Dickstein 2021)          window     true          the whole trajectory's loss
    generalised PES (Li et al. 2023)                updates    true          the whole trajectory's loss
    ES-Single (Vicol 2023), NRES (Li et al. 2023)   episode    either        the whole trajectory's loss

The loss is smoothed: averaged over the draws. For losses of degree two the curvature cancels within a pair, and the
smoothed gradient is the gradient, whatever sigma is.

Nothing is differentiated, so this works over black boxes, losses that jump, and anything below. It costs ``2 * pairs``
times the evaluations of a level that backpropagates, and memory that does not grow with the unroll.

**Noise belongs to a trajectory.** Each copy has ``pairs`` pairs of its own. The two particles of a pair share
everything random: the copy's problem, its minibatches, its restarts. So the noise alone makes them differ (common
random numbers). Pairs of one copy share them too. Other copies have their own problems and independent noise: a batch
of 64 with one pair explores 64 directions. So copies may restart at different times: a pair's sum begins anew, with a
fresh draw, exactly when its trajectory does. If a level skips one particle of a pair, both restart, and the pair
counts nothing in that window.
"""

from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.autodiff import as_data
from levels.base import RESET, Estimator, LevelLike, LevelState
from levels.fields import Count, Positive, format_value, require
from levels.restart import first_ages, fresh, is_due, run
from levels.tree import State, map_leaves

Noise = Literal["window", "episode"] | Count
"""For how long a draw is kept: one window, a whole trajectory, or that many updates."""

NOISE = -1  # folded into the level's key for its draws; its copies are folded from 1 up


class Draws(NamedTuple):
    """What evolution remembers; one row for each pair, ``[*batch, copies * pairs, ...]``, copies outermost."""

    noise: Tensor  # [..., m] standard normal, for the next window
    seen: Tensor  # [..., m] sum of the draws that the trajectory will have met with it
    key: Tensor  # int64


class Schedule(NamedTuple):
    """When noise is drawn, and what becomes of it."""

    noise: Noise
    accumulate: bool


@dataclass(frozen=True, repr=False)
class Antithetic(Estimator):
    """Evolution with antithetic pairs; abstract: a subclass says its `schedule`.

    ``sigma``: standard deviation of the perturbations, in the units of the parameters, above 0. ``pairs``: pairs of
    particles for each copy of the problem below, at least 1. The value is the mean of the particles' meta-losses.
    """

    sigma: Positive = 0.01
    pairs: Count = 1

    @abstractmethod
    def schedule(self) -> Schedule:
        """For how long a draw is kept and whether draws are summed."""

    def evals(self, level: LevelLike) -> int | Fraction:
        return 2 * self.pairs * super().evals(level)

    def check(self, level: LevelLike) -> None:
        noise, accumulate = self.schedule()
        unroll, horizon = level.unroll, level.episode_length
        fix = f"set horizon={5 * unroll}, or use truncated-es"
        endless = horizon is None and (accumulate or noise == "episode")
        require(not endless, f"{self} sums noise over a trajectory, and this one never restarts; {fix}")
        if isinstance(noise, int):
            good = noise % unroll == 0 and (horizon is None or noise <= horizon)
            most = "" if horizon is None else f" and at most the horizon {horizon}"
            fix = "use noise=window or noise=episode"
            require(good, f"{self} needs noise to be a multiple of the unroll {unroll}{most}, got {noise}; {fix}")

    def init(self, level: LevelLike, theta: Tensor, key: Tensor) -> LevelState:
        self.check(level)
        particles = 2 * self.pairs
        own = keys.split(keys.fold_in(key, NOISE), level.copies * self.pairs)
        noise = keys.normal(own, theta.shape[-1:], theta.dtype)
        shared = keys.split(key, level.copies).repeat_interleave(particles, -1)
        carry = _joined(fresh(level, self._perturbed(theta, noise), shared[..., None]), theta)
        ages = first_ages(level, key.device).repeat_interleave(particles)
        return LevelState(carry._replace(age=carry.age + ages), Draws(noise, noise, own))

    @torch.no_grad()
    def value_and_grad(self, level: LevelLike, theta: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        draws: Draws = state.memory
        evaluate = partial(as_data, grad=level.optimizer.traits.reads_grad)
        particles = self._perturbed(theta, draws.noise)
        after, window = run(level, particles, _apart(state.carry, theta), evaluate, keep=False)
        values = level.objective.value(window.losses).squeeze(-1)  # [*batch, copies * pairs * 2]
        carry = _joined(after, theta)
        first_key, second_key = _by_pair(carry.key).unbind(-1)  # differ where one particle's start failed
        lost = _by_pair(carry.skipped > state.carry.skipped).any(-1) | (first_key != second_key)
        plus, minus = _by_pair(values).unbind(-1)
        slope = torch.where(lost, 0.0, (plus - minus) / (2 * self.sigma))
        grad = (slope[..., None] * draws.seen).mean(-2)
        age = torch.where(lost.repeat_interleave(2, -1), RESET, carry.age)
        draws = self._advance(level, draws, _by_pair(age)[..., 0])
        carry = carry._replace(age=age, key=first_key.repeat_interleave(2, -1))
        return values.mean(-1), grad, LevelState(carry, draws)

    def _perturbed(self, theta: Tensor, noise: Tensor) -> Tensor:
        """Parameters of all particles, ``[*batch, copies * pairs * 2, m]``."""
        step = self.sigma * noise
        return theta[..., None, :] + torch.stack((step, -step), -2).flatten(-3, -2)

    def _advance(self, level: LevelLike, draws: Draws, age: Tensor) -> Draws:
        """Draws for the next window of pairs whose trajectories have the age ``[*batch, copies * pairs]``."""
        should_reset, key = is_due(level, age), keys.fold_in(draws.key, 1)
        redraw = should_reset | (age % self._period(level) == 0)
        rows = redraw.flatten().nonzero().squeeze(-1)
        drawn = keys.normal(key.flatten()[rows], draws.noise.shape[-1:], draws.noise.dtype)
        noise = draws.noise.flatten(0, -2).index_copy(0, rows, drawn).reshape(draws.noise.shape)
        if not self.schedule().accumulate:
            return Draws(noise, noise, key)
        before = torch.where(should_reset[..., None], 0.0, draws.seen)
        return Draws(noise, before + torch.where(redraw[..., None], noise, 0.0), key)

    def _period(self, level: LevelLike) -> int:
        """Updates for which a draw is kept."""
        noise = self.schedule().noise
        if noise == "episode":
            assert level.episode_length is not None  # refused by check
            return level.episode_length
        return level.unroll if noise == "window" else noise


@dataclass(frozen=True, repr=False)
class Evolution(Antithetic):
    """Any member of the family: see the table above.

    ``noise``: ``window``, ``episode``, or updates for which a draw is kept, a multiple of the unroll and at most the
    horizon. ``accumulate``: whether the draws that a trajectory has met are summed; without it gradients are
    truncated, unless one draw lasts for the episode. With it the level needs a horizon.
    """

    name = "evolution"

    noise: Noise = "episode"
    accumulate: bool = True

    def schedule(self) -> Schedule:
        return Schedule(self.noise, self.accumulate)


class FullES(Antithetic):
    """Evolution strategies over whole trajectories: the unroll must be the horizon. Unbiased."""

    name = "full-es"

    def schedule(self) -> Schedule:
        return Schedule("window", False)

    def check(self, level: LevelLike) -> None:
        unroll, horizon = level.unroll, format_value(level.episode_length)
        fix = f"set horizon={unroll}, or use es-single, which needs no such windows"
        what = f"full-es needs windows as long as the horizon {horizon}, got {unroll}; {fix}"
        require(level.episode_length == unroll, what)


class TruncatedES(Antithetic):
    """Each window by itself, as truncated backpropagation takes it; biased (Metz et al. 2019, arXiv 1810.10180)."""

    name = "truncated-es"

    def schedule(self) -> Schedule:
        return Schedule("window", False)


class PES(Antithetic):
    """Persistent evolution strategies: fresh noise each window, summed over the trajectory; unbiased.

    Vicol, Metz and Sohl-Dickstein 2021 (arXiv 2112.13835). The variance of a window's estimate grows with its place
    in the trajectory. Deviation: particles restart with their own trajectory, staggered if the level says so.
    """

    name = "pes"

    def schedule(self) -> Schedule:
        return Schedule("window", True)


class ESSingle(Antithetic):
    """One draw kept for a whole trajectory; unbiased, with a variance that does not grow with the number of windows.

    Vicol 2023 (arXiv 2304.11153). The paper's particles restart together: the level's ``stagger=false``.
    """

    name = "es-single"

    def schedule(self) -> Schedule:
        return Schedule("episode", True)


class NRES(Antithetic):
    """Noise-reuse evolution strategies: `ESSingle` whose trajectories are spread over the horizon; unbiased.

    Li, Harrison, Sohl-Dickstein, Smith and Metz 2023 (arXiv 2304.12180). Needs the level's ``stagger=true``.
    """

    name = "nres"

    def schedule(self) -> Schedule:
        return Schedule("episode", True)

    def check(self, level: LevelLike) -> None:
        super().check(level)
        fix = "set stagger=true, or use es-single"
        require(level.stagger, f"nres spreads trajectories over the horizon, got stagger=false; {fix}")


def _apart(carry: State, theta: Tensor) -> State:
    """A carry ``[*batch, particles, ...]`` as ``[*batch, particles, 1, ...]``: one copy for each particle."""
    return map_leaves(lambda leaf: leaf.unsqueeze(theta.dim()), carry)


def _joined(carry: State, theta: Tensor) -> State:
    """The inverse of `_apart`."""
    return map_leaves(lambda leaf: leaf.squeeze(theta.dim()), carry)


def _by_pair(particles: Tensor) -> Tensor:
    """``[*batch, pairs * 2]`` as ``[*batch, pairs, 2]``: the particle with the noise added first."""
    return particles.reshape(*particles.shape[:-1], -1, 2)
