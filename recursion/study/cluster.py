"""A pool on a Ray cluster, by the same interface as the one of processes on this machine; needs the extra ``ray``."""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from recursion.study.pool import Job, Process, environment, processors
from recursion.study.request import Run


@dataclass(frozen=True)
class Ray:
    """Processes on the nodes of a cluster, of one thread each.

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
        ray = imported_ray()
        given = {"num_cpus": self.workers} if self.address == "local" and self.workers else {}
        try:
            host, _, port = (self.address or "").removeprefix("ray://").rpartition(":")
            if port.isdecimal():  # where nothing answers, Ray itself would wait for minutes
                socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            ray.init(
                address=self.address, include_dashboard=None if self.address else False, log_to_driver=False,
                logging_level="ERROR", runtime_env={"env_vars": environment()}, **given,
            )  # fmt: skip
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            what = (str(error) or type(error).__name__).splitlines()[0]
            raise OSError(f"cannot reach the Ray cluster {self.address or ''}: {what}") from error
        try:
            yield self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        finally:
            ray.shutdown()

    def start(self, run: Run, job: Job) -> "RayTask":
        return RayTask(run, job)


class RayTask:
    """A run in a process that a Ray task starts and listens to."""

    def __init__(self, run: Run, job: Job) -> None:
        self.ray = imported_ray()
        self.stream = self.ray.remote(num_cpus=1, max_retries=0)(_messages).remote(run, job)

    def __iter__(self) -> Iterator[Sequence[Any]]:
        try:
            for reference in self.stream:
                yield self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            yield "failed", f"its Ray worker died: {' '.join(str(error).split())[:200]}"

    def stop(self, at_once: bool = False) -> None:
        self.ray.cancel(self.stream)  # raises KeyboardInterrupt in it


def _messages(run: Run, job: Job) -> Iterator[Sequence[Any]]:
    """The messages of a process on this node."""
    process = Process(run, job)
    try:
        yield from process
    finally:
        process.stop()
        process.process.wait()


def imported_ray() -> Any:
    """The package ray; ValueError, in one line, if it is not installed."""
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ValueError("Ray is not installed; pip install 'descent-tower[ray]', or leave --ray out") from error
    return ray
