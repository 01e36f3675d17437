"""`tests.house` finds what is planted in a small tree, and lets a clean one pass."""

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
    for name in (*house.AFTERNOON, "tests/house.py"):
        plant(tmp_path, name, f'"""{name}."""\n')
    plant(tmp_path, "levels/__init__.py", "")
    plant(tmp_path, "levels/base.py", BASE)
    plant(tmp_path, "levels/level.py", "from levels.base import Problem\n\nclass Level(Problem): ...\n")
    shutil.copy(house.__file__, tmp_path / "tests/house.py")
    return tmp_path


def plant(tree: Path, name: str, text: str) -> None:
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def over(tree: Path) -> dict[str, tuple[str, ...]]:
    """Places by row, of the rows that are over; those that count members aside."""
    return {row.what: row.places for row in house.measure(tree) if row.over and not row.what.startswith("members")}


def command(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tests.house"], cwd=tree, capture_output=True, text=True, check=False)


def test_a_clean_tree_passes(tree):
    done = command(tree)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " over" not in done.stdout
    counts = {line.split()[2]: line.split()[3] for line in done.stdout.splitlines() if line.startswith("members")}
    assert counts == {"base.Problem": "2", "base.Optimizer": "3", "base.Estimator": "0", "level.Level": "2"}


def test_members_over_the_limit_and_missing_files_are_lines(tree):
    methods = "".join(f"    def m{n}(self): ...\n" for n in range(9))
    plant(tree, "levels/base.py", BASE.replace("class Estimator: ...\n", f"class Estimator:\n{methods}"))
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
    plant(tree, "levels/level.py", "x = 1\n\n" * 66)
    plant(tree, "recursion/long.py", "x = 1\n" * 301)
    assert over(tree).keys() == {"longest Python file", "lines of levels/level.py"} | {"runs of 8 equal lines"}
    plant(tree, "recursion/accelerate/twin.cpp", "\n" * 2001)
    assert "lines of accelerate" in over(tree)
    assert "lines of recursion" not in over(tree)
    plant(tree, "recursion/page.css", "\n" * 6800)
    assert "lines of recursion" in over(tree)


def test_import_circles(tree):
    plant(tree, "levels/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from levels.b import B\n")
    plant(tree, "levels/b.py", "from . import c\n")
    plant(tree, "levels/c.py", "from levels import a\n")
    plant(tree, "levels/d.py", "import levels.c\n")
    assert over(tree) == {"import circles": ("levels.a <-> levels.b <-> levels.c",)}
    plant(tree, "levels/c.py", "def late():\n    from levels import a\n")
    assert over(tree) == {"imports inside functions": ("levels/c.py:2: levels.a",)}


def test_imports_inside_functions(tree):
    text = "def late():\n    import ray.tune\n    from pandas import Series\n    async def f(): import raylib\n"
    plant(tree, "recursion/study/a.py", text)
    plant(tree, "recursion/evaluate.py", text)
    plant(tree, "recursion/cli.py", text)
    assert over(tree)["imports inside functions"] == (
        "recursion/evaluate.py:3: pandas.Series",
        "recursion/evaluate.py:4: raylib",
        "recursion/study/a.py:4: raylib",
    )


def test_forbidden_names(tree):
    text = "import torch\nfrom contextvars import ContextVar\nx = torch._C.f()\ny = torch.fx._g, torch.__version__\n"
    plant(tree, "levels/a.py", text)
    plant(tree, "recursion/a.py", text + "class A:\n    def __init_subclass__(cls): ...\n")
    assert over(tree)["forbidden names"] == (
        "levels/a.py:2: contextvars.ContextVar",
        "levels/a.py:3: torch._C",
        "levels/a.py:3: torch._C.f",
        "levels/a.py:4: torch.fx._g",
        "recursion/a.py:2: contextvars.ContextVar",
        "recursion/a.py:3: torch._C",
        "recursion/a.py:3: torch._C.f",
        "recursion/a.py:6: __init_subclass__",
    )


def test_replaced_words(tree):
    plant(tree, "levels/bend.py", "def f(kept_copies, bend_of): return file.closed\nclass StartPullback: own = 1\n")
    plant(tree, "levels/a.py", "class Own:\n    def _push(self): self.due = untold = 'charge'\n")
    assert [place.rpartition(": ")[2] for place in over(tree)["replaced words"]] == [
        *("Own", "_push", "due", "bend", "bend_of", "StartPullback")
    ]


def test_repeated_lines(tree):
    lines = [f"x{n} = {n}\n" for n in range(10)]
    plant(tree, "levels/a.py", "import os\n" + "".join(lines))
    plant(tree, "recursion/b.py", "if True:\n" + "".join(f"    # why\n\n    {line}" for line in lines))
    plant(tree, "recursion/c.py", "".join(lines[:7]))
    assert over(tree) == {"runs of 8 equal lines": ("recursion/b.py:4 repeats levels/a.py:2",)}
