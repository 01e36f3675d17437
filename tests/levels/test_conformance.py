"""check_problem and check_optimizer pass whatever the package has, and say what is wrong with what is broken."""

from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import nn

from levels import (
    LSTM,
    MLP,
    SGD,
    Adam,
    DigitsMLP,
    Fixed,
    HeldOut,
    Hyper,
    Last,
    Layout,
    Level,
    Linear,
    Log,
    MeanLog,
    ModuleTask,
    Optimizer,
    Problem,
    Quadratic,
    RMSprop,
    hyper,
    keys,
)
from levels.tasks.quadratic import QuadraticState
from levels.testing import ConformanceError, check_optimizer, check_problem

OPTIMIZERS = [
    SGD(),
    SGD(lr=Linear(0.1, "tensor")),
    SGD(momentum=0.9),
    SGD(lr=Log(0.1, "coordinate"), momentum=0.9, nesterov=True, weight_decay=0.01),
    SGD(lr=Fixed(0.1)),
    SGD(lr=Fixed(0.1), momentum=0.5),
    Adam(),
    Adam(lr=Log(0.01, "coordinate"), beta1=Fixed(0.8), eps=1e-3),
    RMSprop(),
    RMSprop(lr=Log(0.01, "tensor"), decay=0.5, eps=Fixed(1e-6)),
    LSTM(),
    LSTM(hidden=3, layers=1, p=5.0, scale=1.0),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_optimizers_conform(optimizer):
    check_optimizer(optimizer)


def test_a_layout_of_ones_own():
    check_optimizer(Adam(lr=Log(1e-3, "tensor")), below=DigitsMLP(hidden=(3,)).layout, steps=2)


@pytest.mark.parametrize(
    "task",
    [
        Quadratic(),
        Quadratic(dims=1, dtype="float64"),
        Quadratic(split="test", dtype="float64"),
        DigitsMLP(hidden=(4,), minibatch=16),
        DigitsMLP(hidden=(4, 3), activation="tanh", minibatch=16, dtype="float64"),
        DigitsMLP(hidden=(4,), activation="relu", minibatch=16, dtype="float64"),
        HeldOut(DigitsMLP(hidden=(3,), minibatch=16), dtype="float64"),
    ],
    ids=str,
)
def test_tasks_conform(task):
    check_problem(task)


def module_task(**settings):
    def data(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(30, 4, generator=generator), torch.randint(3, (30,), generator=generator)

    return ModuleTask(
        make=lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        loss_function=nn.functional.cross_entropy,
        train=data(0),
        minibatch=8,
        **settings,
    )


def test_module_task_conforms():
    data = module_task().train
    full = module_task(validation=data, test=data, dtype="float64")
    check_problem(full)
    check_problem(module_task(), splits=("train",))


@pytest.mark.parametrize(
    ("levels", "exact"),
    [
        ((Level(optimizer=SGD(momentum=0.9), batch=2),), True),
        ((Level(optimizer=Adam(), batch=2, objective=MeanLog(), horizon=3),), True),
        ((Level(optimizer=LSTM(hidden=3), batch=2, clip=None),), True),
        ((Level(optimizer=SGD(), batch=2), Level(optimizer=Adam(), batch=3)), True),
        ((Level(optimizer=LSTM(hidden=3), unroll=4, batch=2, objective=Last(), clip=0.1),), False),
        ((Level(optimizer=LSTM(hidden=2), unroll=3), Level(optimizer=LSTM(hidden=2), unroll=2, batch=2)), False),
    ],
)
def test_laid_levels_conform(levels, exact):
    problem = Quadratic(dims=3, dtype="float64")
    for level in levels:
        problem = level.over(problem)
    check_problem(problem, exact_gradient=exact)


def test_a_first_order_level_is_no_derivative():
    laid = Level(optimizer=SGD(lr=0.01), unroll=4, batch=2).over(Quadratic(dims=3, dtype="float64"))
    with pytest.raises(ConformanceError, match=r"slope .* pass exact_gradient=False"):
        check_problem(laid)


class Broken(Quadratic):
    """Each subclass breaks one thing."""

    name = "broken"


class Scaled(Broken):
    def value_and_grad(self, params, state):
        value, grad, state = super().value_and_grad(params, state)
        return value, grad * 1.001, state


class OneCoordinateWrong(Broken):
    def value_and_grad(self, params, state):
        value, grad, state = super().value_and_grad(params, state)
        return value, torch.cat((grad[..., :-1], grad[..., -1:] * 0.9), -1), state


class InPlaceState(Broken):
    def value_and_grad(self, params, state):
        answer = super().value_and_grad(params, state)
        state.y.add_(1)
        return answer


class InPlaceParams(Broken):
    def value_and_grad(self, params, state):
        answer = super().value_and_grad(params, state)
        params.mul_(0.5)
        return answer


class GlobalDraw(Broken):
    def init(self, key):
        return torch.randn(*key.shape, self.dims, dtype=self.torch_dtype)


class ForkedDraw(Broken):
    def init(self, key):
        with torch.random.fork_rng(devices=[]):
            return torch.randn(*key.shape, self.dims, dtype=self.torch_dtype)


class Mixed(Broken):
    def init_state(self, params, key):
        w, y = super().init_state(params, key)
        return QuadraticState(w, y - (y.flatten(0, -2).mean(0) if y.dim() > 1 else 0))


class Graph(Broken):
    def value_and_grad(self, params, state):
        value, grad, state = super().value_and_grad(params.detach().requires_grad_(), state)
        return value, grad.detach(), state


class Shared(Broken):
    def init_state(self, params, key):
        w, y = super().init_state(params, key)
        return {"w": w, "y": y, "count": torch.zeros(())}

    def value_and_grad(self, params, state):
        value, grad, _ = super().value_and_grad(params, QuadraticState(state["w"], state["y"]))
        return value, grad, state


class Restless(Broken):
    def value_and_grad(self, params, state):
        value, grad, state = super().value_and_grad(params, state)
        return value, grad, state._replace(y=state.y.float())


class Restructured(Broken):
    def value_and_grad(self, params, state):
        value, grad, state = super().value_and_grad(params, QuadraticState(*state))
        return value, grad, tuple(state)


class SameSplits(Broken):
    def own(self, key):
        return key


class OneProblem(Broken):
    def own(self, key):
        return keys.fold_in(torch.zeros_like(key), ("train", "validation", "test").index(self.split))


class Infinite(Broken):
    def value_and_grad(self, params, state):
        value, grad, state = super().value_and_grad(params, state)
        return value / 0, grad, state


class KeptDim(Broken):
    def value_and_grad(self, params, state):
        value, grad, state = super().value_and_grad(params, state)
        return value[..., None], grad, state


class Single(Broken):
    def init(self, key):
        return super().init(key).float()


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Scaled, r"Scaled.*: got a gradient with slope .* expected .* as central differences"),
        (OneCoordinateWrong, "got a gradient with slope"),
        (InPlaceState, "got state.y changed in place by value_and_grad, expected unchanged inputs; write x = x"),
        (InPlaceParams, "got params changed in place by value_and_grad"),
        (GlobalDraw, "got a draw from torch's global generator in init_params, expected none; draw with levels.keys"),
        (ForkedDraw, "got another params for the same key and inputs"),
        (Mixed, "got another start.y for a copy in a batch, expected what the copy answers alone"),
        (Graph, "got value with an autograd graph, expected none; detach it"),
        (Shared, r"got \[\] as init_state.count, expected \[3\] first"),
        (Restless, "got .*float32 as advanced state y, expected .*float64"),
        (Restructured, "got an advanced state PyTreeSpec.*, expected its structure"),
        (SameSplits, r"got the problems of another split for the same key.*self\.own\(key\)"),
        (OneProblem, "got one value and gradient for different keys.*varied=False"),
        (Infinite, "got value that is not finite"),
        (KeptDim, r"got \[1\] in torch.float64 as value, expected \[\] in torch.float64"),
        (Single, "float32 as init_params, expected .* in torch.float64"),
    ],
)
def test_broken_problems_are_named(kind, sentence):
    with pytest.raises(ConformanceError, match=sentence):
        check_problem(kind(dtype="float64", dims=4))


class Judging(Broken):
    """Judged by three times the loss at twice the parameters; each subclass breaks one thing."""

    judging = 1

    def outer_value_and_grad(self, params, f, g, state):
        value, grad, _ = self.value_and_grad(2 * params, state)
        return 3 * value, 6 * grad, state


class JudgedByTrainingGradient(HeldOut):
    def outer_value_and_grad(self, params, f, g, state):
        value, _, state = super().outer_value_and_grad(params, f, g, state)
        return value, g, state


class JudgedWithoutChainRule(Judging):
    def outer_value_and_grad(self, params, f, g, state):
        value, grad, state = super().outer_value_and_grad(params, f, g, state)
        return value, grad / 2, state


class JudgedInPlace(Judging):
    def outer_value_and_grad(self, params, f, g, state):
        answer = super().outer_value_and_grad(params, f, g, state)
        f.mul_(2)
        return answer


class JudgedStateInPlace(Judging):
    def outer_value_and_grad(self, params, f, g, state):
        answer = super().outer_value_and_grad(params, f, g, state)
        state.y.add_(1)
        return answer


class JudgedMixed(Judging):
    def outer_value_and_grad(self, params, f, g, state):
        value, grad, state = super().outer_value_and_grad(params, f, g, state)
        return value + f.mean(), grad, state


class JudgedKeptDim(Judging):
    def outer_value_and_grad(self, params, f, g, state):
        value, grad, state = super().outer_value_and_grad(params, f, g, state)
        return value[..., None], grad, state


class JudgedRestructured(Judging):
    def outer_value_and_grad(self, params, f, g, state):
        value, grad, state = super().outer_value_and_grad(params, f, g, state)
        return value, grad, tuple(state)


class JudgedNoisy(Judging):
    def outer_value_and_grad(self, params, f, g, state):
        value, grad, state = super().outer_value_and_grad(params, f, g, state)
        with torch.random.fork_rng(devices=[]):
            return value + torch.rand(()), grad, state


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (JudgedWithoutChainRule, "got a judged gradient with slope .* expected .* as central differences.*; mend the"),
        (JudgedInPlace, "got f changed in place by judge, expected unchanged inputs; write x = x"),
        (JudgedStateInPlace, "got state.y changed in place by judge"),
        (JudgedMixed, "got another judged value for a copy in a batch, expected what the copy answers alone"),
        (JudgedKeptDim, r"got \[1\] in torch.float64 as judged value, expected \[\] in torch.float64"),
        (JudgedRestructured, "got an advanced state PyTreeSpec.*, expected its structure"),
        (JudgedNoisy, "got another judged value for the same key and inputs"),
    ],
)
def test_broken_judges_are_named(kind, sentence):
    check_problem(Judging(dtype="float64", dims=4))
    with pytest.raises(ConformanceError, match=f"^test_conformance.{kind.__name__}.*: {sentence}"):
        check_problem(kind(dtype="float64", dims=4))


def test_the_gradient_of_other_data_is_no_gradient_of_what_is_judged():
    broken = JudgedByTrainingGradient(DigitsMLP(hidden=(3,), minibatch=16), dtype="float64")
    with pytest.raises(ConformanceError, match="got a judged gradient with slope"):
        check_problem(broken)
    check_problem(broken, exact_gradient=False)


def test_a_problem_that_judges_by_what_it_answers_is_not_asked(monkeypatch):
    def refuses(self, params, f, g, state):
        raise AssertionError

    monkeypatch.setattr(Problem, "judge", refuses)
    check_problem(Quadratic())


def test_what_a_problem_may_switch_off():
    check_problem(OneProblem(dtype="float64"), varied=False)
    check_problem(Scaled(dtype="float64"), exact_gradient=False)
    with pytest.raises(ValueError, match="there is no validation data"):
        check_problem(module_task())


@dataclass(frozen=True, repr=False)
class Faulty(SGD):
    name = "faulty"
    momentum: Hyper | float | None = hyper(0.9, Linear)


class AcrossCopies(Faulty):
    def step(self, h, g, state, x):
        return super().step(h, g - 1e-3 * g.mean(-2, keepdim=True), state, x)


class CountsCopies(Faulty):
    def step(self, h, g, state, x):
        return super().step(h, g / x.shape[-2], state, x)


class AcrossOptimizers(Faulty):
    def update(self, params, f, g, state, x):
        return super().update(params.mean(0, keepdim=True) if params.dim() > 1 else params, f, g, state, x)


class InPlace(Faulty):
    def step(self, h, g, state, x):
        x -= 0.1 * g
        return super().step(h, g, state, x)


class InPlaceBuffer(Faulty):
    def step(self, h, g, state, x):
        state += g.detach()
        return super().step(h, g, state, x)


@dataclass(frozen=True, repr=False)
class Unread(Faulty):
    dampening: Hyper | float = hyper(0.5, Linear)


class Noisy(Faulty):
    def step(self, h, g, state, x):
        return super().step(h, g + torch.randn_like(g), state, x)


class Undifferentiable(Faulty):
    @torch.no_grad()
    def update(self, params, f, g, state, x):
        return super().update(params, f, g, state, x)


class DetachedRate(Faulty):
    def step(self, h, g, state, x):
        return super().step({**h, "lr": h["lr"].detach()}, g, state, x)


class WrongPullback(Faulty):
    def pullback(self, *args):
        dparams, dstate, dx = super().pullback(*args)
        return dparams, [None for _ in dstate], dx


class ShortPullback(Faulty):
    def pullback(self, *args):
        dparams, _, dx = super().pullback(*args)
        return dparams, [], dx


class ClippedPullback(Faulty):
    def pullback(self, params, f, g, state, x, dx, dstate):
        return super().pullback(params, f, g, state, x, torch.where(dx.abs() > 4, dx / dx.abs() * 4, dx), dstate)


class Root(Faulty):
    def step(self, h, g, state, x):
        state = h["momentum"] * state + g * g
        return x - h["lr"] * g / (state.sqrt() + 1e-8), state


class SharedCount(Faulty):
    def init_state(self, params, x):
        return torch.zeros(())


class Doubles(Faulty):
    def step(self, h, g, state, x):
        x, state = super().step(h, g, state, x)
        return x.double(), state


class Stateful(Faulty):
    def step(self, h, g, state, x):
        x, state = super().step(h, g, state, x)
        return x, (state, state)


class Attached(Faulty):
    def step(self, h, g, state, x):
        x, state = super().step(h, g, state, x)
        return x + torch.zeros((), dtype=x.dtype, requires_grad=True), state


class Forgetful(Faulty):
    def init(self, key):
        return super().init(key)[..., :1]


class LongerStep(Faulty):
    def linearized(self, params, f, g, state, x):
        new_x, state, pull = super().linearized(params, f, g, state, x)
        return new_x + 0.01 * (new_x - x), state, pull


class OldBuffer(Faulty):
    def linearized(self, params, f, g, state, x):
        new_x, _, pull = super().linearized(params, f, g, state, x)
        return new_x, state, pull


class PulledAsData(Faulty):
    """The buffer's own past is left out of its cotangent."""

    def linearized(self, params, f, g, state, x):
        new_x, new_state, pull = super().linearized(params, f, g, state, x)
        return new_x, new_state, lambda dx, dstate: (*pull(dx, None)[:2], dx)


class PulledLate(Faulty):
    """Linearized where the step ends."""

    def linearized(self, params, f, g, state, x):
        new_x, new_state = self.update(params, f, g, state, x)
        return new_x, new_state, partial(self.pullback, params, f, g, new_state, new_x)


class PulledShort(Faulty):
    def linearized(self, params, f, g, state, x):
        new_x, new_state, pull = super().linearized(params, f, g, state, x)
        return new_x, new_state, lambda dx, dstate: (pull(dx, dstate)[0], [], dx)


class LinearizedInPlace(Faulty):
    def linearized(self, params, f, g, state, x):
        answer = super().linearized(params, f, g, state, x)
        g.zero_()
        return answer


class LinearizedDoubles(Faulty):
    def linearized(self, params, f, g, state, x):
        new_x, state, pull = super().linearized(params, f, g, state, x)
        return new_x.double(), state, pull


class PulledInfinite(Faulty):
    """As Root, but only in its pull."""

    def linearized(self, params, f, g, state, x):
        new_x, new_state, pull = super().linearized(params, f, g, state, x)

        def infinite(dx, dstate):
            dparams, dold, dx_old = pull(dx, dstate)
            return dparams, dold, dx_old * torch.where(g == 0, torch.inf, 1.0)

        return new_x, new_state, infinite


class SweptShort(Faulty):
    """What the last update that counts has done is left out."""

    def sweep(self, params, steps, slope):
        return super().sweep(params, steps[:-2], slope)


class SweptAbout(Faulty):
    """Where nothing counts it says zeros, not that."""

    def sweep(self, params, steps, slope):
        return tuple(torch.zeros(()) if end is None else end for end in super().sweep(params, steps, slope))


class SweptForward(Faulty):
    def sweep(self, params, steps, slope):
        steps.reverse()
        return super().sweep(params, steps, slope)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (SweptShort, "got another cotangent of params from sweep, expected what the pullbacks say; let sweep say what"),
        (SweptAbout, "got another cotangent of params from sweep, expected what the pullbacks say"),
        (SweptForward, "got .*changed in place by sweep, expected unchanged inputs"),
    ],
)
def test_what_sweep_says_is_what_the_pullbacks_say(kind, sentence):
    with pytest.raises(ConformanceError, match=f"^test_conformance.{kind.__name__}: {sentence}"):
        check_optimizer(kind())
    check_optimizer(kind(), differentiable=False)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (LongerStep, "got another x from linearized, expected what update returns; let linearized say what update and"),
        (OldBuffer, "got another state from linearized, expected what update returns"),
        (PulledAsData, "got another cotangent of .* from linearized, expected what pullback returns; let linearized"),
        (PulledLate, "got another cotangent of params.lr from linearized, expected what pullback returns"),
        (PulledShort, "got 0 cotangents of the state, expected 1"),
        (LinearizedInPlace, "got g changed in place by linearized, expected unchanged inputs"),
        (LinearizedDoubles, r"got .*float64 as linearized x, expected \[1, 1\] in torch.float32"),
        (PulledInfinite, "got another cotangent of x from linearized, expected what pullback returns"),
    ],
)
def test_what_linearized_says_is_what_update_and_pullback_say(kind, sentence):
    with pytest.raises(ConformanceError, match=f"^test_conformance.{kind.__name__}: {sentence}"):
        check_optimizer(kind())
    check_optimizer(kind(), differentiable=False)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (
            AcrossCopies,
            r"AcrossCopies: got another x when f, g and x of another copy changed, expected copies that never mix",
        ),
        (CountsCopies, "got another x for a copy alone than among others"),
        (AcrossOptimizers, "got another x when another optimizer's params changed"),
        (InPlace, "got x changed in place by update, expected unchanged inputs; write x = x"),
        (InPlaceBuffer, "got state changed in place by update"),
        (Unread, "got a parameter dampening that changes nothing in 4 updates"),
        (Noisy, "got a draw from torch's global generator in update"),
        (Undifferentiable, r"got a pullback that fails \(.*\), expected cotangents.*differentiable=False"),
        (DetachedRate, "got a pullback with slope 0 in params.lr, expected .* as central differences say"),
        (WrongPullback, "got a pullback with slope 0 in state, expected"),
        (ShortPullback, "got 0 cotangents of the state, expected 1"),
        (ClippedPullback, "got a pullback in .* that is not linear in its cotangents"),
        (Root, "got a pullback in .* that is not finite where the gradient is exactly 0.*tiny under the square root"),
        (SharedCount, r"got \[\] as init_state, expected \[1\] first; every copy must own its part"),
        (Doubles, r"float64 as the updated x, expected \[1, 1\] in torch.float32"),
        (Stateful, "got an advanced state"),
        (Attached, "got the updated x with an autograd graph"),
        (Forgetful, r"got \[1\] in torch.float32 as init_params, expected \[2\]"),
    ],
)
def test_broken_optimizers_are_named(kind, sentence):
    with pytest.raises(ConformanceError, match=sentence):
        check_optimizer(kind())


def test_what_an_optimizer_may_switch_off():
    check_optimizer(Faulty())
    check_optimizer(Undifferentiable(), differentiable=False)
    check_optimizer(WrongPullback(), differentiable=False)


def test_one_update_is_too_few():
    with pytest.raises(ValueError, match=r"^steps must be at least 2, got 1$"):
        check_optimizer(SGD(), steps=1)


def test_the_errors_are_assertions_and_parts_are_left_alone():
    assert issubclass(ConformanceError, AssertionError)
    optimizer = Adam()
    state = torch.get_rng_state()
    check_optimizer(optimizer, below=Layout.of({"x": (2,)}))
    check_problem(Quadratic())
    assert optimizer._laid is None
    assert torch.equal(torch.get_rng_state(), state)


def test_abstract_parts_cannot_be_checked():
    with pytest.raises(TypeError, match="abstract"):
        MLP()
    with pytest.raises(TypeError, match="abstract"):
        Optimizer()


def test_seeds_are_used():
    class Unlucky(Quadratic):
        """Wrong only for the problems of one seed."""

        def value_and_grad(self, params, state):
            value, grad, state = super().value_and_grad(params, state)
            return value, torch.where(torch.isin(state.y[..., :1], bad), -grad, grad), state

    task = Unlucky(dtype="float64")
    key = keys.split(keys.split(keys.seed(5), 6), 2)[:, 1]
    bad = replace(Quadratic(), dtype="float64").init_state(key, key).y[:, 0]
    check_problem(task, seed=4)
    with pytest.raises(ConformanceError, match="slope"):
        check_problem(task, seed=5)
