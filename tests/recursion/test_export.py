"""Optimizers leave a tower as files, and take the same steps outside; what does not fit is refused."""

import math

import pytest
import torch
from models import LABELS, SMALL, TASK, Reads, backward, exported, network, ravel, train, weights_of
from safetensors.torch import save_file
from torch import nn

from levels import LSTM, SGD, Adam, Level, Log, catalog, keys
from levels.optimizers.learned_init import LearnedInit
from levels.optimizers.partition import Partition
from recursion import LearnedTorchOptimizer, Tower, cli
from recursion.evaluation.exporting import export
from recursion.exported import Exported
from recursion.notation import parse

PLAIN = [cls() for cls in catalog.parts("optimizer").values()
         if not any(setting.required for setting in catalog.settings_of(cls).values())]  # fmt: skip


def refuses(optimizer):
    """Whether it asks the problem that it works on, and is useless without."""
    try:
        optimizer.bind(TASK.layout)
    except ValueError:
        return True
    return False


MORE = [Partition(["*weight", "*"], [LSTM(hidden=3), SGD()]), SGD(lr=0.1, momentum=0.9), LSTM(hidden=5, scale=0.3)]


@pytest.mark.parametrize("optimizer", [*(each for each in PLAIN if not refuses(each)), *MORE], ids=str)
def test_an_ordinary_loop_makes_the_steps_of_a_tower(optimizer):
    """The exported optimizer in a loop, against the same steps inside a tower's level."""
    weights, steps = weights_of(optimizer, TASK.layout), 12 if optimizer in MORE else 4
    tower = Tower(TASK, Level(optimizer=optimizer, horizon=None, batch=1))
    state = tower.init(seed=3, theta=weights)
    key, start = state.carry.problem_state.cursor.key[0], state.carry.x[0]
    model, tensors = network(), TASK.layout.unravel(start)
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    outside = Exported.of(optimizer, weights, layout=TASK.layout)(model.named_parameters())
    for step in range(steps):
        backward(model, keys.integers(keys.fold_in(key, step), (16,), len(LABELS)))
        outside.step()
        state, _report = tower.step(state)
        torch.testing.assert_close(ravel(model), state.carry.x[0], rtol=1e-11, atol=1e-13)
    assert float((ravel(model) - start).abs().max()) > 1e-4


@pytest.mark.parametrize("optimizer", [each for each in PLAIN if refuses(each)], ids=str)
def test_what_asks_the_problem_stays_in(optimizer):
    with pytest.raises(ValueError, match=" a layout alone"):
        Exported.of(optimizer, torch.zeros(1), layout=TASK.layout)


TENSORS = [Adam(lr=Log(0.01, "tensor")), SGD(lr=Log(0.01, "coordinate")), LearnedInit(SGD()),
           Partition(["*weight", "*"], [SMALL, SGD()])]  # fmt: skip


@pytest.mark.parametrize("optimizer", TENSORS, ids=str)
def test_what_is_bound_to_a_layout_fits_only_that(optimizer):
    model = network()
    make = exported(optimizer, model=model)
    for fitting in (make(model.parameters()), make(model.named_parameters())):
        train(model, fitting, 2)
    swapped = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(3, 6)).double()  # as many entries, other shapes
    only = r"fits only the tensors that it was trained on, 0.weight\[6, 4\], 0.bi"
    for stranger in (network(width=7).parameters(), swapped.parameters(),
                     [{"params": model[0].parameters()}, {"params": model[2].parameters()}]):  # fmt: skip
        with pytest.raises(ValueError, match=only):
            make(stranger)


def test_a_step_size_for_each_tensor_is_torchs_in_groups():
    model, other, optimizer = network(), network(), Adam(lr=Log(0.01, "tensor"))
    rates, own = (0.1, 0.01, 0.02, 0.0001), optimizer.bind(TASK.layout).layout
    values = own.unravel(weights_of(optimizer, TASK.layout)) | {"lr": torch.tensor(rates, dtype=torch.float64).log()}
    train(model, Exported.of(optimizer, own.ravel(values), layout=TASK.layout)(model.parameters()), 5)
    train(other, torch.optim.Adam([{"params": [p], "lr": lr} for lr, p in zip(rates, other.parameters())]), 5)
    torch.testing.assert_close(ravel(model), ravel(other), rtol=1e-9, atol=1e-12)


COMPLEX, ONE, TWO = (nn.Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.complex64, None, torch.float64))


@pytest.mark.parametrize(("sentence", "make"), {
    "adam updates dense real parameters, got one in torch.complex64": lambda: exported(Adam())([COMPLEX]),
    "it must be at least 0, got -1": lambda: exported(Adam())([ONE], lr=-1),
    "it must be at least 0, got nan": lambda: exported(Adam())([ONE], lr=math.nan),
    "got 2 dtypes or devices in it; make a group of each": lambda: exported(Reads())([ONE, TWO]),
    r"^adam takes 4 parameters, got 3$": lambda: Exported.of(Adam(), torch.zeros(3)),
    r"weights must be finite numbers \[m\], got torch.float32 \[1, 4\]": lambda: Exported.of(Adam(), torch.zeros(1, 4)),
    "must be finite": lambda: Exported.of(Adam(), torch.full((4,), math.nan)),
}.items())  # fmt: skip
def test_parameters_and_weights_that_cannot_be_are_refused(sentence, make):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_file_holds_all_of_it(tmp_path):
    tower = parse("quadratic(dims=3): lstm(hidden=4, layers=1)@5[batch=2, horizon=10] / adam[batch=2]")
    state = tower.init(seed=3)
    state, _report = tower.step(state)
    export(tower, state, seed=3, copy=2).save(tmp_path / "a.safetensors")
    back = Exported.load(tmp_path / "a.safetensors")
    assert torch.equal(back.weights, state.carry.x[1])
    assert str(back.optimizer) == "lstm(hidden=4, layers=1)"
    assert back.layout == tower.task.layout
    assert back.source == {"tower": str(tower), "step": 1, "seed": 3, "copy": 2, "base_steps": 0}
    with pytest.raises(ValueError, match="copy must be from 1 to 2, the optimizers that the tower trained, got 3"):
        export(tower, state, seed=3, copy=3)


def test_files_that_are_not_one(tmp_path):
    """What befalls a sealed file is tested with checkpoints."""
    path = tmp_path / "a.safetensors"
    exported().save(path)
    path.write_bytes(path.read_bytes().replace(b'"version":"1"', b'"version":"2"'))
    with pytest.raises(ValueError, match="export version 2, this program reads up to 1; update descent-tower"):
        Exported.load(path)
    save_file({"weights": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not an exported optimizer .*, it is a safetensors file of something else"):
        Exported.load(path)


def test_the_command(tmp_path, monkeypatch, capsys):
    def tower(command, *words):
        return cli.main([command, *words]), capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    lstm = "quadratic(dims=3): lstm(hidden=4, layers=1)@5[batch=2, horizon=10]"
    for out, text in {"run": f"{lstm} / adam", "deep": f"{lstm} / lstm(hidden=3)@2[batch=2] / adam",
                      "hyper": "quadratic(dims=3): sgd@1 / sgd"}.items():  # fmt: skip
        assert tower("train", text, "--steps", "2", "--seed", "4", "--out", out, "--no-eval")[0] == 0
    code, printed = tower("export", "run")
    assert (code, "written to run/optimizer.safetensors; use it with\n" in printed.out) == (0, True)
    first = Exported.load("run/optimizer.safetensors")
    assert (first.source["seed"], first.source["step"]) == (4, 2)
    assert isinstance(first([nn.Parameter(torch.zeros(2))]), LearnedTorchOptimizer)
    code, printed = tower("export", "deep", "--out", "b.safetensors", "--windows", "2", "--copy", "2")
    spent = Exported.load("b.safetensors").source["base_steps"]
    assert spent > 0
    assert f"{spent} base steps spent, written to b.safetensors" in printed.out
    code, printed = tower("export", "hyper")
    assert (code, "tunes itself on each problem and learns nothing to keep; give" in printed.err) == (2, True)
    assert [tower("export", *words)[0] for words in (["run", "--copy", "2"], ["nowhere"])] == [2, 2]
