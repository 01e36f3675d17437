"""The conformance suites pass what the package has, and name what is wrong with parts that are broken."""

from dataclasses import dataclass, replace

import pytest
import torch

from levels import (
    LSTM,
    MLP,
    NRES,
    PES,
    SGD,
    Adam,
    DigitsMLP,
    Exact,
    FirstOrder,
    Fixed,
    Forward,
    HeldOut,
    Hyper,
    Last,
    Layout,
    Level,
    Linear,
    Log,
    MeanLog,
    Optimizer,
    OptimizerTraits,
    ProblemTraits,
    Quadratic,
    RMSprop,
    hyper,
    keys,
)  # fmt: skip
from levels.tasks.quadratic import QuadraticState
from levels.testing import ConformanceError, check_estimator, check_optimizer, check_problem

OPTIMIZERS = [
    SGD(),
    SGD(lr=Linear(0.1, "tensor")),
    SGD(lr=Log(0.1, "coordinate"), momentum=0.9, nesterov=True, weight_decay=0.01),
    SGD(lr=Fixed(0.1), momentum=0.5),
    Adam(lr=Log(0.01, "coordinate"), beta1=Fixed(0.8), eps=1e-3),
    RMSprop(lr=Log(0.01, "tensor"), decay=0.5, eps=Fixed(1e-6)),
    LSTM(hidden=2),
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
        Quadratic(dims=1),
        Quadratic(split="test", dtype="float64"),
        DigitsMLP(hidden=(4, 3), activation="tanh", minibatch=16),
        DigitsMLP(hidden=(4,), activation="relu", minibatch=16),
        HeldOut(DigitsMLP(hidden=(3,), minibatch=16)),
    ],
    ids=str,
)
def test_tasks_conform(task):
    check_problem(task)


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
    check_problem(problem, exact_gradient=exact, order=1 if len(levels) == 2 and not exact else 2)


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


class NoCurvature(Broken):
    """The gradient is data where it should be a function of the parameters."""

    def value_and_grad(self, params, state):
        value, grad, state = super().value_and_grad(params, state)
        return value, grad.detach(), state


class Opaque(NoCurvature):
    @property
    def traits(self):
        return ProblemTraits(differentiable=False)


class CutValue(Broken):
    def value_and_grad(self, params, state):
        value, grad, state = super().value_and_grad(params, state)
        return value + params.sum(-1) - params.detach().sum(-1), grad, state


class MovingState(Broken):
    """A state that is a function of the parameters."""

    def value_and_grad(self, params, state):
        value, grad, state = super().value_and_grad(params, state)
        return value, grad, state._replace(y=state.y + 0 * params)


class OtherValue(Broken):
    def value(self, params, state):
        value, _, state = self.value_and_grad(params, state)
        return 2 * value, state


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (NoCurvature, "got a derivative of the gradient with slope 0.*differentiable=False, or pass order=1"),
        (CutValue, "got another derivative of the value by autograd, expected the gradient"),
        (MovingState, "got state at parameters that require grad.y with an autograd graph, expected none; detach it"),
        (OtherValue, "got another 0 from value, expected that of value_and_grad"),
        (Scaled, r"Scaled.*: got a gradient with slope .* expected .* as central differences"),
        (OneCoordinateWrong, "got a gradient with slope"),
        (InPlaceState, "got state.y changed in place by value_and_grad, expected unchanged inputs; write x = x"),
        (InPlaceParams, "got params changed in place by value_and_grad"),
        (GlobalDraw, "got a draw from torch's global generator in init, expected none; draw with levels.keys"),
        (ForkedDraw, "got another params for the same key and inputs"),
        (Mixed, "got another start.y for a copy in a batch, expected what the copy answers alone"),
        (Graph, "got value with an autograd graph, expected none; detach it"),
        (Shared, r"got \[\] as init_state.count, expected \[3\] first"),
        (Restless, "got an advanced state .*float32.*, expected .* as it was"),
        (Restructured, "got an advanced state .*, expected .* as it was"),
        (SameSplits, r"got the problems of another split for the same key.*self\.own\(key\)"),
        (OneProblem, "got one value and gradient for different keys.*varied=False"),
        (Infinite, "got value that is not finite"),
        (KeptDim, r"got \[1\] in torch.float64 as value, expected \[\] in torch.float64"),
        (Single, "float32 as init, expected .* in torch.float64"),
    ],
)
def test_broken_problems_are_named(kind, sentence):
    with pytest.raises(ConformanceError, match=sentence):
        check_problem(kind(dtype="float64", dims=4))


class OtherData(Broken):
    """Counts three times the loss at twice the parameters; each subclass breaks one thing."""

    @property
    def traits(self):
        return ProblemTraits(outer_evals=1)

    def outer_value_and_grad(self, params, state, f, g):
        value, grad, _ = self.value_and_grad(2 * params, state)
        return 3 * value, 6 * grad, state


class Uncounted(OtherData):
    @property
    def traits(self):
        return ProblemTraits()


class OuterChainRule(OtherData):
    def outer_value_and_grad(self, params, state, f, g):
        value, grad, state = super().outer_value_and_grad(params, state, f, g)
        return value, grad / 2, state


class OuterInPlace(OtherData):
    def outer_value_and_grad(self, params, state, f, g):
        answer = super().outer_value_and_grad(params, state, f, g)
        f.mul_(2)
        return answer


class OuterMixed(OtherData):
    def outer_value_and_grad(self, params, state, f, g):
        value, grad, state = super().outer_value_and_grad(params, state, f, g)
        return value + f.mean(), grad, state


class OuterKeptDim(OtherData):
    def outer_value_and_grad(self, params, state, f, g):
        value, grad, state = super().outer_value_and_grad(params, state, f, g)
        return value[..., None], grad, state


class OuterDetached(OtherData):
    def outer_value_and_grad(self, params, state, f, g):
        return super().outer_value_and_grad(params.detach(), state, f, g)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Uncounted, r"outer_evals of 0, .*as ProblemTraits\(outer_evals=1\)"),
        (OuterChainRule, "a counted gradient with slope .* expected .* as central differences.*; mend the"),
        (OuterInPlace, "f changed in place by outer_value_and_grad, expected unchanged inputs; write x = x"),
        (OuterMixed, "another scratch for a copy in a batch, expected what the copy answers alone"),
        (OuterKeptDim, r"\[1\] in torch.float64 as evaluate_from_scratch, expected \[\] in torch.float64"),
        (OuterDetached, "a derivative of the counted gradient with slope 0"),
    ],
)
def test_broken_outer_answers_are_named(kind, sentence):
    with pytest.raises(ConformanceError, match=f"^test_conformance.{kind.__name__}.*: got {sentence}"):
        check_problem(kind(dtype="float64", dims=4))


def test_what_counts_may_be_other_data():
    check_problem(OtherData(dims=4))


def test_what_a_problem_may_switch_off():
    check_problem(OneProblem(dtype="float64"), varied=False)
    check_problem(Scaled(dtype="float64"), exact_gradient=False)
    check_problem(NoCurvature(dtype="float64"), order=1)
    check_problem(Opaque(dtype="float64"))


@dataclass(frozen=True, repr=False)
class Faulty(SGD):
    name = "faulty"
    momentum: Hyper | float | None = hyper(0.9, Linear)


class AcrossCopies(Faulty):
    def update(self, theta, x, state, f, g):
        return super().update(theta, x, state, f, g - 1e-3 * g.mean(-2, keepdim=True))


class CountsCopies(Faulty):
    def update(self, theta, x, state, f, g):
        return super().update(theta, x, state, f, g / x.shape[-2])


class AcrossOptimizers(Faulty):
    def update(self, theta, x, state, f, g):
        return super().update(theta.mean(0, keepdim=True) if theta.dim() > 1 else theta, x, state, f, g)


class InPlace(Faulty):
    def update(self, theta, x, state, f, g):
        x -= 0.1 * g
        return super().update(theta, x, state, f, g)


class InPlaceBuffer(Faulty):
    def update(self, theta, x, state, f, g):
        state += g.detach()
        return super().update(theta, x, state, f, g)


@dataclass(frozen=True, repr=False)
class Unread(Faulty):
    dampening: Hyper | float = hyper(0.5, Linear)


class Noisy(Faulty):
    def update(self, theta, x, state, f, g):
        return super().update(theta, x, state, f, g + torch.randn_like(g))


class SharedCount(Faulty):
    def init_state(self, theta, x, key):
        return torch.zeros(())


class Doubles(Faulty):
    def update(self, theta, x, state, f, g):
        x, state = super().update(theta, x, state, f, g)
        return x.double(), state


class Stateful(Faulty):
    def update(self, theta, x, state, f, g):
        x, state = super().update(theta, x, state, f, g)
        return x, (state, state)


class Attached(Faulty):
    def update(self, theta, x, state, f, g):
        x, state = super().update(theta, x, state, f, g)
        return x + torch.zeros((), dtype=x.dtype, requires_grad=True), state


class Forgetful(Faulty):
    def init(self, key):
        return super().init(key)[..., :1]


class OddResult(Faulty):
    def result(self, state, x):
        return x.mean(-2)


class PenaltyOfAll(Faulty):
    def penalty(self, theta):
        return theta.square().mean()


@dataclass(frozen=True)
class PlainRepr(Faulty):
    pass


@dataclass(frozen=True, repr=False)
class Growing(Faulty):
    units: int = 1

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "units", self.units + 1)


# Traits that say too little.


class ReadsLoss(Faulty):
    def update(self, theta, x, state, f, g):
        return super().update(theta, x, state, f, g * f[..., None])


class ReadsNoGradient(Faulty):
    @property
    def traits(self):
        return OptimizerTraits(reads_grad=False)


class LearnsItsStart(Faulty):
    def init_x(self, theta, key):
        return super().init_x(theta, key) + theta[..., None, :1]


class LearnsItsState(Faulty):
    def init_state(self, theta, x, key):
        return torch.zeros_like(x) + theta[..., None, :1]


class AcrossTensors(Faulty):
    def update(self, theta, x, state, f, g):
        return super().update(theta, x, state, f, g / (1 + g.square().mean(-1, keepdim=True)))


class CountsCoordinates(Faulty):
    def update(self, theta, x, state, f, g):
        return super().update(theta, x, state, f, g / x.shape[-1])


# Derivatives of `update`.


class WithoutGraph(Faulty):
    @torch.no_grad()
    def update(self, theta, x, state, f, g):
        return super().update(theta, x, state, f, g)


class DetachedRate(Faulty):
    def update(self, theta, x, state, f, g):
        return super().update(theta.detach(), x, state, f, g)


class DetachedBuffer(Faulty):
    def update(self, theta, x, state, f, g):
        return super().update(theta, x, state.detach(), f, g)


class Root(Faulty):
    def update(self, theta, x, state, f, g):
        h = self.read(theta)
        state = h["momentum"] * state + g * g
        return x - h["lr"] * g / (state.sqrt() + 1e-8), state


class Cube(torch.autograd.Function):
    """x^3; its backward is right, and wrong when it is differentiated in its turn."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, slope):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * slope


class OnceCube(Cube):
    @staticmethod
    def backward(ctx, slope):
        return Square.apply(ctx.saved_tensors[0]) * 3 * slope


class Square(torch.autograd.Function):
    """x^2, without a derivative."""

    @staticmethod
    def forward(ctx, x):
        return x**2


class WrongSecond(Faulty):
    cube = Cube

    def update(self, theta, x, state, f, g):
        return super().update(theta, x, state, f, self.cube.apply(g))


class NoSecond(WrongSecond):
    cube = OnceCube


OPTIMIZER_FAULTS = [
    (AcrossCopies, "another x when f, g and x of another copy changed, expected copies that never mix"),
    (CountsCopies, "another x for a copy alone than among others"),
    (AcrossOptimizers, "another x when another optimizer's theta changed"),
    (InPlace, "x changed in place by update, expected unchanged inputs; write x = x"),
    (InPlaceBuffer, "state changed in place by update"),
    (Unread, "a parameter dampening that changes nothing in 4 updates"),
    (Noisy, "a draw from torch's global generator in update"),
    (SharedCount, r"\[\] as init_state, expected \[1\] first; every copy must own its part"),
    (Doubles, r".*float64 as the updated x, expected \[1, 1\] in torch.float32"),
    (Stateful, "an advanced state"),
    (Attached, "the updated x with an autograd graph"),
    (Forgetful, r"\[1\] in torch.float32 as init, expected \[2\]"),
    (OddResult, r"\[1\] in torch.float32 as result, expected \[1, 1\]"),
    (PenaltyOfAll, r"\[\] as penalty, expected \[3\] first"),
    (PlainRepr, "the repr of a plain dataclass, .*repr=False"),
    (Growing, r".*Growing\(units=4\) when built from its settings, expected itself"),
    (ReadsLoss, "another x for another f, expected none, as its reads_loss is false; let traits say reads_loss=True"),
    (ReadsNoGradient, "another x for another g, expected none, as its reads_grad is false"),
    (LearnsItsStart, "another start for another theta, expected none, as its learns_init is false"),
    (LearnsItsState, "another start for another theta, expected none, as its learns_init is false"),
    (AcrossTensors, 'another x when g and x of another coordinate changed.*locality="global"'),
    (CountsCoordinates, "another x for a coordinate alone"),
    (WithoutGraph, "a derivative of update in theta with slope 0 along a direction, expected .*differentiable=False"),
    (
        DetachedRate,
        "a derivative of update in theta with slope 0 along a direction, expected .* as central",
    ),
    (DetachedBuffer, "a derivative of update in state with slope .*, expected"),
    (Root, "a derivative in .* that is not finite where the gradient is exactly 0.*tiny under the square root"),
    (WrongSecond, "a second derivative of update in g with slope .*, expected .*, or pass order=1"),
    (NoSecond, r"a second derivative of update that fails \(.*backward.*, or pass order=1"),
]


@pytest.mark.parametrize(("kind", "sentence"), OPTIMIZER_FAULTS, ids=lambda each: getattr(each, "__name__", ""))
def test_broken_optimizers_are_named(kind, sentence):
    with pytest.raises(ConformanceError, match=f"got {sentence}"):
        check_optimizer(kind())


def test_what_an_optimizer_may_switch_off():
    class Black(WithoutGraph):
        @property
        def traits(self):
            return OptimizerTraits(differentiable=False, locality="elementwise")

    check_optimizer(Faulty())
    check_optimizer(Black())
    check_optimizer(NoSecond(), order=1)
    check_optimizer(WrongSecond(), order=1)


def test_one_update_is_too_few():
    with pytest.raises(ValueError, match=r"^steps must be at least 2, got 1$"):
        check_optimizer(SGD(), steps=1)


# Estimators.


@pytest.mark.parametrize("estimator", [FirstOrder(), Exact(), PES(), NRES(), Forward()], ids=str)
def test_estimators_conform(estimator):
    check_estimator(estimator)


def test_exact_gradients_are_derivatives_and_first_order_ones_are_not():
    check_estimator(Exact(), exact_gradient=True)
    with pytest.raises(ConformanceError, match="got a gradient with slope"):
        check_estimator(FirstOrder(), exact_gradient=True)
    level = Level(optimizer=LSTM(hidden=2), unroll=2, batch=2).over(Quadratic(dims=2, dtype="float64"))
    check_estimator(Exact(), level=level, exact_gradient=True)


class ConstantAnswer(FirstOrder):
    """Says that it can be differentiated, but answers with constants."""

    @torch.no_grad()
    def value_and_grad(self, level, theta, state):
        return super().value_and_grad(level, theta.detach(), state)


class SharedNoise(FirstOrder):
    def value_and_grad(self, level, theta, state):
        value, grad, state = super().value_and_grad(level, theta, state)
        return value, grad - 0.1 * grad.mean(), state


class Hoarding(FirstOrder):
    """Keeps another window in its memory at every call."""

    def value(self, level, theta, state):
        value, new = super().value(level, theta, state)
        return value, new._replace(memory=(new.carry.f, state.memory))


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (ConstantAnswer, "a derivative of the gradient with slope 0 along a direction, expected"),
        (SharedNoise, "another gradient for a copy in a batch, expected what the copy answers alone"),
        (Hoarding, "an advanced state"),
    ],
)
def test_broken_estimators_are_named(kind, sentence):
    with pytest.raises(ConformanceError, match=f"got {sentence}"):
        check_estimator(kind())


def test_the_errors_are_assertions_and_parts_are_left_alone():
    assert issubclass(ConformanceError, AssertionError)
    optimizer = Adam()
    state = torch.get_rng_state()
    check_optimizer(optimizer, below=Layout.of({"x": (2,)}))
    assert optimizer.site is None
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
