"""Pools: where the runs are carried out. `Local` starts processes on this machine, `recursion.study.cluster.Ray` on the
nodes of a cluster.

    for event in events(Local(workers=2), runs, job):
        ...

Each run has a process of its own, so one that dies ends no other. A thread for each run under way listens to its
process. A caller that closes the iterator, or leaves it by Ctrl-C, stops the processes: each keeps its state, as any
training does, and ends.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple, Protocol

from recursion.files import explained
from recursion.study.records import run_folder
from recursion.study.request import Run, Terms, plain
from recursion.study.worker import PERFORM, main, on_disk

LOG = "output.log"


class Job(NamedTuple):
    """What all runs share: their terms, the study's folder, and the dotted name of the function that performs one."""

    terms: Terms
    folder: Path
    perform: str = PERFORM


class Event(NamedTuple):
    """What happens to a run: it starts, does something (``what``, ``fraction`` of it done), ends well, or fails.

    ``what`` is why it failed then, and ``everywhere`` whether all others would too, as on a full disk.
    """

    run: Run
    kind: Literal["started", "at", "done", "failed"]
    what: str = ""
    fraction: float = 0.0
    everywhere: bool = False


class Task(Protocol):
    """A run under way: its messages, each an `Event` without the run, and a way to end it."""

    def __iter__(self) -> Iterator[Sequence[Any]]: ...

    def stop(self, at_once: bool = False) -> None: ...


class Pool(Protocol):
    """Where runs are carried out. ``size``: how many at a time, as far as is known before it is ``connected``."""

    @property
    def size(self) -> int: ...

    def connected(self) -> contextlib.AbstractContextManager[int]: ...

    def start(self, run: Run, job: Job) -> Task: ...


def events(pool: Pool, runs: Sequence[Run], job: Job) -> Iterator[Event]:
    """What happens, until all runs have ended."""
    messages: SimpleQueue[Event] = SimpleQueue()
    tasks: list[Task] = []
    stopping = threading.Event()

    def carry_out(run: Run) -> None:
        messages.put(Event(run, "started"))
        try:
            task = pool.start(run, job)
            tasks.append(task)
            if stopping.is_set():
                task.stop()
            for message in task:
                messages.put(Event(run, *message))
        except Exception as error:
            messages.put(Event(run, "failed", str(error) or type(error).__name__, everywhere=on_disk(error)))

    with pool.connected() as size, ThreadPoolExecutor(size) as threads:
        for run in runs:
            threads.submit(carry_out, run)
        try:
            left = len(runs)
            while left:
                event = messages.get()
                left -= event.kind in ("done", "failed")
                yield event
        finally:
            stopping.set()
            threads.shutdown(wait=False, cancel_futures=True)
            try:
                for task in tasks:
                    task.stop()
                threads.shutdown()
            finally:  # a second Ctrl-C
                for task in tasks:
                    task.stop(at_once=True)


def environment() -> dict[str, str]:
    """One thread, and the modules that this process finds."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**threads, "PYTHONPATH": os.pathsep.join(each or os.getcwd() for each in sys.path)}


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Local:
    """Processes on this machine, of one thread each. ``workers``: how many; None for one a processor."""

    workers: int | None = None

    @property
    def size(self) -> int:
        return self.workers or processors()

    def connected(self) -> contextlib.AbstractContextManager[int]:
        return contextlib.nullcontext(self.size)

    def start(self, run: Run, job: Job) -> "Process":
        return Process(run, job)


class Process:
    """A run in a process on this machine."""

    def __init__(self, run: Run, job: Job) -> None:
        place = run_folder(job.folder, run)
        given = {"run": plain(run), "terms": plain(job.terms), "folder": str(job.folder), "perform": job.perform}
        with explained("make the run folder", place):
            place.mkdir(parents=True, exist_ok=True)
        with (place / LOG).open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from {main.__module__} import main; main()", json.dumps(given)],
                env={**os.environ, **environment()},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                process_group=0,  # Ctrl-C is for this process, which stops it
            )  # fmt: skip

    def __iter__(self) -> Iterator[Sequence[Any]]:
        message: Sequence[Any] = ("started",)
        with self.process as process:
            assert process.stdout is not None
            for line in process.stdout:
                message = json.loads(line)
                yield message
            code = process.wait()
        if message[0] not in ("done", "failed"):
            yield "failed", _death(code)

    def stop(self, at_once: bool = False) -> None:
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        if at_once:
            self.process.kill()


def _death(code: int) -> str:
    """Why a process is gone, by its exit code."""
    if code == -signal.SIGKILL:
        return "its process was ended by SIGKILL, as the system does when memory runs out; try fewer --workers"
    with contextlib.suppress(ValueError):
        return f"its process was ended by {signal.Signals(-code).name}; see {LOG} in its folder"
    return f"its process ended with exit code {code}; see {LOG} in its folder"
