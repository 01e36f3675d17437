"""An estimator of your own: each window runs a random number of updates. About 30 seconds.

    K ~ uniform on 1..unroll,     dL/dtheta of K updates; the next window goes on from there

Windows of one length cut all trajectories at the same updates; random ones do not. The estimator keeps the key from
which it draws, so runs repeat and resume. You should see the checks pass, and

    windows of 1 to 20: mean loss 2.8

From the command line, in this folder: tower train "quadratic: lstm@20[gradient=random_unroll.RandomUnroll] / adam"
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from levels import LSTM, Adam, Estimator, FirstOrder, Level, Quadratic, keys
from levels.testing import check_estimator
from levels.tree import choose
from recursion import Tower
from recursion.evaluation.deploy import run

WITHIN = FirstOrder()


@dataclass(frozen=True, repr=False)
class RandomUnroll(Estimator):
    """First-order gradients of 1 to ``unroll`` updates. An episode ends with the window that passes the horizon."""

    name = "random-unroll"

    def check(self, level: Any) -> None:
        WITHIN.check(level)

    def evals(self, level: Any) -> int | Fraction:
        return WITHIN.evals(level) * Fraction(level.unroll + 1, 2 * level.unroll)

    def init(self, level: Any, theta: Tensor, key: Tensor) -> Any:
        return WITHIN.init(level, theta, key)._replace(memory=keys.fold_in(key, 1))

    def value_and_grad(self, level: Any, theta: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        lengths, found = 1 + keys.integers(state.memory, (), level.unroll), None  # [*batch]
        for length in lengths.unique().tolist():  # thetas in a batch have a length each
            horizon = level.episode_length and -(-level.episode_length // length) * length
            answer = WITHIN.value_and_grad(replace(level, unroll=length, horizon=horizon), theta, state)
            found = answer if found is None else choose(lengths == length, answer, found)
        return *found[:2], found[2]._replace(memory=keys.fold_in(state.memory, 1))


if __name__ == "__main__":
    check_estimator(RandomUnroll())
    print("checks passed")
    level = Level(optimizer=LSTM(), unroll=20, gradient=RandomUnroll())
    tower = Tower(Quadratic(), level, Level(optimizer=Adam(lr=0.01)))
    *_, (state, _report) = tower.run(tower.init(seed=0), 200)
    losses = run(LSTM(), tower.result(state), Quadratic().on("test"), keys.split(keys.seed(1), 64), 100)
    print(f"windows of 1 to 20: mean loss {losses[1:].mean():.1f}")
