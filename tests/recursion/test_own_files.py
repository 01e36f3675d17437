"""Tasks and parts in files of the user's: named in notation, kept in files, and run only where they are trusted."""

import json
import sys
from pathlib import Path

import pytest
import torch

from levels import SGD, Level, ModuleTask
from levels.importing import require_trusted
from recursion import Exported, Tower, checkpoint, cli, parse, train
from recursion.reading import read
from recursion.sealed import write_sealed
from recursion.spec import dumps, from_spec, loads, read_tower
from recursion.study.request import Budget, Request

SOURCE = """
from pathlib import Path
import torch
from torch import nn
from levels import SGD, ModuleTask

Path("ran").touch()
INPUTS = torch.linspace(-1, 1, 20)[:, None]

def line():
    data = INPUTS, 2 * INPUTS
    return ModuleTask(make=lambda: nn.Linear(1, 1), loss_function=nn.functional.mse_loss, train=data, validation=data,
                      test=data, minibatch=4)

task = line()
number = 3

def broken():
    raise SystemExit(3)

class Rule(SGD):
    name = "rule-of-mine"
"""
QUICK = ["--problems", "4", "--eval-steps", "5"]


@pytest.fixture(autouse=True)
def name(tmp_path, monkeypatch, request):
    """The module's name, another one for each test; the folder is the current one."""
    module = f"own_{abs(hash(request.node.name))}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    Path(f"{module}.py").write_text(SOURCE)
    yield module
    sys.modules.pop(module, None)


@pytest.mark.parametrize("form", ["{}.py:line", "{}.py:task", "folder/{}.py:line", "{}.line", "{}.task"])
def test_a_task_is_named_by_its_file_or_module(form, name):
    Path("folder").mkdir()
    Path(f"folder/{name}.py").write_text(SOURCE)
    text = f"{form.format(name)}: sgd(lr=0.1)@2[batch=3] / adam"
    tower = parse(text)
    assert isinstance(tower.task, ModuleTask)
    assert str(tower) == text
    assert str(parse(f"{form.format(name)}(dtype=float64): sgd").task.on("test")).endswith(
        "(split=test, dtype=float64)"
    )
    assert dumps(loads(dumps(tower), [form.format(name).rpartition(".line")[0] or name, f"{name}.py", name,
                                      f"folder/{name}.py"])) == dumps(tower)  # fmt: skip
    assert str(parse(f"held-out({form.format(name)}): sgd").task) == f"held-out({form.format(name)})"


def test_it_trains_resumes_and_is_evaluated_on_the_command_line(name, capsys):
    tower = f"{name}.py:line: sgd(lr=0.1)@2[batch=2] / adam"
    assert cli.main(["train", tower, "--steps", "2", "--out", "run", *QUICK]) == 0
    assert f"problems of {name}.py:line" in capsys.readouterr().out
    assert cli.main(["train", tower, "--steps", "4", "--out", "run", "--resume", "--no-eval"]) == 0
    whole = train(parse(tower), steps=4, out="whole", on_report=lambda _: None)
    state = checkpoint.load("run/checkpoint.safetensors", parse(tower)).state
    assert all(torch.equal(a, b) for a, b in zip(state.carry[:1], whole.carry[:1]))
    sys.modules.pop(name)
    Path("ran").unlink()
    for words in (["eval", "run"], ["show", "run"], ["probe", "run"], ["export", "run"], ["train", "run/spec.json"]):
        assert cli.main(words) == 2
        said = capsys.readouterr().err
        assert f"it names '{name}.py:line', whose code would run when it is read; if you trust that, " in said
        assert f"add --trust {name}.py (in Python trust=['{name}.py'])" in said
    assert not Path("ran").exists(), "nothing was imported"
    assert cli.main(["eval", "run", "--trust", f"{name}.py", "--no-transfer", *QUICK]) == 0


def test_a_study_takes_it_and_a_tower_as_it_is(name):
    tower = parse(f"{name}.py:line: rule / sgd".replace("rule", "sgd(lr=0.1)@2"))
    request = Request(tower=tower, depths=(1, 2), seeds=1, budget=Budget(amount=1e5))
    assert request.tower == str(tower)
    assert request.runs()[0].tower == f"{name}.py:line: sgd"
    data = json.loads(json.dumps({**request.__dict__, "budget": "1e5"}))
    assert Request.from_json(data, [f"{name}.py"]).runs() == request.runs()
    sys.modules.pop(name)
    Path("ran").unlink()
    hostile = data, data | {"tower": "quadratic: sgd", "grid": [["top.optimizer", [f"{name}.Rule"]]]}
    hostile += (data | {"tower": f"quadratic: torch({name}.Rule)"}, data | {"tower": f"quadratic: gated({name}.Rule)"},
                data | {"tower": f'quadratic: torch("{name}.Rule")'})  # fmt: skip
    for each in hostile:
        with pytest.raises(ValueError, match=rf"it names '{name}.*whose code would run when it is read"):
            Request.from_json(each)
    assert not Path("ran").exists(), "nothing was imported"
    own = ModuleTask(make=tower.task.make, loss_function=tower.task.loss_function, train=tower.task.train)
    with pytest.raises(
        ValueError, match=r"cannot be written as notation.*name the task by its file, as mytask.py:wine"
    ):
        Request(tower=Tower(own, Level(optimizer=SGD())), depths=(1,))


def test_an_optimizer_in_a_module_is_exported_and_loaded_where_it_is_trusted(name):
    rule = parse(f"quadratic: {name}.Rule").levels[0].optimizer
    Exported.of(rule, torch.zeros(1)).save("rule")
    with pytest.raises(ValueError, match=rf"it names '{name}.Rule'.*--trust {name}"):
        Exported.load("rule")
    assert Exported.load("rule", trust=[name]).optimizer == rule


MISTAKES = {
    "{}.py:number": "must be a task or a function that returns one (a ModuleTask, say), got int",
    "{}.py:lines": "{}.py has no 'lines' (did you mean line?)",
    "{}.py:broken": "makes no task (SystemExit: 3)",
    "{}.py:Rule": "is not a task: expected a concrete subclass of Config",
    "nowhere.py:line": "there is no file nowhere.py",
    "{}.py:line(hidden=3)": "has no setting 'hidden'; it has split, dtype",
    "two words.py:line": "task (two words.py:line): unknown task 'two'",
    "json.py:line": "a module 'json' is there already",
    "1.py:line": "is no module; rename it to letters and digits",
    "__main__.X": "'__main__.X' is private (__main__); name a public module and class",
    "json._default_decoder.X": "is private (_default_decoder)",
    "this.is.nowhere": "cannot import 'this.is'",
    "exits.X": "SystemExit",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_what_is_no_task_is_said_in_one_sentence(text, name):
    Path("json.py").write_text(SOURCE)
    Path("1.py").write_text(SOURCE)
    Path("exits.py").write_text("import sys\nsys.exit(0)")
    with pytest.raises(ValueError) as caught:
        read(f"{text.format(name)}: sgd")
    assert MISTAKES[text].format(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def hostile(module):
    """Specs that name code in every place that is read as a name."""
    level = {"optimizer": {"name": "sgd"}}
    part = f"{module}.Rule"
    yield {"task": {"name": part}, "levels": [level]}
    yield {"task": {"name": f"{module}.py:line"}, "levels": [level]}
    yield {"task": {"name": "held-out", "task": {"name": f"{module}.py:line"}}, "levels": [level]}
    yield {"task": {"name": "quadratic"}, "levels": [{"optimizer": {"name": part}}]}
    yield {"task": {"name": "quadratic"}, "levels": [{"optimizer": {"name": "gated", "inner": {"name": part}}}]}
    yield {"task": {"name": "quadratic"}, "levels": [{"optimizer": {"name": "torch", "algorithm": part}}]}
    yield {"task": {"name": "quadratic"}, "levels": [{"optimizer": {"name": "torch", "rule": part}}]}
    home = "levels.optimizers.torch_optim.TorchOptim"
    yield {"task": {"name": "quadratic"}, "levels": [{"optimizer": {"name": home, "algorithm": part}}]}
    yield {"task": {"name": "quadratic"}, "levels": [level | {"gradient": {"name": part}}]}
    yield {"task": {"name": "quadratic"}, "levels": [level | {"objective": {"name": part}}]}
    yield {"task": {"name": "quadratic"}, "levels": [level | {"nonfinite": {"name": part}}]}
    yield {"task": {"name": "quadratic"}, "levels": [{"optimizer": {"name": "sgd", "lr": {"name": part}}}]}
    yield {"task": {"name": "quadratic"}, "levels": [{"optimizer": {
        "name": "by-name", "patterns": ["*"], "optimizers": [{"name": "gated", "inner": {"name": part}}]}}]}  # fmt: skip


@pytest.mark.parametrize("number", range(13))
def test_a_hostile_file_is_refused_before_anything_is_imported(number, name):
    spec = {"format": "descent-tower", "version": 1} | list(hostile(name))[number]
    Path("spec.json").write_text(json.dumps(spec))
    content = {"spec": spec, "notation": "x", "step": 0, "seed": 0, "extra": {}}
    write_sealed(Path("checkpoint"), checkpoint.FORMAT, content, {"x": torch.zeros(1)})
    optimizer = spec["levels"][0]["optimizer"]
    write_sealed(Path("export"), checkpoint.FORMAT._replace(name="descent-tower optimizer", version=1),
                 {"optimizer": optimizer, "below": None, "source": {}}, {"weights": torch.zeros(1)})  # fmt: skip
    before = {*sys.modules}
    for read_file in (lambda: read_tower("spec.json"), lambda: checkpoint.load("checkpoint")):
        with pytest.raises(ValueError, match=f"it names '{name}.*whose code would run when it is read"):
            read_file()
    if name in json.dumps(optimizer):
        with pytest.raises(ValueError, match="whose code would run when it is read"):
            Exported.load("export")
    assert not Path("ran").exists()
    assert {*sys.modules} == before


def test_a_file_cannot_call_a_function_of_this_package(monkeypatch):
    monkeypatch.setattr("recursion.study.pool.processors", lambda: pytest.fail("called"))
    spec = {"format": "descent-tower", "version": 1, "task": {"name": "recursion.study.pool.processors"}, "levels": []}
    with pytest.raises(ValueError, match="'recursion.study.pool.processors' is not a task"):
        from_spec(spec)


def test_this_package_and_what_is_under_a_trusted_name_are_read():
    require_trusted({"name": "levels.optimizers.sgd.SGD", "inner": [{"name": "mine.deep.Rule"}]}, ["mine"])
    with pytest.raises(ValueError, match="--trust miner"):
        require_trusted({"name": "miner.Rule"}, ["mine"])
