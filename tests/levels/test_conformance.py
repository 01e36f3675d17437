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
from levels.tasks.task import SPLITS
from levels.testing import ConformanceError, check_estimator, check_optimizer, check_problem

OPTIMIZERS = [
    SGD(),
    SGD(lr=Linear(0.1, "tensor")),
    SGD(lr=Log(0.1, "coordinate"), momentum=0.9, nesterov=True, weight_decay=0.01),
    SGD(lr=Fixed(0.1), momentum=0.5),
    Adam(lr=Log(0.01, "coordinate"), beta1=Fixed(0.8), eps=1e-3),
    RMSprop(lr=Log(0.01, "tensor"), decay=0.5, eps=Fixed(1e-6)),
    LSTM(hidden=3, layers=1, p=5.0, scale=1.0),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_optimizers_conform(optimizer):
    check_optimizer(optimizer)


def test_a_layout_of_ones_own():
    check_optimizer(Adam(lr=Log(1e-3, "tensor")), param_layout=DigitsMLP(hidden=(3,)).layout, steps=2)


@pytest.mark.parametrize(
    ("levels", "settings"),
    [
        ((Level(optimizer=SGD(momentum=0.9), batch=2),), {}),
        ((Level(optimizer=Adam(), batch=2, objective=MeanLog(), horizon=3),), {}),
        ((Level(optimizer=SGD(), batch=2), Level(optimizer=Adam(), batch=3)), {}),
        ((Level(optimizer=LSTM(hidden=3), unroll=4, batch=2, objective=Last(), clip=0.1),), {"exact_gradient": False}),
        ((Level(optimizer=LSTM(hidden=2), unroll=3), Level(optimizer=LSTM(hidden=2), unroll=2, batch=2)),
         {"exact_gradient": False, "order": 1}),
    ],
)  # fmt: skip
def test_levels_conform(levels, settings):
    problem = Quadratic(dims=3, dtype="float64")
    for level in levels:
        problem = level.over(problem)
    check_problem(problem, **settings)


def test_a_first_order_level_is_no_derivative():
    level = Level(optimizer=SGD(lr=0.01), unroll=4, batch=2).over(Quadratic(dims=3, dtype="float64"))
    with pytest.raises(ConformanceError, match=r"slope .* pass exact_gradient=False"):
        check_problem(level)


# Problems, each with one method broken.


class Broken(Quadratic):
    name = "broken"


class OtherData(Broken):
    """Counts three times the loss at twice the parameters."""

    traits = ProblemTraits(outer_evals=1)

    def outer_value_and_grad(self, params, state, f, g):
        value, grad, _ = self.value_and_grad(2 * params, state)
        return 3 * value, 6 * grad, state


def broken(base, **members):
    return type("Kind", (base,), {"__module__": __name__, **members})


def answering(change):
    """A quadratic whose answer is changed: ``change(params, state, value, grad, new_state)``."""

    def value_and_grad(self, params, state):
        return change(params, state, *Quadratic.value_and_grad(self, params, state))

    return broken(Broken, value_and_grad=value_and_grad)


def counting(change):
    """The same for what counts, given ``f`` too."""

    def outer_value_and_grad(self, params, state, f, g):
        return change(f, *OtherData.outer_value_and_grad(self, params, state, f, g))

    return broken(OtherData, outer_value_and_grad=outer_value_and_grad)


def forked(self, key):
    with torch.random.fork_rng(devices=[]):
        return torch.randn(*key.shape, self.dims, dtype=self.torch_dtype)


def mixed(self, params, key):
    w, y = Quadratic.init_state(self, params, key)
    return QuadraticState(w, y - (y.flatten(0, -2).mean(0) if y.dim() > 1 else 0))


def with_graph(self, params, state):
    value, grad, state = Quadratic.value_and_grad(self, params.detach().requires_grad_(), state)
    return value, grad.detach(), state


NO_CURVATURE = answering(lambda x, s, f, g, new: (f, g.detach(), new))
SCALED = answering(lambda x, s, f, g, new: (f, 1.001 * g, new))
ONE_PROBLEM = broken(Broken, own=lambda self, key: keys.fold_in(torch.zeros_like(key), SPLITS.index(self.split)))

PROBLEM_FAULTS = [
    (SCALED, "a gradient with slope .* expected .* as central differences say; mend the gradient"),
    (answering(lambda x, s, f, g, new: (f, torch.cat((g[..., :-1], 0.9 * g[..., -1:]), -1), new)), "a gradient with"),
    (NO_CURVATURE, "a derivative of the gradient with slope 0.*differentiable=False, or pass order=1"),
    (answering(lambda x, s, f, g, new: (f + x.sum(-1) - x.detach().sum(-1), g, new)),
     "another derivative of the value by autograd, expected the gradient"),
    (answering(lambda x, s, f, g, new: (f, g, new._replace(y=new.y + 0 * x))),
     "state at parameters that require grad.y with an autograd graph, expected none; detach it"),
    (answering(lambda x, s, f, g, new: (f, g, new._replace(y=new.y.add_(1)))),
     "state.y changed in place by value_and_grad, expected unchanged inputs; write x = x"),
    (answering(lambda x, s, f, g, new: (f, g, (x.mul_(0.5), new)[1])), "params changed in place by value_and_grad"),
    (answering(lambda x, s, f, g, new: (f, g, new._replace(y=new.y.float()))), "an advanced state .*float32.* as it"),
    (answering(lambda x, s, f, g, new: (f, g, {"w": new[0], "y": new[1]})), "an advanced state .* as it was"),
    (answering(lambda x, s, f, g, new: (f / 0, g, new)), "value that is not finite"),
    (answering(lambda x, s, f, g, new: (f[..., None], g, new)), r"\[1\] in torch.float64 as value, expected \[\] in"),
    (broken(Broken, value_and_grad=with_graph), "value with an autograd graph, expected none; detach it"),
    (broken(Broken, value=lambda self, params, state: (self.value_and_grad(params, state)[0] * 2, state)),
     "another 0 from value, expected that of value_and_grad"),
    (broken(Broken, init=lambda self, key: torch.randn(*key.shape, self.dims, dtype=self.torch_dtype)),
     "a draw from torch's global generator in init, expected none; draw with levels.keys"),
    (broken(Broken, init=forked), "another params for the same key and inputs"),
    (broken(Broken, init=lambda self, key: Quadratic.init(self, key).float()), ".*float32 as init, expected .*float64"),
    (broken(Broken, init_state=mixed), "another start.y for a copy in a batch, expected what the copy answers alone"),
    (broken(Broken, init_state=lambda self, *_: Quadratic.init_state(self, *_)._replace(y=torch.zeros(4).double())),
     r"\[4\] as init_state.y, expected \[3\] first"),
    (broken(Broken, own=lambda self, key: key), r"the problems of another split for the same key.*self\.own\(key\)"),
    (ONE_PROBLEM, "one value and gradient for different keys.*varied=False"),
    (broken(OtherData, traits=ProblemTraits()), r"outer_evals of 0, .*as ProblemTraits\(outer_evals=1\)"),
    (counting(lambda f, value, grad, state: (value, grad / 2, state)), "a counted gradient with slope .* expected"),
    (counting(lambda f, value, grad, state: (value, grad, (f.mul_(2), state)[1])),
     "f changed in place by outer_value_and_grad"),
    (counting(lambda f, value, grad, state: (value + f.mean(), grad, state)), "another scratch for a copy in a batch"),
    (counting(lambda f, value, grad, state: (value, grad.detach(), state)), "a derivative of the counted"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "sentence"), PROBLEM_FAULTS)
def test_broken_problems_are_named(kind, sentence):
    with pytest.raises(ConformanceError, match=rf"^test_conformance\.Kind\(.*dtype=float64, dims=4\): got {sentence}"):
        check_problem(kind(dtype="float64", dims=4))


def test_what_a_problem_may_switch_off():
    check_problem(OtherData(dims=4))
    check_problem(ONE_PROBLEM(), varied=False)
    check_problem(SCALED(), exact_gradient=False)
    check_problem(NO_CURVATURE(), order=1)
    check_problem(broken(NO_CURVATURE, traits=ProblemTraits(differentiable=False))())


def test_seeds_are_used():
    def value_and_grad(self, params, state):
        value, grad, state = Quadratic.value_and_grad(self, params, state)
        return value, torch.where(torch.isin(state.y[..., :1], bad), -grad, grad), state

    task = broken(Broken, value_and_grad=value_and_grad)(dtype="float64")  # wrong only for the problems of one seed
    key = keys.split(keys.split(keys.seed(5), 6), 2)[:, 1]
    bad = replace(Quadratic(), dtype="float64").init_state(key, key).y[:, 0]
    check_problem(task, seed=4)
    with pytest.raises(ConformanceError, match="slope"):
        check_problem(task, seed=5)


# Optimizers: momentum, with one thing broken.


@dataclass(frozen=True, repr=False)
class Faulty(SGD):
    name = "faulty"
    momentum: Hyper | float | None = hyper(0.9, Linear)


def reading(**changes):
    """An update that reads something else: each change is a function of ``theta, x, state, f, g``."""

    def update(self, *read):
        read = [changes[name](*read) if name in changes else given
                for name, given in zip(("theta", "x", "state", "f", "g"), read)]  # fmt: skip
        return SGD.update(self, *read)

    return broken(Faulty, update=update)


def writing(change):
    """An update that returns something else: ``change(x, state)``."""
    return broken(Faulty, update=lambda self, *read: change(*SGD.update(self, *read)))


@dataclass(frozen=True, repr=False)
class Unread(Faulty):
    dampening: Hyper | float = hyper(0.5, Linear)


@dataclass(frozen=True)
class PlainRepr(Faulty):
    pass


@dataclass(frozen=True, repr=False)
class Growing(Faulty):
    units: int = 1

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "units", self.units + 1)


def root(self, theta, x, state, f, g):
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


WITHOUT_GRAPH = broken(Faulty, update=torch.no_grad()(lambda self, *read: SGD.update(self, *read)))
WRONG_SECOND = reading(g=lambda theta, x, state, f, g: Cube.apply(g))
NO_SECOND = reading(g=lambda theta, x, state, f, g: OnceCube.apply(g))

OPTIMIZER_FAULTS = [
    (reading(g=lambda theta, x, state, f, g: g - 1e-3 * g.mean(-2, keepdim=True)),
     "another x when f, g and x of another copy changed, expected copies that never mix"),
    (reading(g=lambda theta, x, state, f, g: g / x.shape[-2]), "another x for a copy alone than among others"),
    (reading(theta=lambda theta, *_: theta.mean(0, keepdim=True) if theta.dim() > 1 else theta),
     "another x when another optimizer's theta changed"),
    (reading(x=lambda theta, x, state, f, g: x.sub_(g)), "x changed in place by update, expected unchanged inputs"),
    (reading(state=lambda theta, x, state, f, g: state.add_(g)), "state changed in place by update"),
    (reading(g=lambda theta, x, state, f, g: g + torch.randn_like(g)), "a draw from torch's global generator in"),
    (writing(lambda x, state: (x.double(), state)), r".*float64 as the updated x, expected \[1, 1\] in torch.float32"),
    (writing(lambda x, state: (x, (state, state))), "an advanced state"),
    (writing(lambda x, state: (x + torch.zeros_like(x, requires_grad=True), state)), "the updated x with an autograd"),
    (broken(Faulty, init_state=lambda self, *_: torch.zeros(())), r"\[\] as init_state, expected \[1\] first; every"),
    (broken(Faulty, init=lambda self, key: SGD.init(self, key)[..., :1]), r"\[1\] in .* as init, expected \[2\]"),
    (broken(Faulty, result=lambda self, state, x: x.mean(-2)), r"\[1\] in .* as result, expected \[1, 1\]"),
    (broken(Faulty, penalty=lambda self, theta: theta.square().mean()), r"\[\] as penalty, expected \[3\] first"),
    (Unread, "a parameter dampening that changes nothing in 4 updates"),
    (PlainRepr, "the repr of a plain dataclass, .*repr=False"),
    (Growing, r".*Growing\(units=4\) when built from its settings, expected itself"),
    # traits that say too little
    (reading(g=lambda theta, x, state, f, g: g * f[..., None]), "another x for another f, .* let traits say reads"),
    (broken(Faulty, traits=OptimizerTraits(reads_grad=False)), "another x for another g, .* its reads_grad is false"),
    (broken(Faulty, init_x=lambda self, theta, key: SGD.init_x(self, theta, key) + theta[..., None, :1]),
     "another start for another theta, expected none, as its learns_init is false"),
    (broken(Faulty, init_state=lambda self, theta, x, key: torch.zeros_like(x) + theta[..., None, :1]),
     "another start for another theta, expected none, as its learns_init is false"),
    (reading(g=lambda theta, x, state, f, g: g / (1 + g.square().mean(-1, keepdim=True))),
     'another x when g and x of another coordinate changed.*locality="global"'),
    (reading(g=lambda theta, x, state, f, g: g / x.shape[-1]), "another x for a coordinate alone"),
    # derivatives
    (WITHOUT_GRAPH, "a derivative of update in theta with slope 0 along a direction, expected .*differentiable=False"),
    (reading(theta=lambda theta, *_: theta.detach()), "a derivative of update in theta with slope 0 along a direction"),
    (reading(state=lambda theta, x, state, f, g: state.detach()), "a derivative of update in state with slope 0"),
    (broken(Faulty, update=root), "a derivative in .* that is not finite where .* exactly 0.*tiny under the"),
    (WRONG_SECOND, "a second derivative of update in g with slope .*, expected .*, or pass order=1"),
    (NO_SECOND, r"a second derivative of update that fails \(.*backward.*, or pass order=1"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "sentence"), OPTIMIZER_FAULTS)
def test_broken_optimizers_are_named(kind, sentence):
    with pytest.raises(ConformanceError, match=f"got {sentence}"):
        check_optimizer(kind())


def test_what_an_optimizer_may_switch_off():
    black = broken(WITHOUT_GRAPH, traits=OptimizerTraits(differentiable=False, locality="elementwise"))
    check_optimizer(black(), steps=2)
    check_optimizer(NO_SECOND(), steps=2, order=1)
    check_optimizer(WRONG_SECOND(), steps=2, order=1)
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
    optimizer, state = Adam(), torch.get_rng_state()
    check_optimizer(optimizer, param_layout=Layout.of({"x": (2,)}))
    assert optimizer.site is None
    assert torch.equal(torch.get_rng_state(), state)


def test_abstract_parts_cannot_be_checked():
    with pytest.raises(TypeError, match="abstract"):
        MLP()
    with pytest.raises(TypeError, match="abstract"):
        Optimizer()
