"""Mixtures, augmentation and loaders: tasks made from other tasks, or from a user's own data."""

import math
import random

import numpy as np
import pytest
import torch
from draws import batch_of, halves
from torch import nn
from torch.func import functional_call
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

from levels import SGD, Augmented, DigitsMLP, Level, LoaderTask, Mixture, Quadratic, Rosenbrock, keys
from levels.base import ProblemTraits
from levels.tasks.seeded import seeded
from levels.tasks.task import SPLITS
from levels.tasks.wrapping import open_key, whole
from levels.testing import check_problem
from recursion import Tower
from recursion.notation import parse

SMALL = DigitsMLP(hidden=(3,), minibatch=8)


@pytest.mark.parametrize(
    "task",
    [
        Mixture((Quadratic(dims=5), SMALL, Rosenbrock(dims=3))),
        Mixture((Augmented(Quadratic(dims=5)), Quadratic())),
        Augmented(Quadratic(), split="test"),
        Augmented(SMALL, low=0.1, high=10.0, shared_over="tensor"),
        Augmented(Mixture((Quadratic(dims=3), Quadratic(dims=4)))),
    ],
    ids=str,
)
def test_tasks_conform(task):
    check_problem(task)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_either_half_leads_back_to_the_whole_key(shape):
    key = batch_of(*shape, seed=4)
    for_params, for_state = keys.split(key, 2).unbind(-1)
    assert torch.equal(whole(for_params, "params"), key)
    assert torch.equal(whole(for_state, "state"), key)
    first, second = open_key(Quadratic(), for_params, "params"), open_key(Quadratic(), for_state, "state")
    assert torch.equal(first.shared, second.shared)
    assert torch.equal(whole(first.inner, "params"), whole(second.inner, "state"))
    assert not (first.inner == second.inner).any()


def test_the_way_back_for_any_64_bits():
    key = keys.bits(keys.seed(0), (10000,))
    for_params, for_state = keys.split(key, 2).unbind(-1)
    assert torch.equal(whole(for_params, "params"), key)
    assert torch.equal(whole(for_state, "state"), key)


def test_each_copy_of_a_mixture_is_one_of_its_tasks():
    """Value, gradient and state by hand, over steps; behind a smaller member everything is exactly 0."""
    tasks = (Quadratic(dims=5), SMALL, Rosenbrock(dims=3))
    mixture = Mixture(tasks, dtype="float64")
    for_params, for_state = halves(4, 6)
    params = mixture.init(for_params)
    state = mixture.init_state(params, for_state)
    assert mixture.layout.size == 64 * 3 + 3 + 30 + 10
    assert set(state.member.flatten().tolist()) == {0, 1, 2}
    for number in range(3):
        value, grad, after = mixture.value_and_grad(params, state)
        for i in range(4):
            for j in range(6):
                k = int(state.member[i, j])
                member = mixture.members[k]
                n = member.layout.size
                own = None
                if state.states[k] is not None:
                    own = type(state.states[k])(*(leaf[i, j] for leaf in state.states[k]))
                f, g, _ = member.value_and_grad(params[i, j, :n], own)
                assert float(value[i, j]) == pytest.approx(float(f), rel=1e-12)
                assert torch.allclose(grad[i, j, :n], g, rtol=1e-10, atol=1e-14)
                assert (params[i, j, n:] == 0).all()
                assert (grad[i, j, n:] == 0).all()
        assert torch.equal(after.member, state.member)
        assert torch.equal(after.states[1].step, (number + 1) * (state.member == 1))
        params, state = params - 0.01 * grad, after


def test_a_mixture_starts_each_copy_as_its_member_would():
    mixture = Mixture((Quadratic(dims=2), Quadratic(dims=3)), dtype="float64")
    for_params, for_state = halves(4000)
    params = mixture.init(for_params)
    member = mixture.init_state(params, for_state).member
    assert abs(float(member.double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(4000)
    assert torch.equal(params[:, 2] == 0, member == 0)
    drawn = torch.cat((params[:, :2].flatten(), params[member == 1, 2]))
    assert abs(float(drawn.mean())) < 5 / math.sqrt(len(drawn))
    assert float(drawn.var()) == pytest.approx(1, rel=0.1)


def test_a_mixture_in_a_tower():
    """Start and problem belong together there too, also after restarts; the padding never moves."""
    level = Level(optimizer=SGD(lr=1e-3), unroll=2, horizon=4, batch=32)
    tower = Tower(Mixture((Quadratic(dims=2), Quadratic(dims=6))), level)
    state = tower.init(seed=0)
    for _ in range(5):
        carry = state.carry
        assert torch.equal((carry.x[..., 2:] == 0).all(-1), carry.problem_state.member == 0)
        assert 0 < int((carry.problem_state.member == 0).sum()) < 32
        state, _ = tower.step(state)


def test_members_of_one_layout_keep_its_names():
    one = Mixture((SMALL, DigitsMLP(hidden=(3,), activation="relu", minibatch=4)))
    assert one.layout == SMALL.layout
    two = Mixture((SMALL, Quadratic()))
    assert two.layout.entries == (("padded", (SMALL.layout.size,)),)
    assert Mixture((SMALL, Quadratic())).traits.copies == 64
    assert Mixture((SMALL,)).traits.copies == 4


def test_members_take_the_split_of_the_mixture():
    mixture = Mixture((Quadratic(), SMALL), split="validation", dtype="float64")
    assert mixture.members == (
        Quadratic(split="validation", dtype="float64"),
        DigitsMLP(hidden=(3,), minibatch=8, split="validation", dtype="float64"),
    )
    assert [task.split for task in mixture.on("test").members] == ["test", "test"]
    assert mixture.variants() == {
        "quadratic alone": mixture.members[0],
        "digits-mlp(hidden=[3], minibatch=8) alone": mixture.members[1],
    }


class Opaque(Quadratic):
    """A task whose gradient cannot be differentiated."""

    @property
    def traits(self):
        return ProblemTraits(differentiable=False)


def test_wrappers_can_be_differentiated_if_what_they_wrap_can():
    assert Mixture((Quadratic(), SMALL)).traits.differentiable
    assert Augmented(Quadratic()).traits.differentiable
    assert not Mixture((Quadratic(), Opaque())).traits.differentiable
    assert not Augmented(Opaque()).traits.differentiable


@pytest.mark.parametrize("per", ["copy", "tensor"])
def test_augmentation_is_a_change_of_unit(per):
    task = Augmented(SMALL, shared_over=per, dtype="float64")
    for_params, for_state = halves(2, 50)
    params = task.init(for_params)
    state = task.init_state(params, for_state)
    inner = task.inner
    own = state.inner
    for _ in range(2):
        value, grad, state = task.value_and_grad(params, state)
        f, g, own = inner.value_and_grad(state.scale * params, own)
        assert torch.allclose(value, f, rtol=1e-12)
        assert torch.allclose(grad, state.scale * g, rtol=1e-12)
        params = params - 0.1 * grad / state.scale**2
    logs = state.scale.log10()
    assert logs.min() >= -3
    assert logs.max() <= 3
    assert logs.min() < -2.8
    assert logs.max() > 2.8
    views = [view.flatten(2) for view in inner.layout.unravel(logs).values()]
    assert all(torch.equal(view, view[..., :1].expand_as(view)) for view in views)
    together = all(torch.equal(view[..., 0], views[0][..., 0]) for view in views)
    assert together == (per == "copy")


def test_scales_are_log_uniform():
    task = Augmented(Quadratic(dims=1), low=0.01, high=10.0, dtype="float64")
    for_params, for_state = halves(20000)
    share = (task.init_state(task.init(for_params), for_state).scale.log10() + 2) / 3
    tenths = torch.histc(share, 10, 0, 1) / 20000
    assert ((tenths - 0.1).abs() < 5 * math.sqrt(0.09 / 20000)).all()


def test_an_augmented_start_is_the_tasks_own():
    """Scale times start is standard normal for a quadratic, whatever the scale: both halves drew the same one."""
    task = Augmented(Quadratic(), dtype="float64")
    for_params, for_state = halves(2000)
    params = task.init(for_params)
    seen = task.init_state(params, for_state).scale * params
    assert float(seen.var()) == pytest.approx(1, rel=0.05)
    assert float(seen.abs().max()) < 7
    assert float(params.abs().max()) > 500
    inside = open_key(task, for_params, "params").inner
    assert torch.allclose(seen, task.inner.init(inside), rtol=1e-12)


def test_notation_and_spec_of_wrapped_tasks():
    for text, task in (
        ("mixture([quadratic(5), quadratic(10)])", Mixture((Quadratic(5), Quadratic(10)))),
        ("augmented(quadratic(10))", Augmented(Quadratic(10))),
        ("augmented(rosenbrock, 0.1, 10, per=tensor)", Augmented(Rosenbrock(), 0.1, 10, "tensor")),
        ("mixture([augmented(quadratic), digits-mlp], split=test)",
         Mixture((Augmented(Quadratic()), DigitsMLP()), split="test")),
    ):  # fmt: skip
        tower = parse(f"{text}: adam")
        assert tower.task == task
        assert parse(repr(tower)).task == task
    assert repr(Mixture((Quadratic(5), Quadratic(10)))) == "mixture([quadratic(dims=5), quadratic])"


# Loaders.


def tensors(examples=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (examples,), generator=generator)


def loader(examples=20, seed=0, **options):
    return DataLoader(TensorDataset(*tensors(examples, seed)), **{"batch_size": 5, "shuffle": True, **options})


def network():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def loader_task(train=None, **settings):
    given = {"dtype": "float64", "train": loader() if train is None else train} | settings
    return LoaderTask(make=network, loss_function=nn.functional.cross_entropy, **given)


def test_a_loader_task_conforms():
    check_problem(loader_task(validation=loader(seed=1), test=loader(seed=2)))


ORDERS = {
    "shuffled": lambda: loader(),
    "in order, with a last smaller batch": lambda: loader(22, shuffle=False),
    "without it": lambda: loader(22, drop_last=True),
    "weighted": lambda: loader(shuffle=None, sampler=WeightedRandomSampler(torch.arange(20.0), 12)),
    "batches of a sampler": lambda: DataLoader(TensorDataset(*tensors()), batch_sampler=[[1, 2], [3, 4], [5, 6]]),
    "whole batches": lambda: DataLoader(TensorDataset(*tensors()), batch_size=None, sampler=[[1, 2], [0, 9]]),
    "a generator, workers": lambda: loader(generator=torch.Generator(), num_workers=1, pin_memory=False),
    "a data set": lambda: TensorDataset(*tensors(300)),
}


@pytest.mark.parametrize("make", ORDERS.values(), ids=ORDERS)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one processor
def test_a_copy_sees_the_epochs_of_its_loader(make):
    """Value and gradient on the rows that the loader itself gives under the copy's seeds; other copies see others."""
    ours, given = loader_task(make()), make()
    given = given if isinstance(given, DataLoader) else DataLoader(given, 128, shuffle=True)
    params = ours.init(batch_of(3))
    state = ours.init_state(params, batch_of(3, seed=1))
    for step in range(2 * len(given) + 1):
        expected = []
        for flat, key in zip(params, state.cursor.key):
            with seeded(seed := int(keys.fold_in(key, step // len(given)))):
                for each in (given, given.sampler):
                    if getattr(each, "generator", None) is not None:
                        each.generator.manual_seed(seed)
                numbers = list(given.batch_sampler or given.sampler)[step % len(given)]
            inputs, targets = (part[numbers] for part in given.dataset.tensors)
            leaf = flat.clone().requires_grad_()
            outputs = functional_call(network(), ours.layout.unravel(leaf), (inputs,))
            loss = nn.functional.cross_entropy(outputs, targets)
            expected.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
        value, grad, state = ours.value_and_grad(params, state)
        for found, wanted in zip((value, grad), map(torch.stack, zip(*expected))):
            assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-14)


def test_an_epoch_has_each_item_once():
    task = loader_task()
    for epoch in range(2):
        assert sorted(number for batch in task.order(5, epoch) for number in batch) == list(range(20))
    assert task.order(5, 0) != task.order(5, 1) != task.order(6, 1)


class Weighing(nn.Module):
    """Takes two inputs, by place or by name."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, inputs, weight):
        return self.linear(inputs) * weight[..., None]


@pytest.mark.parametrize("named", [False, True])
def test_minibatches_with_several_inputs(named):
    inputs, labels = tensors()
    weight = torch.rand(20, dtype=torch.float64)

    def joined(items):
        rows = torch.stack([item[0] for item in items])
        parts = {"inputs": inputs[rows], "weight": weight[rows], "labels": labels[rows]}
        return parts if named else ((parts["inputs"], parts["weight"]), parts["labels"])

    data = DataLoader(TensorDataset(torch.arange(20)), 20, collate_fn=joined)
    task = LoaderTask(make=Weighing, loss_function=nn.functional.cross_entropy, train=data, dtype="float64")
    params = task.init(batch_of(2))
    value = task.value(params, task.init_state(params, batch_of(2)))[0]
    for flat, found in zip(params, value):
        outputs = functional_call(Weighing(), task.layout.unravel(flat), (inputs, weight))
        assert torch.allclose(found, nn.functional.cross_entropy(outputs, labels), rtol=1e-12)


class Jittered(Dataset):
    """Items augmented at random."""

    def __init__(self):
        self.inputs, self.targets = tensors()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, number):
        return self.inputs[number] + self.noise(), self.targets[number]


@pytest.mark.parametrize(
    "noise",
    [lambda: torch.randn(4), random.random, lambda: torch.from_numpy(np.random.randn(4))],
    ids=["torch", "python", "numpy"],
)
def test_random_augmentation_is_drawn_from_the_key(noise, monkeypatch):
    monkeypatch.setattr(Jittered, "noise", staticmethod(noise), raising=False)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    task = loader_task(DataLoader(Jittered(), 5, shuffle=True))
    check_problem(task, splits=("train",))
    first, again, other = (task.fetch(key, [0] * 5)[0] for key in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first != other).all()
    assert len(first.unique(dim=0)) == 5
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:], "the generators are left alone"


def test_a_collate_function_is_honoured():
    def joined(items):
        return torch.stack([2 * item[0] for item in items]), torch.tensor([int(item[1]) for item in items])

    task = loader_task(loader(collate_fn=joined))
    inputs, targets = task.fetch(0, [3, 1])
    assert torch.equal(inputs, 2 * tensors()[0][[3, 1]])
    assert torch.equal(targets, tensors()[1][[3, 1]])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*tensors()))


NO_PAIR = "loader: minibatches must be pairs of inputs and targets, got"


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (lambda: DataLoader(Stream(), 5), "loader: the train loader reads a stream; give it a dataset with a length"),
        (lambda: DataLoader([], 5), "loader: the train loader is empty"),
        (lambda: loader(batch_size=50, drop_last=True), "loader: the train loader has no minibatch; lower its batch_size"),
        (lambda: 3, "loader: the train loader reads a stream"),
        (lambda: loader(collate_fn=lambda items: torch.zeros(3)), f"{NO_PAIR} Tensor; pass a collate_fn that joins"),
        (lambda: loader(collate_fn=lambda items: (1, 2, 3)), f"{NO_PAIR} 3 parts; pass a collate_fn that joins items so"),
        (lambda: loader(collate_fn=lambda items: {"inputs": items}),
         "loader: a minibatch that is a dict needs one of targets, target, labels, label beside its inputs, got inputs"),
    ],
)  # fmt: skip
def test_loaders_that_are_refused(train, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        loader_task(train())
    with pytest.raises(ValueError, match=r"^loader: there is no test loader; pass test=DataLoader\(\.\.\.\)$"):
        loader_task().on("test")


def test_splits_of_wrapped_tasks_share_no_problem():
    for task in (Mixture((Quadratic(2), Quadratic(3)), dtype="float64"), Augmented(Quadratic(2), dtype="float64")):
        drawn = torch.cat([task.on(split).init(halves(500)[0]) for split in SPLITS])
        assert len(drawn.unique(dim=0)) == 1500
