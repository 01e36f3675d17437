"""Training: step a tower, keep its state safe, write down what happened.

    state = train(tower, steps=500, seed=0, out="runs/first")
    state = train(tower, steps=800, seed=0, out="runs/first", resume=True)

A run folder holds ``spec.json`` (the tower in full), ``checkpoint.safetensors`` (the last state that was saved),
``metrics.jsonl`` and TensorBoard events, see `recursion.metrics`. Everything random comes from keys in the state, and
the state is settled after every step (`recursion.checkpoint.settled`); so a run that was interrupted and resumed equals
one that was not, bit for bit on one CPU with as many threads.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from recursion import checkpoint
from recursion.accelerate import Running, accelerate, repays
from recursion.files import explained, replace_file
from recursion.metrics import Metrics
from recursion.spec import dumps
from recursion.tower import Report, Tower, TowerState

CHECKPOINT = "checkpoint.safetensors"
SPEC = "spec.json"


def train(
    tower: Tower,
    *,
    steps: int,
    seed: int,
    out: str | Path,
    resume: bool = False,
    every: float = 10.0,
    compile: bool | Literal["auto"] = "auto",  # noqa: A002, it is what the option is called
    on_report: Callable[[Report], None] = lambda _: None,
    on_notice: Callable[[str], None] = lambda _: None,
) -> TowerState:
    """Train to ``steps`` steps of the topmost level in all, and return the state there.

    ``seed``: any integer of 64 bits. ``out``: the run folder, made if need be. ``resume``: go on from the folder's
    checkpoint if it has one; a run that is already there is left as it is. ``every``: seconds between checkpoints, at
    least 0. ``compile``: whether to step the accelerated tower (`recursion.accelerate`); ``auto`` does, and
    compiles what it can if the run is long enough to repay that. ``on_report`` gets the report of each step,
    ``on_notice`` sentences that a user should read.

    Whatever ends a run early (KeyboardInterrupt, `NonFiniteError`, any error), the last whole state is saved first.
    Raises ValueError for settings out of range, and for a folder that holds a run when ``resume`` is false, or one of
    another tower or seed when it is true; OSError, with path and reason, if something cannot be written: what was saved
    before then stays.
    """
    _check(steps, seed, every)
    folder = Path(out)
    fast = repays(tower, steps) if compile == "auto" else compile
    about = _surroundings(tower) | ({"updates": "compiled" if fast else "accelerated"} if compile else {})
    with explained("make the run folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    state, seconds = _start(tower, seed, folder / CHECKPOINT, resume, about, on_notice)
    done = int(state.step)
    if done >= steps:
        on_notice(f"{folder} is already at step {done} of {steps}; nothing left to train")
        return state
    if fast:
        on_notice("compiling; the first step takes up to a minute longer")
    with Metrics(folder, keep=done) as metrics:
        if metrics.last < done:
            on_notice(f"{metrics.path} has no lines for steps {metrics.last + 1} to {done}")
        began = time.monotonic() - seconds
        running = Running(accelerate(tower, compiled=fast) if compile else tower, state)
        run = _Run(tower, running, seed, folder, metrics, began, about)
        if checkpoint.spec_of(tower) is not None:
            replace_file(folder / SPEC, dumps(tower).encode())
        run.go(steps, every, on_report)
    return run.running.state


@dataclass
class _Run:
    """A run in progress."""

    tower: Tower
    running: Running  # the tower, or its accelerated twin, always at the last whole state
    seed: int
    folder: Path
    metrics: Metrics
    began: float  # in time.monotonic(), as if there had been one session
    about: dict[str, str]

    def go(self, steps: int, every: float, on_report: Callable[[Report], None]) -> None:
        """Step until ``steps``; save at the start, so that a bad disk shows at once, by the clock, and at the end."""
        self.save()
        saved, report = time.monotonic(), None
        try:
            while report is None or report.step < steps:
                report = self.advance()
                on_report(report)
                if time.monotonic() - saved >= every:
                    self.save()
                    saved = time.monotonic()
        finally:
            self.save()

    def advance(self) -> Report:
        """One step. Its line of metrics comes first: resuming cuts a line without a state, but cannot invent one."""
        running, report = self.running.step()
        base_steps = int(report.step * self.tower.costs[-1])
        self.metrics.write(report, base_steps=base_steps, seconds=time.monotonic() - self.began)
        self.running = running
        return report

    def save(self) -> None:
        """Save the state, its metrics first."""
        self.metrics.flush()
        extra = {"seconds": time.monotonic() - self.began, "made with": self.about}
        checkpoint.save(self.folder / CHECKPOINT, self.tower, self.running.state, seed=self.seed, extra=extra)


def _start(
    tower: Tower, seed: int, path: Path, resume: bool, about: dict[str, str], notice: Callable[[str], None]
) -> tuple[TowerState, float]:
    """The state to go on from, and the seconds that led to it."""
    with explained("read", path):
        exists = path.exists()
    if not exists:
        return checkpoint.settled(tower.init(seed)), 0.0
    if not resume:
        raise ValueError(f"{path.parent} already holds a run; resume it (--resume) or choose another folder (--out)")
    saved = checkpoint.load(path, tower)
    if saved.seed != seed:
        raise ValueError(f"{path.parent} holds a run with seed {saved.seed}, got seed {seed}; resume it with its own")
    before, now = (", ".join(f"{name} {value}" for name, value in one.items())
                   for one in (saved.extra["made with"], about))  # fmt: skip
    if before != now:
        notice(f"the run was made with {before}, it goes on with {now}: last digits may differ")
    return saved.state, float(saved.extra["seconds"])


def _surroundings(tower: Tower) -> dict[str, str]:
    """What rounding depends on beside the state."""
    surroundings = {"torch": str(torch.__version__), "threads": str(torch.get_num_threads())}
    device = tower.top.layout.device.type
    return surroundings if device == "cpu" else surroundings | {"device": device}


def _check(steps: int, seed: int, every: float) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps}")
    if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must be a whole number of 64 bits, got {seed}")
    if not every >= 0:
        raise ValueError(f"every must be a number of seconds of at least 0, got {every}")
