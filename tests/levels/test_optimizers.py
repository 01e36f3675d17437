"""Optimizers against torch.optim, LSTMCell and closed forms; hypergradients against differences of torch's runs."""

import math

import pytest
import torch
from torch import nn

from levels import LSTM, SGD, Adam, Fixed, Layout, Linear, Log, Logit, RMSprop
from levels.optimizers.cells import log_and_sign

BELOW = Layout.of({"weight": (2, 2), "bias": (2,), "scale": ()}, torch.float64)
N, STEPS = 7, 20
TORCH = {
    "sgd": (torch.optim.SGD, {"lr": "lr", "momentum": "momentum", "weight_decay": "weight_decay"}),
    "adam": (torch.optim.Adam, {"lr": "lr", "beta1": 0, "beta2": 1, "eps": "eps"}),
    "rmsprop": (torch.optim.RMSprop, {"lr": "lr", "decay": "alpha", "eps": "eps"}),
}


def every(per):
    """Rules with all their hyperparameters shared as ``per`` says."""
    return [
        SGD(lr=Log(0.05, per)),
        SGD(lr=Linear(0.05, per), momentum=Logit(0.9, per)),
        SGD(lr=Log(0.05, per), momentum=Linear(0.8, per), weight_decay=Log(0.1, per)),
        SGD(lr=Log(0.05, per), momentum=Logit(0.9, per), weight_decay=Linear(0.01, per), nesterov=True),
        Adam(lr=Log(0.05, per)),
        Adam(lr=Log(0.1, per), beta1=Logit(0.5, per), beta2=Linear(0.9, per), eps=Log(0.01, per)),
        RMSprop(lr=Log(0.05, per)),
        RMSprop(lr=Log(0.05, per), decay=Logit(0.7, per), eps=Log(0.1, per)),
    ]


RULES = [*every("value"), *every("tensor"), *every("coordinate"), SGD(lr=Fixed(0.1), momentum=Fixed(0.5)),
         Adam(lr=Log(0.05, "tensor"), beta1=Fixed(0.7), eps=Fixed(1e-3)), RMSprop(lr=Fixed(0.05))]  # fmt: skip


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HESSIAN = random(N, N, seed=1) @ random(N, N, seed=1).T / N


def shaken(rule):
    """Parameters that differ from one hyperparameter entry to the next."""
    params = rule.init(torch.tensor(0))
    return params * (1 + 0.1 * random(*params.shape, seed=2).clamp(-1, 1))


def hyper_columns(rule, params):
    """Each hyperparameter as ``N`` plain numbers, one a coordinate, by reading the flat parameters by hand."""
    columns, position = {}, 0
    for name, hyper in rule.hypers.items():
        if isinstance(hyper, Fixed):
            columns[name] = [hyper.start] * N
            continue
        count = {"value": 1, "tensor": 3, "coordinate": N}[hyper.shared_over]
        raw = params[position : position + count].tolist()
        position += count
        numbers = [{"linear": lambda r: r, "log": math.exp, "logit": lambda r: 1 / (1 + math.exp(-r))}[hyper.name](r)
                   for r in raw]  # fmt: skip
        repeats = {1: [N], 3: [4, 2, 1], N: [1] * N}[count]
        columns[name] = [number for number, times in zip(numbers, repeats) for _ in range(times)]
    return columns


def torch_run(rule, params, x, grad, steps):
    """The trajectory of torch's own optimizer, one parameter group for each coordinate: ``[steps, N]``."""
    kind, names = TORCH[rule.name]
    columns = hyper_columns(rule, params)
    coordinates = [nn.Parameter(value.clone()) for value in x]
    groups = []
    for i, coordinate in enumerate(coordinates):
        group = {"params": [coordinate], "betas": [0.0, 0.0]}
        for name, theirs in names.items():
            if isinstance(theirs, int):
                group["betas"][theirs] = columns[name][i]
            elif name in columns:
                group[theirs] = columns[name][i]
        if rule.name != "adam":
            del group["betas"]
        if rule.name == "sgd":
            group["nesterov"] = rule.nesterov
        groups.append(group)
    optimizer = kind(groups, lr=1.0)
    path = []
    for t in range(steps):
        for coordinate, slope in zip(coordinates, grad(t, torch.stack([c.detach() for c in coordinates]))):
            coordinate.grad = slope.clone()
        optimizer.step()
        path.append(torch.stack([c.detach().clone() for c in coordinates]))
    return torch.stack(path)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_trajectories_equal_those_of_torch(rule):
    rule = rule.bind(BELOW)
    params = shaken(rule)
    x = random(3, N, seed=3)
    expected = torch.stack([torch_run(rule, params, row, lambda t, at: HESSIAN @ at, STEPS) for row in x], 1)
    state = rule.init_state(params, x, None)
    for t in range(STEPS):
        g = x @ HESSIAN
        x, state = rule.update(params, x, state, (x * g).sum(-1) / 2, g)
        assert torch.allclose(x, expected[t], rtol=1e-12, atol=1e-12), f"step {t + 1}"


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_hypergradients_equal_differences_of_runs_of_torch(rule):
    """With recorded gradients (g is data): the loss at the end of torch's run as a function of the stored numbers."""
    rule = rule.bind(BELOW)
    params, start, grads = shaken(rule), random(N, seed=3), random(STEPS, N, seed=4)

    def final_loss(raw):
        end = torch_run(rule, raw, start, lambda t, at: grads[t], 8)[-1]
        return float(end @ HESSIAN @ end) / 2

    leaf = params.clone().requires_grad_()
    x, state = start[None], rule.init_state(leaf, start[None], None)
    for t in range(8):
        x, state = rule.update(leaf, x, state, torch.zeros(1), grads[t][None])
    if not rule.layout.size:
        return  # all numbers are fixed
    (dparams,) = torch.autograd.grad(x, leaf, x.detach() @ HESSIAN)
    width = 1e-5
    for i in range(len(params)):
        moved = torch.zeros_like(params)
        moved[i] = width
        measured = (final_loss(params + moved) - final_loss(params - moved)) / (2 * width)
        assert float(dparams[i]) == pytest.approx(measured, rel=1e-6, abs=1e-9), rule.layout.entries


@pytest.mark.parametrize("rule", [SGD(momentum=0.9), Adam(), RMSprop(), LSTM(hidden=3)], ids=str)
def test_a_batch_of_optimizers_is_a_loop_over_them(rule):
    rule = rule.bind(BELOW)
    params = rule.init(torch.arange(6).reshape(2, 3))
    params = params * (1 + 0.1 * random(*params.shape))
    x, f = random(2, 3, 4, N, seed=1), random(2, 3, 4, seed=2)
    together, state = x, rule.init_state(params, x, None)
    for t in range(3):
        together, state = rule.update(params, together, state, f, random(*x.shape, seed=5 + t))
    for i in range(2):
        for j in range(3):
            alone, state = x[i, j], rule.init_state(params[i, j], x[i, j], None)
            for t in range(3):
                alone, state = rule.update(params[i, j], alone, state, f[i, j], random(*x.shape, seed=5 + t)[i, j])
            assert torch.allclose(together[i, j], alone, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("kind", [Adam, RMSprop])
def test_a_gradient_of_exactly_zero_moves_nothing(kind):
    rule = kind().bind(Layout.of({"x": (2,)}))
    params, x = rule.init(torch.tensor(0)), torch.ones(1, 2)
    state = rule.init_state(params, x, None)
    g = torch.tensor([[0.0, 1.0]])
    new, _ = rule.update(params, x, state, torch.zeros(1), g)
    assert new[0, 0] == 1.0
    assert new[0, 1] < 1.0
    leaf = params.clone().requires_grad_()
    new, new_state = rule.update(leaf, x, state, torch.zeros(1), g)
    outputs = [new, *(one for one in new_state if one is not None and one.requires_grad)]
    (slope,) = torch.autograd.grad(outputs, leaf, [torch.ones_like(one) for one in outputs])
    assert torch.isfinite(slope).all()


def test_adam_counts_each_copys_own_steps():
    rule = Adam().bind(BELOW)
    params = rule.init(torch.tensor(0))
    x = random(2, N)
    state = rule.init_state(params, x, None)._replace(t=torch.tensor([0, 100]))
    new, state = rule.update(params, x, state, torch.zeros(2), torch.ones(2, N, dtype=torch.float64))
    steps = (x - new)[:, 0]
    assert float(steps[0]) == pytest.approx(1e-3, rel=1e-6)
    m_hat = 0.1 / (1 - 0.9**101)
    v_hat = 0.001 / (1 - 0.999**101)
    assert float(steps[1]) == pytest.approx(1e-3 * m_hat / math.sqrt(v_hat), rel=1e-6)
    assert state.t.tolist() == [1, 101]


@pytest.mark.parametrize(("hidden", "layers", "scale"), [(5, 1, 1.0), (4, 2, 0.3), (3, 3, 0.1)])
def test_lstm_equals_torchs_cells(hidden, layers, scale):
    """torch's cell has its gates in the order input, forget, cell, output, too, and two biases that add up."""
    rule = LSTM(hidden=hidden, layers=layers, scale=scale).bind(BELOW)
    params = rule.init(torch.tensor(3))
    params = params + 0.1 * random(*params.shape)
    views = rule.layout.unravel(params)
    cells = []
    for layer in range(layers):
        cell = nn.LSTMCell(2 if layer == 0 else hidden, hidden, dtype=torch.float64)
        with torch.no_grad():
            weight = views[f"layer{layer}.weight"]
            cell.weight_ih.copy_(weight[:-hidden].T)
            cell.weight_hh.copy_(weight[-hidden:].T)
            cell.bias_ih.copy_(0.3 * views[f"layer{layer}.bias"])
            cell.bias_hh.copy_(0.7 * views[f"layer{layer}.bias"])
        cells.append(cell)
    x = random(2, N)
    state, theirs, memory = rule.init_state(params, x, None), x.clone(), [None] * layers
    for t in range(5):
        g = random(2, N, seed=10 + t) * 10.0 ** (-2 * t)
        x, state = rule.update(params, x, state, torch.zeros(2), g)
        with torch.no_grad():
            out = log_and_sign(g.flatten(), 10.0)
            for layer, cell in enumerate(cells):
                memory[layer] = cell(out, memory[layer])
                out = memory[layer][0]
            theirs = theirs + scale * (out @ views["out.weight"] + views["out.bias"]).reshape(2, N)
        assert torch.allclose(x, theirs, rtol=1e-13, atol=1e-13)
        for layer in range(layers):
            for mine, cell_state in zip(state[layer], memory[layer]):
                assert torch.allclose(mine.reshape(-1, hidden), cell_state, rtol=1e-12, atol=1e-13)


def test_lstm_start():
    rule = LSTM(hidden=4, layers=2).bind(BELOW)
    views = rule.layout.unravel(rule.init(torch.tensor([1, 2])))
    for layer in range(2):
        assert views[f"layer{layer}.bias"].tolist() == [[0.0] * 4 + [1.0] * 4 + [0.0] * 8] * 2
        assert 0.3 < float(views[f"layer{layer}.weight"].abs().max()) <= 0.5
    assert (views["out.bias"] == 0).all()
    assert not torch.equal(views["out.weight"][0], views["out.weight"][1])
    many = LSTM(hidden=100).bind(BELOW)
    weights = many.layout.unravel(many.init(torch.tensor(0)))["layer0.weight"]
    assert float(weights.mean()) == pytest.approx(0, abs=2e-3)
    assert float(weights.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.02)


def test_lstm_is_coordinatewise():
    rule = LSTM(hidden=3).bind(BELOW)
    params, x, g = rule.init(torch.tensor(0)), random(1, N), random(1, N, seed=1)
    order = torch.tensor([3, 1, 0, 6, 5, 2, 4])
    new, _ = rule.update(params, x, rule.init_state(params, x, None), torch.zeros(1), g)
    permuted, _ = rule.update(params, x[:, order], rule.init_state(params, x, None), torch.zeros(1), g[:, order])
    assert torch.allclose(permuted, new[:, order], rtol=1e-14)


@pytest.mark.parametrize("p", [5.0, 10.0])
def test_log_and_sign_at_and_around_the_threshold(p):
    edge = math.exp(-p)
    sizes = [0.0, edge / 1000, edge * (1 - 1e-9), edge * (1 + 1e-9), 3 * edge, 1.0, 50.0]
    for size in sizes:
        for sign in (1, -1):
            pair = log_and_sign(torch.tensor(sign * size, dtype=torch.float64), p).tolist()
            if size >= edge:
                assert pair == pytest.approx([math.log(size) / p, sign], abs=1e-14)
            else:
                assert pair == pytest.approx([-1.0, sign * size / edge], abs=1e-14)
    at = log_and_sign(torch.tensor(math.exp(-p), dtype=torch.float64), p).tolist()
    assert at == pytest.approx([-1.0, 1.0], abs=1e-14)
    assert log_and_sign(torch.zeros(2, 3), p).shape == (2, 3, 2)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"hidden": 0}, "lstm: hidden must be a whole number of at least 1, got 0"),
        ({"layers": 1.5}, "lstm: layers must be a whole number of at least 1, got 1.5"),
        ({"scale": 0.0}, "lstm: scale must be a number above 0, got 0.0"),
        ({"p": -1}, "lstm: p must be a number above 0, got -1"),
        ({"p": math.inf}, "lstm: p must be a number above 0, got inf"),
    ],
)
def test_bad_lstm_settings(settings, sentence):
    with pytest.raises(ValueError) as caught:
        LSTM(**settings)
    assert str(caught.value) == sentence
