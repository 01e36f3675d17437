"""ModuleTask: any nn.Module as a task, against one module and one autograd call for each copy."""

import copy

import pytest
import torch
from draws import batch_of
from torch import nn

from levels import SGD, AdamW, HeldOut, Level, ModuleTask, keys
from levels.testing import check_problem
from levels.tree import map_leaves
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


NO_DATA = "module: there is no {0} data; pass {0}=(inputs, targets)"
INPUTS, TARGETS = data()
ONE = perceptron()
BUILDS = "module: make must be a function that builds a new nn.Module"
LOSS = "module: loss_function must return one number as a tensor"


@pytest.mark.parametrize(
    ("make", "settings", "sentence"),
    [
        (nn.Tanh, {}, "module: it has no parameters; nothing there to optimize"),
        (lambda: nn.Linear(4, 3).requires_grad_(False), {}, "module: it has no parameters; nothing there to optimize"),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 3)), {}, "module: 1 (Linear): mat1 and mat2 shapes cannot be "
         "multiplied (5x3 and 4x3)"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), {}, "module: 0.weight has no shape yet; use a module that is not lazy"),
        (perceptron(), {}, f"{BUILDS}, got a module; write make=lambda: ..."),
        (lambda: 3, {}, f"{BUILDS}, and it returned int"),
        (lambda: nn.Sequential(ONE[0], nn.Linear(6, 3)), {}, "module: make returned modules with one 0.weight, 0.bias, so all "
         "copies would be one; build a new one of each layer in make"),
        (lambda: ONE, {}, "module: make returned the same module twice, so all copies would be one; "
         "build a new one"),
        (lambda: nn.Sequential(nn.Linear(4, int(torch.randint(3, 99, ())))), {},
         "module: make returned modules with other parameters; their names and shapes must not be random"),
        (perceptron, {"loss_function": lambda a, b: nn.functional.cross_entropy(a, b, reduction="none")},
         f"{LOSS}, got the shape [5]; take its mean"),
        (perceptron, {"loss_function": lambda a, b: 0.5}, f"{LOSS}, got float; leave .item() out"),
        (perceptron, {"loss_function": lambda a, b: b.sum()}, f"{LOSS}, got torch.int64; a loss must be a floating number"),
        (perceptron, {"loss_function": lambda a, b: a.detach().mean()}, "module: the loss depends on no parameter of the "
         "module; it may be detached, or computed outside of torch"),
        (perceptron, {"loss_function": lambda a, b: a.missing},
         "module: the loss function: 'Tensor' object has no attribute 'missing'"),
        (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1)), {"vectorize": True},
         "module: vectorize=true, but its forward draws random numbers; leave vectorize out"),
        (lambda: Odd(torch.ones(3, dtype=torch.complex64)), {},
         "module: more is complex; split it into real and imaginary parts"),
        (perceptron, {"split": "validation"}, NO_DATA.format("validation")),
        (perceptron, {"split": "test"}, NO_DATA.format("test")),
        (perceptron, {"train": (INPUTS, TARGETS[:19])}, "module: 20 inputs but 19 targets in train"),
        (perceptron, {"train": (INPUTS[:0], TARGETS[:0])}, "module: 0 inputs but 0 targets in train"),
        (perceptron, {"minibatch": True}, "module: minibatch must be a whole number of at least 1, or none, got true"),
    ],
)  # fmt: skip
def test_what_is_refused(make, settings, sentence):
    with pytest.raises(ValueError) as caught:
        task(make, **settings)
    assert str(caught.value) == sentence


# Buffers, draws, and what vmap cannot take.


class Recurrent(nn.Module):
    """A layer that vmap has no rule for."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, inputs):
        return self.out(self.rnn(inputs.unflatten(-1, (2, 2)))[0][:, -1])


class Rebinding(Counting):
    """It counts its forwards in a new tensor each time, and looks at the number."""

    def forward(self, inputs):
        self.n = self.n + 1
        return self.linear(inputs) * (self.n if self.n.item() > 1 else 1.0)


def norms(norm):
    return lambda: nn.Sequential(nn.Linear(4, 6), copy.deepcopy(norm), nn.Tanh(), nn.Linear(6, 3))


BUFFERS = {
    "batch norm": norms(nn.BatchNorm1d(6)), "no momentum": norms(nn.BatchNorm1d(6, momentum=None)),
    "instance norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2,
        track_running_stats=True), nn.Flatten(), nn.Linear(6, 3)),
    "spectral norm": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6)), nn.Linear(6, 3)),
    "in place": Counting, "rebound": Rebinding,
}  # fmt: skip


@pytest.mark.parametrize("make", BUFFERS.values(), ids=BUFFERS)
@pytest.mark.filterwarnings("ignore:.*copies are evaluated one after the other")
def test_buffers_and_gradients_are_those_of_torch(make):
    """Over four steps of each copy, beside a module that torch trains; before, nothing leaks between them."""
    make_one = lambda: copy.deepcopy(make())  # noqa: E731, norms above are made once
    problem = task(make_one)
    params, state = started(problem, (3,))
    first = [problem.value_and_grad(params, state)[0] for _ in range(2)]
    assert torch.equal(*first)
    models = []
    for i, flat in enumerate(params):
        model = make_one().double()
        held = problem.layout.unravel(flat) | {
            name: tensor[i] for name, tensor in (state.constants | state.buffers).items()
        }
        model.load_state_dict(model.state_dict() | held)
        models.append(model)
    for _ in range(4):
        rows = state.cursor.draw(5, 20)
        value, grad, state = problem.value_and_grad(params, state)
        for i, model in enumerate(models):
            loss = problem.loss_function(model(INPUTS[rows[i]]), TARGETS[rows[i]])
            slopes = torch.autograd.grad(loss, [model.get_parameter(name) for name in problem.probe.trained])
            assert torch.allclose(value[i], loss, rtol=1e-10)
            assert torch.allclose(grad[i], nn.utils.parameters_to_vector(slopes), rtol=1e-8, atol=1e-12)
            for name in state.buffers:
                assert torch.allclose(state.buffers[name][i], model.get_buffer(name), rtol=1e-10)
            with torch.no_grad():
                for name, slope in zip(problem.probe.trained, slopes):
                    model.get_parameter(name).sub_(0.1 * slope)
        params = params - 0.1 * grad


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.RReLU(), nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)])
def test_what_a_forward_draws_comes_from_the_copys_key(layer):
    with pytest.warns(UserWarning, match="draws random numbers, so copies are evaluated one after the other"):
        problem = task(lambda: copy.deepcopy(norms(layer)()))
    params, state = started(problem, (2,))
    params, state = map_leaves(lambda leaf: leaf[[0, 0, 1]], (params, state))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    value, grad, after = problem.value_and_grad(params, state)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(value[0], value[1])
    torch.manual_seed(1)
    for ours, theirs in zip(problem.value_and_grad(params, state)[:2], (value, grad)):
        assert torch.equal(ours, theirs)
    again = problem.value_and_grad(params, after._replace(cursor=after.cursor._replace(key=state.cursor.key)))[0]
    assert not torch.equal(again, value)
    up, down = (problem.value(params + sign * 1e-6 * grad, state)[0] for sign in (1, -1))
    assert torch.allclose((up - down) / 2e-6, grad.square().sum(-1), rtol=1e-5)
    quiet = problem.evaluated()
    assert torch.equal(*quiet.value(params[:2], map_leaves(lambda leaf: leaf[:2], state))[0])


def test_a_recurrent_network_runs_one_copy_after_the_other_and_trains():
    with pytest.warns(UserWarning, match=r"vmap cannot take it .*lstm.*, so copies are evaluated one after the other"):
        problem = task(Recurrent)
    check_problem(problem, splits=("train",))
    params, state = started(problem, (2,))
    expected = by_hand(problem, params, state, data())
    for ours, theirs in zip(problem.value_and_grad(params, state)[:2], expected):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-13)
    loop, together = (task(perceptron, vectorize=choice) for choice in (False, True))
    params, state = started(loop, (2, 2))
    for ours, theirs in zip(loop.value_and_grad(params, state)[:2], together.value_and_grad(params, state)[:2]):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_held_out_data_are_evaluated_in_evaluation_mode_with_the_running_statistics_of_training():
    inner = task(norms(nn.BatchNorm1d(6)), minibatch=None, dtype="float32", **PARTS)
    problem = HeldOut(inner, dtype="float64")
    params, state = started(problem, ())
    value, grad, state = problem.value_and_grad(params, state)
    loss, slope, _ = problem.outer_value_and_grad(params, state, value, grad)
    model = norms(nn.BatchNorm1d(6))().double().eval()
    model.load_state_dict(problem.task.layout.unravel(params) | state.training.buffers)
    inputs, targets = PARTS["validation"]
    expected = problem.task.loss_function(model(inputs), targets)
    slopes = nn.utils.parameters_to_vector(torch.autograd.grad(expected, list(model.parameters())))
    assert torch.allclose(loss, expected, rtol=1e-12)
    assert torch.allclose(slope, slopes, rtol=1e-10, atol=1e-13)
    level = Level(optimizer=SGD(lr=0.1), unroll=2, horizon=4, batch=2, stagger=False).over(problem)
    theta, state = level.init(keys.seed(0)), level.init_state(level.init(keys.seed(0)), keys.seed(1))
    for window in range(4):  # and a restart between, which takes new copies into the state of old ones
        *_, state = level.value_and_grad(theta, state)
        counts = state.carry.problem_state.training.buffers["1.num_batches_tracked"].tolist()
        assert counts == [3 + 2 * (window % 2)] * 2


def test_full_batches_and_arrays():
    whole = task(train=tuple(part.numpy() for part in data()), minibatch=None)
    params, state = started(whole, (2,))
    value, _, _ = whole.value_and_grad(params, state)
    assert torch.allclose(value, by_hand_of(whole, params), rtol=1e-12)


def by_hand_of(problem, params):
    """Loss of each copy on all data."""
    losses = []
    for flat in params:
        model = problem.make().double()
        nn.utils.vector_to_parameters(flat, model.parameters())
        losses.append(problem.loss_function(model(INPUTS), TARGETS).detach())
    return torch.stack(losses)


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
    cursor, before, _ = first.carry.problem_state
    constants = state.carry.problem_state.constants
    assert sorted(constants) == ["features", "first.bias", "first.weight", "unused.bias", "unused.weight"]
    assert all(torch.equal(constants[name], before[name]) for name in constants)
    assert len(constants["features"].unique(dim=0)) == 3
    inputs, targets = problem.data
    for i in range(3):
        model = Odd().double()
        start = problem.layout.unravel(first.carry.x) | constants
        model.load_state_dict(model.state_dict() | {name: tensor[i] for name, tensor in start.items()})
        theirs = torchs(model.parameters())
        for step in range(5):
            rows = keys.integers(keys.fold_in(cursor.key[i], step), (20,), 20)
            theirs.zero_grad()
            problem.loss_function(model(inputs[rows]), targets[rows]).backward()
            theirs.step()
        ours = problem.layout.unravel(state.carry.x[i])
        assert torch.allclose(ours["out.weight"], model.out.weight, rtol=1e-6, atol=1e-9)
        assert torch.equal(model.unused.weight, constants["unused.weight"][i])


def test_a_state_goes_on_in_a_process_of_its_own():
    """The task that reads a state need not be the object that made it, as after a resume."""
    first, second = task(Odd), task(Odd)
    params = first.init(batch_of(2))
    state = first.init_state(params, batch_of(2))
    for ours, theirs in zip(second.value_and_grad(params, state)[:2], first.value_and_grad(params, state)[:2]):
        assert torch.equal(ours, theirs)
