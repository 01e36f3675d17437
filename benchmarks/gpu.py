"""GPU: what twins save there, and from which size on a GPU pays.

    python -m benchmarks gpu

Towers of W1's kind with more and more copies, one of depth 3 whose copies restart, and one whose levels all move at
every step; on the CPU accelerated (one thread), on the GPU plain and accelerated (`recursion.accelerate`). A unit is a
step of the tower, whose report is waited for. All sides prove the same losses in float64. Without a GPU, rows say so.
"""

import dataclasses
from functools import partial
from typing import Any

import torch

from benchmarks.harness import Numbers
from recursion import Tower
from recursion.accelerate import accelerate
from recursion.notation import parse

TITLE = "towers on a GPU, plain and accelerated, against one core"
LSTM = "lstm@20[horizon=none, batch={copies}] / adam"
VARIANTS: dict[str, dict[str, Any]] = {
    **{f"{copies} quadratics": {"notation": f"quadratic: {LSTM}", "copies": copies} for copies in (128, 2048, 32768)},
    "depth 3 on digits, restarting": {"notation": "digits-mlp: lstm@20 / lstm@5 / adam"},
    "height 5 on digits": {"notation": "digits-mlp(hidden=128): " + "adam@1 / " * 4 + "sgd(lr=1e-5)"},
}
TOLERANCE = 1e-6
STEPS = 3  # whose losses are compared
KIND = "cuda"


class Ours:
    """A tower on some device."""

    def __init__(self, notation: str, copies: int = 1, *, device: str, fast: bool) -> None:
        if device == KIND and not torch.cuda.is_available():
            raise RuntimeError("there is no GPU here")
        self.fast, self.device = fast, device
        self.plain = parse(notation.format(copies=copies)).to(device)
        self.tower = accelerate(self.plain) if fast else self.plain
        self.state = self.tower.init(seed=0)
        self.facts = {"tower": repr(self.tower), "device": torch.cuda.get_device_name() if device == KIND else "cpu"}

    def step(self) -> None:
        self.advance()

    def advance(self) -> list[float]:
        """The losses of one more step."""
        self.state, report = self.tower.step(self.state)
        return report.losses

    def prove(self) -> Numbers:
        exact = Tower(dataclasses.replace(self.plain.task, dtype="float64"), *self.plain.levels)
        self.tower = accelerate(exact) if self.fast else exact
        self.state = self.tower.init(seed=0)
        return {"losses": [loss for _ in range(STEPS) for loss in self.advance()]}


SIDES: dict[str, Any] = {
    "one core": partial(Ours, device="cpu", fast=True),
    "ours, GPU": partial(Ours, device=KIND, fast=False),
    "ours, GPU, accelerated": partial(Ours, device=KIND, fast=True),
}
