"""Gradients against central differences of what they differentiate, and against MAML by hand; relative, in float64.

First-order gradients are the true ones for a single update, and where the task's gradient is the same everywhere.
"""

from dataclasses import replace
from itertools import product

import pytest
import torch
from oracle import error
from parts import LSTM, MOMENTUM, OBJECTIVES, QUADRATIC, RULES, SMALL, answers, built, repeated, slopes
from torch import Tensor

from levels import FirstOrder, Level, LevelState, Quadratic, keys
from levels.autodiff import hvp

E, F = "gradient=exact", "gradient=forward"
HELD_OUT = "held-out(digits-mlp(hidden=[3], minibatch=8), dtype=float64): "
WINDOWS = [
    *(f"{QUADRATIC}{rule}@1[batch=3]" for rule in [*RULES, LSTM]),
    *(f"parts.Slope: {rule}@5[horizon=10, batch=2, objective={objective}]"
      for rule, objective in product([*RULES, LSTM, "lstm(hidden=2)"], OBJECTIVES)),
    # Windows below begin anew, so that nothing is cut off at their edges.
    *(f"{SMALL}{rule}@4[{E}, batch=2, horizon=8]" for rule in [*RULES, "lstm(hidden=3)"]),
    f"{SMALL}torch(adam, lr=0.1, eps=1e-3)@4[{E}, batch=2]",
    f"{SMALL}parts.Polyak@4[{E}, batch=2, objective=mean-log]",
    f"{SMALL}parts.Anchored@3[{E}, batch=2, horizon=3]",
    f"{SMALL}{MOMENTUM}@3[{E}, batch=2, horizon=3] / adam(0.1, eps=1e-2)@3[{E}, objective=last]",
    f"{SMALL}{LSTM}@2[{E}, horizon=2] / sgd(0.001, momentum=0.5)@3[{E}]",
    f"{SMALL}{LSTM}@2[{E}, batch=2, horizon=2] / sgd(0.3, momentum=0.5)@2[{E}, horizon=2] / adam(0.3, eps=1e-2)@2[{E}]",
    f"{SMALL}start({MOMENTUM})@2[{E}, batch=2, horizon=2] / adam(0.1, eps=1e-2)@3[{E}, horizon=3]",
    f"{SMALL}parts.Anchored@2[{E}, horizon=2] / start(parts.Polyak)@3[{E}, horizon=3]",
    f"{HELD_OUT}sgd(0.5, momentum=0.5)@4[{E}, batch=2]",
    f"{HELD_OUT}parts.Polyak@4[{E}, batch=2]",  # reads the loss of training, is judged by another
]  # fmt: skip


def second_window(level: Level) -> tuple[Tensor, LevelState]:
    """Parameters ``[1, m]`` and the state before a level's second window."""
    (first,) = answers(level, 1, 5, 1)
    return first.params, first.state


@pytest.mark.parametrize("text", WINDOWS)
def test_a_second_window(text):
    """From a fixed carry."""
    level = built(text)
    params, state = second_window(level)
    grad = level.value_and_grad(params, state)[1]
    assert float(grad.abs().max()) > 1e-6
    assert error(grad, slopes(lambda p: level.value(p, repeated(state, len(p)))[0].sum(-1), params)) < 1e-8


RUNS = [
    f"adam(0.1, eps=1e-2)@2[{F}, batch=3, horizon=6]",
    f"parts.Polyak@2[{F}, batch=2, objective=mean-log]",
    f"parts.Anchored@2[{F}, batch=2, horizon=4]",
    f"start({MOMENTUM})@2[{F}, batch=2]",
    f"{MOMENTUM}@3[{E}, batch=2, horizon=3] / adam(0.05, eps=1e-2)@2[{F}, batch=2, horizon=4]",
    f"start(sgd(0.02))@2[{E}, horizon=2] / start(parts.Polyak)@2[{F}, batch=2, horizon=4]",
]


@pytest.mark.parametrize("levels", RUNS)
def test_whole_runs_by_forward_mode(levels):
    """The meta-losses of four windows of a run whose parameters do not move."""
    level = built(SMALL + levels)
    plain = replace(level, gradient=FirstOrder())

    def value(params: Tensor, window: int) -> Tensor:
        state = plain.init_state(params, keys.seed(11).expand(len(params)))
        for _ in range(window + 1):
            value, state = plain.value(params, state)
        return value

    for window, answer in enumerate(answers(level, 4, 11)):
        assert error(answer.grad, slopes(lambda p, window=window: value(p, window), answer.params)) < 1e-7


DEEP = (
    f"start({MOMENTUM})@2[{E}, batch=2, horizon=2]",
    f"start(adam(0.1, eps=1e-2))@2[{E}, horizon=4]",
    f"parts.Polyak@2[{E}, objective=mean-log]",
)
JACOBIANS = {
    DEEP[0]: True,
    " / ".join(DEEP[:2]): True,
    " / ".join(DEEP): True,
    "adam(0.1)@3": False,
    f"{MOMENTUM}@2[horizon=2] / adam(0.1, eps=1e-2)@3[{E}]": False,
}


@pytest.mark.parametrize(("levels", "symmetric"), JACOBIANS.items())
def test_products_with_the_jacobian_of_a_gradient(levels, symmetric):
    """J^T v; J is symmetric where every level is exact, and not where one is first order."""
    level = built(SMALL + levels)
    params, state = second_window(level)
    directions = torch.eye(params.shape[-1], dtype=torch.float64)[:, None]
    with torch.no_grad():
        jacobian = torch.cat([hvp(level, params, state, v) for v in directions])
    for row, v in zip(jacobian, directions):
        moved = slopes(lambda p: (level.value_and_grad(p, repeated(state, len(p)))[1] * v).sum((-1, -2)), params)  # noqa: B023
        assert float((row - moved).abs().max()) < 1e-6 * float(jacobian.abs().max())
    assert (error(jacobian, jacobian.T) < 1e-10) == symmetric


# Model-agnostic meta-learning with its second derivatives.


def maml(task: Quadratic, offset: Tensor, raw: Tensor, key: Tensor, unroll: int) -> Tensor:
    """The loss after ``unroll`` steps of gradient descent from a learned start, as a graph of start and log step."""
    draw, total = task.init(keys.seed(0)), torch.zeros((), dtype=torch.float64)
    for k in key:
        state = task.init_state(draw, keys.fold_in(k, 2))
        x = draw + offset
        for _ in range(unroll):
            (g,) = torch.autograd.grad((state.w @ x - state.y).square().sum(), x, create_graph=True)
            x = x - raw.exp() * g
        total = total + (state.w @ x - state.y).square().sum() / len(key)
    return total


@pytest.mark.parametrize("unroll", [1, 4])
def test_maml(unroll):
    """Exact over a learned start is MAML (Finn et al. 2017, equation 1), in every window; first order is not."""
    text = f"{QUADRATIC}start(sgd(0.02))@{unroll}[batch=3, horizon={unroll}, objective=last, stagger=false"
    level, rough = built(f"{text}, {E}]"), built(f"{text}]")
    trajectories = keys.split(keys.seed(9), 3)
    for params, state, value, grad, _ in answers(level, 3, 9, move=0.05):
        offset, raw = params[:-1].clone().requires_grad_(), params[-1].clone().requires_grad_()
        loss = maml(level.problem, offset, raw, trajectories, unroll)
        expected = torch.cat([one.reshape(-1) for one in torch.autograd.grad(loss, (offset, raw))])
        assert error(value, loss.detach()) < 1e-12
        assert error(grad, expected) < 1e-9
        assert error(rough.value_and_grad(params, state)[1], expected) > 0.01
        trajectories = keys.fold_in(trajectories, -1)
