"""Runs that real disks and real signals end, in processes of their own, and what is left of them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from levels.tree import named_leaves
from recursion import TowerState, checkpoint
from recursion.notation import parse
from recursion.training import train

SMALL = "quadratic(dims=3): lstm(hidden=4, layers=1)@5[batch=2, horizon=10] / adam"


def assert_same(one: TowerState, other: TowerState) -> None:
    left, right = named_leaves(one), named_leaves(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def metrics(folder: Path) -> list[dict]:
    """The metrics of a run but for the seconds, which must rise."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = [line.pop("seconds") for line in lines]
    assert seconds == sorted(seconds)
    return lines


LIMITED = f"""
import resource, sys
from recursion.notation import parse
from recursion.training import train
out, limit, every, board = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "board"
if not board:
    sys.modules["torch.utils.tensorboard"] = None
def restrict(report):
    if report.step == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
train(parse("{SMALL}"), steps=200, seed=0, out=out, every=every, on_report=restrict)
"""
# A checkpoint has about 5,000 bytes, a line of metrics 120: the first limit meets the one, the second the other.


@pytest.mark.parametrize(
    ("limit", "every", "board", "what", "least"),
    [
        (2000, 0.0, "no board", "{}/checkpoint.safetensors", 2),
        (6000, 1000.0, "no board", "{}/metrics.jsonl", 40),
        (6000, 1000.0, "board", "TensorBoard events in {}", 5),
    ],
)
def test_a_disk_that_refuses_ends_the_run_and_keeps_what_was_there(
    limit: int, every: float, board: str, what: str, least: int, tmp_path: Path
) -> None:
    if board == "board":
        pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    arguments = [sys.executable, "-c", LIMITED, str(out), str(limit), str(every), board]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 1
    messages = [line for line in done.stderr.splitlines() if line.startswith("OSError: cannot")]
    assert messages[0] == f"OSError: cannot write {what.format(out)}: File too large"
    assert not list(out.glob(".*.tmp"))
    kept = checkpoint.load(out / "checkpoint.safetensors")
    assert least <= int(kept.state.step) <= len((out / "metrics.jsonl").read_text().splitlines())
    steps = int(kept.state.step) + 3
    resumed = train(kept.tower, steps=steps, seed=0, out=out, resume=True)
    assert_same(resumed, train(kept.tower, steps=steps, seed=0, out=tmp_path / "whole"))
    assert metrics(out) == metrics(tmp_path / "whole")


KILLED = f"""
import sys
from recursion.notation import parse
from recursion.training import train
train(parse("{SMALL}"), steps=int(sys.argv[2]), seed=5, out=sys.argv[1], resume=True, every=0.02)
"""


def kill_and_resume(folder: Path, steps: int, moments: list[float]) -> list[int]:
    """Train in processes that are killed ``moments`` seconds after their first metrics; the steps they had kept."""
    kept = []
    for moment in moments:
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(steps)])
        lines, before = folder / "metrics.jsonl", time.time()
        while process.poll() is None and not (lines.exists() and lines.stat().st_mtime >= before):
            time.sleep(0.005)
        time.sleep(moment)
        assert process.poll() is None, "the run ended before it was killed; give it more steps"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        path = folder / "checkpoint.safetensors"
        kept.append(int(checkpoint.load(path).state.step) if path.exists() else 0)
    return kept


def assert_kills_change_nothing(tmp_path: Path, steps: int, moments: list[float]) -> None:
    kept = kill_and_resume(tmp_path / "killed", steps, moments)
    assert kept == sorted(kept)
    assert kept[-1] < steps
    ended = train(parse(SMALL), steps=steps, seed=5, out=tmp_path / "killed", resume=True)
    assert_same(ended, train(parse(SMALL), steps=steps, seed=5, out=tmp_path / "whole"))
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def test_killed_twice_and_resumed_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    assert_kills_change_nothing(tmp_path, 300, [random.uniform(0, 0.3) for _ in range(2)])


@pytest.mark.slow
def test_killed_at_twenty_random_moments_and_resumed_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    assert_kills_change_nothing(tmp_path, 4000, [random.uniform(0, 0.4) for _ in range(20)])


INTERRUPTED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + KILLED
# Where SIGINT is ignored, as under nohup, a child inherits that: it sets Python's handler itself.


def test_an_interrupt_signal_in_a_real_process_keeps_the_last_state(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(tmp_path), "100000"], stderr=subprocess.PIPE)
    while not (tmp_path / "metrics.jsonl").exists() or os.stat(tmp_path / "metrics.jsonl").st_size < 500:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate()[1]
    kept = int(checkpoint.load(tmp_path / "checkpoint.safetensors").state.step)
    assert kept in (len(metrics(tmp_path)), len(metrics(tmp_path)) - 1)
