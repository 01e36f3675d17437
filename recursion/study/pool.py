"""Pools: who carries out the runs. `Local` has processes on this machine, `Ray` those of a cluster.

    for event in Local(workers=2).events(runs, job):
        ...

A pool yields what happens and ends when all runs have. A run that raises, or whose process dies, is `Failed` and says
why; the others go on. Whoever stops listening, by Ctrl-C or by closing the iterator, stops the processes: each is
interrupted once, keeps its state as any training does, and ends.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any, NamedTuple, Protocol

from recursion.study.request import Run
from recursion.study.worker import ENDED, THREADS, Job, Outcome, carry_out

PATIENCE = 30.0  # seconds that an interrupted worker has to keep its state
POLL = 0.5  # seconds between two looks at a cluster


class Started(NamedTuple):
    """A worker has begun, or gone on with, a run."""

    run: Run


class Progress(NamedTuple):
    """What a run is at, and the fraction of it that is done."""

    run: Run
    what: str
    fraction: float


class Finished(NamedTuple):
    """A run has ended well; its result is in its folder."""

    run: Run


class Failed(NamedTuple):
    """A run has ended badly. ``everywhere``: whether all others would too, as on a full disk."""

    run: Run
    why: str
    everywhere: bool


Event = Started | Progress | Finished | Failed


class Pool(Protocol):
    """Carries out runs, several at a time."""

    def events(self, runs: Sequence[Run], job: Job) -> Iterator[Event]:
        """What happens, until all runs have ended."""
        ...

    @property
    def size(self) -> int:
        """Runs at a time, as far as is known."""
        ...


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

    def events(self, runs: Sequence[Run], job: Job) -> Iterator[Event]:
        waiting = deque(runs)
        workers: list[_Worker] = []
        try:
            while waiting and len(workers) < self.size:
                workers.append(_Worker(job))
                yield workers[-1].begin(waiting.popleft())
            while workers:
                for connection in wait([worker.connection for worker in workers]):
                    worker = next(one for one in workers if one.connection is connection)
                    event = worker.event()
                    yield event
                    if isinstance(event, Progress):
                        continue
                    if worker.dead or not waiting:
                        worker.stop()
                        workers.remove(worker)
                    if waiting:
                        if worker.dead:
                            worker = _Worker(job)
                            workers.append(worker)
                        yield worker.begin(waiting.popleft())
        finally:
            _stop(workers)


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, job: Job) -> None:
        self.connection, theirs = Pipe()
        read, self.life = os.pipe()
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "recursion.study.worker", str(theirs.fileno()), str(read)],
            env={**os.environ, **THREADS, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), read),
            process_group=0,  # Ctrl-C reaches it once, through `stop`
        )
        theirs.close()
        os.close(read)
        self.dead = False
        self._send(tuple(job))

    def begin(self, run: Run) -> Started:
        """Give it a run."""
        self.run = run
        self._send(run.to_json())
        return Started(run)

    def event(self) -> Event:
        """What it says; or that it died."""
        try:
            about, *said = self.connection.recv()
        except (EOFError, OSError):
            self.dead = True
            return Failed(self.run, _death(self.process.wait()), everywhere=False)
        return _event(self.run, Outcome(*said)) if about == ENDED else Progress(self.run, *said)

    def interrupt(self) -> None:
        """Ask it to keep its state and end."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)

    def stop(self) -> None:
        """Close the pipes, on which an idle worker ends."""
        self.connection.close()
        os.close(self.life)
        self.process.wait()

    def _send(self, message: object) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died; `event` will say so
            self.connection.send(message)


def _stop(workers: Sequence[_Worker]) -> None:
    """Interrupt workers, and kill those that do not end; a second Ctrl-C kills them at once."""
    try:
        for worker in workers:
            worker.interrupt()
        end = time.monotonic() + PATIENCE
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, end - time.monotonic()))
    finally:
        for worker in workers:
            worker.process.kill()
            worker.stop()


def _event(run: Run, outcome: Outcome) -> Finished | Failed:
    return Finished(run) if outcome.why is None else Failed(run, outcome.why, outcome.everywhere)


def _death(code: int) -> str:
    """Why a process is gone, by its exit code."""
    if code >= 0:
        return f"its process ended with exit code {code}; see output.log in its folder"
    name = signal.Signals(-code).name if -code in {one.value for one in signal.Signals} else f"signal {-code}"
    hint = ", as the system does when memory runs out; try fewer --workers" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint or '; see output.log in its folder'}"


@dataclass(frozen=True)
class Ray:
    """Workers of a Ray cluster, of one thread each; needs the extra ``ray``.

    ``address``: of a running cluster; None for the one that Ray finds, or else one started on this machine, and
    ``local`` for one that is always started. ``workers``: runs at a time; None for one a processor of the cluster.
    The ablation's folder must be on a filesystem that all its nodes share.
    """

    address: str | None = None
    workers: int | None = None

    @property
    def size(self) -> int:
        return self.workers or processors()

    def events(self, runs: Sequence[Run], job: Job) -> Iterator[Event]:
        ray = _imported_ray()
        ours = not ray.is_initialized()
        if ours:
            self._connect(ray)
        try:
            yield from _on_cluster(ray, runs, job, self.workers or max(1, int(ray.cluster_resources().get("CPU", 1))))
        finally:
            if ours:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)
        given = {"num_cpus": self.workers} if self.address == "local" and self.workers else {}
        try:
            _knock(self.address or "")
            ray.init(
                address=self.address,
                include_dashboard=None if self.address else False,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": {**THREADS, "PYTHONPATH": path}},
                **given,
            )
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            what = (str(error) or type(error).__name__).splitlines()[0]
            raise OSError(f"cannot reach the Ray cluster {self.address or ''}: {what}") from error


def _knock(address: str) -> None:
    """OSError if nobody is at an address ``host:port``; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _on_cluster(ray: Any, runs: Sequence[Run], job: Job, size: int) -> Iterator[Event]:
    """As `Pool.events`, on the cluster that Ray is connected to."""
    board = ray.remote(num_cpus=0)(Board).remote()
    remote = ray.remote(num_cpus=1, max_retries=0)(_carry_out_remotely)
    waiting = deque(runs)
    going: dict[Any, Run] = {}
    try:
        while waiting or going:
            while waiting and len(going) < size:
                run = waiting.popleft()
                going[remote.remote(run.to_json(), tuple(job), board)] = run
                yield Started(run)
            ended, _ = ray.wait(list(going), timeout=POLL)
            told = ray.get(board.take.remote())
            yield from (Progress(run, *told[run.id]) for run in going.values() if run.id in told)
            for task in ended:
                yield _ended(ray, going.pop(task), task)
    finally:
        for task in going:
            ray.cancel(task)  # raises KeyboardInterrupt in it
        if going:
            ray.wait(list(going), num_returns=len(going), timeout=PATIENCE)


def _ended(ray: Any, run: Run, task: Any) -> Finished | Failed:
    try:
        return _event(run, Outcome(*ray.get(task)))
    except ray.exceptions.RayError as error:
        return Failed(run, f"its Ray worker died: {' '.join(str(error).split())[:200]}", everywhere=False)


class Board:
    """Where Ray workers put up how far they are; an actor."""

    def __init__(self) -> None:
        self.told: dict[str, tuple[str, float]] = {}

    def put(self, run: str, what: str, fraction: float) -> None:
        """Put up the last word of a run."""
        self.told[run] = (what, fraction)

    def take(self) -> dict[str, tuple[str, float]]:
        """What is new."""
        told, self.told = self.told, {}
        return told


def _carry_out_remotely(text: str, job: tuple[str, str, str], board: Any) -> tuple[str | None, bool]:
    """`carry_out` in a Ray worker."""
    run = Run.from_json(text)
    outcome = carry_out(text, Job(*job), lambda what, fraction: board.put.remote(run.id, what, fraction))
    return outcome.why, outcome.everywhere


def _imported_ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ValueError("Ray is not installed; pip install 'descent-tower[ray]', or leave --ray out") from error
    return ray
