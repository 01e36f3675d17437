"""Forward mode against reverse mode through whole trajectories, central differences, and closed forms.

Relative, in float64.
"""

import math
import re
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from live import LiveBytes
from oracle import error, naive
from parts import DIGITS, LSTM, MOMENTUM, OBJECTIVES, QUADRATIC, RULES, SMALL, begun, built, levels_of, worst
from torch import Tensor

from levels import Forward, Layout, NoisyQuadratic, NonFiniteError, Stop, Task, keys, restart
from levels.restart import started
from levels.tasks.noisy_quadratic import Moments
from levels.tree import leaves
from recursion.notation import parse

TOLERANCE = 1e-10
F = "gradient=forward"


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("optimizer", [*RULES, "lstm(hidden=1, layers=1)"])
def test_depth_1(optimizer, objective):
    """Two lives of two windows, staggered over three copies, with two sets of parameters side by side."""
    text = f"{QUADRATIC}{optimizer}@3[{F}, objective={objective}, horizon=6, batch=3]"
    assert worst(text, 4, batch=2, move=0) < TOLERANCE


TOWERS = {  # how far the parameters of the topmost level move between windows
    f"{QUADRATIC}{MOMENTUM}@3[{F}, batch=2]": 0,
    f"{QUADRATIC}adam(0.1, eps=1e-3)@2[{F}, batch=2, horizon=6]": 0.1,
    f"{DIGITS}sgd(log(0.5, per=tensor), momentum=0.5)@3[{F}, batch=2]": 0,
    f"{DIGITS}adam(0.05, eps=1e-4)@3[{F}, batch=2, horizon=9, objective=mean-log]": 0,
    f"{QUADRATIC}adam(0.1)@2[gradient=exact, batch=2] / {MOMENTUM}@2[{F}, batch=2]": 0,
    f"{SMALL}lstm(hidden=1, layers=1)@2 / adam(0.01)@2[{F}]": 0.1,
    f"{QUADRATIC}adam(0.1)@2[clip=0.5] / {MOMENTUM}@2[{F}, horizon=4]": 0.1,
    f"{QUADRATIC}{MOMENTUM}@2[{F}, batch=2, horizon=6] / adam(0.01)@3[batch=2]": 0.1,
    f"{SMALL}lstm(hidden=1, layers=1)@2 / {MOMENTUM}@2[{F}, horizon=6] / adam(0.1)@2": 0,
}


@pytest.mark.parametrize(("text", "move"), TOWERS.items())
def test_towers(text, move):
    assert worst(text, 6, move=move) < TOLERANCE


def test_exact_gradients_are_the_same_in_a_first_window_and_cut_off_in_later_ones():
    texts = [f"{QUADRATIC}{MOMENTUM}@3[batch=2, gradient={gradient}]" for gradient in ("forward", "exact")]
    levels = [built(text) for text in texts]
    (params, _), states = begun(levels[0], 3), [begun(level, 3)[1] for level in levels]
    for window in range(3):
        answers = [level.value_and_grad(params, state) for level, state in zip(levels, states)]
        states = [answer[2] for answer in answers]
        assert (error(answers[0][1], answers[1][1]) < TOLERANCE) == (window == 0)
        assert (error(answers[0][1], answers[1][1]) > 0.01) == (window > 0)
    assert max(worst(text, 3, move=0) for text in texts) < TOLERANCE


# Central differences of whole runs; learned starts, states that begin with parameters, losses that are read.

RUNS = [
    f"adam(0.1, eps=1e-2)@2[{F}, batch=3, horizon=6]",
    f"parts.Polyak@2[{F}, batch=2, objective=mean-log]",
    f"parts.Anchored@2[{F}, batch=2, horizon=4]",
    f"start({MOMENTUM})@2[{F}, batch=2]",
    f"{MOMENTUM}@3[gradient=exact, batch=2, horizon=3] / adam(0.05, eps=1e-2)@2[{F}, batch=2, horizon=4]",
    f"start(sgd(0.02))@2[gradient=exact, horizon=2] / start(parts.Polyak)@2[{F}, batch=2, horizon=4]",
]


@pytest.mark.parametrize("levels", RUNS)
def test_differences(levels):
    level, windows, step = built(SMALL + levels), 4, 1e-5

    def run(params: Tensor) -> Tensor:
        """Meta-losses ``[windows]`` of a run at fixed parameters."""
        carry, values = started(level, params, keys.seed(11)), []
        for _ in range(windows):
            carry, window = restart.run(level, params, carry, keep=False)
            values.append(level.objective.value(window.losses).mean(-1))
        return torch.stack(values)

    (params, state), grads = begun(level, 11), []
    for _ in range(windows):
        _, grad, state = level.value_and_grad(params, state)
        grads.append(grad)
    directions = step * torch.eye(len(params), dtype=torch.float64)
    slopes = [(run(params + direction) - run(params - direction)) / (2 * step) for direction in directions]
    assert error(torch.stack(grads), torch.stack(slopes, -1)) < 1e-7


# Long runs.


@dataclass(frozen=True, kw_only=True, repr=False)
class Wandering(Task):
    """1/2 sum_i h_i (x_i - c_t)^2 with c_t = 0.3 cos(t), t counting from 0: a noisy quadratic whose noise is known."""

    name: ClassVar[str] = "wandering"
    dtype: Literal["float32", "float64"] = "float64"
    layout: ClassVar[Layout] = Layout.of({"x": (3,)}, torch.float64)
    curvature: ClassVar[Tensor] = torch.tensor([1.0, 0.1, 0.001], dtype=torch.float64)

    def init(self, key):
        return torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64).repeat(*key.shape, 1)

    def init_state(self, params, key):
        return torch.zeros(key.shape, dtype=torch.float64)

    def value_and_grad(self, params, state):
        off = params - 0.3 * torch.cos(state)[..., None]
        grad = self.curvature * off
        return (grad * off).sum(-1) / 2, grad, state + 1


def test_memory_does_not_grow():
    level, alive = built(f"{__name__}.Wandering: {MOMENTUM}@3[{F}, batch=2]"), []
    with LiveBytes() as live:
        params, state = begun(level)
        for _ in range(20):
            live.reset_peak()
            _, _, state = level.value_and_grad(params, state)
            alive.append((live.bytes, live.peak))
    assert len(set(alive[2:])) == 1


@pytest.mark.parametrize("steps", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_long_runs(steps):
    """The last window's gradient in the step size, by the closed form of x_t.

    x_t = r^t x_0 + lr h sum_(s<t) r^(t-1-s) c_s with r = 1 - lr h, so dx_t / dlr is a sum over all steps.
    """
    rate, unroll = 0.1, 20
    level = built(f"{__name__}.Wandering: sgd(linear({rate}))@{unroll}[{F}]")
    params, state = begun(level)
    for _ in range(steps // unroll):
        _, grad, state = level.value_and_grad(params, state)
    h, x0 = Wandering.curvature.numpy(), np.array([1.0, -2.0, 3.0])
    r, expected = 1 - rate * h, 0.0
    centre = 0.3 * np.cos(np.arange(steps + 1.0))[:, None]
    for t in range(steps - unroll + 1, steps + 1):
        back = np.arange(t - 1, -1, -1.0)[:, None]  # t - 1 - s
        x = r**t * x0 + rate * h * (r**back * centre[:t]).sum(0)
        dx = -h * t * r ** (t - 1) * x0 + h * ((r**back - rate * h * back * r ** (back - 1)) * centre[:t]).sum(0)
        expected += (h * (x - centre[t]) * dx).sum()
    assert error(grad, torch.tensor([expected])) < 1e-8


def test_noisy_quadratics_slope_is_the_closed_form_in_the_mean():
    """The derivative in the step size of the expected losses of the last window, by the moments' recursion."""
    task, rate, unroll, steps = NoisyQuadratic(dims=2, low=0.01, dtype="float64"), 0.3, 10, 300

    def total(rate: Tensor) -> Tensor:
        ones = torch.ones(task.dims, dtype=torch.float64)
        moments, losses = Moments(0 * ones, ones), []
        for _ in range(steps):
            moments = task.expected_sgd(moments, rate)
            losses.append(task.expected_loss(moments))
        return sum(losses[-unroll:])

    level = built(f"{task}: sgd(linear({rate}))@{unroll}[{F}]")
    params, state = begun(level, 1, 4000)
    for _ in range(steps // unroll):
        _, grad, state = level.value_and_grad(params, state)
    spread = grad.std() / math.sqrt(4000)
    expected = float(torch.func.grad(total)(torch.tensor(rate, dtype=torch.float64)))
    assert spread < abs(expected) / 10
    assert abs(grad.mean() - expected) < 3 * spread


# Copies that are not finite.


@pytest.mark.parametrize("optimizer", ["adam(0.1)", MOMENTUM])
def test_a_skipped_copy_leaves_nothing_in_the_gradient(optimizer):
    """One that dies in the second window."""
    text = f"parts.Poisoned(3, dtype=float64, fatal=5): {optimizer}@3[{F}, batch=6, nonfinite=skip]"
    task, (part,) = levels_of(text)
    level, oracle = part.over(task), naive(task, part)
    params, state = begun(level, 2)
    dead = state.carry.problem_state.dies
    assert 0 < dead.sum() < 6
    living = [copy for copy, gone in zip(oracle.start(params, keys.seed(2)), dead) if not gone]
    for _ in range(2):
        _, grad, state = level.value_and_grad(params, state)
        _, expected, living = oracle.ask(params, living)
    assert error(grad, expected * len(living) / 6) < TOLERANCE
    assert torch.equal(state.carry.skipped, dead.long())
    assert all(torch.isfinite(leaf).all() for leaf in leaves(state.memory))


def test_sensitivities_that_overflow_restart_their_copy():
    text = f"{QUADRATIC}{MOMENTUM}@2[{F}, batch=2, nonfinite=skip]"
    lenient, strict = built(text), built(text, nonfinite=Stop())
    params, state = begun(lenient)
    _, _, state = lenient.value_and_grad(params, state)
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

FIRST_OR_PES = "use gradient=first-order or gradient=pes"
CUT = f"cuts derivatives.*{FIRST_OR_PES}"
REFUSED = {
    f"lstm(hidden=20)@2[{F}]": rf"at most 64, and lstm.* has \d\d+; {FIRST_OR_PES}",
    f"{MOMENTUM}@2[gradient=forward(limit=1)]": f"at most 1, and sgd.* has 2; {FIRST_OR_PES}",
    f"parts.BlackBox@2[{F}]": "blackbox.* cannot be differentiated by forward; .* by gradient=pes",
    f"parts.Numpy@2[{F}]": "numpy.* cannot be differentiated .* gradient=pes",
    f"parts.BlackBox@2 / sgd@2[{F}]": "blackbox.* cannot be differentiated",
    f"sgd@2[horizon=4, gradient=pes] / sgd@2[{F}]": f"sgd.* by forward; {FIRST_OR_PES}",
    f"sgd@2[{F}] / sgd@2[{F}]": f"the level below, sgd.* by forward; {FIRST_OR_PES}",
    f"sgd@2[{F}] / sgd@2[gradient=exact]": f"the level below, sgd.* by exact; {FIRST_OR_PES}",
}
TASKS = {
    "Once": f"once has a gradient that cannot be differentiated by forward; {FIRST_OR_PES}",
    "Detached": f"detached {CUT}",
    "Stored": f"stored has a gradient whose derivative is not what differences of it say.*{FIRST_OR_PES}",
    "Cut": f"cut {CUT}",
}
REFUSED_TOWERS = {QUADRATIC + levels: message for levels, message in REFUSED.items()}
REFUSED_TOWERS |= {f"parts.{task}: sgd@2[{F}]": message for task, message in TASKS.items()}


@pytest.mark.parametrize(("text", "message"), REFUSED_TOWERS.items())
def test_what_is_refused(text, message):
    with pytest.raises(ValueError, match=f"(?i){message}"):
        parse(f"{text} / sgd")


@pytest.mark.parametrize("limit", [0, 1.5, True, "many"])
def test_a_limit_is_a_whole_number(limit):
    with pytest.raises(ValueError, match=re.escape("limit must be a whole number of at least 1")):
        Forward(limit=limit)


@pytest.mark.parametrize("text", [
    f"parts.Bowl: start(sgd)@2[{F}]",
    f"{QUADRATIC}{LSTM}@2[{F}]",
    f"{QUADRATIC}sgd@2[clip=0.1] / sgd@2[{F}] / sgd@2",
    f"{QUADRATIC}sgd@2[{F}] / sgd@2[horizon=4, gradient=pes]",
])  # fmt: skip
def test_towers_that_work_are_not_refused(text):
    parse(f"{text} / sgd")
