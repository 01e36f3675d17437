"""`tests.house` finds what is planted in a small tree, lets a clean one pass, and this one if it got no worse."""

import shutil
import subprocess
import sys
from pathlib import Path

import house
import pytest

BASE = """
from abc import ABC, abstractmethod
from functools import cached_property

class Problem(ABC):
    layout: int
    name = "problem"

    @abstractmethod
    def init(self): ...

    @property
    def traits(self): ...

class Optimizer(Problem):
    penalty: object = None

    @cached_property
    def metrics(self): ...

    def _hidden(self): ...

    def __repr__(self): ...

class Estimator: ...
"""


@pytest.fixture
def tree(tmp_path):
    """A tree that keeps every limit; the script is run inside it."""
    plant(tmp_path, {name: f'"""{name}."""\n' for name in (*house.AFTERNOON, "tests/house.py")})
    level = "from levels.base import Problem\n\nclass Level(Problem): ...\n"
    plant(tmp_path, {"levels/__init__.py": "", "levels/base.py": BASE, "levels/level.py": level})
    shutil.copy(house.__file__, tmp_path / "tests/house.py")
    return tmp_path


def plant(tree: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def over(tree: Path) -> dict[str, tuple[str, ...]]:
    """Places by row, of the rows that are over; those that count members aside."""
    return {row.what: row.places for row in house.measure(tree) if row.over and not row.what.startswith("members")}


def command(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tests.house"], cwd=tree, capture_output=True, text=True, check=False)


def test_this_tree_passes_no_limit_or_comes_nearer_to_it():
    rows = [row for row in house.measure(Path(__file__).parents[1]) if house.worse(row)]
    assert not rows, "\n" + house.table(rows, most=8)


def test_a_clean_tree_passes(tree):
    done = command(tree)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " over" not in done.stdout
    counts = {line.split()[2]: line.split()[3] for line in done.stdout.splitlines() if line.startswith("members")}
    assert counts == {"base.Problem": "2", "base.Optimizer": "3", "base.Estimator": "0", "level.Level": "2"}


def test_members_over_the_limit_and_missing_files_are_lines(tree):
    methods = "".join(f"    def m{n}(self): ...\n" for n in range(9))
    plant(tree, {"levels/base.py": BASE.replace("class Estimator: ...\n", f"class Estimator:\n{methods}")})
    (tree / "levels/level.py").unlink()
    done = command(tree)
    assert done.returncode == 1
    shown = " ".join(done.stdout.split())
    assert "members of base.Estimator 9 8 over m0, m1, m2" in shown
    assert "members of level.Level missing 12 over ModuleNotFoundError" in shown
    assert "lines of levels/level.py missing 130 over" in shown
    assert "missing: levels/level.py" in shown
    assert not done.stderr


def test_lines(tree):
    plant(tree, {"levels/level.py": "x = 1\n\n" * 66, "recursion/long.py": "x = 1\n" * 301})
    assert over(tree).keys() == {"longest Python file", "lines of levels/level.py"} | {"runs of 8 equal lines"}
    plant(tree, {"recursion/accelerate/twin.cpp": "\n" * 2001})
    assert "lines of accelerate" in over(tree)
    assert "lines of recursion" not in over(tree)
    plant(tree, {"recursion/page.css": "\n" * 6800})
    assert "lines of recursion" in over(tree)


LATE = "def late():\n    import ray.tune\n    from pandas import Series\n    async def f(): import raylib\n"
NAMES = "import torch\nfrom contextvars import ContextVar\nx = torch._C.f()\ny = torch.fx._g, torch.__version__\n"
LINES = [f"x{n} = {n}\n" for n in range(10)]
PLANTED = {
    "import circles": ({
        "levels/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from levels.b import B\n",
        "levels/b.py": "from . import c\n", "levels/c.py": "from levels import a\n", "levels/d.py": "import levels.c\n",
    }, ["levels.a <-> levels.b <-> levels.c"]),
    "imports inside functions": ({
        "recursion/study/a.py": LATE, "recursion/evaluation.py": LATE, "recursion/cli.py": LATE,
        "levels/a.py": "import levels.c\n", "levels/c.py": "def late():\n    from levels import a\n",
    }, ["levels/c.py:2: levels.a", "recursion/evaluation.py:3: pandas.Series", "recursion/evaluation.py:4: raylib",
        "recursion/study/a.py:4: raylib"]),
    "forbidden names": ({
        "levels/a.py": NAMES, "recursion/a.py": NAMES + "class A:\n    def __init_subclass__(cls): ...\n",
    }, ["levels/a.py:2: contextvars.ContextVar", "levels/a.py:3: torch._C", "levels/a.py:3: torch._C.f",
        "levels/a.py:4: torch.fx._g", "recursion/a.py:2: contextvars.ContextVar", "recursion/a.py:3: torch._C",
        "recursion/a.py:3: torch._C.f", "recursion/a.py:6: __init_subclass__"]),
    "replaced words": ({
        "levels/bend.py": "def f(kept_copies, bend_of): return file.closed\nclass StartPullback: own = 1\n",
        "levels/a.py": "class Own:\n    def _push(self): self.due = untold = 'charge'\n",
    }, ["levels/a.py:1: Own", "levels/a.py:2: _push", "levels/a.py:2: due", "levels/bend.py:1: bend",
        "levels/bend.py:1: bend_of", "levels/bend.py:2: StartPullback"]),
    "runs of 8 equal lines": ({
        "levels/a.py": "import os\n" + "".join(LINES), "recursion/c.py": "".join(LINES[:7]),
        "recursion/b.py": "if True:\n" + "".join(f"    # why\n\n    {line}" for line in LINES),
    }, ["recursion/b.py:4 repeats levels/a.py:2"]),
}  # fmt: skip


@pytest.mark.parametrize("row", PLANTED)
def test_what_is_planted_is_found(row, tree):
    files, places = PLANTED[row]
    plant(tree, files)
    assert over(tree)[row] == tuple(places)
    assert not {"import circles", "runs of 8 equal lines"} & over(tree).keys() - {row}
