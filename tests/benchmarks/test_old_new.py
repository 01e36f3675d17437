"""Two checkouts are compared each by its own code: on small trees whose sides sleep, disagree or are missing."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import harness, old_new

WORKLOAD = """
import time
from levels import PAUSE, SUM

class Counter:
    def __init__(self, pause):
        self.pause = pause

    def prove(self):
        return {"sum": [SUM]}

    def step(self):
        time.sleep(self.pause)

TITLE, TOLERANCE = "counting", 1e-9
VARIANTS = {"short": {"factor": 1}, "only NAME": {"factor": 1}, "long": {"factor": 2}}
SIDES = {"ours": lambda factor: Counter(factor * PAUSE), "ours, FAST": lambda factor: Counter(factor * PAUSE / 2),
         "peer": lambda factor: Counter(0.003)}
"""


@pytest.fixture
def compare(monkeypatch, tmp_path, capsys):
    """Runs the command on an old tree and a new one with such a pause; the exit status, pairs and what is printed."""
    monkeypatch.setattr(harness, "BLOCK", 0.02)

    def run(pause, *options, total=45.0, fast="accelerated"):
        old, new = tree(tmp_path / "old", 0.004, 45.0, "compiled"), tree(tmp_path / "new", pause, total, fast)
        out = tmp_path / "out"
        command = ["--old", str(old), "--new", str(new), "--workloads", "w1", "--rounds", "3", "--out", str(out)]
        status, path = old_new.main([*command, *options]), out / "old_new.json"
        kept = json.loads(path.read_text())["variants"] if path.exists() else []
        return status, [pair for variant in kept for pair in variant["pairs"]], capsys.readouterr().out, kept

    return run


def tree(root: Path, pause: float, total: float, fast: str) -> Path:
    package = Path(harness.__file__).parent
    for name in ("__init__", "harness", "worker"):
        (root / "benchmarks").mkdir(parents=True, exist_ok=True)
        shutil.copy(package / f"{name}.py", root / "benchmarks")
    (root / "levels").mkdir(exist_ok=True)
    (root / "levels/__init__.py").write_text(f"PAUSE, SUM = {pause}, {total}\n")
    (root / "benchmarks/w1.py").write_text(WORKLOAD.replace("FAST", fast).replace("NAME", root.name))
    return root


def test_each_side_runs_the_code_of_its_tree(compare):
    status, pairs, printed, kept = compare(0.002, "--beside", "peer", "--variants", "short", "only new")
    assert status == 0, printed
    assert [(pair["kind"], pair["verdict"]) for pair in pairs] == [("plain", "ok"), ("accelerated", "ok")]
    assert all(1.5 < pair["ratio"]["middle"] < 2.5 for pair in pairs)
    assert list(kept[0]["sides"]) == ["old plain", "new plain", "old accelerated", "new accelerated", "peer"]


@pytest.mark.parametrize(("pause", "total", "variant", "verdict"), [
    (0.002, 45.0, "only old", "new: no such variant"),
    (0.004, 46.0, "short", "new: disagrees with old plain: sum by 2.2e-02"),
    (0.008, 45.0, "long", "slower"),
])  # fmt: skip
def test_what_is_wrong_with_the_new_tree(pause, total, variant, verdict, compare):
    status, pairs, printed, _ = compare(pause, "--kinds", "plain", "--variants", variant, total=total)
    assert (status, [pair["verdict"] for pair in pairs]) == (1, [verdict])
    assert "1 wrong" in printed
    if verdict == "slower":
        assert pairs[0]["least"] == 0.9
    else:
        assert pairs[0]["ratio"] is None, "it is not timed"


def test_what_is_missing_is_said(compare, tmp_path):
    status, pairs, printed, _ = compare(0.004, fast="slow")
    assert (status, pairs) == (1, [])
    assert "W1: new has no side 'ours, accelerated' or 'ours, compiled'" in printed
    with pytest.raises(old_new.MissingError, match=r"old has no W2: .* No module named"):
        old_new.Checkout("old", tmp_path / "old").workload("W2")
    with pytest.raises(SystemExit):
        old_new.main(["--old", str(tmp_path)])
