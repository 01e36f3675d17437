import copy
import io
import math
import pickle
from pathlib import Path

import pytest
import torch
from live import LiveBytes
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler

from levels import LSTM, SGD, Adam, Layout, Level, Log, ModuleTask, Optimizer, RMSprop, catalog, keys
from levels.base import OptimizerTraits
from levels.optimizers.learned_init import LearnedInit
from levels.optimizers.partition import Partition
from levels.tree import leaves
from recursion import LearnedTorchOptimizer, Tower, cli
from recursion.evaluate.learned import learned_by
from recursion.export import export, load
from recursion.notation import parse
from recursion.pieces import Pieces


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SMALL = LSTM(hidden=5)
DATA = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.randint(3, (60,), generator=torch.Generator().manual_seed(1))


def weights_of(rule: Optimizer, problem_state: Layout, seed: int = 0) -> torch.Tensor:
    return rule.bind(problem_state).init(keys.seed(seed))


def exported(rule: Optimizer = SMALL, dtype: torch.dtype = torch.float64, model: nn.Module | None = None):
    shapes = {"x": (1,)} if model is None else {name: tuple(p.shape) for name, p in model.named_parameters()}
    problem_state = Layout.of(shapes, dtype)
    return export(rule, weights_of(rule, problem_state), layout=None if model is None else problem_state)


def network(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def backward(model: nn.Module, rows: slice | torch.Tensor = slice(0, 20)) -> torch.Tensor:
    model.zero_grad()
    loss = functional.cross_entropy(model(DATA[rows].to(next(model.parameters()).dtype)).double(), LABELS[rows])
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        backward(model, slice(3 * step % 40, 3 * step % 40 + 20))
        optimizer.step()


def ravel(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def task() -> ModuleTask:
    return ModuleTask(
        make=network, loss_function=functional.cross_entropy, train=(DATA, LABELS), minibatch=16, dtype="float64"
    )


def check_steps(rule: Optimizer, make, steps: int) -> None:
    """An ordinary loop with what ``make`` makes, against the same steps inside a tower's level."""
    weights = weights_of(rule, task().layout)
    tower = Tower(task(), Level(optimizer=rule, horizon=None, batch=1))
    state = tower.init(seed=3, theta=weights)
    key, start = state.carry.problem_state.key[0], state.carry.x[0]
    model, views = network(), task().layout.unravel(start)
    model.load_state_dict({name: views[name] for name in model.state_dict()})
    optimizer = make(weights)(model.named_parameters())
    for step in range(steps):
        backward(model, keys.integers(keys.fold_in(key, step), (16,), len(LABELS)))
        optimizer.step()
        state, _report = tower.step(state)
        torch.testing.assert_close(ravel(model), state.carry.x[0], rtol=1e-11, atol=1e-13)
    assert float((ravel(model) - start).abs().max()) > 1e-4


@pytest.mark.parametrize("rule", [Adam(lr=0.01), SGD(lr=0.1, momentum=0.9), LSTM(hidden=5, scale=0.3)], ids=str)
def test_an_ordinary_loop_makes_the_steps_of_a_tower(rule: Optimizer) -> None:
    check_steps(rule, lambda weights: export(rule, weights), 20)


PLAIN = [
    cls()
    for cls in catalog.parts("optimizer").values()
    if not any(setting.required for setting in catalog.settings_of(cls).values())
]


def refuses(rule: Optimizer) -> bool:
    """Whether it asks the problem that it works on, and is useless without."""
    try:
        rule.bind(task().layout)
    except ValueError:
        return True
    return False


FREE = [rule for rule in PLAIN if not refuses(rule)]


@pytest.mark.parametrize("rule", [*FREE, Partition(["*weight", "*"], [LSTM(hidden=3), SGD()])], ids=str)
def test_every_optimizer_goes_out(rule: Optimizer) -> None:
    check_steps(rule, lambda weights: export(rule, weights, layout=task().layout), 4)


@pytest.mark.parametrize("rule", [rule for rule in PLAIN if refuses(rule)], ids=str)
def test_what_asks_the_problem_stays_in(rule: Optimizer) -> None:
    with pytest.raises(ValueError, match=" a layout alone"):
        export(rule, torch.zeros(1), layout=task().layout)


class Reads(SGD):
    """Steps in proportion to the loss; keeps the last x, and swaps two tensors of its state."""

    name = "reads"
    traits = OptimizerTraits(reads_loss=True)

    def init_state(self, theta, x, key):
        return (x, torch.zeros_like(x), torch.ones_like(x))

    def update(self, theta, x, state, f, g):
        _last, one, two = state
        return x - 0.1 * f[..., None] * g, (x, two, one)


@pytest.mark.parametrize(
    "rule", [SMALL, Adam(), SGD(momentum=0.9), SGD(), RMSprop(centered=True), Adam(lr=Log(0.01, "tensor"))], ids=str
)
def test_state_survives_save_and_load_bit_for_bit(rule: Optimizer) -> None:
    whole, half = network(torch.bfloat16), network(torch.bfloat16)
    make = exported(rule, torch.float32, network())
    straight, first = make(whole.parameters()), make(half.parameters())
    train(whole, straight, 8)
    train(half, first, 4)
    file = io.BytesIO()
    torch.save({"model": half.state_dict(), "optimizer": first.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    model = network(torch.bfloat16, seed=9)
    second = make(model.parameters(), lr=0.5)
    model.load_state_dict(saved["model"])
    second.load_state_dict(saved["optimizer"])
    assert second.param_groups[0]["lr"] == 1.0
    for one, other in zip(half.parameters(), model.parameters()):
        mine, theirs = first.state.get(one, {}), second.state.get(other, {})
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[k], theirs[k]) and mine[k].dtype == theirs[k].dtype for k in mine)
    train(model, second, 4, first=4)
    assert torch.equal(ravel(model), ravel(whole))
    assert saved["optimizer"]["state"].keys() == first.state_dict()["state"].keys()


def test_counts_keep_their_dtype_and_saved_tensors_stay_apart() -> None:
    model = network(torch.float16)
    optimizer = exported(Adam(), torch.float32)(model.parameters())
    train(model, optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["t"].fill_(16_777_217)  # not a float32, let alone a float16
    optimizer.load_state_dict(saved)
    state = optimizer.state[model[0].weight]
    assert state["t"].dtype == torch.int64
    assert int(state["t"]) == 16_777_217
    assert state["m"].dtype == torch.float32
    train(model, optimizer, 1)
    assert int(saved["state"][0]["t"]) == 16_777_217


def test_a_foreign_state_is_refused_and_nothing_is_loaded() -> None:
    model = network()
    optimizer = exported(Adam())(model.parameters(), lr=0.25)
    train(model, optimizer, 1)
    before = copy.deepcopy(optimizer.state_dict())
    foreign = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    foreign.step()
    with pytest.raises(ValueError, match=r"the state to load is not one of adam on these parameters: got .*momentum"):
        optimizer.load_state_dict(foreign.state_dict())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(torch.equal(a, b) for a, b in zip(leaves(after["state"]), leaves(before["state"]), strict=True))
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    assert not optimizer._optimizer_load_state_dict_post_hooks


class Shrinks(SGD):
    """Ends near 0, where x + (new - x) is not new to the last bit."""

    name = "shrinks"
    traits = OptimizerTraits(locality="elementwise")

    def update(self, theta, x, state, f, g):
        return self.read(theta)["lr"] * (x - g), state


@pytest.mark.parametrize("rule", [SMALL, Shrinks(lr=0.001)], ids=["lstm", "shrinks"])
def test_lr_multiplies_the_step_and_one_changes_nothing(rule: Optimizer) -> None:
    ends = {}
    for lr in (1.0, 0.5, 0.0, torch.tensor(1.0)):
        model = network(torch.float32)
        optimizer = exported(rule, torch.float32)(model.parameters(), lr=lr)
        backward(model)
        optimizer.step()
        ends[lr] = ravel(model)
    start = ravel(network(torch.float32))
    layout = Layout.of({"x": start.shape})
    weights, g = weights_of(rule, layout), torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    state = rule.bind(layout).init_state(weights, start[None], keys.seed(0)[None])
    bare = rule.bind(layout).update(weights, start[None], state, start.new_zeros(1), g[None])[0][0]
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
def test_schedulers_scale_the_step_as_they_scale_torchs(schedule) -> None:
    ours, theirs = network(), network()
    pairs = []
    for model, optimizer in (
        (ours, exported(SGD(lr=0.3))(ours.parameters())),
        (theirs, torch.optim.SGD(theirs.parameters(), lr=1.0)),
    ):
        pairs.append((model, optimizer, schedule(optimizer)))
    for step in range(6):
        for model, optimizer, scheduler in pairs:
            backward(model)
            if model is theirs:
                for p in model.parameters():
                    p.grad *= 0.3
            optimizer.step()
            scheduler.step()
        assert pairs[0][1].param_groups[0]["lr"] == pairs[1][1].param_groups[0]["lr"], step
    assert pairs[0][1].param_groups[0]["lr"] != 1.0
    torch.testing.assert_close(ravel(ours), ravel(theirs), rtol=1e-12, atol=1e-13)


def test_groups_frozen_parameters_and_late_groups() -> None:
    model, alone = network(), network()
    optimizer = exported(Adam(lr=0.01))([{"params": model[0].parameters(), "lr": 0.5}])
    other = torch.optim.Adam([{"params": alone[0].parameters(), "lr": 0.005}], lr=0.01)
    model[0].bias.requires_grad_(False)
    alone[0].bias.requires_grad_(False)
    train(model, optimizer, 2)
    train(alone, other, 2)
    assert model[0].bias not in optimizer.state
    assert torch.equal(model[2].weight, network()[2].weight)
    optimizer.add_param_group({"params": model[2].parameters()})
    other.add_param_group({"params": alone[2].parameters()})
    model[0].bias.requires_grad_()
    alone[0].bias.requires_grad_()
    train(model, optimizer, 3)
    train(alone, other, 3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1.0]
    torch.testing.assert_close(ravel(model), ravel(alone), rtol=1e-9, atol=1e-12)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_a_rule_that_reads_the_problem_leaves_what_has_no_gradient() -> None:
    model = network()
    optimizer = exported(SGD(lr=Log(0.1, "tensor"), weight_decay=0.1), model=model)(model.parameters())
    model[0].weight.requires_grad_(False)
    start = ravel(model)
    train(model, optimizer, 3)
    moved = (ravel(model) != start).split([24, 27])
    assert not moved[0].any()
    assert moved[1].any()


def test_closures_and_the_loss() -> None:
    model = network()
    optimizer = exported(Reads())(model.parameters())
    backward(model)
    with pytest.raises(ValueError, match=r"reads the loss; call step\(closure\)$"):
        optimizer.step()
    start = ravel(model)
    loss = optimizer.step(lambda: backward(model))
    g = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(ravel(model), start - 0.1 * loss.detach() * g, rtol=1e-12, atol=1e-13)
    state = optimizer.state[model[0].weight]
    assert torch.equal(state["0"][0], start)
    assert [float(state[name].mean()) for name in ("1", "2")] == [1.0, 0.0]
    plain = exported(SGD())(model.parameters())
    assert plain.step(lambda: backward(model)).item() > 0


def test_a_step_inside_autocast_is_the_same_step() -> None:
    inside, outside = network(torch.float32), network(torch.float32)
    for model, enabled in ((inside, True), (outside, False)):
        optimizer = exported(SMALL, torch.float32)(model.parameters())
        for _ in range(2):
            backward(model)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                optimizer.step()
    assert torch.equal(ravel(inside), ravel(outside))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_go_on_alike(again) -> None:
    model = network()
    optimizer = exported(SMALL)(model.parameters())
    train(model, optimizer, 2)
    twin, twins = again((model, optimizer))
    train(model, optimizer, 2, first=2)
    assert not torch.equal(ravel(model), ravel(twin))
    train(twin, twins, 2, first=2)
    assert torch.equal(ravel(model), ravel(twin))


@pytest.mark.parametrize("rule", [LSTM(), Adam(), RMSprop(momentum=0.5)], ids=str)
def test_chunks_change_no_bit(rule: Optimizer) -> None:
    n = 5000
    layout, weights = Layout.of({"x": (n,)}), weights_of(rule, Layout.of({"x": (1,)}))
    ends = []
    for chunk in (1024, n):
        pieces, x = Pieces(rule, weights, chunk=chunk), torch.linspace(-1, 1, n)
        memory = pieces.init_state(layout, x)
        for step in range(3):
            g = torch.sin((step + 1) * 10 * x)
            pieces.update(layout, torch.zeros(1), g, memory, x, 1.0)
        ends.append([x, *memory.values()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert len(ends[0]) > 1


@pytest.mark.parametrize(
    "rule", [LSTM(hidden=4, layers=1), Adam(), pytest.param(LSTM(), marks=pytest.mark.slow)], ids=str
)
def test_what_a_step_makes_does_not_grow_with_the_model(rule: Optimizer) -> None:
    """Live bytes above parameters, gradients and state, in the first step and in the second."""
    peaks = []
    for n in (250_000, 1_000_000):
        p = nn.Parameter(torch.zeros(n))
        p.grad = torch.ones(n)
        optimizer = exported(rule, torch.float32)([p])
        with LiveBytes() as live:
            optimizer.step()
            state = sum(leaf.nbytes for leaf in optimizer.state[p].values())
            peaks.append(live.peak - state - 8 * n)
            live.reset_peak()
            before = live.bytes
            optimizer.step()
            peaks.append(live.peak - before)
    assert max(peaks) < 32 * 2**20, peaks
    assert max(peaks[2:]) < 1.2 * max(peaks[:2]) + 2**20, peaks


def test_strange_gradients_and_parameters_are_refused() -> None:
    make = exported(Adam(), torch.float32)
    table, other = nn.Embedding(4, 2, sparse=True), nn.Parameter(torch.ones(2))
    optimizer = make([other, *table.parameters()])
    (table(torch.tensor([1])).sum() + other.sum()).backward()
    with pytest.raises(ValueError, match=r"adam takes dense gradients, got torch.sparse_coo; set sparse=False"):
        optimizer.step()
    assert torch.equal(other, torch.ones(2))
    with pytest.raises(ValueError, match=r"adam updates dense real parameters, got one in torch.complex64"):
        make([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    with pytest.raises(ValueError, match="at least 0, got -1"):
        make([other], lr=-1)
    with pytest.raises(ValueError, match="at least 0, got nan"):
        make([other], lr=math.nan)
    with pytest.raises(ValueError, match="complex64"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, dtype=torch.complex64))]})
    assert len(optimizer.param_groups) == 1


def test_rules_bound_to_a_layout_fit_only_that() -> None:
    model, wider = network(), nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    two = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(3, 6)).double()  # as many entries, other shapes
    for rule in (
        Adam(lr=Log(0.01, "tensor")),
        SGD(lr=Log(0.01, "coordinate")),
        LearnedInit(SGD()),
        Partition(["*weight", "*"], [SMALL, SGD()]),
    ):
        make = exported(rule, model=model)
        for optimizer in (make(model.parameters()), make(model.named_parameters())):
            train(model, optimizer, 2)
        for stranger in (wider, two):
            with pytest.raises(
                ValueError, match=r"fits only the tensors that it was trained on, 0.weight\[6, 4\], 0.bi"
            ):
                make(stranger.parameters())
        with pytest.raises(ValueError, match="fits only the tensors"):
            make([{"params": model[0].parameters()}, {"params": model[2].parameters()}])
    mixed = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=torch.float64))]
    with pytest.raises(ValueError, match="got 2 dtypes or devices in it; make a group of each"):
        exported(Reads(), torch.float32)(mixed)


def test_a_rule_for_each_tensor_is_that_in_the_tower_too() -> None:
    model, rule = network(), Adam(lr=Log(0.01, "tensor"))
    layout = task().layout
    views = rule.bind(layout).layout.unravel(weights_of(rule, layout))
    views["lr"] = torch.tensor([0.1, 0.01, 0.02, 0.0001], dtype=torch.float64).log()
    weights = rule.bind(layout).layout.ravel(views)
    train(model, export(rule, weights, layout=layout)(model.parameters()), 5)
    other = network()
    rates = zip((0.1, 0.01, 0.02, 0.0001), other.parameters())
    train(other, torch.optim.Adam([{"params": [p], "lr": lr} for lr, p in rates]), 5)
    torch.testing.assert_close(ravel(model), ravel(other), rtol=1e-9, atol=1e-12)


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    tower = parse("quadratic(dims=3): lstm(hidden=4, layers=1)@5[batch=2, horizon=10] / adam[batch=2]")
    state = tower.init(seed=3)
    state, _report = tower.step(state)
    learned_by(tower, state, seed=3, copy=2).save(tmp_path / "a.safetensors")
    back = load(tmp_path / "a.safetensors")
    assert torch.equal(back.weights, state.carry.x[1])
    assert str(back.optimizer) == "lstm(hidden=4, layers=1)"
    assert back.layout == tower.task.layout
    assert back.source == {"tower": str(tower), "step": 1, "seed": 3, "copy": 2, "base_steps": 0}
    with pytest.raises(ValueError, match="copy must be from 1 to 2, the optimizers that the tower trained, got 3"):
        learned_by(tower, state, seed=3, copy=3)


def test_files_that_are_not_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    exported().save(path)
    good = path.read_bytes()
    path.write_bytes(good[:-4])
    with pytest.raises(ValueError, match=r"a\.safetensors is not a whole file, it is truncated or garbled"):
        load(path)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"a\.safetensors is garbled, its digest does not fit"):
        load(path)
    path.write_bytes(good.replace(b'"version":"1"', b'"version":"2"'))
    with pytest.raises(ValueError, match="export version 2, this program reads up to 1; update descent-tower"):
        load(path)
    save_file({"weights": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not an exported optimizer .*, it is a safetensors file of something else"):
        load(path)
    with pytest.raises(OSError, match="cannot read"):
        load(tmp_path / "missing")


def test_weights_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"^adam takes 4 parameters, got 3$"):
        export(Adam(), torch.zeros(3))
    with pytest.raises(ValueError, match=r"adam: its weights must be finite numbers \[m\], got torch.float32 \[1, 4\]"):
        export(Adam(), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="finite"):
        export(Adam(), torch.full((4,), math.nan))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    small = "quadratic(dims=3): lstm(hidden=4, layers=1)@5[batch=2, horizon=10] / adam"
    assert cli.main(["train", small, "--steps", "2", "--seed", "4", "--out", "run", "--no-eval"]) == 0
    assert cli.main(["export", "run"]) == 0
    assert "written to run/optimizer.safetensors; use it with\n" in capsys.readouterr().out
    first = load("run/optimizer.safetensors")
    assert (first.source["seed"], first.source["step"]) == (4, 2)
    assert isinstance(first([nn.Parameter(torch.zeros(2))]), LearnedTorchOptimizer)
    deep = "quadratic(dims=3): lstm(hidden=4, layers=1)@5[batch=2] / lstm(hidden=3)@2[batch=2] / adam"
    assert cli.main(["train", deep, "--steps", "1", "--out", "deep", "--no-eval"]) == 0
    assert cli.main(["export", "deep", "--out", "b.safetensors", "--windows", "2", "--copy", "2"]) == 0
    spent = load("b.safetensors").source["base_steps"]
    assert spent > 0
    assert f"{spent} base steps spent, written to b.safetensors" in capsys.readouterr().out
    hyper = "quadratic(dims=3): sgd@1 / sgd"
    assert cli.main(["train", hyper, "--steps", "1", "--out", "hyper", "--no-eval"]) == 0
    assert cli.main(["export", "hyper"]) == 2
    assert "it is itself the optimizer, tunes itself on each problem and learns nothing to keep; give" in (
        capsys.readouterr().err
    )
    assert cli.main(["export", "run", "--copy", "2"]) == 2
    assert cli.main(["export", "nowhere"]) == 2
