"""ModuleTask: any nn.Module as a task, against one module and one autograd call for each copy."""

import pytest
import torch
from draws import batch_of
from torch import nn

from levels import SGD, AdamW, Level, ModuleTask, keys
from levels.testing import check_problem
from recursion import Tower


def data(examples=20, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 4, generator=generator, dtype=dtype)
    return inputs, torch.randint(3, (examples,), generator=generator)


PARTS = {name: data(seed=i) for i, name in enumerate(("train", "validation", "test"))}


def perceptron():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 3))


class Scaled(nn.Module):
    """A module with a buffer, and with one parameter used twice."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.again = self.linear
        self.out = nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor([[0.5, 2.0, 3.0], [1.0, 0.0, 4.0], [0.0, 1.0, 1.0]]))
        self.register_buffer("shift", torch.tensor(1))

    def forward(self, inputs):
        return self.out(self.again(torch.tanh(self.linear(inputs)))) @ self.scale + self.shift


class Counting(nn.Module):
    """It counts its forwards, in place."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("n", torch.zeros(()))

    def forward(self, inputs):
        self.n += 1
        return self.linear(inputs) * self.n


class Odd(nn.Module):
    """Features drawn at random and never trained, a frozen layer, one that the loss does not use, and ``more``."""

    def __init__(self, more=None):
        super().__init__()
        self.first, self.out, self.unused = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(2, 2)
        self.first.requires_grad_(False)
        self.register_buffer("features", torch.randn(4, 4))
        self.register_buffer("scale", torch.tensor(2.0))
        self.more = nn.Parameter(torch.arange(3) if more is None else more, requires_grad=False)

    def forward(self, inputs):
        return self.out(torch.tanh(self.first(inputs @ self.features) * self.scale)) + self.more


def task(make=perceptron, *, minibatch=5, dtype="float64", **settings):
    given = {"train": data(), "loss_function": nn.functional.cross_entropy, **settings}
    return ModuleTask(make=make, minibatch=minibatch, dtype=dtype, **given)


def started(problem, batch):
    key = batch_of(*batch)
    params = problem.init(key)
    return params, problem.init_state(params, keys.fold_in(key, 1))


def by_hand(problem, params, state, examples):
    """Loss and gradient of each copy, one module and one autograd call after another."""
    inputs, targets = examples
    losses, grads, cursor = [], [], state.cursor
    rows = keys.integers(keys.fold_in(cursor.key, cursor.step), (problem.minibatch,), len(targets))
    for flat, chosen in zip(params.reshape(-1, params.shape[-1]), rows.reshape(-1, problem.minibatch)):
        model = problem.make().to(params.dtype)
        nn.utils.vector_to_parameters(flat, model.parameters())
        loss = problem.loss_function(model(inputs[chosen].to(params.dtype)), targets[chosen])
        losses.append(loss.detach())
        grads.append(nn.utils.parameters_to_vector(torch.autograd.grad(loss, list(model.parameters()))))
    return torch.stack(losses).reshape(params.shape[:-1]), torch.stack(grads).reshape(params.shape)


def test_it_conforms():
    """Derivatives of first and second order too."""
    check_problem(task(**PARTS))
    check_problem(task(Scaled), splits=("train",))


def test_third_derivatives():
    """Autograd through the vmap over modules nests: against central differences of the second derivative."""
    problem = task(lambda: nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3)))
    x, state = started(problem, (2,))
    u = keys.normal(keys.seed(3), (2, problem.layout.size), torch.float64)

    def curvature(at):  # u^T H u of each copy
        grad = problem.value_and_grad(at, state)[1]
        (product,) = torch.autograd.grad(grad, at, u, create_graph=True)
        return (product * u).sum(-1)

    at = x.clone().requires_grad_()
    (third,) = torch.autograd.grad(curvature(at).sum(), at)
    up, down = (curvature((x + sign * 1e-4 * u).requires_grad_()).detach() for sign in (1, -1))
    assert torch.allclose((third * u).sum(-1), (up - down) / 2e-4, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "make",
    [perceptron, Scaled, lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0)),
     lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))],
)  # fmt: skip
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
@pytest.mark.parametrize("split", PARTS)
def test_values_and_gradients_by_hand(make, batch, split):
    problem = task(make, split=split, **PARTS)
    params, state = started(problem, batch)
    for _ in range(3):
        expected = by_hand(problem, params, state, PARTS[split])
        value, grad, state = problem.value_and_grad(params, state)
        assert torch.allclose(value, expected[0], rtol=1e-12)
        assert torch.allclose(grad, expected[1], rtol=1e-10, atol=1e-13)
        params = params - 0.5 * grad


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_regression_targets_and_inputs_are_cast(dtype):
    inputs, _ = data(dtype=torch.float32)
    targets = inputs.double() @ torch.ones(4, 1, dtype=torch.float64)
    problem = task(lambda: nn.Linear(4, 1), loss_function=nn.functional.mse_loss, train=(inputs, targets), dtype=dtype)
    value, grad, _ = problem.value_and_grad(*started(problem, ()))
    assert {t.dtype for t in (*problem.data, value, grad)} == {problem.layout.dtype} == {getattr(torch, dtype)}


def test_integer_inputs_stay_integers():
    tokens = torch.randint(7, (20, 3), generator=torch.Generator().manual_seed(0))
    problem = task(lambda: nn.Sequential(nn.Embedding(7, 2), nn.Flatten(), nn.Linear(6, 3)), train=(tokens, data()[1]))
    value, grad, _ = problem.value_and_grad(*started(problem, (2,)))
    assert torch.isfinite(value).all()
    assert (grad != 0).any(-1).all()


def test_starts_are_the_modules_own_and_each_copys():
    problem = task(lambda: nn.Linear(4, 3))
    params = problem.init(batch_of(3))
    assert len(params.unique(dim=0)) == 3
    assert 0.4 < float(params.abs().max()) <= 0.5  # uniform within 1 / sqrt(4)
    assert dict(problem.layout.entries) == {"weight": (3, 4), "bias": (3,)}


DROPS = "draws from the global generator; set its p to 0 or leave it out"
NO_DATA = "module: there is no {0} data; pass {0}=(inputs, targets)"
INPUTS, TARGETS = data()


@pytest.mark.parametrize(
    ("make", "settings", "sentence"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1)), {}, f"module: 1 (Dropout) {DROPS}"),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.AlphaDropout(0.5))), {},
         f"module: 1.0 (AlphaDropout) {DROPS}"),
        (lambda: nn.Dropout(0.5), {}, f"module: the module (Dropout) {DROPS}"),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), {},
         "module: 1 (BatchNorm1d) remembers what it saw; set track_running_stats=False or use GroupNorm"),
        (nn.Tanh, {}, "module: it has no parameters; nothing there to optimize"),
        (lambda: nn.Linear(4, 3).requires_grad_(False), {}, "module: it has no parameters; nothing there to optimize"),
        (Counting, {}, "module: a forward changes its buffer n, which would not be carried from loss to loss; "
         "compute it from the parameters and the inputs"),
        (lambda: Odd(torch.ones(3, dtype=torch.complex64)), {},
         "module: more is complex; split it into real and imaginary parts"),
        (perceptron, {"split": "validation"}, NO_DATA.format("validation")),
        (perceptron, {"split": "test"}, NO_DATA.format("test")),
        (perceptron, {"train": (INPUTS, TARGETS[:19])}, "module: 20 inputs but 19 targets in train"),
        (perceptron, {"train": (INPUTS[:0], TARGETS[:0])}, "module: 0 inputs but 0 targets in train"),
        (perceptron, {"minibatch": True}, "module: minibatch must be a whole number of at least 1, got true"),
    ],
)  # fmt: skip
def test_what_is_refused(make, settings, sentence):
    with pytest.raises(ValueError) as caught:
        task(make, **settings)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("optimizer", "torchs"),
    [(SGD(lr=0.1), lambda params: torch.optim.SGD(params, 0.1)),
     (AdamW(lr=0.1, weight_decay=0.1), lambda params: torch.optim.AdamW(params, 0.1, weight_decay=0.1))],
)  # fmt: skip
def test_what_has_no_gradient_stays_as_make_made_it(optimizer, torchs):
    """Against torch's own optimizer over each copy's module, which leaves alone what has no gradient."""
    problem = task(Odd, minibatch=20)
    assert dict(problem.layout.entries) == {"out.weight": (3, 6), "out.bias": (3,)}
    assert sorted(problem.shared) == ["more", "scale"]
    tower = Tower(problem, Level(optimizer=optimizer, batch=3))
    first = tower.init(seed=0)
    *_, (state, _) = tower.run(first, 5)
    cursor, before = first.carry.problem_state
    constants = state.carry.problem_state.constants
    assert sorted(constants) == ["features", "first.bias", "first.weight", "unused.bias", "unused.weight"]
    assert all(torch.equal(constants[name], before[name]) for name in constants)
    assert len(constants["features"].unique(dim=0)) == 3
    inputs, targets = problem.data
    for copy in range(3):
        model = Odd().double()
        start = problem.layout.unravel(first.carry.x) | constants
        model.load_state_dict(model.state_dict() | {name: tensor[copy] for name, tensor in start.items()})
        theirs = torchs(model.parameters())
        for step in range(5):
            rows = keys.integers(keys.fold_in(cursor.key[copy], step), (20,), 20)
            theirs.zero_grad()
            problem.loss_function(model(inputs[rows]), targets[rows]).backward()
            theirs.step()
        ours = problem.layout.unravel(state.carry.x[copy])
        assert torch.allclose(ours["out.weight"], model.out.weight, rtol=1e-6, atol=1e-9)
        assert torch.equal(model.unused.weight, constants["unused.weight"][copy])


def test_a_state_goes_on_in_a_process_of_its_own():
    """The task that reads a state need not be the object that made it, as after a resume."""
    first, second = task(Odd), task(Odd)
    params = first.init(batch_of(2))
    state = first.init_state(params, batch_of(2))
    for ours, theirs in zip(second.value_and_grad(params, state)[:2], first.value_and_grad(params, state)[:2]):
        assert torch.equal(ours, theirs)
