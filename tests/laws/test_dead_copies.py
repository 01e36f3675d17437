"""Copies that are not finite: what a skipped copy leaves in a gradient (nothing), and what stops a tower says."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from oracle import NaiveLevel, NaiveTask, error, evaluate, state_error
from torch import Tensor

from levels import LSTM, SGD, Adam, Level, NonFiniteError, Quadratic, Skip, keys
from recursion import Tower


class Doomed(NamedTuple):
    """A quadratic, how often this copy was evaluated, and whether it dies."""

    problem_state: Any
    calls: Tensor
    dies: Tensor


@dataclass(frozen=True, repr=False)
class Dying(Quadratic):
    """A quadratic whose copies with a key divisible by three answer infinity at evaluation ``fatal``, from 1."""

    name = "dying"
    fatal: int = 3

    def init_state(self, params: Tensor, key: Tensor) -> Doomed:
        return Doomed(super().init_state(params, key), torch.zeros_like(key), key % 3 == 0)

    def value_and_grad(self, params: Tensor, state: Doomed) -> tuple[Tensor, Tensor, Doomed]:
        f, g, problem_state = super().value_and_grad(params, state.problem_state)
        dead = state.dies & (state.calls + 1 == self.fatal)
        return (
            f.where(~dead, torch.inf),
            g.where(~dead[..., None], torch.nan),
            Doomed(problem_state, state.calls + 1, state.dies),
        )


class NaiveDying(NaiveTask):
    """The oracle's: its copies never die."""

    def value(self, x: Tensor, state: Doomed) -> tuple[Tensor, Doomed]:
        return (state.problem_state.w @ x - state.problem_state.y).square().sum(), state._replace(calls=state.calls + 1)


TASK = Dying(dims=3, dtype="float64")


@pytest.mark.parametrize("optimizer", [LSTM(hidden=3), Adam(lr=0.1), SGD(lr=0.01, momentum=0.9)], ids=repr)
def test_the_gradient_is_that_of_the_living(optimizer):
    level = Level(optimizer=optimizer, unroll=3, horizon=None, batch=6, nonfinite=Skip())
    laid, oracle = level.over(TASK), NaiveLevel(level, NaiveDying(TASK))
    key = keys.seed(2)
    params = laid.init(key)
    state, copies = laid.init_state(params, key), oracle.start(params, key)
    dead = state.carry.problem_state.dies
    assert 0 < dead.sum() < 6

    value, grad, state = laid.value_and_grad(params, state)
    theta = params.clone().requires_grad_()
    losses = [oracle.one(theta, copy)[0] for copy in copies]
    living = sum(loss for loss, gone in zip(losses, dead) if not gone) / 6
    begun = sum(3 * copy.f for copy, gone in zip(copies, dead) if gone) / 6  # stood still for a window of three
    assert error(grad, torch.autograd.grad(living, theta, retain_graph=True)[0]) < 1e-10
    assert error(value, (living + begun).detach()) < 1e-10
    assert state.carry.skipped.tolist() == dead.long().tolist()

    # In the next window the dead begin again from the key that a restart draws, the living go on.
    ends = [
        oracle.begin(keys.fold_in(copy.key, -1)) if gone else oracle.one(theta, copy)[1]
        for copy, gone in zip(copies, dead)
    ]
    fresh = torch.stack([copy.problem_state.dies for copy in ends])
    assert not (fresh & dead).any(), "pick a seed whose restarted copies live"
    value, grad, state = laid.value_and_grad(params, state)
    f, g, ends = evaluate(oracle, params, ends)
    assert max(error(value, f.detach()), error(grad, g), state_error(state, ends)) < 1e-10
    assert state.carry.skipped.tolist() == dead.long().tolist()


def test_without_deaths_skipping_is_not_noticed():
    results = []
    for policy in ({"nonfinite": Skip()}, {}):
        laid = Level(optimizer=LSTM(hidden=3), unroll=3, horizon=6, batch=4, **policy).over(Quadratic(dims=3))
        params = laid.init(keys.seed(1))
        results.append(laid.value_and_grad(params, laid.init_state(params, keys.seed(1))))
    for a, b in zip(results[0][:2], results[1][:2]):
        assert torch.equal(a, b)


def test_the_error_names_level_and_step():
    """Unrolls 2, 3, 1: start-up makes 1 + 2 + 2*3 = 9 evaluations, a top step 6, so the 16th is in step 2."""
    levels = [Level(optimizer=SGD(lr=0.001), unroll=2, horizon=None, batch=4),
              Level(optimizer=SGD(lr=0.001), unroll=3, horizon=None, batch=2),
              Level(optimizer=SGD(lr=0.001), batch=1)]  # fmt: skip
    tower = Tower(Dying(dims=2, fatal=16), *levels)
    state = tower.init(seed=0)
    assert tower.carries(state)[0].problem_state.dies.any()
    state, _ = tower.step(state)
    with pytest.raises(NonFiniteError, match=r"^level 1 \(sgd\(lr=0\.001\)@2.*loss is not finite at top step 2; "):
        tower.step(state)


def test_a_dead_copy_below_does_not_stop_the_levels_above():
    levels = [Level(optimizer=LSTM(hidden=2), unroll=2, horizon=None, batch=6, nonfinite=Skip()),
              Level(optimizer=Adam(), unroll=2, horizon=None, batch=1)]  # fmt: skip
    tower = Tower(Dying(dims=2, fatal=8), *levels)
    state = tower.init(seed=0)
    deaths = int(tower.carries(state)[0].problem_state.dies.sum())
    assert deaths > 0
    for _ in range(3):
        state, report = tower.step(state)
    assert report.skipped == [deaths, 0]
    assert all(torch.isfinite(carry.x).all() for carry in tower.carries(state))
