"""A learned optimizer as one of torch: its steps, groups, schedules, state and memory."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
from live import LiveBytes
from models import SMALL, Reads, backward, exported, network, ravel, train, weights_of
from torch import nn
from torch.optim import lr_scheduler

from levels import LSTM, SGD, Adam, Layout, Log, RMSprop, keys
from levels.base import OptimizerTraits
from levels.tree import leaves
from recursion.pieces import Pieces


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Shrinks(SGD):
    """Ends near 0, where x + (new - x) is not new to the last bit."""

    name = "shrinks"
    traits = OptimizerTraits(locality="elementwise")

    def update(self, theta, x, state, f, g):
        return self.read(theta)["lr"] * (x - g), state


@pytest.mark.parametrize(
    "optimizer",
    [SMALL, Adam(), SGD(momentum=0.9), SGD(), RMSprop(centered=True), Adam(lr=Log(0.01, "tensor"))],
    ids=str,
)
def test_state_survives_save_and_load_bit_for_bit(optimizer):
    whole, half, other = network(torch.bfloat16), network(torch.bfloat16), network(torch.bfloat16, seed=9)
    make = exported(optimizer, torch.float32, network())
    straight, first, second = make(whole.parameters()), make(half.parameters()), make(other.parameters(), lr=0.5)
    train(whole, straight, 8)
    train(half, first, 4)
    file = io.BytesIO()
    torch.save({"model": half.state_dict(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["model"])
    second.load_state_dict(saved["optimizer"])
    assert second.param_groups[0]["lr"] == 1.0
    for mine, theirs in zip(half.parameters(), other.parameters()):
        a, b = first.state.get(mine, {}), second.state.get(theirs, {})
        assert list(a) == list(b)
        assert all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)
    train(other, second, 4, first=4)
    assert torch.equal(ravel(other), ravel(whole))
    assert saved["optimizer"]["state"].keys() == first.state_dict()["state"].keys()


def test_a_foreign_state_is_refused_and_nothing_is_loaded():
    model = network()
    optimizer, foreign = (
        exported(Adam())(model.parameters(), lr=0.25),
        torch.optim.SGD(model.parameters(), momentum=0.5),
    )
    train(model, optimizer, 1)
    foreign.step()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"the state to load is not one of adam on these parameters: got .*momentum"):
        optimizer.load_state_dict(foreign.state_dict())
    loaded = optimizer.state_dict()
    assert loaded["param_groups"] == before["param_groups"]
    assert all(torch.equal(a, b) for a, b in zip(leaves(loaded["state"]), leaves(before["state"]), strict=True))
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    assert not optimizer._optimizer_load_state_dict_post_hooks
    own = copy.deepcopy(before)
    optimizer.load_state_dict(own)
    train(model, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(leaves(own["state"]), leaves(before["state"]), strict=True)), "a copy"


@pytest.mark.parametrize("optimizer", [SMALL, Shrinks(lr=0.001)], ids=["lstm", "shrinks"])
def test_lr_multiplies_the_step_and_one_changes_nothing(optimizer):
    ends = {}
    for lr in (1.0, 0.5, 0.0, torch.tensor(1.0)):
        model = network(torch.float32)
        backward(model)
        exported(optimizer, torch.float32)(model.parameters(), lr=lr).step()
        ends[lr] = ravel(model)
    start = ravel(network(torch.float32))
    bound = optimizer.bind(Layout.of({"x": start.shape}))
    weights, g = bound.init(keys.seed(0)), torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    state = bound.init_state(weights, start[None], keys.seed(0)[None])
    bare = bound.update(weights, start[None], state, start.new_zeros(1), g[None])[0][0]
    for lr, end in ends.items():
        if lr == 0.5:
            torch.testing.assert_close(end - start, 0.5 * (bare - start), rtol=1e-4, atol=1e-7)
        else:
            assert torch.equal(end, bare if lr == 1 else start)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=10, cycle_momentum=False),
    ],
)
def test_schedulers_scale_the_step_as_they_scale_torchs(schedule):
    ours, theirs = network(), network()
    optimizers = exported(SGD(lr=0.3))(ours.parameters()), torch.optim.SGD(theirs.parameters(), lr=1.0)
    schedulers = [schedule(optimizer) for optimizer in optimizers]
    for step in range(6):
        backward(ours)
        backward(theirs)
        for p in theirs.parameters():
            p.grad *= 0.3
        for optimizer, scheduler in zip(optimizers, schedulers):
            optimizer.step()
            scheduler.step()
        assert optimizers[0].param_groups[0]["lr"] == optimizers[1].param_groups[0]["lr"], step
    assert optimizers[0].param_groups[0]["lr"] != 1.0
    torch.testing.assert_close(ravel(ours), ravel(theirs), rtol=1e-12, atol=1e-13)


def test_groups_frozen_parameters_and_late_groups():
    """Against torch's Adam with as many groups."""
    models, optimizers = (network(), network()), []
    for model, make in zip(models, (exported(Adam(lr=0.01)), partial(torch.optim.Adam, lr=0.01))):
        scale = 1.0 if not optimizers else 0.01
        optimizers.append(make([{"params": model[0].parameters(), "lr": 0.5 * scale}]))
        model[0].bias.requires_grad_(False)
        train(model, optimizers[-1], 2)
        assert model[0].bias not in optimizers[-1].state
        assert torch.equal(model[2].weight, network()[2].weight)
        optimizers[-1].add_param_group({"params": model[2].parameters()})
        model[0].bias.requires_grad_()
        train(model, optimizers[-1], 3)
    assert [group["lr"] for group in optimizers[0].param_groups] == [0.5, 1.0]
    torch.testing.assert_close(ravel(models[0]), ravel(models[1]), rtol=1e-9, atol=1e-12)
    optimizers[0].zero_grad()
    assert all(p.grad is None for p in models[0].parameters())


def test_a_global_optimizer_leaves_what_has_no_gradient():
    model = network()
    optimizer = exported(SGD(lr=Log(0.1, "tensor"), weight_decay=0.1), model=model)(model.parameters())
    model[0].weight.requires_grad_(False)
    start = ravel(model)
    train(model, optimizer, 3)
    moved = (ravel(model) != start).split([24, 27])
    assert not moved[0].any()
    assert moved[1].any()


def test_closures_and_the_loss():
    model = network()
    optimizer, start = exported(Reads())(model.parameters()), ravel(model)
    backward(model)
    with pytest.raises(ValueError, match=r"reads the loss; call step\(closure\)$"):
        optimizer.step()
    loss = optimizer.step(lambda: backward(model))
    g = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(ravel(model), start - 0.1 * loss.detach() * g, rtol=1e-12, atol=1e-13)
    state = optimizer.state[model[0].weight]
    assert torch.equal(state["0"][0], start)
    assert [float(state[name].mean()) for name in ("1", "2")] == [1.0, 0.0]
    assert exported(SGD())(model.parameters()).step(lambda: backward(model)).item() > 0


def test_a_step_inside_autocast_is_the_same_step():
    inside, outside = network(torch.float32), network(torch.float32)
    for model, enabled in ((inside, True), (outside, False)):
        optimizer = exported(SMALL, torch.float32)(model.parameters())
        for _ in range(2):
            backward(model)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                optimizer.step()
    assert torch.equal(ravel(inside), ravel(outside))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_go_on_alike(again):
    model = network()
    optimizer = exported(SMALL)(model.parameters())
    train(model, optimizer, 2)
    twin, twins = again((model, optimizer))
    train(model, optimizer, 2, first=2)
    assert not torch.equal(ravel(model), ravel(twin))
    train(twin, twins, 2, first=2)
    assert torch.equal(ravel(model), ravel(twin))


@pytest.mark.parametrize("optimizer", [LSTM(), Adam(), RMSprop(momentum=0.5)], ids=str)
def test_chunks_change_no_bit(optimizer):
    n, ends = 5000, []
    layout, weights = Layout.of({"x": (n,)}), weights_of(optimizer, Layout.of({"x": (1,)}))
    for chunk in (1024, n):
        pieces, x = Pieces(optimizer, weights, chunk=chunk), torch.linspace(-1, 1, n)
        memory = pieces.init_state(layout, x)
        for step in range(3):
            g = torch.sin((step + 1) * 10 * x)
            pieces.update(layout, torch.zeros(1), g, memory, x, 1.0)
        ends.append([x, *memory.values()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert len(ends[0]) > 1


@pytest.mark.parametrize(
    "optimizer", [LSTM(hidden=4, layers=1), Adam(), pytest.param(LSTM(), marks=pytest.mark.slow)], ids=str
)
def test_the_memory_of_a_step_does_not_grow_with_the_model(optimizer):
    """Live bytes above parameters, gradients and state, in the first step and in the second."""
    peaks = []
    for n in (250_000, 1_000_000):
        p = nn.Parameter(torch.zeros(n))
        p.grad = torch.ones(n)
        torch_optimizer = exported(optimizer, torch.float32)([p])
        with LiveBytes() as live:
            torch_optimizer.step()
            peaks.append(live.peak - sum(leaf.nbytes for leaf in torch_optimizer.state[p].values()) - 8 * n)
            before = live.reset_peak().bytes
            torch_optimizer.step()
            peaks.append(live.peak - before)
    assert max(peaks) < 32 * 2**20, peaks
    assert max(peaks[2:]) < 1.2 * max(peaks[:2]) + 2**20, peaks


def test_a_sparse_gradient_is_refused_before_anything_moves():
    table, other = nn.Embedding(4, 2, sparse=True), nn.Parameter(torch.ones(2))
    optimizer = exported(Adam(), torch.float32)([other, *table.parameters()])
    (table(torch.tensor([1])).sum() + other.sum()).backward()
    with pytest.raises(ValueError, match=r"adam takes dense gradients, got torch.sparse_coo; set sparse=False"):
        optimizer.step()
    assert torch.equal(other, torch.ones(2))
    with pytest.raises(ValueError, match="complex64"):
        optimizer.add_param_group({"params": [torch.zeros(2, dtype=torch.complex64)]})
    assert len(optimizer.param_groups) == 1
