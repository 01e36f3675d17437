"""Meta-losses of data that the steps below never see; relative, in float64."""

import math
import re
from typing import Any

import pytest
import torch
from exact_oracle import ExactLevel, ExactTask, Whole, exactly
from exact_parts import Polyak, lstm, stacked
from oracle import NaiveTask, compare, equal, error
from test_ahead import level
from torch import Tensor, nn
from torch.nn import functional

from levels import (
    PES,
    SGD,
    Adam,
    Augmented,
    DigitsMLP,
    Exact,
    FirstOrder,
    Forward,
    HeldOut,
    Level,
    Logistic,
    MeanLog,
    Mixture,
    ModuleTask,
    NoisyQuadratic,
    Quadratic,
    Rosenbrock,
    Task,
    keys,
)
from levels.restart import run
from levels.tasks.held_out import HeldOutState
from levels.testing import check_problem
from levels.tree import map_leaves
from recursion import Tower
from recursion.notation import parse

TOLERANCE = 1e-10
BARE = DigitsMLP(hidden=(3,), minibatch=8, dtype="float64")
TASK = HeldOut(DigitsMLP(hidden=(3,), minibatch=8), dtype="float64")
DECAY = SGD(lr=0.5, momentum=0.5)


# What the steps below do is what they do on the bare task.


@pytest.mark.parametrize("gradient", [FirstOrder(), Exact(), Forward(), PES(sigma=0.1)], ids=str)
def test_trajectories_are_those_of_the_bare_task(gradient):
    """Bit for bit, at fixed parameters, with restarts; what is counted is something else."""
    part = level(DECAY, 2, 3, gradient, batch=2)
    ours, bare = part.over(TASK), part.over(BARE)
    key = keys.seed(1)
    params = ours.init(key)
    state, other = ours.init_state(params, key), bare.init_state(params, key)
    for _ in range(4):
        value, grad, state = ours.value_and_grad(params, state)
        loss, slope, other = bare.value_and_grad(params, other)
        assert equal(
            state._replace(carry=state.carry._replace(problem_state=state.carry.problem_state.training)), other
        )
        assert not torch.equal(value, loss)
        assert not torch.equal(grad, slope)


def test_a_tower_of_one_level_never_looks_at_other_data():
    towers = [Tower(task, Level(optimizer=Adam(0.01), unroll=3, batch=2)) for task in (TASK, BARE)]
    runs = [[], []]
    for tower, reports in zip(towers, runs):
        for state, report in tower.run(tower.init(0), 3):
            reports.append((report, state.carry.x.tolist()))
    assert runs[0] == runs[1]
    assert towers[0].costs == towers[1].costs == [3]
    state = towers[0].step(towers[0].init(0))[0]
    assert (state.carry.problem_state.counted.step == 0).all()


# The oracle: naive autograd through training steps, of validation losses.


class HeldTask(ExactTask):
    """Training data below; `counted` is the same on validation data."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.counted = NaiveTask(task.on("validation"))

    def start(self, x: Tensor, key: Tensor) -> HeldOutState:  # an instance attribute above, so set again below
        return HeldOutState(self.task.init_state(x, key), self.counted.task.init_state(x, key))

    def value(self, x: Tensor, state: HeldOutState) -> tuple[Tensor, HeldOutState]:
        f, training = super().value(x, state.training)
        return f, state._replace(training=training)


class Counting:
    """For a level whose losses are those of validation data; their gradients stay in the graph."""

    problem_state: HeldTask

    def counted(self, x: Tensor, f: Tensor, g: Tensor, state: HeldOutState) -> tuple[Tensor, Tensor, HeldOutState]:
        loss, after = self.problem.counted.value(x, state.counted)
        (slope,) = torch.autograd.grad(loss, x, create_graph=True)
        return loss, slope, state._replace(counted=after)


class HeldLevel(Counting, ExactLevel):
    """First order or exact."""


class HeldWhole(Counting, Whole):
    """Forward."""


def naive(first: Level, *others: Level) -> Any:
    task = HeldTask(BARE)
    del task.start
    return exactly((HeldWhole if isinstance(first.gradient, Forward) else HeldLevel)(first, task), *others)


RATE = SGD(lr=0.3)
TOWERS = {
    **{f"{g}": (level(DECAY, 2, None, g, horizon=4, batch=2),) for g in (FirstOrder(), Exact(), Forward())},
    **{f"ahead, {g}": (level(DECAY, 2, 4, g, horizon=4, batch=1),) for g in (FirstOrder(), Exact(), Forward())},
    **{f"lstm, {g}": (level(lstm(1), 2, None, g, batch=1, objective=MeanLog()),) for g in (FirstOrder(), Exact())},
    **{
        f"{h} over {g}": (level(DECAY, 2, None, g, batch=1, horizon=4), level(RATE, 2, None, h, batch=1, horizon=4))
        for g, h in ((Exact(), Exact()), (FirstOrder(), Exact()), (Forward(), FirstOrder()))
    },
}


@pytest.mark.parametrize("name", TOWERS)
def test_naive_autograd(name):
    assert compare(stacked(TASK, TOWERS[name]), naive(*TOWERS[name]), 3) < TOLERANCE


@pytest.mark.parametrize("optimizer", [DECAY, Polyak()], ids=str)
def test_central_differences_of_a_windows_meta_loss(optimizer):
    """From a carry as it stands; also where updates read the loss, which is that of training."""
    laid, key, step = level(optimizer, 4, None, Exact(), horizon=None, batch=2).over(TASK), keys.seed(5), 1e-4
    params = laid.init(key)
    _, _, state = laid.value_and_grad(params, laid.init_state(params, key))
    _, grad, _ = laid.value_and_grad(params, state)
    slopes = []
    for direction in step * torch.eye(len(params), dtype=torch.float64):
        ends = [run(laid, params + sign * direction, state.carry)[1].losses for sign in (1, -1)]
        slopes.append((ends[0] - ends[1]).sum(0).mean() / (2 * step))
    assert error(grad, torch.stack(slopes)) < 1e-6


@pytest.mark.parametrize("optimizer", [DECAY, Polyak()], ids=str)
@pytest.mark.parametrize("lookahead", [None, 5])
def test_forward_mode_is_exact_where_a_trajectory_is_one_window(lookahead, optimizer):
    parts = [level(optimizer, 3, lookahead, gradient, horizon=3, batch=2) for gradient in (Exact(), Forward())]
    exact, forward = (part.over(TASK) for part in parts)
    params = exact.init(keys.seed(0))
    states = [laid.init_state(params, keys.seed(0)) for laid in (exact, forward)]
    for _ in range(3):
        value, grad, states[0] = exact.value_and_grad(params, states[0])
        other_value, other_grad, states[1] = forward.value_and_grad(params, states[1])
        assert max(error(value, other_value), error(grad, other_grad)) < TOLERANCE
        assert equal(states[0].carry, states[1].carry)


# What is counted, by hand.

GENERATOR = torch.Generator().manual_seed(0)
NOISE = torch.randn(200, 30, generator=GENERATOR, dtype=torch.float64)
COINS = torch.randint(2, (200,), generator=GENERATOR)


def coins(**splits: Any) -> ModuleTask:
    """Labels that nothing explains, and 12 of them to learn by heart from 30 numbers each."""
    return ModuleTask(
        make=lambda: nn.Linear(30, 2),
        loss_function=functional.cross_entropy,
        **{"train": (NOISE[:12], COINS[:12]), "validation": (NOISE[12:], COINS[12:]), "minibatch": 12, **splits},
    )


def test_the_losses_that_count_are_those_of_validation_data():
    """By hand: the images that validation keys draw, and cross entropy; counted from the first update on."""
    laid = level(DECAY, 3, None, FirstOrder(), batch=2, horizon=None).over(TASK)
    key = keys.seed(3)
    params = laid.init(key)
    carry = laid.init_state(params, key).carry
    inputs, labels, _ = BARE.on("validation").data()
    own = BARE.on("validation").own(keys.split(carry.key, 2)[:, 1])
    for number in range(2):
        after, window = run(laid, params, carry)
        xs = [step.x for step in window.steps]
        for t, x in enumerate(xs):
            for copy in range(2):
                rows = keys.integers(keys.fold_in(own[copy], 3 * number + t), (8,), len(labels))
                views = BARE.layout.unravel(x[copy])
                one, two = list(views.values())[:2], list(views.values())[2:]
                hidden = torch.sigmoid(inputs[rows] @ one[0] + one[1])
                loss = functional.cross_entropy(hidden @ two[0] + two[1], labels[rows])
                assert float(window.losses[t, copy]) == pytest.approx(float(loss), rel=1e-12)
        carry = after


def test_a_model_that_overfits_shows_it():
    """It learns 12 coins by heart: its losses vanish, those that count rise above guessing, and the step size feels it.

    Counted losses fall where steps shrink; training losses fall where they grow.
    """
    part = Level(optimizer=SGD(lr=2.0), unroll=20, horizon=None, batch=2)
    laid, bare = part.over(HeldOut(coins(), dtype="float64")), part.over(coins(dtype="float64"))
    params = laid.init(keys.seed(0))
    state, values = laid.init_state(params, keys.seed(0)), []
    for _ in range(4):
        training = state._replace(carry=state.carry._replace(problem_state=state.carry.problem_state.training))
        value, grad, state = laid.value_and_grad(params, state)
        values.append(float(value) / 20)
    loss, slope, _ = bare.value_and_grad(params, training)
    assert float(loss) / 20 < 0.02
    assert values[-1] > values[0] > math.log(2)
    assert float(grad) > 0 > float(slope)


def test_the_optimizer_reads_training_losses_and_the_report_says_them():
    tower = Tower(TASK, level(DECAY, 2, None, FirstOrder(), horizon=None), Level(optimizer=Adam(), batch=1))
    state = tower.init(0)
    for _ in range(3):
        state, report = tower.step(state)
    assert report.losses[0] == float(tower.carries(state)[0].f.mean())
    assert report.losses[1] == float(state.carry.f.mean())
    own = BARE.own(keys.split(tower.carries(state)[0].key, 2)[..., 1])
    assert torch.equal(tower.carries(state)[0].problem_state.training.key, own)


# Splits and dtypes.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_on_another_split_it_is_the_bare_task(split, dtype):
    task = HeldOut(DigitsMLP(hidden=(3,)), dtype=dtype)
    assert task.on(split) == DigitsMLP(hidden=(3,), split=split, dtype=dtype)
    assert task.on("train") is task
    assert task.on(split).traits.outer_evals == 0
    for variant in task.variants().values():
        assert variant.dtype == dtype
    assert [*task.variants().values()] == [*DigitsMLP(hidden=(3,), dtype=dtype).variants().values()]


TASKS = [
    TASK,
    HeldOut(Logistic(), dtype="float64"),
    HeldOut(NoisyQuadratic(dims=4), dtype="float64"),
    HeldOut(coins(test=(NOISE[:50], COINS[:50])), dtype="float64"),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.task.name}, {task.dtype}")
def test_it_conforms_and_so_does_what_it_counts(task):
    """The suite asks `value_and_grad`, which is the bare task's; so what `judge` answers is held against that too."""
    check_problem(task)
    key = keys.split(keys.seed(2), 6).reshape(2, 3)
    params = task.init(key)
    state = task.init_state(params, key)
    f, g, state = task.value_and_grad(params, state)
    before = map_leaves(Tensor.clone, state)
    value, grad, after = task.outer_value_and_grad(params, state, f, g)
    bare = task.on("validation")
    expected = bare.value_and_grad(params, bare.init_state(params, key))
    assert equal((value, grad, after.counted), expected)
    assert equal(after.training, state.training)
    assert equal(state, before)
    assert not torch.equal(value, f)
    assert task.traits == task.task.traits._replace(outer_evals=1, scratch_evals=2)


# What is refused.


@pytest.mark.parametrize("task", [Quadratic(), Rosenbrock(), Mixture((Quadratic(),)), Augmented(Quadratic())], ids=str)
def test_tasks_without_data_are_refused(task):
    expected = f"held-out: {task} has no data that could be held out; its splits are other problems; use a task on data"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}, as digits-mlp$"):
        HeldOut(task)


def test_what_else_is_refused():
    for task, kind, expected in (
        (lambda: HeldOut(coins(validation=None)), ValueError, "module: there is no validation data; pass validation="),
        (
            lambda: HeldOut(TASK),
            ValueError,
            "held-out: set split, dtype and device on the held-out, not",
        ),
        (lambda: HeldOut(HeldOut(DigitsMLP())), ValueError, "held-out: held-out.* counts other data than it trains on"),
        (lambda: HeldOut(DigitsMLP(split="test")), ValueError, "held-out: set split, dtype and device on the held-out"),
        (lambda: HeldOut(DigitsMLP(), split="test"), ValueError, "held-out: .*it is the bare task; use digits-mlp"),
        (lambda: HeldOut("digits"), ValueError, "held-out: task must be a Task, got digits"),
        (
            lambda: Augmented(HeldOut(DigitsMLP())),
            ValueError,
            "augmented: held-out.* counts other data than it trains on",
        ),
        (
            lambda: Mixture((DigitsMLP(), HeldOut(DigitsMLP()))),
            ValueError,
            "mixture: held-out.* counts other data than it trains on",
        ),
    ):
        with pytest.raises(kind, match=f"^{expected}") as caught:
            task()
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="held-out: quadratic has no data that could"):
        parse("held-out(quadratic): lstm@20 / adam")
