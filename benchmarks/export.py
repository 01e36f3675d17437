"""Time and memory of one step of an exported optimizer, against torch.optim.Adam, on a model of a million parameters.

    python -m benchmarks.export [--out benchmarks/results] [--rounds 15]

A step is ``optimizer.step()`` alone; gradients are there. All optimizers take turns in every round, so that a busy
machine slows all of them; the table has medians and quartiles. ``state`` is what an optimizer keeps, ``temporaries``
the largest sum of tensors that a later step makes beside that (exact, see tests/laws/live.py; scratch space inside one
operation is not seen). One thread, float32, CPU.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from torch import nn

from levels import LSTM, SGD, Adam, Layout, Optimizer, RMSprop, keys
from recursion.exported import Exported
from tests.laws.live import LiveBytes

Make = Callable[..., torch.optim.Optimizer]
ONE = Layout.of({"one": ()})


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 896), nn.ReLU(), nn.Linear(896, 10))


def exported(rule: Optimizer) -> Make:
    """The rule as it starts: what it costs does not depend on what it learned."""
    return Exported.of(rule, rule.bind(ONE).init(keys.seed(0)))


OPTIMIZERS: dict[str, Make] = {
    "torch.optim.Adam": torch.optim.Adam,
    "torch.optim.Adam, foreach=False": lambda params: torch.optim.Adam(params, foreach=False),
    "torch.optim.SGD, momentum": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
    "exported sgd(momentum=0.9)": exported(SGD(momentum=0.9)),
    "exported rmsprop": exported(RMSprop()),
    "exported adam": exported(Adam()),
    "exported lstm(hidden=8, layers=1)": exported(LSTM(hidden=8, layers=1)),
    "exported lstm": exported(LSTM()),
}


class Subject:
    """One optimizer on a model of its own, with gradients that stay."""

    def __init__(self, make: Make) -> None:
        self.model = network()
        self.optimizer = make(self.model.parameters())
        for p in self.model.parameters():
            p.grad = torch.randn_like(p)
        self.optimizer.step()
        self.seconds: list[float] = []

    def step(self) -> None:
        started = time.perf_counter()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - started)

    def state_bytes(self) -> int:
        return sum(
            leaf.nbytes for held in self.optimizer.state.values() for leaf in held.values() if torch.is_tensor(leaf)
        )

    def temporary_bytes(self) -> int:
        """Peak of a step above what is alive before it; parameters, gradients and state are met first."""
        with LiveBytes() as live:
            lasting = list(self.model.parameters()) + [p.grad for p in self.model.parameters()]
            lasting += [leaf for held in self.optimizer.state.values() for leaf in held.values()]
            views = [tensor.detach() for tensor in lasting if torch.is_tensor(tensor)]
            before = live.reset_peak().bytes
            self.optimizer.step()
            del views
            return live.peak - before


def measure(rounds: int) -> dict[str, Any]:
    subjects = {name: Subject(make) for name, make in OPTIMIZERS.items()}
    for _ in range(rounds):
        for subject in subjects.values():
            subject.step()
    rows = {}
    for name, subject in subjects.items():
        low, median, high = quantiles(subject.seconds, n=4)
        rows[name] = {
            "milliseconds": 1e3 * median,
            "quartiles": [1e3 * low, 1e3 * high],
            "state_bytes": subject.state_bytes(),
            "temporary_bytes": subject.temporary_bytes(),
        }
    parameters = sum(p.numel() for p in network().parameters())
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.processor()}
    return {**about, "parameters": parameters, "rounds": rounds, "optimizers": rows}


def show(result: dict[str, Any]) -> None:
    print(f"one step on {result['parameters']:,} parameters, median of {result['rounds']} rounds, 1 thread")
    print(f"{'':36}{'ms':>9}{'quartiles':>19}{'x Adam':>9}{'state MiB':>12}{'temporaries MiB':>18}")
    base = result["optimizers"]["torch.optim.Adam"]["milliseconds"]
    for name, row in result["optimizers"].items():
        low, high = row["quartiles"]
        ratio = row["milliseconds"] / base
        memory = f"{row['state_bytes'] / 2**20:12.1f}{row['temporary_bytes'] / 2**20:18.1f}"
        print(f"{name:36}{row['milliseconds']:9.2f}{f'{low:.2f} - {high:.2f}':>19}{ratio:9.1f}{memory}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for export.json")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each optimizer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(options.rounds)
    show(result)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "export.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {options.out / 'export.json'}")


if __name__ == "__main__":
    main()
