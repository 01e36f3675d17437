"""Exact gradients against naive nested autograd, differences, forward mode, and hand-written MAML.

Relative, in float64. Each side of a comparison carries its own state on, so errors would add up.
"""

import pytest
import torch
from oracle import error, naive
from parts import (
    DIGITS,
    LSTM,
    MOMENTUM,
    OBJECTIVES,
    QUADRATIC,
    RULES,
    SMALL,
    Slope,
    begun,
    built,
    levels_of,
    repeated,
    rule_of,
    second_window,
    slopes,
    worst,
)
from torch import Tensor

from levels import DigitsMLP, Layout, Quadratic, keys
from levels.autodiff import hvp
from levels.restart import run
from levels.tree import leaves, with_leaves

TOLERANCE = 1e-9
E = "gradient=exact"
OPTIMIZERS = [*RULES, "lstm(hidden=3)"]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_depth_1(optimizer, objective):
    assert worst(f"{QUADRATIC}{optimizer}@4[{E}, objective={objective}, horizon=8, batch=2]", 3, batch=2) < TOLERANCE


TOWERS = [
    f"{DIGITS}{LSTM}@3[{E}, batch=2, objective=mean-log]",
    f"{QUADRATIC}{MOMENTUM}@3[{E}, batch=2, horizon=6] / adam(0.1)@3[{E}]",
    f"{SMALL}{LSTM}@3[{E}, batch=2, horizon=6] / adam(0.01)@2[{E}, objective=mean-log]",
    f"{DIGITS}sgd(log(0.1, per=tensor), momentum=0.5)@2[{E}] / rmsprop@2[{E}]",
    f"{SMALL}{MOMENTUM}@2[{E}, horizon=4] / lstm(hidden=1, layers=1)@2[{E}, objective=mean-log] / adam(0.01)@2[{E}]",
    f"{SMALL}{LSTM}@2[{E}, batch=2, horizon=4] / sgd(0.01, momentum=0.5)@2[{E}] / adam(0.01)@2[{E}]",
    f"{SMALL}adam(0.1)@2[{E}, batch=2, horizon=4] / sgd(0.01)@3[{E}] / {MOMENTUM}@2[{E}, objective=last]",
    f"{QUADRATIC}adam(0.1)@3[{E}] / {MOMENTUM}@3[batch=2]",
    f"{QUADRATIC}adam(0.1)@3 / {MOMENTUM}@3[{E}, batch=2]",
    f"{QUADRATIC}adam(0.1)@3[{E}, clip=0.5, batch=2] / {MOMENTUM}@3[{E}]",
    f"{SMALL}{LSTM}@2[batch=2, objective=mean-log] / adam(0.01)@2[{E}, clip=0.1]",
    f"{SMALL}{MOMENTUM}@2 / adam(0.1)@3[{E}] / {MOMENTUM}@2",
    f"{SMALL}{MOMENTUM}@2[{E}] / adam(0.1)@3 / {MOMENTUM}@2[{E}]",
    f"{SMALL}{MOMENTUM}@2 / adam(0.1)@2[{E}] / {MOMENTUM}@3[{E}]",
]


@pytest.mark.parametrize("text", TOWERS)
def test_towers(text):
    assert worst(text, 3, batch=2) < TOLERANCE


# Differences and forward mode, where windows below begin anew, so that nothing is cut off at their edges.

DIFFERENCES = [
    *[f"{rule}@4[{E}, batch=2, horizon=8]" for rule in OPTIMIZERS],
    f"torch(adam, lr=0.1, eps=1e-3)@4[{E}, batch=2]",
    f"parts.Polyak@4[{E}, batch=2, objective=mean-log]",
    f"parts.Anchored@3[{E}, batch=2, horizon=3]",
    f"{MOMENTUM}@3[{E}, batch=2, horizon=3] / adam(0.1, eps=1e-2)@3[{E}, objective=last]",
    f"{LSTM}@2[{E}, horizon=2] / sgd(0.001, momentum=0.5)@3[{E}]",
    f"{LSTM}@2[{E}, batch=2, horizon=2] / sgd(0.3, momentum=0.5)@2[{E}, horizon=2] / adam(0.3, eps=1e-2)@2[{E}]",
    f"start({MOMENTUM})@2[{E}, batch=2, horizon=2] / adam(0.1, eps=1e-2)@3[{E}, horizon=3]",
    f"parts.Anchored@2[{E}, horizon=2] / start(parts.Polyak)@3[{E}, horizon=3]",
]


@pytest.mark.parametrize("levels", DIFFERENCES)
def test_differences(levels):
    level = built(SMALL + levels)
    params, state = second_window(level)

    def value(moved: Tensor) -> Tensor:
        losses = run(level, moved, repeated(state, len(moved)).carry, keep=False)[1].losses
        return level.objective.value(losses).mean(-1).sum(-1)

    assert error(level.value_and_grad(params, state)[1], slopes(value, params)) < 1e-7


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
    """J^T v by differences; J is symmetric where every level is exact, and not where one is first order."""
    level = built(SMALL + levels)
    params, state = second_window(level)
    directions = torch.eye(params.shape[-1], dtype=torch.float64)[:, None]
    with torch.no_grad():
        jacobian = torch.cat([hvp(level, params, state, v) for v in directions])
    for row, v in zip(jacobian, directions):
        moved = slopes(lambda p: (level.value_and_grad(p, repeated(state, len(p)))[1] * v).sum((-1, -2)), params)  # noqa: B023
        assert float((row - moved).abs().max()) < 1e-6 * float(jacobian.abs().max())
    assert (error(jacobian, jacobian.T) < 1e-10) == symmetric


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_updates_can_be_differentiated_twice(optimizer):
    """`gradcheck` and `gradgradcheck` of one update in everything that it reads."""
    rule = rule_of(optimizer).bind(Layout.of({"w": (2,), "b": (1,)}, torch.float64))
    key = keys.seed(4)
    params = rule.init(key)
    x, g = keys.normal(key, (2, 1, 3), torch.float64).unbind()
    _, state = rule.update(params, x, rule.init_state(params, x, key[None]), x[:, 0], g)
    tensors = leaves(state)
    floats = [leaf for leaf in tensors if leaf.is_floating_point()]

    def update(params: Tensor, g: Tensor, x: Tensor, *floats: Tensor) -> tuple[Tensor, ...]:
        left = iter(floats)
        full = [next(left) if leaf.is_floating_point() else leaf for leaf in tensors]
        new, after = rule.update(params, x, with_leaves(state, full), x[:, 0], g)
        return new, *(leaf for leaf in leaves(after) if leaf.is_floating_point())

    inputs = [tensor.clone().requires_grad_() for tensor in (params, 2 * g, x, *floats)]
    assert torch.autograd.gradcheck(update, inputs)
    assert torch.autograd.gradgradcheck(update, inputs)


def test_losses_can_be_differentiated_twice():
    for task in (DigitsMLP(hidden=(2,), minibatch=4, dtype="float64", activation="tanh"), Slope()):
        key = keys.seed(1)
        x = task.init(key)[None]
        state = task.init_state(x, key[None])
        some = x[:, -5:].clone().requires_grad_()
        loss = lambda tail: task.loss(torch.cat((x[:, :-5], tail), -1), state)[0]  # noqa: B023, E731
        assert torch.autograd.gradcheck(loss, some)
        assert torch.autograd.gradgradcheck(loss, some)


# Model-agnostic meta-learning with its second derivatives.


def maml(task: Quadratic, offset: Tensor, raw: Tensor, key: Tensor, unroll: int) -> Tensor:
    """The loss after ``unroll`` steps of gradient descent from a learned start, as a graph of start and log step."""
    draw = task.init(keys.seed(0))
    total = torch.zeros((), dtype=torch.float64)
    for k in key:
        state = task.init_state(draw, keys.fold_in(k, 2))
        x = draw + offset
        for _ in range(unroll):
            residual = state.w @ x - state.y
            (g,) = torch.autograd.grad((residual**2).sum(), x, create_graph=True)
            x = x - raw.exp() * g
        total = total + ((state.w @ x - state.y) ** 2).sum() / len(key)
    return total


@pytest.mark.parametrize("unroll", [1, 4])
def test_maml(unroll):
    """Exact over a learned start is MAML (Finn et al. 2017, equation 1), in every window; first order is not."""
    text = f"start(sgd(0.02))@{unroll}[batch=3, horizon={unroll}, objective=last, stagger=false"
    level, rough = built(f"{QUADRATIC}{text}, {E}]"), built(f"{QUADRATIC}{text}]")
    params, state = begun(level, 9)
    trajectories = keys.split(keys.seed(9), 3)
    for _ in range(3):
        value, grad, after = level.value_and_grad(params, state)
        offset, raw = params[:-1].clone().requires_grad_(), params[-1].clone().requires_grad_()
        loss = maml(level.problem, offset, raw, trajectories, unroll)
        expected = torch.cat([one.reshape(-1) for one in torch.autograd.grad(loss, (offset, raw))])
        assert error(value, loss.detach()) < 1e-12
        assert error(grad, expected) < TOLERANCE
        assert error(rough.value_and_grad(params, state)[1], expected) > 0.01
        params, state = params - 0.05 * grad, after
        trajectories = keys.fold_in(trajectories, -1)


# Copies that are not finite.


@pytest.mark.parametrize("fatal", [2, 3])
@pytest.mark.parametrize("optimizer", ["lstm(hidden=3, layers=1)", "adam(0.1)", MOMENTUM])
def test_a_skipped_copy_leaves_nothing_in_the_gradient(optimizer, fatal):
    """The mean over the living of six copies equals that of a level that never met the dead ones."""
    task, (part,) = levels_of(
        f"parts.Poisoned(3, dtype=float64, fatal={fatal}): {optimizer}@3[{E}, batch=6, nonfinite=skip]"
    )
    level, oracle = part.over(task), naive(task, part)
    params, state = begun(level, 2)
    copies = oracle.start(params, keys.seed(2))
    dead = state.carry.problem_state.dies
    assert 0 < dead.sum() < 6
    _, grad, after = level.value_and_grad(params, state)
    living = [copy for copy, gone in zip(copies, dead) if not gone]
    _, expected, _ = oracle.ask(params.clone().requires_grad_(), living)
    assert error(grad, expected.detach() * len(living) / 6) < TOLERANCE
    assert torch.equal(after.carry.skipped, dead.long())
    above = levels_of(f"{SMALL}sgd(0.001)@2[{E}]")[1][0].over(level)
    assert above.value_and_grad(*begun(above, 2))[1].isfinite().all()
