"""A tower on a GPU: the same numbers, and nothing left behind on the CPU. The GPU is pretended, so no time is measured.

Run by `test_devices`, in a process of its own.
"""

import dataclasses
from pathlib import Path

import pytest
import torch
from pretended import DEVICE, NAME, Device, There, gpu
from torch import Tensor

from levels import SGD, DigitsMLP, HeldOut, Layout, Level, Problem, Quadratic, keys
from levels.tree import leaves
from recursion import Tower, TowerState, checkpoint, cli
from recursion.notation import parse
from recursion.spec import dumps

__all__ = ["gpu"]

TOWERS = [
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
    *[f"{task}: sgd(lr=1e-4)@2[batch=2] / adam" for task in (
        "noisy-quadratic", "rosenbrock", "logistic(minibatch=4)", "digits-convnet(channels=2)",
        "photo(hidden=4, features=3, minibatch=5)", "char-gru(width=4, length=5, minibatch=2)",
        "char-transformer(width=4, length=5, minibatch=2)", "augmented(quadratic(3), low=0.5, high=2)",
        "few(quadratic(3))",
    )],
    "quadratic: sgd@3[gradient=exact, batch=2] / sgd@2[gradient=exact] / adam",
    "quadratic: adam(lr=0.1)@2[gradient=pes(pairs=2), batch=2] / adam",
    "quadratic: adam(lr=0.1)@2[gradient=mix(first-order, es-single), batch=2] / adam",
    "quadratic(3): lstm(hidden=2)@2[batch=2] / relay(adam, self, after=2)",
    "quadratic(3): adam@4[batch=2] / ga(population=4)",
    "quadratic(3): adam@4[batch=2] / cma(population=4)",
    "quadratic(3): sgd@1[gradient=online([1, 4])] / adam",
    "digits-mlp(hidden=2): safe(adam(lr=1), fallback=sgd(lr=0.1))",
    "mixture([quadratic(3), quadratic(2)]): sgd(lr=0.001)@2[batch=3] / adam",
]  # fmt: skip


def steps(tower: Tower, count: int) -> tuple[TowerState, list[list[float]]]:
    """The state after some steps, and the losses of each."""
    ran = list(tower.run(tower.init(0), count))
    return ran[-1][0], [report.losses for _, report in ran]


@pytest.mark.parametrize("notation", TOWERS)
def test_a_tower_computes_the_same_numbers_there(gpu: Device, notation: str) -> None:
    tower = parse(notation)
    (here, losses), (there, others) = steps(tower, 3), steps(tower.to(DEVICE), 3)
    for one, other in zip(losses, others, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    *tensors, step = leaves(there)
    assert step.device.type == "cpu"
    assert all(isinstance(tensor, There) for tensor in tensors)
    for one, other in zip(leaves(here), tensors, strict=False):
        torch.testing.assert_close(other.kept, one, rtol=1e-3, atol=1e-5)


def test_an_endless_tower_waits_a_few_times_a_step(gpu: Device) -> None:
    tower = parse("quadratic(5): lstm(hidden=3)@4[batch=3, horizon=none] / adam").to(DEVICE)
    state = tower.init(0)
    gpu.waits.clear()
    tower.step(state)
    assert len(gpu.waits) <= 6, "a look at each window, at the meta-gradient and at the report"


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
        self.run("train", self.TOWER, "--steps", "7", "--out", out, "--no-eval", "--resume")
        assert f"threads {torch.get_num_threads()}, device {NAME}, " in capsys.readouterr().err
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


class TestDevice:
    def test_it_is_not_written_down(self, gpu: Device) -> None:
        tower = parse("held-out(digits-mlp): adam")
        moved = tower.to(DEVICE)
        assert repr(moved) == repr(tower)
        assert dumps(moved) == dumps(tower)
        with pytest.raises(ValueError, match="device"):
            parse("quadratic(device=cpu): adam")

    @pytest.mark.parametrize("notation", [
        "held-out(digits-mlp)", "mixture([quadratic(3), quadratic(2)])", "augmented(quadratic)", "few(digits-mlp)",
    ])  # fmt: skip
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
