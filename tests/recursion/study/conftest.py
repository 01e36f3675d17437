import json

import pytest

from recursion.study.request import Budget, Request

TOWER = "quadratic(dims=3): lstm(hidden=2, layers=1)@5[batch=2] / adam"


@pytest.fixture
def request_of():
    """A small request; settings may differ."""
    common = {"tower": TOWER, "depths": (1, 2), "seeds": 2, "budget": Budget(amount=1e4), "steps": 20}
    return lambda **settings: Request(**common | settings)


@pytest.fixture
def plan(tmp_path):
    """A folder in which the fake job does as it is told, by the id of its run."""

    def make(**does):
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        (folder / "plan.json").write_text(json.dumps({run.replace("_", "-"): what for run, what in does.items()}))
        return folder

    return make
