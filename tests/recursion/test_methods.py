"""The README is true: every row of its table of methods runs from its notation, and its Python runs."""

import re
from pathlib import Path

import pytest

from levels import level
from recursion.notation import parse

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
METHODS = README.partition("## Methods")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (.+?) \| `(.+?: .+?)` \|$", METHODS, re.MULTILINE)
PYTHON = re.findall(r"^```python\n(.+?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_table_is_there():
    assert len(ROWS) == METHODS.count("\n| ") - 2  # the heading, and the line under it
    assert len(ROWS) >= 29


def test_the_loop_is_that_of_the_source():
    (loop,) = re.findall(r"(    for t in 1..T:\n(?:        .+\n)+)", README)
    assert loop in level.__doc__


def test_the_python_runs():
    names = {}
    for block in PYTHON:
        exec(block, names)
    grad, difference = names["grad"].item(), (names["up"] - names["down"]).item() / 2e-5
    assert grad == pytest.approx(difference, rel=1e-6)
    assert f"# {grad:.4f} {grad:.4f}, by central differences" in README
    assert names["tower"].result(names["state"]).exp().item() == pytest.approx(0.075, abs=5e-4)  # as it says


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize(("method", "notation"), ROWS, ids=[method for method, _ in ROWS])
def test_a_method_runs_from_its_notation(method, notation):
    tower = parse(notation)
    assert parse(repr(tower)).levels == tower.levels
    state = tower.init(seed=0)
    before = state.carry.x
    for state, report in tower.run(state, 2):  # noqa: B007, B020
        pass
    assert report.step == 2
    assert all(abs(loss) < 1e5 for loss in report.losses)
    assert (state.carry.x != before).any(), "something is trained"
