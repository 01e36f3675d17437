"""ModuleTask: any nn.Module as a task, against one module and one autograd call for each copy."""

import pytest
import torch
from draws import batch_of
from torch import nn

from levels import SGD, AdamW, Level, ModuleTask, keys
from levels.testing import check_problem
from levels.tree import map_leaves
from recursion import Tower


def data(examples=20, features=4, classes=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, features, generator=generator, dtype=dtype)
    return inputs, torch.randint(classes, (examples,), generator=generator)


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


def by_hand(problem, params, state, examples):
    """Loss and gradient of each copy, one module and one autograd call after another."""
    inputs, targets = examples
    losses, grads = [], []
    cursor = state.cursor
    rows = keys.integers(keys.fold_in(cursor.key, cursor.step), (problem.minibatch,), len(targets)).flatten(0, -2)
    for flat, chosen in zip(params.flatten(0, -2), rows):
        model = problem.make().to(params.dtype)
        start = 0
        for parameter in model.parameters():
            with torch.no_grad():
                parameter.copy_(flat[start : start + parameter.numel()].reshape(parameter.shape))
            start += parameter.numel()
        loss = problem.loss_function(model(inputs[chosen].to(params.dtype)), targets[chosen])
        losses.append(loss.detach())
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(losses).reshape(params.shape[:-1]), torch.stack(grads).reshape(params.shape)


def test_it_conforms():
    """Derivatives of first and second order too."""
    check_problem(task(validation=data(seed=1), test=data(seed=2)))
    check_problem(task(Scaled), splits=("train",))


def test_third_derivatives():
    """Autograd through the vmap over modules nests: against central differences of the second derivative."""
    problem = task(lambda: nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3)))
    key = batch_of(2)
    x, u = problem.init(key), keys.normal(keys.seed(3), (2, problem.layout.size), torch.float64)
    state = problem.init_state(x, key)

    def curvature(at):  # u^T H u of each copy
        grad = problem.value_and_grad(at, state)[1]
        (product,) = torch.autograd.grad(grad, at, u, create_graph=True)
        return (product * u).sum(-1)

    at = x.clone().requires_grad_()
    (third,) = torch.autograd.grad(curvature(at).sum(), at)
    up, down = (curvature((x + sign * 1e-4 * u).requires_grad_()).detach() for sign in (1, -1))
    assert torch.allclose((third * u).sum(-1), (up - down) / 2e-4, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("make", [perceptron, Scaled])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_values_and_gradients_by_hand(make, batch):
    problem = task(make)
    key = batch_of(*batch)
    params = problem.init(key)
    state = problem.init_state(params, keys.fold_in(key, 1))
    for number in range(3):
        lead = (params, state) if batch else (params[None], map_leaves(lambda leaf: leaf[None], state))
        expected_value, expected_grad = by_hand(problem, *lead, problem.train)
        value, grad, state = problem.value_and_grad(params, state)
        assert value.shape == batch
        assert torch.allclose(value, expected_value.reshape(batch), rtol=1e-12)
        assert torch.allclose(grad, expected_grad.reshape(grad.shape), rtol=1e-10, atol=1e-13)
        assert (state.cursor.step == number + 1).all()
        params = params - 0.5 * grad


def test_regression_targets_and_inputs_are_cast():
    inputs, _ = data(dtype=torch.float32)
    targets = inputs.double() @ torch.ones(4, 1, dtype=torch.float64)
    problem = task(
        lambda: nn.Linear(4, 1), loss_function=nn.functional.mse_loss, train=(inputs, targets), dtype="float64"
    )
    assert problem.data[0].dtype == problem.data[1].dtype == torch.float64
    assert problem.layout.dtype == torch.float64
    params = problem.init(keys.seed(0))
    value, grad, _ = problem.value_and_grad(params, problem.init_state(params, keys.seed(1)))
    assert value.dtype == grad.dtype == torch.float64
    single = task(
        lambda: nn.Linear(4, 1), loss_function=nn.functional.mse_loss, train=(inputs, targets), dtype="float32"
    )
    assert single.data[1].dtype == torch.float32
    params = single.init(keys.seed(0))
    assert single.value_and_grad(params, single.init_state(params, keys.seed(1)))[1].dtype == torch.float32


def test_integer_inputs_stay_integers():
    tokens = torch.randint(7, (20, 3), generator=torch.Generator().manual_seed(0))
    problem = task(lambda: nn.Sequential(nn.Embedding(7, 2), nn.Flatten(), nn.Linear(6, 3)), train=(tokens, data()[1]))
    params = problem.init(keys.split(keys.seed(0), 2))
    value, grad, _ = problem.value_and_grad(params, problem.init_state(params, keys.split(keys.seed(1), 2)))
    assert torch.isfinite(value).all()
    assert (grad != 0).any(-1).all()


def test_starts_are_the_modules_own_and_each_copys():
    problem = task(lambda: nn.Linear(4, 3))
    key = keys.split(keys.seed(0), 3)
    params = problem.init(key)
    assert len(params.unique(dim=0)) == 3
    assert torch.equal(problem.init(key[1]), params[1])
    assert 0.4 < float(params.abs().max()) <= 0.5  # uniform within 1 / sqrt(4)
    assert dict(problem.layout.entries) == {"weight": (3, 4), "bias": (3,)}


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    problem = task()
    params = problem.init(keys.split(keys.seed(0), 2))
    problem.value_and_grad(params, problem.init_state(params, keys.split(keys.seed(0), 2)))
    assert torch.equal(torch.get_rng_state(), before)


def test_splits_read_their_own_data():
    parts = {name: data(seed=i) for i, name in enumerate(("train", "validation", "test"))}
    problem = task(**parts)
    params = problem.init(keys.split(keys.seed(0), 2))
    for name, examples in parts.items():
        part = problem.on(name)
        state = part.init_state(params, keys.split(keys.seed(1), 2))
        assert torch.allclose(part.value_and_grad(params, state)[0], by_hand(part, params, state, examples)[0])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1)),
            "module: 1 (Dropout) draws from the global generator; set its p to 0 or leave it out",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.AlphaDropout(0.5))),
            "module: 1.0 (AlphaDropout) draws from the global generator; set its p to 0 or leave it out",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
            "module: 1 (BatchNorm1d) remembers what it saw; set track_running_stats=False or use GroupNorm",
        ),
        (
            lambda: nn.Dropout(0.5),
            "module: the module (Dropout) draws from the global generator; set its p to 0 or leave it out",
        ),
        (lambda: nn.Tanh(), "module: it has no parameters; nothing there to optimize"),
        (lambda: nn.Linear(4, 3).requires_grad_(False), "module: it has no parameters; nothing there to optimize"),
        (
            lambda: Counting(),
            "module: a forward changes its buffer n, which would not be carried from loss to loss; "
            "compute it from the parameters and the inputs",
        ),
        (
            lambda: Odd(torch.ones(3, dtype=torch.complex64)),
            "module: more is complex; split it into real and imaginary parts",
        ),
    ],
)
def test_modules_that_are_refused(make, sentence):
    with pytest.raises(ValueError) as caught:
        task(make)
    assert str(caught.value) == sentence


def test_harmless_relatives_are_taken():
    problem = task(
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0), nn.BatchNorm1d(3, track_running_stats=False))
    )
    params = problem.init(keys.split(keys.seed(0), 2))
    state = problem.init_state(params, keys.split(keys.seed(1), 2))
    value, grad, _ = problem.value_and_grad(params, state)
    expected = by_hand(problem, params, state, problem.train)
    assert torch.allclose(value, expected[0])
    assert torch.allclose(grad, expected[1], atol=1e-12)


def test_missing_and_unfit_data():
    problem = task()
    for split in ("validation", "test"):
        with pytest.raises(ValueError, match=rf"^module: there is no {split} data; pass {split}=\(inputs, targets\)$"):
            problem.on(split)
    inputs, targets = data()
    with pytest.raises(ValueError, match=r"^module: 20 inputs but 19 targets in train$"):
        task(train=(inputs, targets[:19]))
    with pytest.raises(ValueError, match=r"^module: 0 inputs but 0 targets in train$"):
        task(train=(inputs[:0], targets[:0]))
    with pytest.raises(ValueError, match=r"^module: minibatch must be a whole number of at least 1, got true$"):
        task(minibatch=True)


@pytest.mark.parametrize("optimizer", [SGD(lr=0.1), AdamW(lr=0.1, weight_decay=0.1)], ids=str)
def test_what_has_no_gradient_stays_as_make_made_it(optimizer):
    """Against torch's own optimizer over each copy's module, which leaves alone what has no gradient."""
    problem = task(Odd, minibatch=20)
    assert dict(problem.layout.entries) == {"out.weight": (3, 6), "out.bias": (3,)}
    assert sorted(problem.shared) == ["more", "scale"]
    tower = Tower(problem, Level(optimizer=optimizer, batch=3))
    first = tower.init(seed=0)
    *_, (state, _) = tower.run(first, 5)
    constants, before = state.carry.problem_state.constants, first.carry.problem_state.constants
    assert sorted(constants) == ["features", "first.bias", "first.weight", "unused.bias", "unused.weight"]
    assert all(torch.equal(constants[name], before[name]) for name in constants)
    assert len(constants["features"].unique(dim=0)) == 3
    inputs, targets = problem.data
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer.name]
    for copy in range(3):
        model = Odd().double()
        trained = {name: view[copy] for name, view in problem.layout.unravel(first.carry.x).items()}
        rest = {name: tensor[copy] for name, tensor in constants.items()}
        model.load_state_dict({**model.state_dict(), **trained, **rest})
        settings = {"weight_decay": 0.1} if optimizer.name == "adamw" else {}
        theirs = kind(model.parameters(), 0.1, **settings)
        rows = first.carry.problem_state.cursor
        for step in range(5):
            drawn = keys.integers(keys.fold_in(rows.key, torch.full_like(rows.key, step)), (20,), 20)[copy]
            theirs.zero_grad()
            problem.loss_function(model(inputs[drawn]), targets[drawn]).backward()
            theirs.step()
        ours = problem.layout.unravel(state.carry.x[copy])
        assert torch.allclose(ours["out.weight"], model.out.weight, rtol=1e-6, atol=1e-9)
        assert torch.equal(model.unused.weight, rest["unused.weight"])
