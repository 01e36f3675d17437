"""Training: step a tower, keep its state safe, write down what happened.

    state = train(tower, steps=500, seed=0, out="runs/first")
    state = train(tower, steps=800, seed=0, out="runs/first", resume=True)

A run folder holds ``spec.json`` (the tower in full), ``checkpoint.safetensors`` (the last state that was saved),
``metrics.jsonl`` and TensorBoard events, see `recursion.metrics`. Everything random comes from keys in the state, and
the state is settled after every step (`recursion.checkpoint.settled`); so a run that was interrupted and resumed equals
one that was not, bit for bit on one CPU with as many threads.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from levels.fields import Count, fits, require
from recursion import checkpoint
from recursion.accelerate import Running, accelerate, repays
from recursion.files import RUNS, explained, folder_name, replace_file
from recursion.looking import numbers
from recursion.metrics import FILE as METRICS
from recursion.metrics import Metrics
from recursion.progress import Steps, note
from recursion.reports import Report
from recursion.spec import dumps
from recursion.tower import Tower, TowerState

CHECKPOINT = "checkpoint.safetensors"
CHEAP, SELDOM = 10, 100  # base steps of a step under which hyperparameters are written at each 100th step alone
SPEC = "spec.json"


def train(
    tower: Tower,
    *,
    steps: int,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    every: float = 10.0,
    compile: bool | Literal["auto"] = "auto",  # noqa: A002, it is what the option is called
    on_report: Callable[[Report], None] | None = None,
    on_notice: Callable[[str], None] = note,
) -> TowerState:
    """Train to ``steps`` steps of the topmost level in all, and return the state there.

    ``seed``: any integer of 64 bits. ``out``: the run folder, made if need be; None: ``runs/`` and the notation and
    seed. ``resume``: go on from the folder's
    checkpoint if it has one; a run that is already there is left as it is. ``every``: seconds between checkpoints, at
    least 0. ``compile``: whether to step the accelerated tower (`recursion.accelerate`); ``auto`` does, and
    compiles what it can if the run is long enough to repay that. ``on_report`` gets the report of each step;
    None: progress with time left, and at the end a table of the levels, on stderr or in the notebook. ``on_notice``
    gets sentences that a user should read.

    Whatever ends a run early (KeyboardInterrupt, `NonFiniteError`, any error), the last whole state is saved first.
    Raises ValueError for settings out of range, for a folder that holds a run when ``resume`` is false, or one of
    another tower or seed when it is true; OSError, with path and reason, if a file cannot be written: the one before
    then stays.
    """
    require(fits(steps, Count), f"steps must be a whole number of at least 1, got {steps}")
    require(fits(seed, int) and -(2**63) <= seed < 2**63, f"seed must be a whole number of 64 bits, got {seed}")
    require(every >= 0, f"every must be a number of seconds of at least 0, got {every}")
    folder = RUNS / f"{folder_name(str(tower))}-seed{seed}" if out is None else Path(out)
    fast = repays(tower, steps) if compile == "auto" else compile
    about = {"torch": str(torch.__version__), "threads": str(torch.get_num_threads())}  # on which rounding depends, too
    device = tower.top.layout.device.type
    about |= {} if device == "cpu" else {"device": device}
    about |= {"updates": "compiled" if fast else "accelerated"} if compile else {}
    with explained("make the run folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    state, seconds = _start(tower, seed, folder / CHECKPOINT, resume, about, on_notice)
    done = int(state.step)
    if done >= steps:
        on_notice(f"{folder} is already at step {done} of {steps}; nothing left to train")
        return state
    if fast:
        on_notice("compiling; the first step takes up to a minute longer")
    shows = Steps(steps, sys.stderr) if on_report is None else contextlib.nullcontext(on_report)
    with Metrics(folder, keep=done) as metrics, shows as show:
        if metrics.last < done:
            on_notice(f"{metrics.path} has no lines for steps {metrics.last + 1} to {done}")
        began = time.monotonic() - seconds  # as if there had been one session
        running = Running(accelerate(tower, compiled=fast) if compile else tower, state)  # at the last whole state
        if checkpoint.spec_of(tower) is not None:
            replace_file(folder / SPEC, dumps(tower).encode())

        def save() -> float:
            metrics.flush()
            extra = {"seconds": time.monotonic() - began, "made with": about}
            checkpoint.save(folder / CHECKPOINT, tower, running.state, seed=seed, extra=extra)
            return time.monotonic()

        detail = 1 if tower.costs[-1] >= CHEAP else SELDOM
        saved = save()  # a disk that cannot be written shows at once
        try:
            while running.done < steps:
                after, report = running.step()
                if report.step % detail == 0:
                    report = report._replace(metrics={**report.metrics, **numbers(tower, after.state)})
                # A line of metrics before its state: resuming cuts a line without a state, but cannot invent one.
                base_steps = int(report.step * tower.costs[-1])
                metrics.write(report, base_steps=base_steps, seconds=time.monotonic() - began)
                running = after
                show(report)
                saved = save() if time.monotonic() - saved >= every else saved
        finally:
            save()
    if isinstance(shows, Steps):
        shows.print_table(tower, numbers(tower, running.state))
    return running.state


def _start(
    tower: Tower, seed: int, path: Path, resume: bool, about: dict[str, str], notice: Callable[[str], None]
) -> tuple[TowerState, float]:
    """The state to go on from, and the seconds that led to it."""
    with explained("read", path):
        exists = path.exists()
    if not exists:
        require(not path.is_symlink(), f"{path} is a link to nothing; restore what it leads to, or remove it")
        lines, lost = path.with_name(METRICS), f"of a run, and no {path.name}"
        some = lines.exists() and b"\n" in lines.read_bytes()
        require(not some, f"{path.parent} holds metrics {lost}; restore that, or choose another folder (--out)")
        return checkpoint.settled(tower.init(seed)), 0.0
    require(resume, f"{path.parent} already holds a run; resume it (--resume) or choose another folder (--out)")
    saved = checkpoint.load(path, tower)
    other = f"{path.parent} holds a run with seed {saved.seed}, got seed {seed}"
    require(saved.seed == seed, f"{other}; resume it with its own")
    before, now = (", ".join(map(" ".join, each.items())) for each in (saved.extra.get("made with", about), about))
    if before != now:
        notice(f"the run was made with {before}, it goes on with {now}: last digits may differ")
    return saved.state, float(saved.extra.get("seconds", 0.0))
