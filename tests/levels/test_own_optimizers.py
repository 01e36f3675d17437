"""AdamW, Adagrad, RMSprop and Muon against torch.optim; hypergradients against differences of torch's own runs."""

import math

import pytest
import torch
from torch import nn

from levels import Adagrad, AdamW, Fixed, Layout, Linear, Log, Logit, Muon, RMSprop
from levels.optimizers.muon import orthogonalised
from levels.testing import ConformanceError, check_optimizer
from recursion.notation import parse

BELOW = Layout.of({"weight": (2, 2), "bias": (2,), "scale": ()}, torch.float64)
MATRICES = Layout.of({"wide": (2, 5), "tall": (4, 3), "square": (3, 3)}, torch.float64)
STEPS = 20


def every(per):
    """Rules with all their hyperparameters shared as ``per`` says."""
    return [
        AdamW(lr=Log(0.05, per)),
        AdamW(Log(0.1, per), Logit(0.5, per), Linear(0.9, per), Log(0.01, per), Log(0.3, per)),
        Adagrad(lr=Log(0.05, per)),
        Adagrad(Log(0.1, per), Log(0.2, per), Log(0.3, per), Log(0.01, per), Log(0.1, per)),
        RMSprop(lr=Log(0.05, per), weight_decay=Log(0.1, per), momentum=Logit(0.8, per)),
        RMSprop(lr=Log(0.05, per), decay=Logit(0.7, per), eps=Log(0.1, per), centered=True),
        RMSprop(lr=Log(0.01, per), decay=Linear(0.9, per), momentum=Logit(0.5, per), centered=True),
    ]


RULES = [*every("value"), *every("tensor"), *every("coordinate"), AdamW(lr=Fixed(0.1), weight_decay=Fixed(0.1)),
         Adagrad(lr=Fixed(0.1), initial=0.5), RMSprop(lr=Fixed(0.05), centered=True)]  # fmt: skip
MUONS = [
    Muon(lr=0.05),
    Muon(lr=Log(0.02, "tensor"), momentum=Logit(0.6, "tensor"), weight_decay=Log(0.3, "tensor")),
    Muon(lr=0.05, momentum=0.8, weight_decay=None, nesterov=False),
    Muon(lr=0.05, momentum=Fixed(0.9), iterations=3),
]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(rule):
    """Parameters that differ from one hyperparameter entry to the next."""
    params = rule.init(torch.tensor(0))
    return params * (1 + 0.1 * random(*params.shape, seed=2).clamp(-1, 1))


def torch_kind(rule):
    return {"adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad, "rmsprop": torch.optim.RMSprop,
            "muon": torch.optim.Muon}[rule.name]  # fmt: skip


def torch_group(rule, h):
    """Our settings, as torch calls them, from numbers by field name."""
    if rule.name == "muon":
        return {"lr": h["lr"], "momentum": h["momentum"], "weight_decay": h.get("weight_decay", 0.0),
                "nesterov": rule.nesterov, "ns_steps": rule.iterations}  # fmt: skip
    names = {"decay": "alpha", "initial": "initial_accumulator_value"}
    group = {names.get(name, name): value for name, value in h.items() if not name.startswith("beta")}
    if rule.name == "adamw":
        group["betas"] = (h["beta1"], h["beta2"])
    if rule.name == "rmsprop":
        group["centered"] = rule.centered
    return group


def torch_run(rule, params, x, grads, pieces):
    """The trajectory of torch's own optimizer, one group for each piece, a slice of the coordinates and a shape."""
    h = {name: value.expand(1, len(x))[0] for name, value in rule.read(params).items()}
    tensors = [nn.Parameter(x[where].reshape(shape).clone()) for where, shape in pieces]
    boxes = [
        torch_kind(rule)([tensor], **torch_group(rule, {name: float(value[where][0]) for name, value in h.items()}))
        for tensor, (where, _) in zip(tensors, pieces)
    ]
    path = []
    for grad in grads:
        slope = grad(torch.cat([tensor.detach().flatten() for tensor in tensors])) if callable(grad) else grad
        for tensor, box, (where, shape) in zip(tensors, boxes, pieces):
            tensor.grad = slope[where].reshape(shape).clone()
            box.step()
        path.append(torch.cat([tensor.detach().flatten() for tensor in tensors]))
    return torch.stack(path)


def pieces_of(rule):
    """Coordinates one by one where torch has one number a group, whole tensors where it needs their shapes."""
    if rule.name != "muon":
        return [(slice(i, i + 1), (1,)) for i in range(rule.param_layout.size)]
    ends = torch.tensor(rule.param_layout.sizes).cumsum(0).tolist()
    return [(slice(end - size, end), shape)
            for end, size, (_, shape) in zip(ends, rule.param_layout.sizes, rule.param_layout.entries)]  # fmt: skip


@pytest.fixture(autouse=True)
def _whole_precision(monkeypatch):
    """torch.optim.Muon rounds to bfloat16 before it orthogonalises; without that it is exact in float64."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)


def bound(rule):
    return rule.bind(MATRICES if rule.name == "muon" else BELOW)


@pytest.mark.parametrize("rule", [*RULES, *MUONS], ids=str)
def test_trajectories_equal_those_of_torch(rule):
    rule = bound(rule)
    n = rule.param_layout.size
    root = random(n, n, seed=1)
    hessian, params, x = root @ root.T / n, shaken(rule), random(2, n, seed=3)
    expected = torch.stack([torch_run(rule, params, row, [lambda at: hessian @ at] * STEPS, pieces_of(rule))
                            for row in x], dim=1)  # fmt: skip
    state = rule.init_state(params, x, None)
    for t in range(STEPS):
        x, state = rule.update(params, x, state, torch.zeros(2), x @ hessian)
        assert torch.allclose(x, expected[t], rtol=1e-12, atol=1e-12), f"step {t + 1}"


@pytest.mark.parametrize("rule", [*RULES, *MUONS], ids=str)
def test_hypergradients_equal_differences_of_runs_of_torch(rule):
    """With recorded gradients (so g is data), the loss where torch's optimizer ends, as a function of raw params."""
    rule = bound(rule)
    n = rule.param_layout.size
    params, start, grads, target = shaken(rule), random(n, seed=3), random(8, n, seed=4), random(n, seed=5)

    def final_loss(raw):
        return float((torch_run(rule, raw, start, list(grads), pieces_of(rule))[-1] - target).square().sum()) / 2

    if not len(params):
        return  # all numbers are fixed
    leaf, x = params.clone().requires_grad_(), start[None]
    state = rule.init_state(leaf, x, None)
    for g in grads:
        x, state = rule.update(leaf, x, state, torch.zeros(1), g[None])
    (dparams,) = torch.autograd.grad(((x - target).square() / 2).sum(), leaf)
    width = 1e-5
    for i in range(len(params)):
        moved = torch.zeros_like(params)
        moved[i] = width
        measured = (final_loss(params + moved) - final_loss(params - moved)) / (2 * width)
        assert float(dparams[i]) == pytest.approx(measured, rel=1e-5, abs=1e-8), rule.layout.entries


def test_muon_with_torchs_bfloat16(monkeypatch):
    monkeypatch.undo()
    rule = Muon(lr=0.05).bind(MATRICES)
    params, x, grads = rule.init(torch.tensor(0)), random(1, 31), list(random(5, 31, seed=1))
    expected = torch_run(rule, params, x[0], grads, pieces_of(rule))[-1]
    state = rule.init_state(params, x, None)
    for g in grads:
        x, state = rule.update(params, x, state, torch.zeros(1), g[None])
    assert torch.allclose(x, expected, atol=5 * 0.05 * 0.05)
    assert not torch.allclose(x, expected, atol=1e-6)


def test_the_polynomial_drives_singular_values_towards_one():
    for shape in ((4, 4), (3, 8), (1, 6)):
        matrix = random(2, *shape)
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        done = orthogonalised(matrix, 5)
        values = u.mT @ done @ v.mT
        off = values - torch.diag_embed(values.diagonal(dim1=-2, dim2=-1))
        assert off.abs().max() < 1e-12
        assert float(values.diagonal(dim1=-2, dim2=-1).min()) > 0.6
        assert float(values.diagonal(dim1=-2, dim2=-1).max()) < 1.3


def test_muon_moves_vectors_and_scalars_by_adam():
    below = Layout.of({"kernel": (3, 2, 2), "bias": (3,), "scale": ()}, torch.float64)
    rule = Muon(lr=0.1, momentum=0.8, vectors=0.3, beta2=0.95, weight_decay=0.2).bind(below)
    params, x, g = rule.init(torch.tensor(0)), random(1, 16), random(3, 16, seed=1)
    vector = nn.Parameter(x[0, 12:].clone())
    theirs = torch.optim.AdamW([vector], lr=0.03, betas=(0.8, 0.95), weight_decay=0.2)
    state = rule.init_state(params, x, None)
    for row in g:
        x, state = rule.update(params, x, state, torch.zeros(1), row[None])
        vector.grad = row[12:].clone()
        theirs.step()
    assert torch.allclose(x[0, 12:], vector.detach(), rtol=1e-12)


def test_muon_takes_a_kernel_as_a_matrix():
    kernel = Muon(lr=0.1).bind(Layout.of({"kernel": (3, 2, 2)}, torch.float64))
    matrix = Muon(lr=0.1).bind(Layout.of({"matrix": (3, 4)}, torch.float64))
    params, x, g = kernel.init(torch.tensor(0)), random(2, 12), random(2, 12, seed=1)
    moved = [
        rule.update(params, x, rule.init_state(params, x, None), torch.zeros(2), g)[0] for rule in (kernel, matrix)
    ]
    assert torch.equal(*moved)
    assert not torch.equal(moved[0], x)


CENTERED = RMSprop(decay=0.5, centered=True, momentum=0.9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rule", [AdamW(), Adagrad(lr_decay=0.1), RMSprop(momentum=0.9), CENTERED, Muon()], ids=str)
def test_dead_coordinates_have_finite_hypergradients(rule, dtype):
    """The first tensor and one entry of the second never get a gradient; another entry always gets the same one."""
    rule = rule.bind(Layout.of({"dead": (2, 2), "mixed": (3,)}, dtype))
    params, x = rule.init(torch.tensor(0)), torch.ones(1, 7, dtype=dtype)
    g = torch.tensor([[0, 0, 0, 0, 0, 1.5, 0.5]], dtype=dtype)
    leaf = params.clone().requires_grad_()
    state = rule.init_state(leaf, x, None)
    for _ in range(80):
        x, state = rule.update(leaf, x, state, torch.zeros(1), g)
        assert torch.isfinite(x).all()
    assert torch.isfinite(torch.autograd.grad(x.sum(), leaf)[0]).all()


def test_a_spread_that_rounds_below_zero_counts_as_zero():
    rule = RMSprop(lr=1.0, decay=0.5, eps=1.0, centered=True).bind(Layout.of({"x": (1,)}, torch.float64))
    params, x = rule.init(torch.tensor(0)), torch.zeros(1, 1, dtype=torch.float64)
    state = rule.init_state(params, x, None)._replace(v=x + 1.0, a=x + 1.0 + 1e-9)
    g = x + 1.0
    leaf = params.clone().requires_grad_()
    new, _ = rule.update(leaf, x, state, torch.zeros(1), g)
    assert float(new.detach()) == pytest.approx(-1.0, rel=1e-12)  # lr * g / (0 + eps)
    (slopes,) = torch.autograd.grad(new.sum(), leaf)
    assert rule.layout.unravel(slopes)["decay"] == 0


@pytest.mark.parametrize(
    "rule",
    [AdamW(), AdamW(weight_decay=Log(0.1, "tensor"), beta1=Fixed(0.8)), Adagrad(),
     Adagrad(Log(0.1, "tensor"), 0.1, 0.1, 0.1, 0.1), RMSprop(momentum=0.9), CENTERED,
     RMSprop(centered=True, weight_decay=Log(0.1, "coordinate")), Muon(lr=0.05),
     Muon(lr=Log(0.05, "coordinate"), vectors=Log(0.1, "tensor"), weight_decay=None, nesterov=False)],
    ids=str,
)  # fmt: skip
def test_they_conform(rule):
    check_optimizer(rule)


def test_a_batch_is_a_loop_over_its_optimizers():
    for rule in (AdamW(), Adagrad(lr_decay=0.1), CENTERED, Muon(lr=0.05)):
        rule = rule.bind(BELOW)
        params = rule.init(torch.arange(2))
        params = params * (1 + 0.1 * random(*params.shape))
        x, g = random(2, 3, 7, seed=1), random(2, 3, 7, seed=2)
        together, _ = rule.update(params, x, rule.init_state(params, x, None), torch.zeros(2, 3), g)
        for i in range(2):
            state = rule.init_state(params[i], x[i], None)
            alone, _ = rule.update(params[i], x[i], state, torch.zeros(3), g[i])
            assert torch.allclose(together[i], alone, rtol=1e-13, atol=1e-14)


class WrongScope(Muon):
    """Normalises over all tensors, and says that it does not."""

    name = "wrong"

    def update(self, theta, x, state, f, g):
        return super().update(theta, x, state, f, g / (1 + g.norm(dim=-1, keepdim=True)))


class RunningTotal(Adagrad):
    """Adds to its sum in place."""

    name = "running"

    def update(self, theta, x, state, f, g):
        state.v.add_((g * g).detach())
        return super().update(theta, x, state, f, g)


class SharedSteps(AdamW):
    """Counts steps once for all copies."""

    name = "shared"

    def init_state(self, theta, x, key):
        return super().init_state(theta, x, key)._replace(t=torch.zeros((), dtype=torch.int64))


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (WrongScope(), "locality"),
        (RunningTotal(), "got state.v changed in place by update"),
        (SharedSteps(), r"got \[\] as init_state.t, expected \[1\] first"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_broken_ones_are_refused(rule, sentence):
    with pytest.raises(ConformanceError, match=sentence):
        check_optimizer(rule)


@pytest.mark.parametrize("name", ["adamw", "adagrad(lr_decay=0.1)", "rmsprop(momentum=0.9, centered=true)", "muon"])
@pytest.mark.parametrize("text", ["quadratic(4): {}@2 / adam", "quadratic(4): lstm(hidden=4)@2 / {}@2 / sgd"])
def test_they_run_inside_towers(text, name):
    tower = parse(text.format(name))
    assert name in str(tower)
    state = tower.init(seed=0)
    start = state.carry.x
    for _ in range(3):
        state, report = tower.step(state)
        assert all(map(math.isfinite, report.losses))
    assert not torch.equal(start, state.carry.x)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: AdamW(weight_decay=None),
         "adamw: weight_decay must be a number, got none"),
        (lambda: Adagrad(eps=None), "adagrad: eps must be a number, got none"),
        (lambda: RMSprop(centered=1), "rmsprop: centered must be true or false, got 1"),
        (lambda: Muon(beta2=None), "muon: beta2 must be a number, got none"),
        (lambda: Muon(iterations=0), "muon: iterations must be a whole number of at least 1, got 0"),
        (lambda: Muon(nesterov="yes"), "muon: nesterov must be true or false, got yes"),
    ],
)  # fmt: skip
def test_bad_settings(make, sentence):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == sentence
