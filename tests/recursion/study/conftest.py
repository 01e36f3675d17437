import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recursion.study.request import Budget, Request

TOWER = "quadratic(dims=3): lstm(hidden=2, layers=1)@5[batch=2] / adam"


@pytest.fixture
def request_of() -> Callable[..., Request]:
    """A small request; settings may differ."""

    def make(**settings: object) -> Request:
        plain = {"tower": TOWER, "depths": (1, 2), "seeds": 2, "budget": Budget(amount=1e4), "steps": 20}
        return Request(**{**plain, **settings})  # type: ignore[arg-type]

    return make


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Path]:
    """A folder in which the fake job does as it is told, by the id of its run."""

    def make(**does: str) -> Path:
        folder = tmp_path / "out"
        folder.mkdir(exist_ok=True)
        runs = {key.replace("_", "-"): value for key, value in does.items()}
        (folder / "plan.json").write_text(json.dumps(runs))
        return folder

    return make


DRIVER = """
import sys
from recursion.study.ablate import ablate
from recursion.study.pool import Local
from recursion.study.request import Request
request = Request.from_json(sys.argv[1])
say = lambda event: print(type(event).__name__, event.run.id, flush=True)
try:
    ablate(request, sys.argv[2], pool=Local(2), perform="fake_job.perform", on_event=say).close()
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def drive() -> Iterator[Callable[[Request, Path], "subprocess.Popen[str]"]]:
    """Starts a process that drives an ablation of the fake job, and says what happens on its stdout."""
    started: list[subprocess.Popen[str]] = []

    def start(request: Request, out: Path) -> "subprocess.Popen[str]":
        here = {"PYTHONPATH": ":".join(filter(None, [str(Path(__file__).parent), *sys.path])), "PATH": "/usr/bin:/bin"}
        words = [sys.executable, "-c", DRIVER, request.to_json(), str(out)]
        started.append(subprocess.Popen(words, env=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
