"""Meta-losses of data that the steps below never see; relative, in float64."""

import math
import re
from typing import Any

import pytest
import torch
from oracle import equal, error
from parts import begun, built, worst
from torch import nn
from torch.nn import functional

from levels import SGD, Augmented, DigitsMLP, HeldOut, Level, Mixture, ModuleTask, Quadratic, Rosenbrock, keys
from levels.restart import run
from levels.testing import check_problem
from levels.tree import map_leaves
from recursion.notation import parse

TOLERANCE = 1e-10
BARE = DigitsMLP(hidden=(3,), minibatch=8, dtype="float64")
TASK = HeldOut(DigitsMLP(hidden=(3,), minibatch=8), dtype="float64")
DECAY = "sgd(0.5, momentum=0.5)"
GRADIENTS = ["first-order", "exact", "forward"]

# What the steps below do is what they do on the bare task.


@pytest.mark.parametrize("gradient", [*GRADIENTS, "pes(sigma=0.1)"])
def test_trajectories_are_those_of_the_bare_task(gradient):
    """Bit for bit, at fixed parameters, with restarts; what is counted is something else."""
    text = f"{DECAY}@2[ahead=3, gradient={gradient}, horizon=6, batch=2]"
    ours, bare = built(f"{TASK}: {text}"), built(f"{BARE}: {text}")
    (params, state), (_, other) = begun(ours, 1), begun(bare, 1)
    for _ in range(4):
        value, grad, state = ours.value_and_grad(params, state)
        loss, slope, other = bare.value_and_grad(params, other)
        training = state.carry._replace(problem_state=state.carry.problem_state.training)
        assert equal(state._replace(carry=training), other)
        assert not torch.equal(value, loss)
        assert not torch.equal(grad, slope)


def test_a_tower_of_one_level_never_looks_at_other_data():
    towers = [parse(f"{task}: adam(0.01)@3[batch=2]") for task in (TASK, BARE)]
    runs = [[(report, state.carry.x.tolist()) for state, report in tower.run(tower.init(0), 3)] for tower in towers]
    assert runs[0] == runs[1]
    assert towers[0].costs == towers[1].costs == [3]
    state = towers[0].step(towers[0].init(0))[0]
    assert (state.carry.problem_state.counted.step == 0).all()


# The oracle: naive autograd through training steps, of validation losses.

RATE = "sgd(0.3)@2[horizon=4, gradient="
LIFE = "horizon=4, batch=2"
TOWERS = [
    *[f"{DECAY}@2[{LIFE}, gradient={g}]" for g in GRADIENTS],
    *[f"{DECAY}@2[ahead=4, horizon=4, gradient={g}]" for g in GRADIENTS],
    *[f"lstm(hidden=1, layers=1)@2[horizon=6, objective=mean-log, gradient={g}]" for g in GRADIENTS[:2]],
    f"{DECAY}@2[gradient=exact, horizon=4] / {RATE}exact]",
    f"{DECAY}@2[horizon=4] / {RATE}exact]",
    f"{DECAY}@2[gradient=forward, horizon=4] / {RATE}first-order]",
]


@pytest.mark.parametrize("levels", TOWERS)
def test_naive_autograd(levels):
    assert worst(f"{TASK}: {levels}", 3) < TOLERANCE


@pytest.mark.parametrize("optimizer", [DECAY, "parts.Polyak"])
def test_central_differences_of_a_windows_meta_loss(optimizer):
    """From a carry as it stands; also where updates read the loss, which is that of training."""
    level, step = built(f"{TASK}: {optimizer}@4[gradient=exact, batch=2]"), 1e-4
    params, state = begun(level, 5)
    _, _, state = level.value_and_grad(params, state)
    _, grad, _ = level.value_and_grad(params, state)
    slopes = []
    for direction in step * torch.eye(len(params), dtype=torch.float64):
        ends = [run(level, params + sign * direction, state.carry)[1].losses for sign in (1, -1)]
        slopes.append((ends[0] - ends[1]).sum(0).mean() / (2 * step))
    assert error(grad, torch.stack(slopes)) < 1e-6


@pytest.mark.parametrize("optimizer", [DECAY, "parts.Polyak"])
@pytest.mark.parametrize("ahead", ["none", 5])
def test_forward_mode_is_exact_where_a_trajectory_is_one_window(ahead, optimizer):
    text = f"{TASK}: {optimizer}@3[ahead={ahead}, horizon=3, batch=2, gradient="
    levels = [built(f"{text}{gradient}]") for gradient in ("exact", "forward")]
    params, states = begun(levels[0])[0], [begun(level)[1] for level in levels]
    for _ in range(3):
        one, other = (level.value_and_grad(params, state) for level, state in zip(levels, states))
        states = [one[2], other[2]]
        assert max(error(one[0], other[0]), error(one[1], other[1])) < TOLERANCE
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
    level = built(f"{TASK}: {DECAY}@3[batch=2]")
    params, state = begun(level, 3)
    carry = state.carry
    inputs, labels, _ = BARE.on("validation").data()
    own = BARE.on("validation").own(keys.split(carry.key, 2)[:, 1])
    for number in range(2):
        after, window = run(level, params, carry)
        for t, step in enumerate(window.steps):
            for copy in range(2):
                rows = keys.integers(keys.fold_in(own[copy], 3 * number + t), (8,), len(labels))
                one, bias, two, other = BARE.layout.unravel(step.x[copy]).values()
                logits = torch.sigmoid(inputs[rows] @ one + bias) @ two + other
                loss = functional.cross_entropy(logits, labels[rows])
                assert float(window.losses[t, copy]) == pytest.approx(float(loss), rel=1e-12)
        carry = after


def test_a_model_that_overfits_shows_it():
    """It learns 12 coins by heart: its losses vanish, those that count rise above guessing, and the step size feels it.

    Counted losses fall where steps shrink; training losses fall where they grow.
    """
    part = Level(optimizer=SGD(lr=2.0), unroll=20, horizon=None, batch=2)
    level, bare = part.over(HeldOut(coins(), dtype="float64")), part.over(coins(dtype="float64"))
    (params, state), values = begun(level), []
    for _ in range(4):
        training = state._replace(carry=state.carry._replace(problem_state=state.carry.problem_state.training))
        value, grad, state = level.value_and_grad(params, state)
        values.append(float(value) / 20)
    loss, slope, _ = bare.value_and_grad(params, training)
    assert float(loss) / 20 < 0.02
    assert values[-1] > values[0] > math.log(2)
    assert float(grad) > 0 > float(slope)


def test_the_optimizer_reads_training_losses_and_the_report_says_them():
    tower = parse(f"{TASK}: {DECAY}@2[horizon=none, batch=3] / adam")
    for state, report in tower.run(tower.init(0), 3):  # noqa: B007
        pass
    bottom = tower.carries(state)[0]
    assert report.losses == [float(bottom.f.mean()), float(state.carry.f.mean())]
    assert torch.equal(bottom.problem_state.training.key, BARE.own(keys.split(bottom.key, 2)[..., 1]))


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
    parse("held-out(logistic, dtype=float64): sgd").task,
    parse("held-out(noisy-quadratic(4), dtype=float64): sgd").task,
    HeldOut(coins(test=(NOISE[:50], COINS[:50])), dtype="float64"),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.task.name}, {task.dtype}")
def test_it_conforms_and_so_does_what_it_counts(task):
    """The suite asks `value_and_grad`, which is the bare task's; so the outer value is held against that too."""
    check_problem(task)
    key = keys.split(keys.seed(2), 6).reshape(2, 3)
    params = task.init(key)
    state = task.init_state(params, key)
    f, g, state = task.value_and_grad(params, state)
    before = map_leaves(torch.clone, state)
    value, grad, after = task.outer_value_and_grad(params, state, f, g)
    bare = task.on("validation")
    assert equal((value, grad, after.counted), bare.value_and_grad(params, bare.init_state(params, key)))
    assert equal(after.training, state.training)
    assert equal(state, before)
    assert not torch.equal(value, f)
    assert task.traits == task.task.traits._replace(outer_evals=1, scratch_evals=2)


# What is refused.

NO_DATA = "has no data that could be held out; its splits are other problems; use a task on data, as digits-mlp"
SET = "held-out: set split, dtype and device on the held-out"
OTHER = "counts other data than it trains on"
REFUSED = [
    *[
        (lambda task=task: HeldOut(task), re.escape(f"held-out: {task} {NO_DATA}") + "$")
        for task in (Quadratic(), Rosenbrock(), Mixture((Quadratic(),)), Augmented(Quadratic()))
    ],
    (lambda: HeldOut(coins(validation=None)), "module: there is no validation data; pass validation="),
    (lambda: HeldOut(TASK), f"{SET}, not"),
    (lambda: HeldOut(HeldOut(DigitsMLP())), f"held-out: held-out.* {OTHER}"),
    (lambda: HeldOut(DigitsMLP(split="test")), SET),
    (lambda: HeldOut(DigitsMLP(), split="test"), "held-out: .*it is the bare task; use digits-mlp"),
    (lambda: HeldOut("digits"), "held-out: task must be a Task, got digits"),
    (lambda: Augmented(HeldOut(DigitsMLP())), f"augmented: held-out.* {OTHER}"),
    (lambda: Mixture((DigitsMLP(), HeldOut(DigitsMLP()))), f"mixture: held-out.* {OTHER}"),
    (
        lambda: parse("held-out(quadratic): lstm@20 / adam"),
        r"task \(held-out.*: held-out: quadratic has no data that could",
    ),
]


@pytest.mark.parametrize(("task", "message"), REFUSED, ids=[message[:60] for _, message in REFUSED])
def test_what_is_refused(task, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        task()
    assert "\n" not in str(caught.value)
