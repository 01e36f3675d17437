"""Metrics of a run: one JSON object a step in ``metrics.jsonl``, and TensorBoard scalars where that is installed.

    {"step": 1, "losses": [53.7, 1070.2], "skipped": [0, 0], "base_steps": 20, "seconds": 0.031,
     "metrics": {"level 2 lr": 0.001, "level 1 gradient norm": 3.2}}

``losses`` and ``skipped`` are those of `recursion.tower.Report`, level 1 first; a loss that is not finite is null.
``metrics`` holds hyperparameters, norms and clip rates (`recursion.looking.numbers`) and what parts report (``"level 2
refused": 3.0``). ``base_steps`` counts task gradients so far, start-up and restarts apart; ``seconds`` counts all
sessions of the run, ``steps_a_second`` is since the line before.
"""

import contextlib
import fcntl
import json
import math
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from recursion.files import explained
from recursion.reports import Report

FILE = "metrics.jsonl"


class Metrics:
    """The metrics of the run in ``folder``, open for appending; a context manager.

    ``keep``: steps that stay, those of the checkpoint that the run goes on from; later lines are cut off, and so is a
    line that was written only in part. ``last``: the last step that is left. Raises ValueError if another process has
    the run open, OSError if the file cannot be written.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.path, self.pace = folder / FILE, (0, 0.0)  # step and seconds of the last line
        with explained("write", self.path):
            self.file = self.path.open("a+b", buffering=0)
            try:
                self._lock()
                self.last = self._cut(keep)
                self.board = _board(folder, keep + 1)
            except BaseException:
                self.file.close()
                raise

    def write(self, report: Report, *, base_steps: int, seconds: float) -> None:
        """Append one step; in the operating system's hands when this returns, so a killed process loses none."""
        losses, metrics = map(_finite, (report.losses, report.metrics.values()))
        line: dict[str, Any] = {"step": report.step, "losses": losses, "skipped": report.skipped}
        line |= {"base_steps": base_steps, "seconds": round(seconds, 6)}
        line |= {"metrics": dict(zip(report.metrics, metrics))} if metrics else {}
        (before, then), self.pace = self.pace, (report.step, seconds)
        pace = {"steps a second": (report.step - before) / (seconds - then)} if then and seconds > then else {}
        line |= {name.replace(" ", "_"): round(value, 3) for name, value in pace.items()}
        with explained("write", self.path):
            rest = memoryview(json.dumps(line).encode() + b"\n")
            while rest:
                rest = rest[self.file.write(rest) :]
        if self.board is not None:
            scalars = {f"loss/level {level}": loss for level, loss in enumerate(report.losses, 1)}
            scalars |= {f"skipped/level {level}": count for level, count in enumerate(report.skipped, 1)}
            scalars |= {f"metrics/{name}": value for name, value in report.metrics.items()}
            scalars |= pace
            with explained("write TensorBoard events in", self.path.parent):
                for name, value in scalars.items():
                    self.board.add_scalar(name, value, report.step)

    def flush(self) -> None:
        """Have all lines on the disk: what a checkpoint's step says must not outlive its metrics."""
        with explained("write", self.path):
            os.fsync(self.file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.file.close()
        if self.board is not None:
            later = () if error is None else (OSError,)  # the first error is the one to report
            with contextlib.suppress(*later), explained("write TensorBoard events in", self.path.parent):
                self.board.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{self.path.parent} is being trained by another process; wait for it or choose another folder"
            raise ValueError(message) from error

    def _cut(self, keep: int) -> int:
        """Cut the file after step ``keep``, or after its last whole line before that; returns the last step left."""
        end, last = 0, 0
        self.file.seek(0)
        for line in self.file.readlines():
            step = _step(line)
            if step is None or step > keep:
                break
            end, last = end + len(line), step
        self.file.truncate(end)
        return last


def _finite(values: Iterable[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _step(line: bytes) -> int | None:
    """The step of a line of metrics, or None if it is not a whole one."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def _board(folder: Path, first: int) -> Any:
    """A TensorBoard writer that replaces steps from ``first`` on, or None if TensorBoard is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first)
