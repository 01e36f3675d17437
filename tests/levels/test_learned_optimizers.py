"""RNNProp, the MLP and modules as optimizers against loops written by hand, torch's own cells and closed forms."""

import math

import pytest
import torch
from torch import nn

from levels import Fixed, Layout, Level, Log, MLPOptimizer, ModuleOptimizer, Quadratic, RNNProp, Sum
from levels.testing import ConformanceError, check_optimizer
from recursion.notation import parse
from recursion.tower import Tower

BELOW = Layout.of({"weight": (2, 2), "bias": (2,), "scale": ()}, torch.float64)
N = 7


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaken(rule, key=3):
    params = rule.init(torch.tensor(key))
    return params + 0.1 * random(*params.shape, seed=9)


class RememberingCell(nn.Module):
    """A recurrent cell of plain matrix products."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.Linear(2 + 3, 3), nn.Linear(3, 1)
        self.register_buffer("damping", torch.tensor(0.5))

    def forward(self, u, h):
        h = torch.tanh(self.cell(torch.cat((u, h), dim=-1))) * self.damping
        return self.out(h), h


def small_net():
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))


MODULES = [
    ModuleOptimizer(make=small_net),
    ModuleOptimizer(make=RememberingCell, memory=3, scale=0.5),
    ModuleOptimizer(make=lambda: nn.Linear(2, 1), features=lambda g, x: torch.stack((g, torch.sin(x)), dim=-1)),
]
LEARNED = [RNNProp(hidden=3), RNNProp(hidden=4, layers=1, scale=1.0, beta1=0.5), MLPOptimizer(),
           MLPOptimizer(hidden=3, momenta=0.5, moments=0.9, times=5, lr=Fixed(0.1)),
           MLPOptimizer(hidden=(3, 2), lr=Log(0.1, "tensor")), *MODULES]  # fmt: skip


@pytest.mark.parametrize("rule", LEARNED, ids=lambda rule: rule.name)
def test_they_conform(rule):
    check_optimizer(rule)


@pytest.mark.parametrize(("hidden", "layers", "scale"), [(5, 1, 1.0), (3, 2, 0.1)])
def test_rnnprop_equals_torchs_cells(hidden, layers, scale):
    rule = RNNProp(hidden=hidden, layers=layers, scale=scale).bind(BELOW)
    params = shaken(rule)
    views = rule.layout.unravel(params)
    cells, memory = [nn.LSTMCell(hidden, hidden, dtype=torch.float64) for _ in range(layers)], [None] * layers
    for layer, cell in enumerate(cells):
        with torch.no_grad():
            weight = views[f"layer{layer}.weight"]
            cell.weight_ih.copy_(weight[:-hidden].T)
            cell.weight_hh.copy_(weight[-hidden:].T)
            cell.bias_ih.copy_(views[f"layer{layer}.bias"])
            cell.bias_hh.zero_()
    x = random(2, N)
    state, theirs, m, v = rule.init_state(params, x, None), x.clone(), 0.0, 0.0
    for t in range(1, 6):
        g = random(2, N, seed=10 + t) * 10.0 ** (-2 * t)
        x, state = rule.update(params, x, state, torch.zeros(2), g)
        m, v = 0.95 * m + 0.05 * g, 0.95 * v + 0.05 * g**2
        root = (v / (1 - 0.95**t)).sqrt() + 1e-8
        inputs = torch.stack((m / (1 - 0.95**t) / root, g / root), dim=-1)
        with torch.no_grad():
            out = nn.functional.elu(inputs @ views["in.weight"] + views["in.bias"]).reshape(-1, hidden)
            for layer, cell in enumerate(cells):
                memory[layer] = cell(out, memory[layer])
                out = memory[layer][0]
            out = (out @ views["out.weight"] + views["out.bias"]).reshape(2, N)
        theirs = theirs - scale * out.tanh()
        assert torch.allclose(x, theirs, rtol=1e-12, atol=1e-12)


def test_rnnprop_ignores_the_scale_of_the_loss_and_bounds_its_steps():
    rule = RNNProp(hidden=4, scale=0.1).bind(BELOW)
    params = 5 * shaken(rule)
    ends = []
    for factor in (1.0, 1e3):
        x = random(1, N)
        state = rule.init_state(params, x, None)
        for t in range(5):
            new, state = rule.update(params, x, state, torch.zeros(1), factor * random(1, N, seed=20 + t))
            assert float((new - x).abs().max()) <= 0.1
            x = new
        ends.append(x)
    assert torch.allclose(*ends, rtol=1e-6)
    assert not torch.allclose(ends[0], random(1, N), atol=0.1)


def mlp_by_hand(rule, params, x, grads):
    """One copy, ``x`` ``[N]``, tensor by tensor and step by step."""
    views = rule.layout.unravel(params)
    pieces = [slice(0, 4), slice(4, 6), slice(6, 7)]
    m, v = [torch.zeros(N)] * len(rule.momenta), [torch.zeros(N)] * len(rule.moments)
    for t, g in enumerate(grads, 1):
        m = [b * old + (1 - b) * g for b, old in zip(rule.momenta, m)]
        v = [c * old + (1 - c) * g**2 for c, old in zip(rule.moments, v)]
        moved = x.clone()
        for p in pieces:
            least = [new[p] + 1e-6 * new[p].mean() for new in v]
            columns = [unit(g[p]), *(unit(new[p]) for new in m), unit(x[p], 1e-8)]
            columns += [unit(a[p] / b.sqrt(), 1e-8) for a in m for b in least]
            columns += [(b / new[p].mean()).log() / math.log(1e6) for b, new in zip(least, v)]
            columns += [torch.full_like(g[p], math.tanh(math.log(t / s))) for s in rule.times]
            z = torch.stack(columns, dim=-1)
            for layer in range(len(rule.hidden)):
                z = nn.functional.elu(z @ views[f"layer{layer}.weight"] + views[f"layer{layer}.bias"])
            d, a = (z @ views["out.weight"] + views["out.bias"]).unbind(-1)
            moved[p] = x[p] - views["lr"].exp() * unit(d, 1e-8) * a.exp()
        x = moved
    return x


def unit(values, floor=0.0):
    return values / (values.square().mean() + floor).sqrt()


@pytest.mark.parametrize("rule", [MLPOptimizer(), MLPOptimizer((5,), (0.5, 0.9, 0.99), (0.9,), (3.0,), 0.3)], ids=str)
def test_the_mlp_equals_a_loop_by_hand(rule):
    rule = rule.bind(BELOW)
    params, x, grads = shaken(rule), random(2, N), random(6, 2, N, seed=1)
    expected = torch.stack([mlp_by_hand(rule, params, x[i], grads[:, i]) for i in range(2)])
    state = rule.init_state(params, x, None)
    for g in grads:
        x, state = rule.update(params, x, state, torch.zeros(2), g)
    assert torch.allclose(x, expected, rtol=1e-9, atol=1e-11)


def test_the_size_of_the_mlps_steps():
    """With the magnitude's weights at 0 every tensor's step has a root mean square of lr; its bias is a log factor."""
    rule = MLPOptimizer(lr=0.02).bind(BELOW)
    views = rule.layout.unravel(shaken(rule))
    still = torch.tensor([1.0, 0.0], dtype=torch.float64)
    x, g = random(3, N), random(3, N, seed=1)
    for magnitude in (0.0, 1.5):
        bias = views["out.bias"] * still + magnitude * (1 - still)
        params = rule.layout.ravel({**views, "out.weight": views["out.weight"] * still, "out.bias": bias})
        step = rule.update(params, x, rule.init_state(params, x, None), torch.zeros(3), g)[0] - x
        for view in BELOW.unravel(step).values():
            rms = view.reshape(3, -1).square().mean(-1).sqrt()
            assert rms.tolist() == pytest.approx([math.exp(views["lr"] + magnitude)] * 3, rel=1e-3)


def test_the_mlp_ignores_the_scales_of_loss_and_weights():
    rule = MLPOptimizer(lr=0.5).bind(BELOW)
    params = shaken(rule)
    steps = []
    for loss, weights in ((1.0, 1.0), (1e4, 1.0), (1.0, 1e3)):
        x, state = weights * random(1, N), rule.init_state(params, random(1, N), None)
        for t in range(3):
            new, state = rule.update(params, x, state, torch.zeros(1), loss * random(1, N, seed=4 + t))
            steps, x = [*steps, new - x], x
    for i in range(3):
        assert torch.allclose(steps[i], steps[3 + i], rtol=1e-9)
        assert torch.allclose(steps[i], steps[6 + i], rtol=1e-5)


def test_the_size_of_the_mlp():
    sizes = {}
    for rule in (
        MLPOptimizer(),
        MLPOptimizer(hidden=4, momenta=0.9, moments=0.99, times=100.0),
        MLPOptimizer((), lr=1),
    ):
        for below in (BELOW, Layout.of({"many": (300,)}, torch.float64)):
            sizes.setdefault(str(rule), []).append(rule.bind(below).layout.size - 1)
    assert list(sizes.values()) == [[194, 194], [38, 38], [26, 26]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rule", [MLPOptimizer(), RNNProp(hidden=4)], ids=str)
def test_dead_and_tiny_gradients(rule, dtype):
    """Whole tensors and single entries without a gradient, and gradients that are as good as none."""
    rule = rule.bind(Layout.of({"dead": (2, 2), "mixed": (3,), "tiny": (2,)}, dtype))
    params, x = rule.init(torch.tensor(0)), torch.zeros(1, 9, dtype=dtype)
    g = torch.tensor([[0, 0, 0, 0, 0, 1.5, 0.5, 1e-20, 1e-30]], dtype=dtype)
    state, leaf = rule.init_state(params, x, None), params.clone().requires_grad_()
    for _ in range(30):
        x, state = rule.update(leaf, x, state, torch.zeros(1), g)
    (slopes,) = torch.autograd.grad(x.sum(), leaf)
    assert torch.isfinite(slopes).all()
    assert torch.isfinite(x).all()


def test_a_module_by_hand():
    rule = MODULES[1].bind(BELOW)
    params = torch.stack([rule.init(torch.tensor(key)) for key in (1, 2)])
    x = random(2, 3, N)
    state, theirs, memory = rule.init_state(params, x, None), x.clone(), torch.zeros(2, 3, N, 3, dtype=torch.float64)
    for t in range(3):
        g = random(2, 3, N, seed=30 + t)
        x, state = rule.update(params, x, state, torch.zeros(2, 3), g)
        for i in range(2):
            module = RememberingCell().double()
            views = rule.layout.unravel(params[i])
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(views[name])
                u = torch.stack((g[i].abs().log() / 10, g[i].sign()), dim=-1)
                out, memory[i] = module(u, memory[i])
            theirs[i] += 0.5 * out[..., 0]
    assert torch.allclose(x, theirs, rtol=1e-12)
    assert torch.allclose(state, memory, rtol=1e-12)


def test_a_modules_start_depends_on_its_key_alone():
    rule = MODULES[0].bind(BELOW)
    generator = torch.get_rng_state()
    together = rule.init(torch.tensor([[1, 2], [3, 1]]))
    assert torch.equal(torch.get_rng_state(), generator)
    assert together.shape == (2, 2, 17)
    assert torch.equal(together[0, 0], together[1, 1])
    assert not torch.equal(together[0, 0], together[0, 1])
    torch.manual_seed(5)
    assert torch.equal(rule.init(torch.tensor(3)), together[1, 0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = torch.cat([p.detach().flatten() for p in small_net().parameters()])
    assert torch.equal(together[1, 0], expected.double())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"make": lambda: nn.Sequential(nn.Linear(2, 1), nn.Dropout())},
         "module: 1 (Dropout) draws from the global generator; set its p to 0 or leave it out"),
        ({"make": lambda: nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))},
         "module: 0 (BatchNorm1d) mixes the rows of different copies; use LayerNorm"),
        ({"make": nn.Tanh}, "module: it has no parameters; nothing there to learn"),
        ({"make": dict}, "module: make() must build an nn.Module, got one of type dict"),
        ({"make": small_net, "memory": -1}, "module: memory must be a whole number of at least 0, got -1"),
        ({"make": small_net, "scale": 0}, "module: scale must be a number above 0, got 0"),
    ],
)  # fmt: skip
def test_bad_modules(settings, sentence):
    with pytest.raises(ValueError) as caught:
        ModuleOptimizer(**settings)
    assert str(caught.value) == sentence


def test_a_module_of_another_shape():
    rule = ModuleOptimizer(make=lambda: nn.Linear(2, 3)).bind(BELOW)
    params, x = rule.init(torch.tensor(0)), random(2, N)
    with pytest.raises(ValueError, match=r"^module: expected \[14, 1\] from it, a row each, got \[14, 3\]$"):
        rule.update(params, x, None, torch.zeros(2), x)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: RNNProp(hidden=0), "rnnprop: hidden must be a whole number of at least 1, got 0"),
        (lambda: RNNProp(scale=0), "rnnprop: scale must be a number above 0, got 0"),
        (lambda: RNNProp(beta2=1), "rnnprop: beta2 must be a number of at least 0 and below 1, got 1"),
        (
            lambda: MLPOptimizer(hidden=(8, 0)),
            "mlp: hidden must be a list, each a whole number of at least 1, got [8, 0]",
        ),
        (
            lambda: MLPOptimizer(momenta=1.0),
            "mlp: momenta must be a list, each a number of at least 0 and below 1, got [1.0]",
        ),
        (lambda: MLPOptimizer(times=(0,)), "mlp: times must be a list, each a number above 0, got [0]"),
        (lambda: MLPOptimizer(lr=-1), "mlp: lr must be a Hyper, or a number above 0, got -1"),
    ],
)
def test_bad_settings(make, sentence):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == sentence


@pytest.mark.parametrize("name", ["rnnprop(hidden=4)", "mlp", "mlp(hidden=[4], times=[100.0], lr=fixed(0.1))"])
@pytest.mark.parametrize("text", ["quadratic(4): {}@2 / adam", "quadratic(4): lstm(hidden=4)@2 / {}@2 / sgd"])
def test_they_run_inside_towers(text, name):
    tower = parse(text.format(name))
    assert name in str(tower)
    run(tower)


@pytest.mark.parametrize("rule", MODULES, ids=["net", "cell", "features"])
def test_modules_run_inside_towers(rule):
    run(Tower(Quadratic(4), Level(optimizer=rule, unroll=2), Level(optimizer=RNNProp(hidden=2))))
    run(Tower(Quadratic(4), Level(optimizer=RNNProp(hidden=2), unroll=2), Level(optimizer=rule, unroll=2),
              Level(optimizer=MLPOptimizer(), objective=Sum())))  # fmt: skip


def run(tower):
    state = tower.init(seed=0)
    start = state.carry.x
    for _ in range(3):
        state, report = tower.step(state)
        assert all(map(math.isfinite, report.losses))
    assert not torch.equal(start, state.carry.x)


class MixingModule(nn.Module):
    """Subtracts the mean over its rows, which belong to different coordinates and copies."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, u):
        return self.linear(u - u.mean(0, keepdim=True))


class DrawingModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 1))

    def forward(self, u):
        return torch.where(torch.tensor(torch.rand(()).item() < 2), u, 0.0) @ self.weight


class WholeProblem(MLPOptimizer):
    """Takes its means over all tensors together, and says that each tensor has its own."""

    def _means(self, values):
        return values.mean(-1, keepdim=True).expand_as(values)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (ModuleOptimizer(make=MixingModule), "got another .*x when f, g and x of another copy changed"),
        (ModuleOptimizer(make=DrawingModule), "vmap: called random operation|a draw from torch's global generator"),
        (WholeProblem(), "got another x when g and x of another tensor changed"),
    ],
)
def test_broken_ones_are_refused(rule, sentence):
    with pytest.raises((ConformanceError, RuntimeError), match=sentence):
        check_optimizer(rule)
