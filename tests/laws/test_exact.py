"""Exact gradients against naive nested autograd, differences, forward mode, and hand-written MAML.

Relative, in float64. Each side of a comparison carries its own state on, so errors would add up.
"""

from typing import NamedTuple

import pytest
import torch
from exact_oracle import ExactTask, exactly
from exact_parts import MOMENTUM, Anchored, Polyak, digits, first, level, lstm, quadratic, second_window, stacked
from oracle import compare, error
from test_dead_copies import Doomed, Dying
from test_derivatives import Slope, repeated, slopes
from torch import Tensor

from levels import (
    SGD,
    Adam,
    DigitsMLP,
    Discounted,
    Last,
    Layout,
    LearnedInit,
    Level,
    LevelState,
    Log,
    MeanLog,
    Quadratic,
    RMSprop,
    Skip,
    Sum,
    Task,
    TorchOptim,
    keys,
)
from levels.autodiff import hvp
from levels.restart import run
from levels.tree import leaves, with_leaves

TOLERANCE = 1e-9


class Case(NamedTuple):
    """A tower, and how many copies of its topmost level run side by side."""

    task: Task
    levels: tuple[Level, ...]
    batch: int = 1
    windows: int = 3


def worst(case: Case) -> float:
    return compare(stacked(case.task, case.levels), exactly(*case[:1], *case.levels), case.windows, batch=case.batch)


OPTIMIZERS = {
    "sgd": SGD(lr=0.01),
    "nesterov": SGD(lr=Log(0.01, shared_over="coordinate"), momentum=0.8, weight_decay=0.1, nesterov=True),
    "momentum": SGD(lr=0.01, momentum=0.9),
    "adam": Adam(lr=Log(0.1, shared_over="tensor"), eps=1e-3),
    "rmsprop": RMSprop(lr=0.02, decay=0.9),
    "lstm": lstm(3, 2),
}
OBJECTIVES = [Sum(), Last(), MeanLog(), Discounted(0.7)]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_depth_1(optimizer, objective):
    part = level(OPTIMIZERS[optimizer], 4, objective=objective, horizon=8, batch=2)
    assert worst(Case(quadratic(), (part,), batch=2)) < TOLERANCE


TOWERS = {
    "1 digits": Case(digits(), (level(lstm(), 3, batch=2, objective=MeanLog()),)),
    "2 momentum / adam": Case(quadratic(), (level(MOMENTUM, 3, batch=2, horizon=6), level(Adam(0.1), 3)), batch=2),
    "2 lstm / adam": Case(
        quadratic(2), (level(lstm(), 3, batch=2, horizon=6), level(Adam(0.01), 2, objective=MeanLog()))
    ),
    "2 digits": Case(
        digits(), (level(SGD(lr=Log(0.1, shared_over="tensor"), momentum=0.5), 2), level(RMSprop(), 2)), windows=2
    ),
    "3 momentum / lstm / adam": Case(
        quadratic(2),
        (level(MOMENTUM, 2, horizon=4), level(lstm(1), 2, objective=MeanLog()), level(Adam(0.01), 2)),
        windows=2,
    ),
    "3 lstm / momentum / adam": Case(
        quadratic(2),
        (level(lstm(2), 2, batch=2, horizon=4), level(SGD(0.01, momentum=0.5), 2), level(Adam(0.01), 2)),
        windows=2,
    ),
    "3 adam / sgd / momentum": Case(
        quadratic(2),
        (level(Adam(0.1), 2, batch=2, horizon=4), level(SGD(0.01), 3), level(MOMENTUM, 2, objective=Last())),
        batch=2,
    ),
    "2 first order over exact": Case(quadratic(), (level(Adam(0.1), 3), first(MOMENTUM, 3, batch=2))),
    "2 exact over first order": Case(quadratic(), (first(Adam(0.1), 3), level(MOMENTUM, 3, batch=2)), batch=2),
    "2 exact over clipped": Case(quadratic(), (level(Adam(0.1), 3, clip=0.5, batch=2), level(MOMENTUM, 3))),
    "2 exact over first order, lstm": Case(
        quadratic(2), (first(lstm(), 2, batch=2, objective=MeanLog()), level(Adam(0.01), 2, clip=0.1))
    ),
    "3 first over exact over first": Case(
        quadratic(2), (first(MOMENTUM, 2), level(Adam(0.1), 3), first(MOMENTUM, 2)), windows=2
    ),
    "3 exact over first over exact": Case(
        quadratic(2), (level(MOMENTUM, 2), first(Adam(0.1), 3), level(MOMENTUM, 2)), windows=2
    ),
    "3 exact over exact over first": Case(
        quadratic(2), (first(MOMENTUM, 2), level(Adam(0.1), 2), level(MOMENTUM, 3)), windows=2
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_towers(name):
    assert len(TOWERS[name].levels) == int(name[0])
    assert worst(TOWERS[name]) < TOLERANCE


# Differences and forward mode, where windows below begin anew, so that nothing is cut off at their edges.


def value(laid: Level, params: Tensor, state: LevelState) -> Tensor:
    return laid.objective.value(run(laid, params, state.carry, keep=False)[1].losses).mean(-1)


DIFFERENCES = {
    **{f"1 {name}": (level(optimizer, 4, batch=2, horizon=8),) for name, optimizer in OPTIMIZERS.items()},
    "1 torch adam": (level(TorchOptim("adam", lr=0.1, eps=1e-3), 4, batch=2),),
    "1 reads f": (level(Polyak(), 4, batch=2, objective=MeanLog()),),
    "1 start": (level(Anchored(), 3, batch=2, horizon=3),),
    "2 momentum / adam": (level(MOMENTUM, 3, batch=2, horizon=3), level(Adam(0.1, eps=1e-2), 3, objective=Last())),
    "2 lstm / momentum": (level(lstm(2), 2, horizon=2), level(SGD(0.001, momentum=0.5), 3)),
    "3 lstm / momentum / adam": (
        level(lstm(2), 2, batch=2, horizon=2),
        level(SGD(0.3, momentum=0.5), 2, horizon=2),
        level(Adam(0.3, eps=1e-2), 2),
    ),
    "2 start / adam": (level(LearnedInit(MOMENTUM), 2, batch=2, horizon=2), level(Adam(0.1, eps=1e-2), 3, horizon=3)),
    "2 start of a start": (level(Anchored(), 2, horizon=2), level(LearnedInit(Polyak()), 3, horizon=3)),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_differences(name):
    laid, params, state = second_window(quadratic(2), *DIFFERENCES[name])
    _, grad, _ = laid.value_and_grad(params, state)
    expected = slopes(lambda p: value(laid, p, repeated(state, len(p))).sum(-1), params)
    assert error(grad, expected) < 1e-7


DEEP = (
    level(LearnedInit(MOMENTUM), 2, batch=2, horizon=2),
    level(LearnedInit(Adam(0.1, eps=1e-2)), 2, horizon=4),
    level(Polyak(), 2, objective=MeanLog()),
)
JACOBIANS = {
    "1": DEEP[:1],
    "2": DEEP[:2],
    "3": DEEP,
    "first order": (first(Adam(0.1), 3),),
    "exact over first order": (first(MOMENTUM, 2, horizon=2), level(Adam(0.1, eps=1e-2), 3)),
}


@pytest.mark.parametrize("name", JACOBIANS)
def test_products_with_the_jacobian_of_a_gradient(name):
    """J^T v by differences; J is symmetric where every level is exact, and not where one is first order."""
    laid, params, state = second_window(quadratic(2), *JACOBIANS[name])
    directions = torch.eye(params.shape[-1], dtype=torch.float64)[:, None]
    with torch.no_grad():
        jacobian = torch.cat([hvp(laid, params, state, v) for v in directions])
    for row, v in zip(jacobian, directions):
        moved = slopes(lambda p: (laid.value_and_grad(p, repeated(state, len(p)))[1] * v).sum((-1, -2)), params)  # noqa: B023
        assert float((row - moved).abs().max()) < 1e-6 * float(jacobian.abs().max())
    assert (error(jacobian, jacobian.T) < 1e-10) == name.isdigit()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_can_be_differentiated_twice(name):
    """`gradcheck` and `gradgradcheck` of one update in everything that it reads."""
    rule = OPTIMIZERS[name].bind(Layout.of({"w": (2,), "b": (1,)}, torch.float64))
    key = keys.seed(4)
    params = rule.init(key)
    x, g = keys.normal(key, (2, 1, 3), torch.float64).unbind()
    _, state = rule.update(params, x, rule.init_state(params, x, key[None]), x[:, 0], g)
    tensors = leaves(state)
    floats = [leaf.detach() for leaf in tensors if leaf.is_floating_point()]

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


def maml(task: Task, offset: Tensor, raw: Tensor, key: Tensor, unroll: int) -> Tensor:
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
    task = quadratic()
    part = level(LearnedInit(SGD(lr=0.02)), unroll, batch=3, horizon=unroll, objective=Last(), stagger=False)
    laid, key = part.over(task), keys.seed(9)
    params = laid.init(key)
    state, trajectories = laid.init_state(params, key), keys.split(key, 3)
    for _ in range(3):
        value, grad, after = laid.value_and_grad(params, state)
        offset, raw = params[:-1].clone().requires_grad_(), params[-1].clone().requires_grad_()
        loss = maml(task, offset, raw, trajectories, unroll)
        expected = torch.cat([one.reshape(-1) for one in torch.autograd.grad(loss, (offset, raw))])
        assert error(value, loss.detach()) < 1e-12
        assert error(grad, expected) < TOLERANCE
        rough = first(part.optimizer, unroll, batch=3, horizon=unroll, objective=Last(), stagger=False).over(task)
        assert error(rough.value_and_grad(params, state)[1], expected) > 0.01
        params, state = params - 0.05 * grad, after
        trajectories = keys.fold_in(trajectories, -1)


# Copies that are not finite.


class Poisoned(Dying):
    """As `Dying`, but what kills a copy poisons its derivatives too."""

    name = "poisoned"

    def value_and_grad(self, params: Tensor, state: Doomed) -> tuple[Tensor, Tensor, Doomed]:
        f, g, problem_state = Quadratic.value_and_grad(self, params, state.problem_state)
        poison = torch.where(state.dies & (state.calls + 1 == self.fatal), torch.nan, 1.0).to(f.dtype)
        return f * poison, g * poison[..., None], Doomed(problem_state, state.calls + 1, state.dies)


class ExactDying(ExactTask):
    """The oracle's `Dying`: its copies never die."""

    def value(self, x: Tensor, state: Doomed) -> tuple[Tensor, Doomed]:
        return (state.problem_state.w @ x - state.problem_state.y).square().sum(), state._replace(calls=state.calls + 1)


@pytest.mark.parametrize("fatal", [2, 3])
@pytest.mark.parametrize("optimizer", [lstm(3), Adam(lr=0.1), MOMENTUM], ids=repr)
def test_a_skipped_copy_leaves_nothing_in_the_gradient(optimizer, fatal):
    """The mean over the living of six copies equals that of a level that never met the dead ones."""
    part = level(optimizer, 3, batch=6, nonfinite=Skip())
    task = Poisoned(dims=3, dtype="float64", fatal=fatal)
    laid, oracle = part.over(task), exactly(task, part)
    oracle.problem = ExactDying(task)
    key = keys.seed(2)
    params = laid.init(key)
    state, copies = laid.init_state(params, key), oracle.start(params, key)
    dead = state.carry.problem_state.dies
    assert 0 < dead.sum() < 6
    _, grad, after = laid.value_and_grad(params, state)
    living = [copy for copy, gone in zip(copies, dead) if not gone]
    _, expected, _ = oracle.ask(params.clone().requires_grad_(), living)
    assert error(grad, expected.detach() * len(living) / 6) < TOLERANCE
    assert torch.equal(after.carry.skipped, dead.long())
    over = level(SGD(0.001), 2).over(laid)
    top = over.init(key)
    assert over.value_and_grad(top, over.init_state(top, key))[1].isfinite().all()
