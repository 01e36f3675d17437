"""Traced and compiled answers equal plain ones, only tasks that say so are traced, and who says so wrongly is told."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from levels import (
    SGD,
    Adam,
    CharTransformer,
    DigitsConvNet,
    DigitsMLP,
    Exact,
    LoaderTask,
    Log,
    Logistic,
    ModuleTask,
    Photo,
    Rosenbrock,
    LearnedInit,
    compiled,
    keys,
    traced,
)
from levels.compiled import compiling
from levels.autodiff import push
from levels.level import Level
from levels.tasks.task import LossTask
from levels.traced import tracing
from levels.tree import leaves, map_leaves

MLP = DigitsMLP(hidden=(3,), minibatch=4, dtype="float64")
TRANSFORMER = CharTransformer(width=4, length=3, minibatch=2, dtype="float64")
TASKS: list[LossTask] = [
    MLP,
    TRANSFORMER,
    DigitsConvNet(channels=(2,), minibatch=3, activation="tanh", dtype="float64"),
    Logistic(dtype="float64"),
    Logistic(data="wine", minibatch=5, dtype="float64"),
    Photo(hidden=(4,), size=4, features=3, minibatch=6, activation="tanh", dtype="float64"),
]


@pytest.fixture
def traces(monkeypatch) -> list[tuple]:
    """Without a compiler: what would be compiled notes the strides that it is given, and runs as it was traced."""
    called: list[tuple] = []

    def fake(graph, inputs, **options):
        def run(*args):
            assert [arg.stride() for arg in args] == [arg.stride() for arg in inputs]
            called.append(tuple(arg.stride() for arg in args))
            return graph(*args)

        return run

    monkeypatch.setattr(traced, "compile_graph", fake)
    monkeypatch.setattr(compiled, "has_compiler", lambda: True)
    return called


def fresh(task):
    """The same task, of which nothing was compiled."""
    return task.on("test").on("train")


def problem(task, batch=(), number=9):
    """Parameters, a state some steps on, and a direction: other ones for each number."""
    count = int(torch.tensor(batch).prod()) if batch else 1
    key = keys.split(keys.seed(number), count).reshape(batch)
    params = task.init(key)
    state = task.init_state(params, keys.fold_in(key, 1))
    for _ in range(number % 3):
        state = task.value_and_grad(params, state)[2]
    return params, state, keys.normal(keys.fold_in(key, 2), (task.layout.size,), params.dtype)


def answers(task, params, state, v) -> list[Tensor]:
    return [*leaves(task.value_and_grad(params, state)), task.bend(params, state, v)]


def compare(task, rtol=1e-12) -> None:
    """Compiled and plain, for several shapes and states of each."""
    for batch in ((), (2, 3)):
        for number in (9, 10):
            asked = problem(task, batch, number)
            expected = answers(task, *asked)
            with compiling(), tracing():
                assert_close(answers(task, *asked), expected, rtol=rtol, atol=rtol)


# As traced.


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_a_trace_answers_as_the_task_does(task, traces):
    task = fresh(task)
    compare(task)
    assert len(task.traces) == 4  # two shapes of two methods
    assert len(traces) == 2 * 4 * (2 + 2)  # both parts of each; compared twice, then asked twice


def test_what_was_compiled_serves_again(traces, monkeypatch):
    task = fresh(MLP)
    with compiling(), tracing():
        answers(task, *problem(task))
        monkeypatch.setattr(traced, "_trace", None)
        answers(task, *problem(task, number=1))


@pytest.mark.parametrize("optimizer", [SGD(lr=Log(0.1, per="tensor"), momentum=0.9), Adam(), LearnedInit(SGD(0.1))], ids=repr)
def test_an_exact_window_is_the_same(optimizer, traces):
    """Three windows of trajectories that begin anew, one at a time and together."""
    for stagger in (True, False):
        level = Level(optimizer=optimizer, unroll=3, horizon=6, batch=2, stagger=stagger, gradient=Exact())
        ends = []
        for on in (False, True):
            laid, key = level.over(fresh(MLP)), keys.split(keys.seed(3), 2)
            params, found = laid.init(key), []
            with compiling(on), tracing():
                state = laid.init_state(params, key)
                for _ in range(3):
                    value, grad, state = laid.value_and_grad(params, state)
                    params = params - 0.1 * grad
                    found += [value, grad]
            ends.append(found)
        assert traces
        assert_close(ends[1], ends[0], rtol=1e-11, atol=1e-13)


def test_other_strides_and_gradients_that_are_wanted(traces):
    task = fresh(MLP)
    params, state, v = problem(task, (3,))
    spread = (
        params[:1].expand(3, -1),
        map_leaves(lambda leaf: leaf[:1].expand(3), state),
        v[:, :1].expand(3, v.shape[-1]),
    )
    expected = answers(task, *spread)
    with compiling(), tracing():
        for _ in range(2):
            answers(task, params, state, v)
        before = len(traces)
        assert_close(answers(task, *spread), expected, rtol=1e-12, atol=1e-12)
        assert traces[before:] == traces[before - 4 : before]  # of other strides it would be compiled anew
        with torch.enable_grad():
            value, grad, _ = task.value_and_grad(params.clone().requires_grad_(), state)
            assert not value.requires_grad
            assert not grad.requires_grad
        assert len(task.traces) == 2


def test_nothing_is_changed_or_shared(traces):
    task = fresh(MLP)
    asked = problem(task, (2,))
    before = [leaf.clone() for leaf in leaves(asked)]
    with compiling(), tracing():
        first = answers(task, *asked)
        kept = [leaf.clone() for leaf in first]
        assert all(torch.equal(a, b) for a, b in zip(leaves(asked), before, strict=True))
        for leaf in first:
            if all(leaf is not given for given in leaves(asked)):  # a key that stays is handed on, as plainly
                leaf.zero_()
        assert all(torch.equal(a, b) for a, b in zip(leaves(asked), before, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(answers(task, *asked), kept, strict=True))


def test_so_many_shapes_and_no_more(traces):
    task = fresh(Logistic(dtype="float64"))
    with compiling(), tracing():
        for batch in range(1, traced.MOST + 3):
            params, state, _ = problem(task, (batch,))
            plain = LossTask._answer.__wrapped__(task, params, state)
            assert_close(task.value_and_grad(params, state), plain, rtol=1e-12, atol=1e-12)
    assert len(task.traces) == traced.MOST


# What stays plain.


class Rewritten(DigitsMLP):
    """A subclass has not said anything of itself."""

    def loss(self, params, state):
        value, state = super().loss(params, state)
        return 2 * value, state


def module() -> ModuleTask:
    data = torch.ones(6, 2), torch.zeros(6, dtype=torch.int64)
    return ModuleTask(
        make=lambda: nn.Linear(2, 2), loss_function=nn.functional.cross_entropy, train=data, test=data, minibatch=3
    )


def loader() -> LoaderTask:
    data = DataLoader(TensorDataset(torch.ones(6, 2), torch.zeros(6, dtype=torch.int64)), 3, shuffle=True)
    return LoaderTask(make=lambda: nn.Linear(2, 2), loss_function=nn.functional.cross_entropy, train=data, test=data)


@pytest.mark.parametrize("make", [Rewritten, module, loader, Rosenbrock])
def test_tasks_that_do_not_say_so_stay_plain(make, traces):
    task = make()
    asked = problem(task, (2,))
    expected = answers(task, *asked)
    with compiling(), tracing():
        assert all(torch.equal(a, b) for a, b in zip(answers(task, *asked), expected, strict=True))
    assert not traces
    assert DigitsMLP.traceable
    assert not getattr(task, "traceable", False)


def test_what_is_differentiated_and_what_is_outside_stays_plain(traces):
    task = fresh(MLP)
    params, state, v = problem(task)
    answers(task, params, state, v)
    with compiling(), tracing():
        push(lambda x: task.value_and_grad(x, state)[1], params, v)
        push(lambda x: task.bend(x, state, v), params, v)
        with compiling(False):
            answers(task, params, state, v)
    assert not traces
    assert not task.traces


# Tasks that say so wrongly.


@dataclass(frozen=True, repr=False)
class Liar(DigitsMLP):
    """As `how` says."""

    name = "liar"
    traceable = True

    how: str = ""

    def loss(self, params, state):
        value, state = super().loss(params, state)
        if self.how == "counts":
            count = vars(self).get("count", 0)
            object.__setattr__(self, "count", count + 1)
            return value * (1 + count % 7), state
        if self.how == "looks":
            return (value if bool((value > 0).all()) else -value), state
        if self.how == "numpy":
            return value * float(state.key.detach().numpy().sum() % 5), state
        if self.how == "draws":
            return value + torch.rand(()), state
        if self.how == "writes":
            value.mul_(2)
        return value, state


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("counts", "its compiled answers are others than its plain ones"),
        ("looks", r"it is not \(.*\)"),
        ("numpy", "it"),
        ("draws", r"writes in place or draws numbers \(aten.rand.default\)"),
        ("writes", r"writes in place or draws numbers \(aten.mul_.Tensor\)"),
    ],
)
def test_a_task_that_says_so_wrongly_is_told(how, what, traces):
    task = Liar(how=how, minibatch=4)
    params, state, _ = problem(task)
    task.value_and_grad(params, state)
    message = rf"Liar\(.*\) says that it is traceable, but {what}.*; let its loss read nothing but its arguments and"
    with compiling(), tracing(), pytest.raises(ValueError, match=message):
        task.value_and_grad(params, state)


# As compiled.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's, about itself
@pytest.mark.parametrize("task", [MLP, TRANSFORMER], ids=repr)
def test_what_is_compiled_answers_as_the_task_does(task):
    if not compiled.has_compiler():
        pytest.skip("no C++ compiler")
    compare(fresh(task))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_draws_are_the_same_to_the_last_bit():
    """Where the minibatch of a key is another one, its loss is too; and a range is not a loop that overflows."""
    if not compiled.has_compiler():
        pytest.skip("no C++ compiler")
    task = DigitsMLP(hidden=(), minibatch=128, dtype="float64")
    params, state, _ = problem(task, (500,))
    expected, _, after = task.value_and_grad(params, state)
    with compiling(), tracing():
        value, _, new = task.value_and_grad(params, state)
    assert_close(value, expected, rtol=1e-12, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(leaves(new), leaves(after), strict=True))
