"""Networks of your own through their whole life: trained, killed, resumed, used in evaluation mode.

    python -m benchmarks.own_networks [--steps 60] [--kills 3] [--seed 0] [NETWORK ...]

Each network of ``examples/networks.py`` is trained by an LSTM that Adam trains, and by MAML (a learned start under exact
gradients), both with the meta-loss on validation data in evaluation mode. Each run is made twice by ``tower train``:
once whole, and once killed with SIGKILL at random moments and resumed. All tensors of the two checkpoints are compared,
bit for bit. Then level 1, as it was before training and after, trains a fresh network (100 updates of the LSTM, 5 of
MAML's from its start), which is scored on test images in evaluation mode. Exits with 1 if anything differs. Ten minutes
on one core.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from levels import FirstOrder
from levels.tree import named_leaves
from recursion import Tower, TowerState, checkpoint, parse

FILE = "examples/networks.py"
NETWORKS = ("resnet", "recurrent", "transformer")
METHODS = {
    "lstm": "lstm(hidden=10)@20[batch=2, clip=1] / adam(lr=3e-3)",
    "maml": "start(sgd(lr=0.1))@5[horizon=5, objective=last, gradient=exact, batch=4] / adam(lr=1e-2)",
}
WINDOWS = {"lstm": 5, "maml": 1}
LONGER = {"lstm": 1, "maml": 2}  # times the top steps, for its windows are short
TRUST = [FILE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--steps", type=int, default=60, help="top steps of the LSTM's, half of MAML's; default 60")
    parser.add_argument("--kills", type=int, default=3, help="of each run; default 3")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments; default 0")
    args = parser.parse_args()
    good, moments = True, random.Random(args.seed)
    print("network, method: what level 1 makes of a fresh network before and after training; killed and resumed")
    with tempfile.TemporaryDirectory() as scratch:
        for network in args.networks:
            for method, levels in METHODS.items():
                tower, out = f"held-out({FILE}:{network}): {levels}", Path(scratch) / f"{network}-{method}"
                count = args.steps * LONGER[method]
                finish(tower, count, out / "whole")
                steps = killed(tower, count, out / "killed", args.kills, moments)
                finish(tower, count, out / "killed")
                one, other = (
                    checkpoint.load(out / each / "checkpoint.safetensors", trust=TRUST) for each in ("whole", "killed")
                )
                ours, theirs = named_leaves(one.state), named_leaves(other.state)
                same = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
                good &= same and len(steps) == args.kills
                scores = [scored(network, one.tower, each, WINDOWS[method]) for each in (one.tower.init(0), one.state)]
                (loss, right), (better, more) = scores
                print(
                    f"{network}, {method}: test loss {loss:.3f} to {better:.3f}, accuracy {right:.1%} to {more:.1%}; killed "
                    f"at steps {', '.join(map(str, steps))}: {len(ours)} tensors {'are the same' if same else 'DIFFER'}",
                    flush=True,
                )
    sys.exit(not good)


def start(tower: str, steps: int, out: Path) -> "subprocess.Popen[bytes]":
    """``tower train``, or its resumption, in a process of its own."""
    words = ["train", tower, "--steps", str(steps), "--out", str(out), "--threads", "1", "--no-eval", "--resume"]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "recursion.cli", *words], stderr=log, stdout=log)


def finish(tower: str, steps: int, out: Path) -> None:
    """``tower train`` to its end."""
    if start(tower, steps, out).wait():
        raise SystemExit(out.with_suffix(".log").read_text())


def killed(tower: str, steps: int, out: Path, kills: int, moments: random.Random) -> list[int]:
    """Begin or go on, and kill at a random step; the steps of metrics that were there."""
    at = sorted(moments.sample(range(1, steps - 1), kills))
    for wanted in at:
        process = start(tower, steps, out)
        while process.poll() is None and lines(out) < wanted:
            time.sleep(0.01)
        if process.poll() is not None:
            raise SystemExit(out.with_suffix(".log").read_text())
        process.send_signal(signal.SIGKILL)
        process.wait()
    return at


def lines(out: Path) -> int:
    """Steps in the metrics of a run."""
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def scored(network: str, tower: Tower, state: TowerState, windows: int) -> tuple[float, float]:
    """Test loss and accuracy, in evaluation mode, of a fresh network that level 1 trains for some windows."""
    alone = Tower(tower.task, replace(tower.levels[0], horizon=None, gradient=FirstOrder()))
    after = alone.init(1, theta=tower.result(state)[0])
    for after, _ in alone.run(after, windows):  # noqa: B007, B020
        pass
    task = parse(f"{FILE}:{network}: sgd").task.on("test")
    inputs, labels = task.data if network != "recurrent" else task.loader.dataset.tensors
    model = alone.module(after).eval()
    with torch.no_grad():
        outputs = model(inputs)
    return nn.functional.cross_entropy(outputs, labels).item(), (outputs.argmax(-1) == labels).double().mean().item()


if __name__ == "__main__":
    main()
