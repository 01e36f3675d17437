"""A tower on a GPU: the same numbers, nothing left behind on the CPU, and windows that are recorded and replayed.

The GPU is pretended, so what is shown is all but the speed. Gradients by `torch.func` (exact, forward) are left out:
torch cannot nest those over tensors of a kind made in Python. Run by `test_devices`, in a process of its own.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
from pretended import DEVICE, NAME, Device, There, gpu
from torch import Tensor

from levels import SGD, Adam, DigitsMLP, HeldOut, Layout, Level, Problem, Quadratic, captured, keys
from levels.captured import MOST, Graphs, capturing
from levels.restart import NonFiniteError
from levels.tree import leaves
from recursion import Tower, TowerState, checkpoint, cli
from recursion.notation import parse
from recursion.spec import dumps

__all__ = ["gpu"]

RECORDED = [
    "quadratic(5): lstm(hidden=3)@4[batch=3] / adam",
    "quadratic(5): lstm(hidden=3)@4[batch=3, horizon=none] / adam",
    "quadratic(5): rnnprop(hidden=3)@4[batch=3, objective=discounted(0.9), clip=1] / adam",
    "digits-mlp(hidden=3): lstm(hidden=3)@3 / lstm(hidden=2)@2 / adam",
    'digits-mlp(hidden=3): by-name(["*weight", "*"], [lstm(hidden=2), sgd])@3[batch=2] / adam',
    "digits-mlp(hidden=3): start(sgd)@3[horizon=3, objective=last, batch=2] / adam",
    "held-out(digits-mlp(hidden=3)): adagrad@3[batch=2, ahead=4] / rmsprop",
    "quadratic(3): sgd(lr=0.001)@1 / adam@1 / sgd(lr=0.001)@1 / sgd",
    "quadratic(3): depth(adam@3 / sgd@2) / adam",
    "quadratic(3): scheduled(lstm(hidden=2), cosine, steps=10)@2[batch=2] / adam",
    "quadratic(3): mlp@2[batch=2] / adamw",
    "quadratic(3): muon@2[batch=2] / adam",
    *[f"quadratic(3): torch({name}, lr=0.01)@2[batch=2] / adam" for name in ("radam", "rprop", "asgd", "adadelta")],
    *[
        f"{task}: sgd(lr=1e-4)@2[batch=2] / adam"
        for task in (
            "noisy-quadratic",
            "rosenbrock",
            "logistic(minibatch=4)",
            "digits-convnet(channels=2)",
            "photo(hidden=4, features=3, minibatch=5)",
            "char-gru(width=4, length=5, minibatch=2)",
            "char-transformer(width=4, length=5, minibatch=2)",
            "augmented(quadratic(3), low=0.5, high=2)",
            "few(quadratic(3))",
        )
    ],
]
PLAIN = [
    "quadratic: adam(lr=0.1)@2[gradient=pes(pairs=2), batch=2] / adam",
    "quadratic: adam(lr=0.1)@2[gradient=mix(first-order, es-single), batch=2] / adam",
    "quadratic(3): lstm(hidden=2)@2[batch=2] / relay(adam, self, after=2)",
    "quadratic(3): adam@4[batch=2] / ga(population=4)",
    "quadratic(3): adam@4[batch=2] / cma(population=4)",
    "quadratic(3): sgd@1[gradient=online([1, 4])] / adam",
    "digits-mlp(hidden=2): safe(adam(lr=1), fallback=sgd(lr=0.1))",
    "mixture([quadratic(3), quadratic(2)]): sgd(lr=0.001)@2[batch=3] / adam",
]
ENDLESS = "quadratic(5): lstm(hidden=3)@4[batch=3, horizon=none] / lstm(hidden=2)@2[horizon=none] / adam"


def steps(tower: Tower, count: int, state: TowerState | None = None) -> tuple[TowerState, list[list[float]]]:
    """The state after some steps with graphs, and the losses of each."""
    state, losses = state or tower.init(0), []
    for _ in range(count):
        with capturing():
            state, report = tower.step(state)
        losses.append(report.losses)
    return state, losses


def check(notation: str, count: int) -> None:
    tower = parse(notation)
    (here, losses), (there, others) = steps(tower, count), steps(tower.to(DEVICE), count)
    for one, other in zip(losses, others, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    *tensors, step = leaves(there)
    assert step.device.type == "cpu"
    assert all(isinstance(tensor, There) for tensor in tensors)
    for one, other in zip(leaves(here), tensors, strict=False):
        torch.testing.assert_close(other.kept, one, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("notation", RECORDED)
def test_what_is_recorded_is_the_same(gpu: Device, notation: str) -> None:
    check(notation, 7)
    assert gpu.replays >= 5


@pytest.mark.parametrize("notation", PLAIN)
def test_what_looks_at_numbers_is_the_same(gpu: Device, notation: str) -> None:
    check(notation, 4)


def test_an_endless_tower_is_one_graph(gpu: Device) -> None:
    tower = parse(ENDLESS).to(DEVICE)
    state, _ = steps(tower, 2)
    gpu.waits.clear()
    gpu.operations = gpu.replays = 0
    steps(tower, 5, state)
    assert gpu.replays == 5
    assert gpu.waits == ["tolist"] * 5, "one look a step, at its report"
    assert gpu.operations < 5 * 60, "but for copies into and out of the graph, nothing is asked for one by one"


def test_without_the_switch_nothing_is_recorded(gpu: Device) -> None:
    tower = parse(ENDLESS).to(DEVICE)
    assert len(list(tower.run(tower.init(0), 3))) == 3
    assert gpu.replays == 0


def test_states_stay_what_they_are(gpu: Device) -> None:
    """A graph writes to the same memory at each replay; what it answered before must not move."""
    tower = parse(ENDLESS).to(DEVICE)
    first, _ = steps(tower, 3)
    kept = [leaf.clone() for leaf in leaves(first)]
    one, losses = steps(tower, 2, first)
    again, same = steps(tower, 2, first)
    assert losses == same
    for before, after in zip([*kept, *leaves(one)], [*leaves(first), *leaves(again)], strict=True):
        assert torch.equal(before, after)


def test_states_may_come_from_elsewhere(gpu: Device) -> None:
    """A graph is fed what it is given, not what it answered last."""
    tower = parse(ENDLESS).to(DEVICE)
    first, _ = steps(tower, 2)
    expected = steps(tower, 1, first)[1]
    other = steps(tower, 3, tower.init(1))[1]
    assert expected[0] not in other
    assert steps(tower, 1, first)[1] == expected


@pytest.mark.parametrize("horizon", [None, 4])
def test_what_is_not_finite_stops_with_level_and_step(gpu: Device, horizon: int | None) -> None:
    def tower() -> Tower:
        level = Level(optimizer=SGD(lr=1e9), unroll=2, batch=2, horizon=horizon)
        return Tower(Quadratic(dims=3), level, Level(optimizer=Adam(lr=1e-9)))

    sentences = []
    for one in (tower(), tower().to(DEVICE)):
        with pytest.raises(NonFiniteError, match=r"level . .* at top step") as caught:
            steps(one, 40)
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]


def test_what_is_not_finite_is_skipped(gpu: Device) -> None:
    notation = "quadratic(3): sgd(lr=1e7)@4[batch=4, horizon=8, nonfinite=skip] / sgd(lr=1e-9)"
    states = [steps(tower, 20)[0] for tower in (parse(notation), parse(notation).to(DEVICE))]
    counts = [state.carry.below.carry.skipped.tolist() for state in states]
    assert counts[0] == counts[1]
    assert sum(counts[0][0]) > 0
    assert gpu.replays > 0


class TestCommands:
    """What ``--device`` does; a run goes on anywhere."""

    TOWER = "quadratic(3): lstm(hidden=2)@3[batch=2] / lstm(hidden=2)@2 / adam"

    def run(self, *words: str) -> None:
        args = cli.build_parser().parse_args(words)
        args.words = words
        cli.run(args)

    def test_training_and_evaluation(self, gpu: Device, tmp_path: Path, capsys) -> None:
        out, there = str(tmp_path / "run"), ("--device", DEVICE)
        few = "--problems", "4", "--eval-steps", "12"
        self.run("train", self.TOWER, "--steps", "5", "--out", out, *few, *there)
        assert gpu.replays > 2 * 5 - 1, "all windows of level 1 but the first, and some in the evaluation"
        self.run("train", self.TOWER, "--steps", "7", "--out", out, "--no-eval", "--resume")
        assert f"threads {torch.get_num_threads()}, device {NAME}, it goes on with" in capsys.readouterr().err
        kept = checkpoint.load(f"{out}/checkpoint.safetensors").state
        assert not any(isinstance(leaf, There) for leaf in leaves(kept))
        straight = parse(self.TOWER)
        state, _ = steps(straight, 7)
        for one, other in zip(leaves(state), leaves(kept), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)
        self.run("eval", out, *few, "--no-transfer", *there)
        self.run("probe", out, "--windows", "4", *there)
        assert "quadratic(dims=3), 12 steps" in capsys.readouterr().out

    def test_a_device_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"device must be one that torch has here .*, got 'xpu'; use cpu"):
            self.run("train", self.TOWER, "--out", str(tmp_path / "run"), "--device", "xpu")
        assert not (tmp_path / "run").exists()


class TestGraphs:
    def test_a_new_shape_is_another_graph(self, gpu: Device) -> None:
        graphs = Graphs()
        for size in range(1, MOST + 3):
            for number in range(3):
                x = torch.full((size,), float(number), device=DEVICE)
                assert graphs(lambda x: (2 * x,), x)[0].tolist() == [2.0 * number] * size
        assert len(graphs.made) == MOST
        assert gpu.replays == 2 * MOST

    @pytest.mark.parametrize(
        "waits",
        [
            lambda x: (x * x.sum().item(),),
            lambda x: (x[x > 0].sum(),),
            lambda x: (x.nonzero(),),
            lambda x: (x + torch.tensor([1.0, 2.0], device=DEVICE),),
            lambda x: (x.cpu(),),
            lambda x: (torch.ops.aten.lift_fresh(x) + 1,),
            lambda x: (torch.zeros_like(x).copy_(torch.ones(2)),),
        ],
    )
    def test_what_waits_is_not_recorded(self, gpu: Device, waits) -> None:
        graphs = Graphs()
        for number in (1.0, -2.0, 3.0):
            x = torch.full((2,), number, device=DEVICE)
            assert torch.equal(graphs(waits, x)[0].cpu(), waits(x)[0].cpu())
        assert list(graphs.made.values()) == [None]
        assert gpu.replays == 0

    def test_what_cannot_be_recorded_stays_plain_and_says_so(self, gpu: Device, monkeypatch) -> None:
        def refuse(graph):
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        monkeypatch.setattr(captured.cuda, "graph", refuse)
        graphs, x = Graphs(), torch.ones(2, device=DEVICE)
        assert graphs(lambda x: (2 * x,), x)[0].tolist() == [2, 2]
        with pytest.warns(UserWarning, match=r"stays plain \(operation not permitted when stream is capturing\)"):
            assert graphs(lambda x: (2 * x,), x)[0].tolist() == [2, 2]
        assert graphs(lambda x: (2 * x,), x)[0].tolist() == [2, 2]

    def test_what_is_handed_on_is_not_copied(self, gpu: Device) -> None:
        graphs = Graphs()
        fixed = torch.ones(3, device=DEVICE)
        for number in range(4):
            moved = torch.full((3,), float(number), device=DEVICE)
            same, new = graphs(lambda fixed, moved: (fixed, fixed + moved), fixed, moved)
            assert same is fixed
            assert new.tolist() == [1.0 + number] * 3


class TestDevice:
    def test_it_is_not_written_down(self, gpu: Device) -> None:
        tower = parse("held-out(digits-mlp): adam")
        moved = tower.to(DEVICE)
        assert repr(moved) == repr(tower)
        assert dumps(moved) == dumps(tower)
        with pytest.raises(ValueError, match="device"):
            parse("quadratic(device=cpu): adam")

    @pytest.mark.parametrize(
        "notation",
        ["held-out(digits-mlp)", "mixture([quadratic(3), quadratic(2)])", "augmented(quadratic)", "few(digits-mlp)"],
    )
    def test_parts_and_splits_are_there_too(self, gpu: Device, notation: str) -> None:
        task = parse(f"{notation}: adam").task.to(DEVICE)
        for one in (task, task.on("validation")):
            key = keys.split(keys.seed(0, device=DEVICE), 2)
            params = one.init(key)
            answer = one.value_and_grad(params, one.init_state(params, key))
            assert all(isinstance(leaf, There) for leaf in leaves((params, answer)))

    def test_parts_may_not_have_one_of_their_own(self, gpu: Device) -> None:
        with pytest.raises(ValueError, match="set split, dtype and device on the held-out"):
            HeldOut(DigitsMLP(device=DEVICE))

    def test_data_is_copied_once(self, gpu: Device) -> None:
        task = DigitsMLP(device=DEVICE)
        assert task.data().inputs is dataclasses.replace(task, hidden=3).data().inputs
        assert isinstance(task.data().inputs, There)
        assert not isinstance(DigitsMLP().data().inputs, There)


def test_a_missing_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"quadratic: device must be one that torch has here \(.*\), got 'xpu:7'"):
        Quadratic(device="xpu:7")
    with pytest.raises(ValueError, match="got 'nowhere'; use cpu"):
        Quadratic().to("nowhere")


def test_a_problem_of_your_own_says_itself_where_it_is() -> None:
    class SelfUpdate(Problem):
        layout = Layout.of({"x": (1,)})

        def init(self, key: Tensor) -> Tensor:
            return torch.ones(*key.shape, 1)

        def init_state(self, params: Tensor, key: Tensor) -> None:
            return None

        def value_and_grad(self, params: Tensor, state: None) -> tuple[Tensor, Tensor, None]:
            return params.square().sum(-1), 2 * params, None

    with pytest.raises(ValueError, match="is not a Task, so it says itself where it computes; move it, and build anew"):
        Tower(SelfUpdate(), Level(optimizer=SGD())).to("cpu")
