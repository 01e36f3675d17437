"""The README's table of methods is true: every row that says yes runs from its notation."""

import re
from pathlib import Path

import pytest

from recursion.notation import parse

README = Path(__file__).parents[2] / "README.md"
ROWS = re.findall(r"^\| (.+?) \| `(.+?)` \| yes \|$", README.read_text(), re.MULTILINE)


def test_the_table_is_there():
    assert len(ROWS) >= 14


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
