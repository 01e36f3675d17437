"""Two estimators mixed by inverse variance, against statistics by hand and against what theory gives."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from parts import answers
from systems import Drift, Plane
from torch import Tensor

from levels import PES, SGD, Estimator, FirstOrder, Level, LevelState, Mix, NonFiniteError, Quadratic, Skip, keys
from levels.restart import started
from levels.tree import leaves

TRUTH = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)


@dataclass(frozen=True, repr=False)
class Noisy(Estimator):
    """The truth with normal noise of the given scales; its first entry is ``broken`` in window ``breaks``, from 0."""

    name: ClassVar[str] = "noisy"
    scales: tuple[float, ...]
    breaks: int = -1
    broken: float = math.inf

    def init(self, level: Level, theta: Tensor, key: Tensor) -> LevelState:
        return LevelState(started(level, theta, key), (key, torch.zeros_like(key)))

    def value_and_grad(self, level: Level, theta: Tensor, state: LevelState) -> tuple[Tensor, Tensor, LevelState]:
        key, window = state.memory
        noise = keys.normal(keys.fold_in(key, window), (4,), torch.float64)
        grad = (TRUTH + noise * torch.tensor(self.scales, dtype=torch.float64)).to(theta.dtype)
        grad[..., 0] = torch.where(window == self.breaks, self.broken, grad[..., 0])
        return grad.sum(-1).nan_to_num(0, 0, 0), grad, LevelState(state.carry, (key, window + 1))


def laid_with(gradient: Estimator, **settings: Any) -> Level:
    return Level(optimizer=Drift(), horizon=None, batch=1, gradient=gradient, **settings).over(Plane())


def apart(laid: Level, params: Tensor, state: LevelState) -> tuple[Tensor, Tensor]:
    """What the two estimators give by themselves."""
    mix = laid.gradient
    first = mix.first.value_and_grad(laid, params, LevelState(state.carry, state.memory.first))
    return first[1], mix.second.value_and_grad(laid, params, state.memory.second)[1]


def test_the_mean_is_the_truth_and_the_variance_that_of_the_best_weights():
    one, two, draws = (1.0, 3.0, 1.0, 0.1), (2.0, 1.0, 1.0, 10.0), 4000
    *_, (*_, grad, _) = answers(laid_with(Mix(Noisy(one), Noisy(two), decay=0.99)), 100, 0, draws)
    z = (grad - TRUTH).mean(0) / (grad.std(0) / math.sqrt(draws))
    assert z.abs().max() < 4
    first, second = (torch.tensor(scales, dtype=torch.float64).square() for scales in (one, two))
    torch.testing.assert_close(grad.var(0), first * second / (first + second), rtol=0.1, atol=0.0)


def test_weights_are_those_of_running_variances_by_hand():
    laid = laid_with(Mix(Noisy((1.0,) * 4), Noisy((2.0,) * 4), decay=0.8))
    stats = [[0.0, 0.0], [0.0, 0.0]]
    for window, (params, before, value, grad, _) in enumerate(answers(laid, 12)):
        grads = apart(laid, params, before)
        v1, v2 = stats[0][1], stats[1][1]
        weight = v2 / (v1 + v2) if window >= 3 else 0.5
        torch.testing.assert_close(grad, weight * grads[0] + (1 - weight) * grads[1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(value, (grads[0].sum() + grads[1].sum()) / 2)
        share = max(1 / (window + 1), 0.2)
        for stat, sample in zip(stats, grads):  # E[g] and the mean of (g - E[g])^2, weighted alike
            mean = stat[0] + share * (sample - stat[0])
            second_moment = (1 - share) * (stat[1] + stat[0] ** 2) + share * sample**2
            stat[:] = [mean, second_moment - mean**2]


@pytest.mark.parametrize("broken", [math.inf, math.nan])
@pytest.mark.parametrize("breaks", [0, 7])
def test_what_is_not_finite_weighs_nothing_and_is_forgotten(breaks, broken):
    laid = laid_with(Mix(Noisy((1.0,) * 4, breaks=breaks, broken=broken), Noisy((2.0,) * 4)))
    for window, answer in enumerate(answers(laid, 12)):
        second, grad = apart(laid, answer.params, answer.before)[1], answer.grad
        assert torch.isfinite(grad).all()
        assert (grad[0] == second[0]) == (window == breaks)
        assert (grad[1:] != second[1:]).all()
    tracks = answer.state.memory.tracks
    assert tracks[0].windows.tolist() == [11, 12, 12, 12]
    assert all(torch.isfinite(leaf).all() for leaf in leaves(tracks))


def test_where_neither_is_finite_the_policy_is_asked():
    broken = Mix(Noisy((1.0,) * 4, breaks=0), Noisy((2.0,) * 4, breaks=0, broken=math.nan))
    with pytest.raises(NonFiniteError, match="gradient of the meta-loss is not finite"):
        next(answers(laid_with(broken), 1))
    *_, grad, state = next(answers(laid_with(broken, nonfinite=Skip()), 1))
    assert grad.tolist() == [0.0] * 4
    assert int(state.carry.skipped) == 1


def test_backpropagation_and_evolution_keep_problems_of_their_own_and_mix_to_something_in_between():
    mixed = Mix(FirstOrder(), PES(sigma=0.1, pairs=2))
    laid = Level(optimizer=SGD(lr=0.01), unroll=2, horizon=4, batch=2, gradient=mixed).over(Quadratic(dims=3))
    for params, before, _, grad, _ in answers(laid, 6):
        assert set(before.carry.key.tolist()).isdisjoint(before.memory.second.carry.key.tolist())
        first, second = apart(laid, params, before)
        assert torch.minimum(first, second) < grad < torch.maximum(first, second)


@pytest.mark.parametrize("place", [0, 1])
def test_numbers_near_the_end_of_float32_do_not_overflow(place):
    """A backpropagated gradient of 1e30 has a variance of 1e60: it weighs nothing, and evolution's goes through."""
    huge, fine = Noisy((1e30,) * 4), Noisy((1.0,) * 4)
    laid = laid_with(Mix(fine, huge) if place else Mix(huge, fine))
    params = torch.zeros(4, dtype=torch.float32)
    state = laid.init_state(params, keys.seed(0))
    for _ in range(6):
        expected = apart(laid, params, state)[1 - place]
        _, grad, state = laid.value_and_grad(params, state)
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-6)
