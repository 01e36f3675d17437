"""A gate lets through nothing, all, or part of an update; its gradient and its price are what differences say."""

import math

import pytest
import torch

from levels import (
    LSTM,
    SGD,
    Adam,
    Asking,
    Partition,
    Exact,
    Fixed,
    Gated,
    Layout,
    Level,
    Linear,
    MLPOptimizer,
    Optimizer,
    Quadratic,
    LearnedInit,
    keys,
)
from levels.testing import check_optimizer
from levels.tree import leaves
from recursion.notation import parse

LAYOUT = Layout.of({"weight": (3, 2), "bias": (2,)}, torch.float64)
RULES: list[Optimizer] = [SGD(momentum=0.9), Adam(), LSTM(hidden=3), MLPOptimizer(hidden=4), LearnedInit(SGD())]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_gate_keeps_the_contract(rule):
    check_optimizer(Gated(rule, price=0.1), below=None if isinstance(rule, SGD) else LAYOUT)


@pytest.mark.parametrize("gate", [Fixed(0.0), Fixed(0.3), Fixed(1.0), 0.95])
def test_however_far_it_is_open(gate):
    rule = Gated(SGD(momentum=0.9), gate=gate)
    if gate != Fixed(0.0):  # nothing that is behind a closed gate matters
        check_optimizer(rule, below=LAYOUT)
    params = rule.over(LAYOUT).init(keys.seed(0))
    assert params.shape == ((2,) if isinstance(gate, Fixed) else (3,))


def test_gates_in_gates_and_by_name_keep_the_contract():
    check_optimizer(Gated(Gated(SGD(momentum=0.9), price=0.2), gate=0.8, price=0.1), below=LAYOUT)
    check_optimizer(Partition(("*",), (Gated(Adam(), price=1.0),)), below=LAYOUT)


def ran(rule: Optimizer, params: torch.Tensor, steps: int = 3) -> tuple[torch.Tensor, object]:
    laid = rule.over(LAYOUT)
    x = keys.normal(keys.split(keys.seed(1), 2), (LAYOUT.size,), torch.float64)
    state = laid.init_state(params, x)
    for step in range(steps):
        g = keys.normal(keys.split(keys.seed(2 + step), 2), (LAYOUT.size,), torch.float64)
        x, state = laid.update(params, x.sum(-1), g, state, x)
    return x, state


def at(rule: Optimizer, gate: float) -> torch.Tensor:
    """Parameters of a gated rule whose stored gate is this number."""
    params = rule.over(LAYOUT).init(keys.seed(0))
    return torch.cat((params.new_tensor([gate]), params[1:]))


class Leap(Optimizer):
    """Goes far from where it was, whereupon a difference is rounded."""

    name = "leap"

    def shapes(self, below):
        return {"lr": ()}

    def init(self, key):
        return torch.full((*key.shape, 1), 1e-6, dtype=torch.float64)

    def init_state(self, params, x):
        return None

    def update(self, params, f, g, state, x):
        return params[..., None, :] * g, None


@pytest.mark.parametrize("rule", [*RULES, Leap()], ids=repr)
def test_open_is_the_rule_and_closed_is_nothing_bit_for_bit(rule):
    gated = Gated(rule)
    bare = rule.over(LAYOUT).init(keys.seed(0))
    x, state = ran(rule, bare)
    start = ran(rule, bare, steps=0)[0]
    # 1.2 / (1 + e^-z) - 0.1 leaves [0, 1] at z = log 11
    for stored in (math.log(11) + 1e-9, 3.0, 50.0):
        opened, inside = ran(gated, at(gated, stored))
        assert torch.equal(opened, x)
        assert all(map(torch.equal, leaves(inside.rule), leaves(state)))
        closed, _ = ran(gated, at(gated, -stored))
        assert torch.equal(closed, start)
    half, _ = ran(gated, at(gated, math.log(11) - 1e-3))
    assert not torch.equal(half, x)


def test_a_closed_gate_does_not_stop_the_rules_state():
    gated = Gated(SGD(momentum=0.9))
    _, closed = ran(gated, at(gated, -5.0))
    _, opened = ran(gated, at(gated, 5.0))
    assert torch.equal(closed.rule, opened.rule)
    assert closed.rule.any()


def test_a_closed_gate_passes_nothing_that_is_not_finite():
    gated = Gated(SGD(lr=Linear(1.0))).over(LAYOUT)
    params, x = at(Gated(SGD(lr=Linear(1.0))), -5.0), torch.ones(1, LAYOUT.size, dtype=torch.float64)
    new, state, pull = gated.linearized(params, x.sum(-1), math.inf * x, gated.init_state(params, x), x)
    assert torch.equal(new, x)
    assert float(pull(x, None)[0][0]) == 0
    assert float(gated.metrics(state)["gate"]) == 0


@pytest.mark.parametrize("gate", [0.05, 0.5, 0.9])
@pytest.mark.parametrize(("unroll", "gradient"), [(1, None), (4, Exact())])
def test_the_gradient_of_the_gate_is_the_slope_of_the_windows_loss(gate, unroll, gradient):
    """Central differences from one carry. For one update first order is exact; longer windows are in exact mode."""
    settings = {} if gradient is None else {"gradient": gradient}
    level = Level(optimizer=Gated(SGD(lr=0.01, momentum=0.9), gate=gate, price=0.3), unroll=unroll, batch=3, **settings)
    laid = level.over(Quadratic(dims=4, dtype="float64"))
    params = laid.init(keys.seed(0))
    state = laid.init_state(params, keys.seed(1))
    for _ in range(3):
        _, grad, after = laid.value_and_grad(params, state)
        for i in range(3):
            step = torch.zeros_like(params)
            step[i] = 1e-5
            up, down = (laid.value_and_grad(params + sign * step, state)[0] for sign in (1, -1))
            torch.testing.assert_close(grad[i], (up - down) / 2e-5, rtol=1e-6, atol=1e-7)
        state = after
    assert grad[0] != 0


@pytest.mark.parametrize("stored", [-3.0, -2.0, 0.0, 0.7, 2.3, 4.0])
def test_the_price_is_that_of_how_far_it_is_open(stored):
    gated = Gated(Gated(SGD(), price=0.5), price=2.0).over(LAYOUT)
    params = torch.tensor([stored, 0.4, -4.0], dtype=torch.float64)  # two gates, lr

    def price(params: torch.Tensor) -> torch.Tensor:
        wide = (1.2 * params[:2].sigmoid() - 0.1).clamp(0, 1)
        return 2.0 * wide[0] + 0.5 * wide[1]

    value, slope = gated.penalty(params)
    torch.testing.assert_close(value, price(params))
    for i in range(3):
        step = torch.zeros_like(params)
        step[i] = 1e-6
        torch.testing.assert_close(slope[i], (price(params + step) - price(params - step)) / 2e-6, rtol=1e-8, atol=1e-9)


def test_without_a_price_nothing_is_charged():
    assert Gated(SGD()).over(LAYOUT).penalty(torch.zeros(2)) is None
    assert Partition(("*",), (Gated(SGD()),)).over(LAYOUT).penalty(torch.zeros(2)) is None


def test_by_name_charges_for_each_of_its_optimizers():
    both = Partition(("weight", "*"), (Adam(), Gated(SGD(), price=3.0))).over(LAYOUT)
    params = both.init(keys.split(keys.seed(0), 2))
    value, slope = both.penalty(params)
    torch.testing.assert_close(value, torch.tensor([1.5, 1.5], dtype=torch.float64))
    expected = torch.zeros_like(params)
    expected[:, 4] = 3.0 * 0.3  # half open: 1.2 / 4
    torch.testing.assert_close(slope, expected)


def test_a_gate_begins_where_it_is_told_and_is_noted():
    tower = parse('quadratic(dims=3): sgd@1 / by-name(["*"], [gated(sgd, gate=0.8)])@1 / gated(sgd, gate=0.25)')
    _, report = tower.step(tower.init(0))
    assert report.metrics["level 3 gate"] == pytest.approx(0.25)
    assert report.metrics["level 2 0.gate"] == pytest.approx(0.8, abs=0.05)  # level 3 has moved it a little


def test_it_goes_where_its_rule_goes():
    gated = Gated(LSTM(hidden=2))
    assert (gated.scope, gated.compiles, gated.differentiable, gated.reads_loss) == ("coordinate", True, True, False)
    assert Gated(LearnedInit(SGD())).learns_start
    assert not Gated(SGD()).learns_start


class Nosy(Asking):
    """Wants to know the problem; for two task gradients an update."""

    name = "nosy"
    asking = 2

    def shapes(self, below):
        return {"lr": ()}

    def init(self, key):
        return torch.full((*key.shape, 1), 0.1)

    def begin_state(self, params, x, key):
        return key

    def update(self, params, f, g, state, x):
        return x - params[..., None, :] * g, state


def test_a_rule_that_asks_the_problem_asks_it_from_behind_a_gate():
    task = Quadratic(dims=3)
    laid = Level(optimizer=Gated(Nosy()), batch=2).over(task)
    assert laid.optimizer.rule.problem is task
    assert laid.cost == 1 + 2
    carry = laid.begin(laid.init(keys.seed(0)), keys.split(keys.seed(1), 2))
    assert carry.state.rule.unique().numel() == 2, "each copy has its key"


def test_a_gated_start_is_trained():
    tower = parse("quadratic(dims=3): gated(start(sgd(lr=0.01)))@2[horizon=2, batch=2] / adam")
    state = tower.init(0)
    before = state.carry.x
    for _ in range(3):
        state, _ = tower.step(state)
    assert (state.carry.x != before).all()


@pytest.mark.parametrize(
    ("gate", "price", "message"),
    [
        (0.0, 0.0, "gate must be a number between 0 and 1, got 0.0; fixed\\(0\\) and fixed\\(1\\) are closed and open"),
        (1.0, 0.0, "gate must be a number between 0 and 1, got 1.0"),
        (Fixed(1.5), 0.0, "gate must be a number between 0 and 1, got fixed\\(1.5\\)"),
        (True, 0.0, "gate must be a number between 0 and 1, got true"),
        (0.5, -1.0, "price must be 0 or more, got -1.0"),
        (0.5, math.inf, "price must be 0 or more, got inf"),
    ],
)
def test_it_refuses_what_is_no_gate_and_no_price(gate, price, message):
    with pytest.raises(ValueError, match=message):
        Gated(SGD(), gate=gate, price=price)
