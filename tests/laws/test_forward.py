"""Forward mode against reverse mode through whole trajectories, central differences, and closed forms.

Relative, in float64.
"""

import math
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pytest
import torch
from exact_oracle import exactly
from exact_parts import (
    Anchored,
    BlackBox,
    Bowl,
    Cut,
    Detached,
    Numpy,
    Once,
    Polyak,
    Stored,
    digits,
    first,
    lstm,
    quadratic,
    stacked,
)
from exact_parts import level as exact
from live import LiveBytes
from oracle import compare, error
from test_exact import ExactDying, Poisoned
from torch import Tensor

from levels import (
    LSTM,
    PES,
    SGD,
    Adam,
    Discounted,
    Exact,
    FirstOrder,
    Forward,
    Last,
    Layout,
    LearnedInit,
    Level,
    Linear,
    Log,
    MeanLog,
    NoisyQuadratic,
    NonFiniteError,
    RMSprop,
    Skip,
    Stop,
    Sum,
    Task,
    keys,
    restart,
)
from levels.restart import started
from levels.tasks.noisy_quadratic import Moments
from levels.tree import leaves
from recursion import Tower

TOLERANCE = 1e-10
MOMENTUM = SGD(0.01, momentum=0.9)


def level(optimizer: object, unroll: int, **settings: object) -> Level:
    return exact(optimizer, unroll, **{"gradient": Forward(), **settings})


class Case(NamedTuple):
    """A tower; how far the parameters of its topmost level move between windows; copies of that level; windows."""

    task: Task
    levels: tuple[Level, ...]
    move: float = 0.0
    batch: int = 1
    windows: int = 4


def worst(case: Case) -> float:
    ours, theirs = stacked(case.task, case.levels), exactly(case.task, *case.levels)
    return compare(ours, theirs, case.windows, batch=case.batch, move=case.move)


OPTIMIZERS = {
    "sgd": SGD(lr=0.01),
    "nesterov": SGD(lr=Log(0.01, shared_over="coordinate"), momentum=0.8, weight_decay=0.1, nesterov=True),
    "momentum": MOMENTUM,
    "adam": Adam(lr=Log(0.1, shared_over="tensor"), eps=1e-3),
    "rmsprop": RMSprop(lr=0.02, decay=0.9),
    "lstm": lstm(1),
}
OBJECTIVES = [Sum(), Last(), MeanLog(), Discounted(0.7)]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_depth_1(optimizer, objective):
    """Two lives of two windows, staggered over three copies, with two sets of parameters side by side."""
    part = level(OPTIMIZERS[optimizer], 3, objective=objective, horizon=6, batch=3)
    assert worst(Case(quadratic(), (part,), batch=2)) < TOLERANCE


TOWERS = {
    "endless": Case(quadratic(), (level(MOMENTUM, 3, batch=2),), windows=8),
    "moved": Case(quadratic(), (level(Adam(0.1, eps=1e-3), 2, batch=2, horizon=6),), move=0.1, windows=5),
    "mlp, momentum": Case(digits(), (level(SGD(lr=Log(0.5, shared_over="tensor"), momentum=0.5), 3, batch=2),)),
    "mlp, adam": Case(digits(), (level(Adam(0.05, eps=1e-4), 3, batch=2, horizon=9, objective=MeanLog()),)),
    "over exact": Case(quadratic(), (exact(Adam(0.1), 2, batch=2), level(MOMENTUM, 2, batch=2)), batch=2),
    "over first order": Case(quadratic(2), (first(lstm(1), 2), level(Adam(0.01), 2)), move=0.1),
    "over clipped": Case(quadratic(), (first(Adam(0.1), 2, clip=0.5), level(MOMENTUM, 2, horizon=4)), move=0.1),
    "under first order": Case(
        quadratic(), (level(MOMENTUM, 2, batch=2, horizon=6), first(Adam(0.01), 3, batch=2)), move=0.1, windows=3
    ),
    "first, forward, first": Case(
        quadratic(2), (first(lstm(1), 2), level(MOMENTUM, 2, horizon=6), first(Adam(0.1), 2)), windows=3
    ),
}


@pytest.mark.parametrize("name", TOWERS)
def test_towers(name):
    assert worst(TOWERS[name]) < TOLERANCE


def test_exact_gradients_are_the_same_in_a_first_window_and_cut_off_in_later_ones():
    settings = {"optimizer": MOMENTUM, "unroll": 3, "horizon": None, "batch": 2}
    parts = [Level(gradient=Forward(), **settings), Level(gradient=Exact(), **settings)]
    laid = [part.over(quadratic()) for part in parts]
    oracles = [exactly(quadratic(), parts[0]), exactly(quadratic(), parts[1])]
    params = laid[0].init(keys.seed(3))
    states = [one.init_state(params, keys.seed(3)) for one in laid]
    copies = [oracle.start(params, keys.seed(3)) for oracle in oracles]
    for window in range(3):
        grads = []
        for i in range(2):
            _, grad, states[i] = laid[i].value_and_grad(params, states[i])
            _, expected, copies[i] = oracles[i].ask(params.clone().requires_grad_(), copies[i])
            assert error(grad, expected.detach()) < TOLERANCE
            grads.append(grad)
        assert (error(*grads) < TOLERANCE) == (window == 0)
        assert (error(*grads) > 0.01) == (window > 0)


# Central differences of whole runs; learned starts, states that begin with parameters, losses that are read.


def run(laid: Any, params: Tensor, key: Tensor, windows: int) -> Tensor:
    """Meta-losses ``[windows]`` of a run at fixed parameters."""
    carry, values = started(laid, params, key), []
    for _ in range(windows):
        carry, window = restart.run(laid, params, carry, keep=False)
        values.append(laid.objective.value(window.losses).mean(-1))
    return torch.stack(values)


RUNS = {
    "adam": (level(Adam(0.1, eps=1e-2), 2, batch=3, horizon=6),),
    "reads f": (level(Polyak(), 2, batch=2, objective=MeanLog()),),
    "start": (level(Anchored(), 2, batch=2, horizon=4),),
    "start, endless": (level(LearnedInit(MOMENTUM), 2, batch=2),),
    "over exact": (exact(MOMENTUM, 3, batch=2, horizon=3), level(Adam(0.05, eps=1e-2), 2, batch=2, horizon=4)),
    "start over exact": (
        exact(LearnedInit(SGD(0.02)), 2, horizon=2),
        level(LearnedInit(Polyak()), 2, batch=2, horizon=4),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_differences(name):
    laid, key, windows, step = stacked(quadratic(2), RUNS[name]), keys.seed(11), 4, 1e-5
    params = laid.init(key)
    state, grads = laid.init_state(params, key), []
    for _ in range(windows):
        _, grad, state = laid.value_and_grad(params, state)
        grads.append(grad)
    slopes = []
    for direction in step * torch.eye(len(params), dtype=torch.float64):
        above, problem_state = (run(laid, params + sign * direction, key, windows) for sign in (1, -1))
        slopes.append((above - problem_state) / (2 * step))
    assert error(torch.stack(grads), torch.stack(slopes, -1)) < 1e-7


# Long runs.


@dataclass(frozen=True, kw_only=True, repr=False)
class Wandering(Task):
    """1/2 sum_i h_i (x_i - c_t)^2 with c_t = 0.3 cos(t), t counting from 0: a noisy quadratic whose noise is known."""

    name: ClassVar[str] = "wandering"
    dtype: Literal["float32", "float64"] = "float64"

    @property
    def layout(self) -> Layout:
        return Layout.of({"x": (3,)}, torch.float64)

    @property
    def curvature(self) -> Tensor:
        return torch.tensor([1.0, 0.1, 0.001], dtype=torch.float64)

    def init(self, key: Tensor) -> Tensor:
        return torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64).repeat(*key.shape, 1)

    def init_state(self, params: Tensor, key: Tensor) -> Tensor:
        return torch.zeros(key.shape, dtype=torch.float64)

    def value_and_grad(self, params: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        off = params - 0.3 * torch.cos(state)[..., None]
        grad = self.curvature * off
        return (grad * off).sum(-1) / 2, grad, state + 1


def test_memory_does_not_grow():
    laid = level(MOMENTUM, 3, batch=2).over(Wandering())
    params, held = laid.init(keys.seed(0)), []
    with LiveBytes() as live:
        state = laid.init_state(params, keys.seed(0))
        for _ in range(20):
            live.reset_peak()
            _, _, state = laid.value_and_grad(params, state)
            held.append((live.bytes, live.peak))
    assert len(set(held[2:])) == 1


@pytest.mark.parametrize("steps", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_long_runs(steps):
    """The last window's gradient in the step size, by the closed form of x_t.

    x_t = r^t x_0 + lr h sum_(s<t) r^(t-1-s) c_s with r = 1 - lr h, so dx_t / dlr is a sum over all steps.
    """
    rate, unroll = 0.1, 20
    laid = level(SGD(lr=Linear(rate)), unroll).over(Wandering())
    params = laid.init(keys.seed(0))
    state = laid.init_state(params, keys.seed(0))
    for _ in range(steps // unroll):
        _, grad, state = laid.value_and_grad(params, state)
    h, x0 = Wandering().curvature.numpy(), np.array([1.0, -2.0, 3.0])
    r, expected = 1 - rate * h, 0.0
    centre = 0.3 * np.cos(np.arange(steps + 1.0))[:, None]
    for t in range(steps - unroll + 1, steps + 1):
        back = np.arange(t - 1, -1, -1.0)[:, None]  # t - 1 - s
        x = r**t * x0 + rate * h * (r**back * centre[:t]).sum(0)
        dx = -h * t * r ** (t - 1) * x0 + h * ((r**back - rate * h * back * r ** (back - 1)) * centre[:t]).sum(0)
        expected += (h * (x - centre[t]) * dx).sum()
    assert error(grad, torch.tensor([expected])) < 1e-8


def expected_slope(task: NoisyQuadratic, rate: float, unroll: int, steps: int) -> float:
    """Derivative in the step size of the expected losses of the last window, by the moments' recursion."""

    def total(rate: Tensor) -> Tensor:
        ones = torch.ones(task.dims, dtype=torch.float64)
        moments, losses = Moments(0 * ones, ones), []
        for _ in range(steps):
            moments = task.expected_sgd(moments, rate)
            losses.append(task.expected_loss(moments))
        return sum(losses[-unroll:], torch.zeros((), dtype=torch.float64))

    return float(torch.func.grad(total)(torch.tensor(rate, dtype=torch.float64)))


def test_noisy_quadratics_slope_is_the_closed_form_in_the_mean():
    task, rate, unroll, steps = NoisyQuadratic(dims=2, low=0.01, dtype="float64"), 0.3, 10, 300
    laid = level(SGD(lr=Linear(rate)), unroll).over(task)
    key = keys.split(keys.seed(1), 4000)
    params = laid.init(key)
    state = laid.init_state(params, key)
    for _ in range(steps // unroll):
        _, grad, state = laid.value_and_grad(params, state)
    spread = grad.std() / math.sqrt(len(key))
    expected = expected_slope(task, rate, unroll, steps)
    assert spread < abs(expected) / 10
    assert abs(grad.mean() - expected) < 3 * spread


# Copies that are not finite.


@pytest.mark.parametrize("optimizer", [Adam(lr=0.1), MOMENTUM], ids=repr)
def test_a_skipped_copy_leaves_nothing_in_the_gradient(optimizer):
    part = level(optimizer, 3, batch=6, nonfinite=Skip())
    task = Poisoned(dims=3, dtype="float64", fatal=5)  # in the second window
    laid, oracle, key = part.over(task), exactly(task, part), keys.seed(2)
    oracle.problem = ExactDying(task)
    params = laid.init(key)
    state, copies = laid.init_state(params, key), oracle.start(params, key)
    dead = state.carry.problem_state.dies
    assert 0 < dead.sum() < 6
    living = [copy for copy, gone in zip(copies, dead) if not gone]
    _, _, state = laid.value_and_grad(params, state)
    _, _, living = oracle.ask(params, living)
    _, grad, after = laid.value_and_grad(params, state)
    _, expected, _ = oracle.ask(params, living)
    assert error(grad, expected * len(living) / 6) < TOLERANCE
    assert torch.equal(after.carry.skipped, dead.long())
    assert all(torch.isfinite(leaf).all() for leaf in leaves(after.memory))


def test_sensitivities_that_overflow_restart_their_copy():
    lenient, strict = (level(MOMENTUM, 2, batch=2, nonfinite=how).over(quadratic()) for how in (Skip(), Stop()))
    params = lenient.init(keys.seed(0))
    _, _, state = lenient.value_and_grad(params, lenient.init_state(params, keys.seed(0)))
    state.memory.x[0, 1, 2] = math.inf
    with pytest.raises(NonFiniteError, match="gradient of the meta-loss is not finite"):
        strict.value_and_grad(params, state)
    _, grad, state = lenient.value_and_grad(params, state)
    assert grad.tolist() == [0.0, 0.0]
    assert state.carry.age.tolist() == [-1, 4]
    _, grad, state = lenient.value_and_grad(params, state)
    assert grad.isfinite().all()
    assert state.carry.age.tolist() == [2, 6]


# What cannot work is refused when the tower is built.

PLAIN = SGD(0.01)
FIRST_OR_PES = "use gradient=first-order or gradient=pes"
REFUSED = {
    "too many parameters": ((level(LSTM(hidden=20), 2),), rf"at most 64, and lstm.* has \d\d+; {FIRST_OR_PES}"),
    "a lower limit": ((level(MOMENTUM, 2, gradient=Forward(limit=1)),), f"at most 1, and sgd.* has 2; {FIRST_OR_PES}"),
    "black box": ((level(BlackBox(0.01), 2),), "blackbox.* cannot be differentiated by forward; .* by gradient=pes"),
    "leaves torch": ((level(Numpy(0.01), 2),), "numpy.* cannot be differentiated .* gradient=pes"),
    "over a black box": ((first(BlackBox(0.01), 2), level(PLAIN, 2)), "blackbox.* cannot be differentiated"),
    "over pes": ((level(PLAIN, 2, horizon=4, gradient=PES()), level(PLAIN, 2)), f"sgd.* by forward; {FIRST_OR_PES}"),
    "over forward": ((level(PLAIN, 2), level(PLAIN, 2)), f"the level below, sgd.* by forward; {FIRST_OR_PES}"),
    "exact over forward": ((level(PLAIN, 2), exact(PLAIN, 2)), f"the level below, sgd.* by exact; {FIRST_OR_PES}"),
}
TASKS = {
    Once: f"once has a gradient that cannot be differentiated by forward; {FIRST_OR_PES}",
    Detached: f"detached cuts derivatives.*{FIRST_OR_PES}",
    Stored: f"stored cuts derivatives.*{FIRST_OR_PES}",
    Cut: f"cut cuts derivatives.*{FIRST_OR_PES}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_levels(name):
    levels, match = REFUSED[name]
    with pytest.raises(ValueError, match=f"(?i){match}"):
        Tower(quadratic(), *levels, Level(optimizer=PLAIN))


@pytest.mark.parametrize("task", TASKS)
def test_refused_tasks(task):
    with pytest.raises(ValueError, match=f"(?i){TASKS[task]}"):
        Tower(task(), level(PLAIN, 2), Level(optimizer=PLAIN))


@pytest.mark.parametrize("limit", [0, 1.5, True, "many"])
def test_a_limit_is_a_whole_number(limit):
    with pytest.raises(ValueError, match=re.escape("limit must be a whole number of at least 1")):
        Forward(limit=limit)


def test_towers_that_work_are_not_refused():
    for task, *levels in (
        (Bowl(), level(LearnedInit(PLAIN), 2)),
        (quadratic(), level(LSTM(hidden=2, layers=1), 2)),
        (quadratic(), first(PLAIN, 2, clip=0.1), level(PLAIN, 2), level(PLAIN, 2, gradient=FirstOrder())),
        (quadratic(), level(PLAIN, 2), level(PLAIN, 2, horizon=4, gradient=PES())),
    ):
        assert Tower(task, *levels, Level(optimizer=PLAIN)).top.optimizer == PLAIN
