"""A gate lets through nothing, all, or part of an update; its gradient and its price are what differences say."""

import math
from dataclasses import dataclass

import pytest
import torch

from levels import (
    LSTM,
    SGD,
    Adam,
    Exact,
    Fixed,
    Gated,
    Layout,
    LearnedInit,
    Level,
    Linear,
    Optimizer,
    Partition,
    Quadratic,
    keys,
)  # fmt: skip
from levels.autodiff import vjp
from levels.replay import update_vjp
from levels.testing import check_optimizer
from levels.tree import leaves
from recursion.notation import parse

LAYOUT = Layout.of({"weight": (3, 2), "bias": (2,)}, torch.float64)
RULES: list[Optimizer] = [SGD(momentum=0.9), Adam(), LSTM(hidden=2, layers=1), LearnedInit(SGD())]
KEYS = keys.split(keys.seed(1), 2)


@pytest.mark.parametrize("rule", [Gated(rule, price=0.1) for rule in RULES[:2]], ids=repr)
def test_a_gate_keeps_the_contract(rule):
    check_optimizer(rule, param_layout=LAYOUT)


@pytest.mark.parametrize("gate", [Fixed(0.0), Fixed(0.3), Fixed(1.0), 0.95])
def test_however_far_it_is_open(gate):
    rule = Gated(SGD(momentum=0.9), gate=gate)
    if gate != Fixed(0.0):  # nothing that is behind a closed gate matters
        check_optimizer(rule, param_layout=LAYOUT)
    assert rule.bind(LAYOUT).init(keys.seed(0)).shape == ((2,) if isinstance(gate, Fixed) else (3,))


def ran(rule: Optimizer, theta: torch.Tensor, steps: int = 3) -> tuple[torch.Tensor, object]:
    bound = rule.bind(LAYOUT)
    x = keys.normal(KEYS, (LAYOUT.size,), torch.float64)
    state = bound.init_state(theta, x, KEYS)
    for step in range(steps):
        g = keys.normal(keys.split(keys.seed(2 + step), 2), (LAYOUT.size,), torch.float64)
        x, state = bound.update(theta, x, state, x.sum(-1), g)
    return x, state


def at(rule: Optimizer, gate: float) -> torch.Tensor:
    """Parameters of a gated rule whose stored gate is this number."""
    theta = rule.bind(LAYOUT).init(keys.seed(0))
    return torch.cat((theta.new_tensor([gate]), theta[1:]))


@dataclass(frozen=True, repr=False)
class Leap(Optimizer):
    """Goes far from where it was, so that a difference is rounded."""

    name = "leap"

    def shapes(self, layout):
        return {"lr": ()}

    def init(self, key):
        return torch.full((*key.shape, 1), 1e-6, dtype=torch.float64)

    def init_state(self, theta, x, key):
        return None

    def update(self, theta, x, state, f, g):
        return theta[..., None, :] * g, None


@pytest.mark.parametrize("rule", [*RULES, Leap()], ids=repr)
def test_open_is_the_rule_and_closed_is_nothing_bit_for_bit(rule):
    gated = Gated(rule)
    bare = rule.bind(LAYOUT).init(keys.seed(0))
    x, state = ran(rule, bare)
    start = ran(rule, bare, steps=0)[0]
    # 1.2 / (1 + e^-z) - 0.1 leaves [0, 1] at z = log 11
    for stored in (math.log(11) + 1e-9, 3.0, 50.0):
        opened, inside = ran(gated, at(gated, stored))
        assert torch.equal(opened, x)
        assert all(map(torch.equal, leaves(inside[1]), leaves(state)))
        closed, _ = ran(gated, at(gated, -stored))
        assert torch.equal(closed, start)
    half, _ = ran(gated, at(gated, math.log(11) - 1e-3))
    assert not torch.equal(half, x)


def test_a_closed_gate_does_not_stop_the_state():
    gated = Gated(SGD(momentum=0.9))
    (_, closed), (_, opened) = (ran(gated, at(gated, stored)) for stored in (-5.0, 5.0))
    assert torch.equal(closed[1], opened[1])
    assert closed[1].any()


def test_a_closed_gate_passes_nothing_on_that_is_not_finite():
    gated = Gated(SGD(lr=Linear(1.0))).bind(LAYOUT)
    theta, x = at(gated, -5.0), torch.ones(1, LAYOUT.size, dtype=torch.float64)
    state = gated.init_state(theta, x, keys.split(keys.seed(0), 1))
    new, after = gated.update(theta, x, state, x.sum(-1), math.inf * x)
    assert torch.equal(new, x)
    assert update_vjp(gated, theta, x, state, x.sum(-1), math.inf * x, x, [])[0][0] == 0
    assert float(gated.metrics(after)["gate"]) == 0


@pytest.mark.parametrize("gate", [0.05, 0.5, 0.9])
@pytest.mark.parametrize(("unroll", "gradient"), [(1, {}), (4, {"gradient": Exact()})])
def test_the_gradient_of_the_gate_is_the_slope_of_the_windows_loss(gate, unroll, gradient):
    """Central differences from one carry. For one update first order is exact; longer windows are in exact mode."""
    rule = Gated(SGD(lr=0.01, momentum=0.9), gate=gate, price=0.3)
    level = Level(optimizer=rule, unroll=unroll, batch=3, **gradient).over(Quadratic(dims=4, dtype="float64"))
    theta = level.init(keys.seed(0))
    state = level.init_state(theta, keys.seed(1))
    for _ in range(3):
        _, grad, after = level.value_and_grad(theta, state)
        for step in 1e-5 * torch.eye(3, dtype=torch.float64):
            up, down = (level.value(theta + sign * step, state)[0] for sign in (1, -1))
            torch.testing.assert_close((grad * step).sum(), (up - down) / 2, rtol=1e-6, atol=1e-12)
        state = after
    assert grad[0] != 0


@pytest.mark.parametrize("stored", [-3.0, -2.0, 0.0, 0.7, 2.3, 4.0])
def test_the_price_is_that_of_how_far_it_is_open(stored):
    gated = Gated(Gated(SGD(), price=0.5), price=2.0).bind(LAYOUT)
    theta = torch.tensor([stored, 0.4, -4.0], dtype=torch.float64)  # two gates, lr

    def price(theta: torch.Tensor) -> torch.Tensor:
        wide = (1.2 * theta[:2].sigmoid() - 0.1).clamp(0, 1)
        return 2.0 * wide[0] + 0.5 * wide[1]

    torch.testing.assert_close(gated.penalty(theta), price(theta))
    grad = vjp(gated.penalty, theta, torch.ones(theta.shape[:-1], dtype=theta.dtype))
    for step in 1e-6 * torch.eye(3, dtype=torch.float64):
        torch.testing.assert_close(
            (grad * step).sum(), (price(theta + step) - price(theta - step)) / 2, atol=1e-14, rtol=1e-8
        )


def test_by_name_charges_for_each_of_its_optimizers():
    both = Partition(("weight", "*"), (Adam(), Gated(SGD(), price=3.0))).bind(LAYOUT)
    theta = both.init(keys.split(keys.seed(0), 2))
    torch.testing.assert_close(both.penalty(theta), torch.tensor([1.5, 1.5], dtype=torch.float64))
    expected = torch.zeros_like(theta)
    expected[:, 4] = 3.0 * 0.3  # half open: 1.2 / 4
    torch.testing.assert_close(vjp(both.penalty, theta, torch.ones(theta.shape[:-1], dtype=theta.dtype)), expected)


def test_where_a_gate_begins_is_reported():
    tower = parse('quadratic(dims=3): sgd@1 / by-name(["*"], [gated(sgd, gate=0.8)])@1 / gated(sgd, gate=0.25)')
    _, report = tower.step(tower.init(0))
    assert report.metrics["level 3 gate"] == pytest.approx(0.25)
    assert report.metrics["level 2 gate"] == pytest.approx(0.8, abs=0.05)  # level 3 has moved it a little


@pytest.mark.parametrize(
    ("gate", "price", "message"),
    [
        (0.0, 0.0, "gate must be a number between 0 and 1, got 0.0; fixed\\(0\\) and fixed\\(1\\) are closed and open"),
        (1.0, 0.0, "gate must be a number between 0 and 1, got 1.0"),
        (Fixed(1.5), 0.0, "gate must be a number between 0 and 1, got fixed\\(1.5\\)"),
        (True, 0.0, "gate must be .*, got true"),
        (0.5, -1.0, "price must be a number of at least 0, got -1.0"),
        (0.5, math.inf, "price must be a number of at least 0, got inf"),
    ],
)
def test_it_refuses_what_is_no_gate_and_no_price(gate, price, message):
    with pytest.raises(ValueError, match=message):
        Gated(SGD(), gate=gate, price=price)
