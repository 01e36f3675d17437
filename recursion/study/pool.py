"""Ablate: carry out all runs of a request, in a pool: `Local` processes on this machine, `Ray` on nodes of a cluster.

Calling it again with the same request goes on: runs that are done stay, those under way go on from their files, and
failed ones stay failed unless ``retry`` says otherwise. Only what would fail every run, such as a full disk, ends a
study, and loses nothing.

A pool has a ``size`` (how many runs at a time, as far as is known before it is ``connected``) and starts runs.
Each run has a process of its own, so one that dies ends no other. A thread for each run under way listens to its
process. A caller that closes the iterator `events`, or leaves it by Ctrl-C, stops the processes: each keeps its state,
as any training does, and ends.
"""

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

from recursion.study import records
from recursion.study.job import PERFORM, Job, main, on_disk
from recursion.study.request import Request, Run

LOG = "output.log"


class Event(NamedTuple):
    """What happens to a run: it starts, does something (``what``, ``fraction`` of it done), ends well, or fails.

    ``what`` is why it failed then, and ``everywhere`` whether all others would too, as on a full disk.
    """

    run: Run
    kind: Literal["started", "at", "done", "failed"]
    what: str = ""
    fraction: float = 0.0
    everywhere: bool = False


def ablate(
    request: Request, out: str | Path, *, pool: "Pool | None" = None, retry: bool = False, perform: str = PERFORM,
    argv: Sequence[str] = (), on_begin: Callable[[dict[str, str]], object] = lambda _: None,
    on_event: Callable[[Event], object] = lambda _: None,
) -> None:  # fmt: skip
    """Carry out what is left of a study.

    ``out``: its folder, made if need be. ``pool``: where runs are carried out; None for `Local()`. ``retry``: whether
    failed runs are tried again. ``perform``: the dotted name of what carries out a run, see `recursion.study.job`.
    ``argv``: words to keep as those of the command. ``on_begin`` gets the status of each run by its id.

    Raises ValueError if the folder is of another request; OSError if it is in use or something cannot be written: what
    was found before stays, and calling it again goes on.
    """
    if request.search == "optuna" and find_spec("optuna") is None:
        raise ValueError("optuna is not installed; pip install 'descent-tower[tune]', or search=grid")
    folder = Path(out).absolute()
    records.make_folder("folder", folder)
    with records.locked(folder, 0.0, f"another study is at work in {folder}; wait for it, or stop it"):
        records.begin(folder, request, argv)
        status = {run: records.result_of(folder, run)["status"] for run in request.runs()}
        left = [run for run in status if status[run] not in ({"done"} if retry else {"done", "failed"})]
        for run in left:
            (records.run_folder(folder, run) / records.RESULT).unlink(missing_ok=True)
        on_begin({run.id: "waiting" if run in left else status[run] for run in status})
        with contextlib.closing(events(pool or Local(), left, Job(request, folder, perform))) as happening:
            for event in happening:
                run, what = event.run, event.what
                if event.everywhere:
                    raise OSError(f"{run.id}: {what}; what was found stays, make room and run this again")
                if event.kind == "failed":
                    records.finish(folder, run, {"why": what})
                if event.kind == "done" and records.result_of(folder, run)["status"] != "done":
                    raise OSError(f"{records.run_folder(folder, run)} lost its result; run this again")
                on_event(event)


def events(pool: "Pool", runs: Sequence[Run], job: Job) -> Generator[Event]:
    """What happens, until all runs have ended."""
    messages: SimpleQueue[Event] = SimpleQueue()
    tasks: list[Process | RayTask] = []
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


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Process:
    """A run in a process on this machine; iterates over its messages, each an `Event` without the run."""

    def __init__(self, run: Run, job: Job) -> None:
        place = records.run_folder(job.folder, run)
        records.make_folder("run folder", place)
        code, words = f"from {main.__module__} import main; main()", pickle.dumps((run, job)).hex()
        with (place / LOG).open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, words], env={**os.environ, **_environment()},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                process_group=0,  # Ctrl-C is for this process, which stops it
            )  # fmt: skip

    def __iter__(self) -> Iterator[Sequence[Any]]:
        message: Sequence[Any] = ("started",)
        with self.process as process:
            for line in process.stdout or ():
                message = json.loads(line)
                yield message
            code = process.wait()
        if message[0] not in ("done", "failed"):
            yield "failed", _death(code)

    def stop(self, at_once: bool = False) -> None:
        with contextlib.suppress(OSError):
            if self.process.stdin is not None:
                self.process.stdin.close()
        if at_once:
            self.process.kill()


@dataclass(frozen=True)
class Local:
    """Processes on this machine, of one thread each. ``workers``: how many; None for one a processor."""

    workers: int | None = None

    @property
    def size(self) -> int:
        return self.workers or processors()

    def connected(self) -> contextlib.AbstractContextManager[int]:
        return contextlib.nullcontext(self.size)

    start = staticmethod(Process)


class RayTask:
    """A run in a process that a Ray task starts and listens to."""

    def __init__(self, run: Run, job: Job) -> None:
        self.ray = _imported_ray()
        self.stream = self.ray.remote(num_cpus=1, max_retries=0)(_messages).remote(run, job)

    def __iter__(self) -> Iterator[Sequence[Any]]:
        try:
            for reference in self.stream:
                yield self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            yield "failed", f"its Ray worker died: {' '.join(str(error).split())[:200]}"

    def stop(self, at_once: bool = False) -> None:
        self.ray.cancel(self.stream)  # raises KeyboardInterrupt in it


@dataclass(frozen=True)
class Ray:
    """Processes on the nodes of a Ray cluster, of one thread each; needs the extra ``ray``.

    ``address``: of a running cluster; None for the one that Ray finds, or else one started on this machine, and
    ``local`` for one that is always started. ``workers``: runs at a time; None for one a processor of the cluster.
    All its nodes must share the folder of the study.
    """

    address: str | None = None
    workers: int | None = None

    @property
    def size(self) -> int:
        return self.workers or processors()

    @contextlib.contextmanager
    def connected(self) -> Iterator[int]:
        ray = _imported_ray()
        given = {"num_cpus": self.workers} if self.address == "local" and self.workers else {}
        with contextlib.ExitStack() as stack:
            if not ray.is_initialized():  # else the caller started it, and ends it
                try:
                    host, _, port = (self.address or "").removeprefix("ray://").rpartition(":")
                    if port.isdecimal():  # where nothing answers, Ray itself would wait for minutes
                        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
                    ray.init(
                        address=self.address, include_dashboard=None if self.address else False, log_to_driver=False,
                        logging_level="ERROR", runtime_env={"env_vars": _environment()}, **given,
                    )  # fmt: skip
                except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                    what = (str(error) or type(error).__name__).splitlines()[0]
                    raise OSError(f"cannot reach the Ray cluster {self.address or ''}: {what}") from error
                stack.callback(ray.shutdown)
            yield self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    start = staticmethod(RayTask)


Pool = Local | Ray


def _messages(run: Run, job: Job) -> Iterator[Sequence[Any]]:
    """The messages of a process on this node."""
    process = Process(run, job)
    try:
        yield from process
    finally:
        process.stop()
        process.process.wait()


def _imported_ray() -> Any:
    """The package ray; ValueError, in one line, if it is not installed."""
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ValueError("Ray is not installed; pip install 'descent-tower[ray]', or leave --ray out") from error
    return ray


def _environment() -> dict[str, str]:
    """One thread, and the modules that this process finds."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**threads, "PYTHONPATH": os.pathsep.join(each or os.getcwd() for each in sys.path)}


def _death(code: int) -> str:
    """Why a process is gone, by its exit code."""
    if code == -signal.SIGKILL:
        return "its process was ended by SIGKILL, as the system does when memory runs out; try fewer --workers"
    with contextlib.suppress(ValueError):
        return f"its process was ended by {signal.Signals(-code).name}; see {LOG} in its folder"
    return f"its process ended with exit code {code}; see {LOG} in its folder"
