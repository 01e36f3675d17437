"""Runs that real disks and real signals end, in processes of their own, and what is left of them."""

import random
import signal
import subprocess
import sys
import time

import pytest
from towers import SMALL, assert_same, metrics

from recursion import checkpoint
from recursion.notation import parse
from recursion.training import train

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


@pytest.mark.parametrize(
    ("limit", "every", "board", "what", "least"),  # a checkpoint has about 5,000 bytes, a line of metrics 120
    [
        (2000, 0.0, "no board", "{}/checkpoint.safetensors", 2),
        (6000, 1000.0, "no board", "{}/metrics.jsonl", 40),
        (6000, 1000.0, "board", "TensorBoard events in {}", 5),
    ],
)
def test_a_disk_that_refuses_ends_the_run_and_keeps_what_was_there(limit, every, board, what, least, tmp_path):
    if board == "board":
        pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    arguments = [sys.executable, "-c", LIMITED, str(out), str(limit), str(every), board]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 1
    messages = [line for line in done.stderr.splitlines() if line.startswith("OSError: cannot")]
    assert messages[0] == f"OSError: cannot write {what.format(out)}: File too large"
    assert not list(out.glob(".*.tmp"))
    left = checkpoint.load(out / "checkpoint.safetensors")
    assert least <= int(left.state.step) <= len((out / "metrics.jsonl").read_text().splitlines())
    steps = int(left.state.step) + 3
    resumed = train(left.tower, steps=steps, seed=0, out=out, resume=True)
    assert_same(resumed, train(left.tower, steps=steps, seed=0, out=tmp_path / "whole"))
    assert metrics(out) == metrics(tmp_path / "whole")


KILLED = """
import sys
from recursion.notation import parse
from recursion.training import train
train(parse(sys.argv[1]), steps=int(sys.argv[3]), seed=5, out=sys.argv[2], resume=True, every=0.02)
"""
GATED = "quadratic(dims=3): depth(sgd@2[batch=2] / adam@2, gates=lstm(hidden=2), price=1e-3) / adam"


@pytest.mark.parametrize(("tower", "steps", "kills"), [
    (SMALL, 300, 2),
    pytest.param(SMALL, 4000, 20, marks=pytest.mark.slow),
    pytest.param(GATED, 2000, 4, marks=pytest.mark.slow),
])  # fmt: skip
def test_killed_at_random_moments_and_resumed_equals_an_uninterrupted_run(tower, steps, kills, tmp_path):
    folder, reached = tmp_path / "killed", [0]
    lines, path = folder / "metrics.jsonl", folder / "checkpoint.safetensors"
    for _ in range(kills):
        before = time.time()
        process = subprocess.Popen([sys.executable, "-c", KILLED, tower, str(folder), str(steps)])
        while process.poll() is None and not (lines.exists() and lines.stat().st_mtime >= before):
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.3))
        assert process.poll() is None, "the run ended before it was killed; give it more steps"
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        reached.append(int(checkpoint.load(path).state.step) if path.exists() else 0)
    assert reached == sorted(reached)
    assert reached[-1] < steps
    ended = train(parse(tower), steps=steps, seed=5, out=folder, resume=True)
    assert_same(ended, train(parse(tower), steps=steps, seed=5, out=tmp_path / "whole"))
    assert metrics(folder) == metrics(tmp_path / "whole")
