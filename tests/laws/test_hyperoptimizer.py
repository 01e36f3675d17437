"""Unroll-1 towers are the hyperoptimizers of Chandra et al. (2022, arXiv 1909.13371), step by step.

Compared with the authors' own package, run as its README says, on the digits perceptron in float64: a torch module
and torch's cross entropy on their side, our task on ours, the same minibatches.

The shift at start-up. gdtuo moves all levels from its first step on, but with hypergradients that are still 0: a step
size has one only once two gradients of the task are known, the level above it once three are. Our start-up at height
h evaluates the task h times and moves each level from when it has a gradient. So our state after `init` is gdtuo's at
its h-th evaluation, and our top step s is its evaluation h + s; nothing is injected.

Two things differ between the Adams. gdtuo starts v at eps: the start-up of level 2 is written out below, from a carry
with v = eps. gdtuo stores beta as z with beta = (tanh z + 1) / 2, we store u with beta = sigmoid(u), so u = 2 z; a step
of size k in z is one of 4 k in u (half the slope, twice the length).
"""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from levels import SGD, Adam, Carry, DigitsMLP, Fixed, Level, LevelState, Linear, Logit, keys
from levels.restart import started
from recursion import Tower
from recursion.tower import TowerState

gdtuo: Any = pytest.importorskip("gradient_descent_the_ultimate_optimizer.gdtuo")

STEPS = 100
TASK = DigitsMLP(hidden=(10,), minibatch=64, dtype="float64")
RATES = [0.2, 0.1, 0.1, 1.0, 10.0]

pytestmark = pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True:UserWarning")


class Moment(NamedTuple):
    """What both sides are compared by, at one evaluation of the task."""

    loss: float
    weights: Tensor
    hypers: list[Tensor]  # of level 1, 2, ..


def start_of(tower: Tower) -> tuple[Tensor, Tensor]:
    """Initial parameters of the task's one copy, and the key of its minibatches (levels have batch 1)."""
    key = keys.split(keys.seed(0), 2)[1]
    for _ in tower.levels:
        for_params, for_state = keys.split(keys.split(key, 1)[0], 2)
        key = for_state
    return TASK.init(for_params), TASK.own(for_state)


def theirs(optimizer: Any, weights: Tensor, key: Tensor, evaluations: int) -> list[Moment]:
    """gdtuo's run: the loss, the weights and all hyperparameters at each evaluation."""
    model = nn.Sequential(nn.Linear(64, 10), nn.Sigmoid(), nn.Linear(10, 10)).double()
    views = list(TASK.layout.unravel(weights).values())
    with torch.no_grad():
        for parameter, view in zip(model.parameters(), views, strict=True):
            parameter.copy_(view.T if view.dim() == 2 else view)
    wrapped = gdtuo.ModuleWrapper(model, optimizer=optimizer)
    wrapped.initialize()
    data, moments = TASK.data(), []
    for step in range(evaluations):
        rows = keys.integers(keys.fold_in(key, step), (TASK.minibatch,), len(data.labels))
        wrapped.begin()
        loss = nn.functional.cross_entropy(wrapped.forward(data.inputs[rows]), data.labels[rows])
        wrapped.zero_grad()
        flat = torch.cat([(p.T if p.dim() == 2 else p).flatten() for p in wrapped.parameters.values()])
        moments.append(Moment(loss.item(), flat.detach().clone(), _chain(optimizer)))
        loss.backward(create_graph=True)
        wrapped.step()
        for parameter in wrapped.all_params_with_gradients:
            parameter.grad = None
    return moments


def _chain(optimizer: Any) -> list[Tensor]:
    """The hyperparameters of an optimizer and of those above it, without the momentum that is 0 throughout."""
    found = []
    while not isinstance(optimizer, gdtuo.NoOpOptimizer):
        names = [name for name in optimizer.parameters if name != "mu"]
        found.append(torch.stack([optimizer.parameters[name].detach() for name in names]))
        optimizer = optimizer.optimizer
    return found


def sgd(rate: float, above: Any = None) -> Any:
    made = gdtuo.SGD(rate, optimizer=above or gdtuo.NoOpOptimizer())
    made.parameters = {"alpha": torch.tensor(rate, dtype=torch.float64), "mu": torch.tensor(0.0, dtype=torch.float64)}
    return made


def ours(tower: Tower, state: TowerState) -> list[Moment]:
    moments = []
    for at in (state, *(after for after, _ in tower.run(state, STEPS))):
        bottom, *above = tower.carries(at)
        moments.append(Moment(float(bottom.f), bottom.x.flatten(), [*(carry.x.flatten() for carry in above), at.theta]))
    return moments


def assert_same(mine: list[Moment], their: list[Moment], tolerance: float = 1e-12) -> None:
    assert len(mine) == len(their) == STEPS + 1
    for a, b in zip(mine, their):
        assert a.loss == pytest.approx(b.loss, rel=tolerance, abs=0)
        torch.testing.assert_close(a.weights, b.weights, rtol=tolerance, atol=tolerance)
        for x, y in zip(a.hypers, b.hypers, strict=True):
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5])
def test_sgd_on_sgd(height):
    tower = Tower(TASK, *(Level(optimizer=SGD(lr=Linear(rate)), batch=1) for rate in RATES[:height]))
    stack = None
    for rate in reversed(RATES[:height]):
        stack = sgd(rate, stack)
    mine = ours(tower, tower.init(seed=0))
    their = theirs(stack, *start_of(tower), height + STEPS)
    assert_same(mine, their[height - 1 :])
    for k in range(height - 1):
        assert abs(float(mine[-1].hypers[k]) - RATES[k]) > 1e-6 * RATES[k], "this level has not moved"


def test_adam_on_sgd():
    rate, eps = 1e-4, 1e-8
    adam = Adam(lr=Linear(0.01), beta1=Logit(0.9), beta2=Logit(0.99), eps=Fixed(eps))
    above = SGD(lr=Linear(rate, shared_over="tensor"))
    tower = Tower(TASK, Level(optimizer=adam, batch=1), Level(optimizer=above, batch=1))
    state = started_with_v(tower, torch.tensor([rate, 4 * rate, 4 * rate, 0.0], dtype=torch.float64), eps)

    stack = gdtuo.Adam(optimizer=sgd(rate))
    beta1, beta2 = (torch.tensor([0.9, 0.99], dtype=torch.float64).logit() / 2).unbind()
    stack.parameters = {"alpha": torch.tensor(0.01, dtype=torch.float64), "beta1": beta1, "beta2": beta2}
    mine = ours(tower, state)
    scale = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    their = [m._replace(hypers=[scale * m.hypers[0]]) for m in theirs(stack, *start_of(tower), 2 + STEPS)[1:]]
    assert_same([m._replace(hypers=m.hypers[:1]) for m in mine], their)
    assert (mine[-1].hypers[0] - mine[0].hypers[0]).abs().min() > 1e-8, "a hyperparameter has not moved"


def started_with_v(tower: Tower, params: Tensor, v: float) -> TowerState:
    """The start-up of a tower of height 2 by hand, Adam's second moment beginning at ``v``."""
    laid: Level = tower.bound[0]
    state = tower.init(seed=0, theta=params)
    top = state.carry
    for_params, for_state = keys.split(top.key, 2).unbind(-1)
    x = laid.init(for_params)
    carry = started(laid, x, for_state)
    carry = carry._replace(state=carry.state._replace(v=carry.state.v + v))
    f, g, below = laid.value_and_grad(x, LevelState(carry, None))
    return state._replace(carry=Carry(x, None, f, g, below, top.age, top.key, top.skipped))
