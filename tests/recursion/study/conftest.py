import json
from collections.abc import Callable
from pathlib import Path

import pytest

from recursion.study.request import Budget, Request

TOWER = "quadratic(dims=3): lstm(hidden=2, layers=1)@5[batch=2] / adam"


@pytest.fixture
def request_of() -> Callable[..., Request]:
    """A small request; settings may differ."""

    def make(**settings: object) -> Request:
        common = {"tower": TOWER, "depths": (1, 2), "seeds": 2, "budget": Budget(amount=1e4), "steps": 20}
        return Request(**{**common, **settings})  # type: ignore[arg-type]

    return make


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Path]:
    """A folder in which the fake job does as it is told, by the id of its run."""

    def make(**does: str) -> Path:
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        (folder / "plan.json").write_text(json.dumps({run.replace("_", "-"): what for run, what in does.items()}))
        return folder

    return make
