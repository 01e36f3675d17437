"""Schedules over a rule's steps: torch's own schedulers, derivatives, and the suite."""

import pytest
import torch
from torch.optim import lr_scheduler

from levels import (
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    Exact,
    Exponential,
    Last,
    Layout,
    LearnedInit,
    Level,
    LinearDecay,
    Log,
    Quadratic,
    RMSprop,
    Schedule,
    Scheduled,
    Warmup,
    keys,
)
from levels.testing import check_optimizer, check_problem
from recursion import LearnedTorchOptimizer
from recursion.notation import parse
from recursion.spec import dumps, loads

STEPS = 20
KEY = keys.seed(3)
RULES = {
    "sgd": (SGD(lr=0.03, momentum=0.9, nesterov=True), lambda p: torch.optim.SGD(p, 0.03, 0.9, nesterov=True)),
    "adam": (Adam(lr=0.1), lambda p: torch.optim.Adam(p, 0.1)),
    "adamw": (AdamW(lr=0.1, weight_decay=0.1), lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1)),
}
SCHEDULES = {
    "cosine": (Cosine(), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS)),
    "cosine above 0": (Cosine(0.2), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, 0.2 * o.defaults["lr"])),
    "linear": (LinearDecay(), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, STEPS)),
    "linear above 0": (LinearDecay(0.3), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.3, STEPS)),
    "exponential": (Exponential(0.05), lambda o: lr_scheduler.ExponentialLR(o, 0.05 ** (1 / STEPS))),
    "constant": (Constant(), lambda o: lr_scheduler.ConstantLR(o, 1.0)),
    "warmup": (
        Warmup(Cosine(), 5),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 1 / 5, 1.0, 4), lr_scheduler.CosineAnnealingLR(o, STEPS - 5)], [5]
        ),
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")  # torch's, of SequentialLR
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_is_torchs(rule, schedule):
    """The whole path of a small regression, in float64."""
    (ours, torchs), (factor, scheduler) = RULES[rule], SCHEDULES[schedule]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    targets = torch.randn(30, generator=generator, dtype=torch.float64)
    p = torch.nn.Parameter(torch.randn(6, generator=generator, dtype=torch.float64))
    optimizer = torchs([p])
    schedules = scheduler(optimizer)
    rule = Scheduled(ours, factor, STEPS).bind(Layout.of({"p": (6,)}, torch.float64))
    theta, x = rule.init(KEY), p.detach().clone()[None]
    state, path, expected = rule.init_state(theta, x, KEY[None]), [], []
    for _ in range(STEPS):
        residual = inputs @ x[0] - targets
        x, state = rule.update(theta, x, state, residual.square().mean()[None], (inputs.T @ residual / 15)[None])
        optimizer.zero_grad()
        (inputs @ p - targets).square().mean().backward()
        optimizer.step()
        schedules.step()
        path.append(x[0])
        expected.append(p.detach().clone())
    assert torch.allclose(torch.stack(path), torch.stack(expected), rtol=1e-9, atol=1e-11)


def factors(schedule, steps, count):
    return schedule.factor(torch.arange(count, dtype=torch.float64), steps)


def test_behind_its_last_step_a_schedule_stays():
    for schedule, end in ((Cosine(), 0.0), (LinearDecay(0.1), 0.1), (Exponential(0.02), 0.02), (Constant(), 1.0)):
        late = factors(schedule, 8, 20)[8:]
        assert torch.allclose(late, torch.full_like(late, end), atol=1e-15)
    assert factors(Warmup(LinearDecay(), 4), 8, 10).tolist() == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


class Replace(SGD):
    """Puts something else in place of ``x``."""

    name = "replace"

    def update(self, theta, x, state, f, g):
        return self.read(theta)["lr"] * g, state


def test_a_factor_of_1_changes_no_bit_and_a_factor_of_0_moves_nothing():
    """What is much smaller than ``x`` would lose bits if the step were taken and added again."""
    layout = Layout.of({"p": (100,)})
    x = keys.normal(KEY, (1, 100), torch.float32)
    g = 1e-3 * keys.normal(keys.fold_in(KEY, 1), (1, 100), torch.float32)
    ends = {}
    for name, rule in {
        "plain": Replace(lr=1.0),
        "constant": Scheduled(Replace(lr=1.0), Constant(), 3),
        "first": Scheduled(Replace(lr=1.0), LinearDecay(), 3),
        "over": Scheduled(Replace(lr=1.0), LinearDecay(), 3),
    }.items():
        bound = rule.bind(layout)
        theta = bound.init(KEY)
        state = bound.init_state(theta, x, KEY[None])
        state = (state[0] + 3, state[1]) if name == "over" else state
        ends[name], _ = bound.update(theta, x, state, torch.ones(1), g)
    assert torch.equal(ends["constant"], ends["plain"])
    assert torch.equal(ends["first"], ends["plain"])
    assert torch.equal(ends["over"], x)


def test_each_copy_counts_its_own_steps():
    rule = Scheduled(SGD(lr=1.0), LinearDecay(), 4).bind(Layout.of({"p": (2,)}))
    state = (torch.tensor([0, 2, 7]), None)
    moved, state = rule.update(rule.init(KEY), torch.zeros(3, 2), state, torch.ones(3), torch.ones(3, 2))
    assert torch.allclose(moved[:, 0], torch.tensor([-1.0, -0.5, 0.0]))
    assert state[0].tolist() == [1, 3, 8]


@pytest.mark.parametrize(
    "optimizer",
    [
        Scheduled(SGD(lr=Log(0.1, "coordinate"), momentum=0.9, nesterov=True), Warmup(Exponential(), 2), 6),
        Scheduled(LearnedInit(RMSprop()), Cosine(0.1), 6),
        Scheduled(Scheduled(SGD(), LinearDecay(), 8), Cosine(), 6),
    ],
    ids=str,
)
def test_scheduled_rules_conform(optimizer):
    """Central differences in float64 among them."""
    check_optimizer(optimizer, param_layout=Layout.of({"weight": (3, 2), "bias": (2,)}))


@pytest.mark.parametrize("schedule", [Cosine(), Warmup(LinearDecay(0.1), 2)], ids=str)
def test_exact_gradients_through_a_schedule(schedule):
    """The meta-gradient of a window against central differences, at depths 1 and 2."""
    problem = Quadratic(dims=3, dtype="float64")
    for unroll in (4, 2):
        rule = Scheduled(SGD(lr=0.02, momentum=0.5), schedule, 5)
        problem = Level(optimizer=rule, unroll=unroll, horizon=unroll, batch=2, gradient=Exact()).over(problem)
        check_problem(problem)


def test_a_first_order_gradient_through_a_schedule():
    """Against autograd over the loop written out, the gradients of the quadratic being data; from the start on."""
    task = Quadratic(dims=4, dtype="float64")
    level = Level(optimizer=Scheduled(SGD(lr=0.01), Cosine(), 6), unroll=5, horizon=5, batch=3, objective=Last())
    level = level.over(task)
    theta = level.init(KEY)
    state = level.init_state(theta, KEY)
    carry = state.carry
    log_lr = theta.clone().requires_grad_()
    x, w, y = carry.x, carry.problem_state.w, carry.problem_state.y
    for t in range(5):
        residual = (w @ x.detach()[..., None]).squeeze(-1) - y
        g = 2 * (residual[..., None, :] @ w).squeeze(-2)
        factor = (1 + torch.cos(torch.tensor(torch.pi * t / 6, dtype=torch.float64))) / 2
        x = x - log_lr.exp() * factor * g
    loss = ((w @ x[..., None]).squeeze(-1) - y).square().sum(-1).mean()
    (expected,) = torch.autograd.grad(loss, log_lr)
    value, grad, _ = level.value_and_grad(theta, state)
    assert torch.allclose(value, loss, rtol=1e-12)
    assert torch.allclose(grad, expected, rtol=1e-10)


def test_a_scheduled_rule_leaves_the_tower():
    """As a `torch.optim.Optimizer` over a model it is torch's Adam under torch's scheduler."""
    models = [torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    rule = Scheduled(Adam(lr=0.05), Cosine(), STEPS)
    weights = rule.bind(Layout.of({"one": ()})).init(KEY)
    ours = LearnedTorchOptimizer(models[0].parameters(), rule, weights)
    theirs = torch.optim.Adam(models[1].parameters(), 0.05)
    scheduler = lr_scheduler.CosineAnnealingLR(theirs, STEPS)
    inputs = torch.linspace(-1, 1, 80).reshape(20, 4)
    for _ in range(STEPS):
        for model, optimizer in zip(models, (ours, theirs)):
            optimizer.zero_grad()
            (model(inputs) - inputs.square().sum(-1, keepdim=True)).square().mean().backward()
            optimizer.step()
        scheduler.step()
    for p, q in zip(models[0].parameters(), models[1].parameters()):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-5)


class Halving(Schedule):
    """One half of what it was, each step."""

    name = "halving"

    def factor(self, t, steps):
        return 0.5**t


def test_a_new_schedule_is_one_small_class():
    rule = Scheduled(SGD(lr=1.0), Halving(), 3).bind(Layout.of({"p": ()}))
    theta, x = rule.init(KEY), torch.zeros(1, 1)
    state = rule.init_state(theta, x, KEY[None])
    for _ in range(4):
        x, state = rule.update(theta, x, state, torch.ones(1), torch.ones(1, 1))
    assert float(x) == pytest.approx(-1.875)


@pytest.mark.parametrize(
    ("text", "optimizer"),
    [
        ("scheduled(adam(lr=0.03), cosine, steps=50)", Scheduled(Adam(lr=0.03), Cosine(), 50)),
        ("scheduled(sgd(lr=0.3), linear-decay)", Scheduled(SGD(lr=0.3), LinearDecay(), 100)),
        ("scheduled(sgd, warmup(cosine(end=0.1), warm=5))", Scheduled(SGD(), Warmup(Cosine(0.1), 5))),
        ("scheduled(adam, exponential(end=0.001))", Scheduled(Adam(), Exponential(0.001))),
    ],
)
def test_notation_and_spec(text, optimizer):
    tower = parse(f"quadratic: {text}")
    assert tower.levels[0].optimizer == optimizer
    assert repr(optimizer) == text
    assert loads(dumps(tower)).levels == tower.levels


def test_a_scheduled_level_trains_and_is_trained():
    tower = parse("quadratic: scheduled(sgd(lr=0.001), cosine, steps=10)@10[horizon=10, batch=64] / adam(lr=0.1)")
    state, losses = tower.init(0), []
    for _ in range(40):
        state, report = tower.step(state)
        losses.append(report.losses[0])
    assert losses[-1] < 0.8 * losses[0], "the level above finds a larger step size"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Scheduled(SGD(), Cosine(), 0), "steps must be a whole number of at least 1 for cosine, got 0"),
        (lambda: Scheduled(SGD(), Warmup(Cosine(), 10), 10), r"at least 11 for warmup\(cosine\), got 10"),
        (lambda: Scheduled(Cosine(), Cosine()), "scheduled: inner must be an Optimizer, got cosine"),
        (lambda: Scheduled(SGD(), SGD()), "scheduled: schedule must be a Schedule, got sgd"),
        (lambda: Cosine(1.5), "cosine: end must be a number from 0 to 1, got 1.5"),
        (lambda: Exponential(0.0), "exponential: end must be a number above 0 and at most 1, got 0.0"),
        (lambda: Warmup(Cosine(), 0), "warmup: warm must be a whole number of at least 1, got 0"),
        (lambda: Warmup(SGD()), "warmup: then must be a Schedule, got sgd"),
    ],
)
def test_what_is_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
