"""Side by side: what a benchmark against peers is made of, and how it is run.

A *workload* is a module ``benchmarks/wN.py``: its `Workload` names say what. A *side* is one way to do its work: ours
or a peer's. Every side runs in processes of its own (`benchmarks.worker`), of which one at a time computes:

1. Proof. A process for each side computes the same few numbers from the same seed; they are compared with those of the
   first side, and a side that disagrees is not timed. What was compiled for the proof of one variant is kept for the
   proofs of the others.
2. Warm-up. A fresh process for each side takes its first steps, with empty compile caches: so the time of the first
   one tells what compiling takes.
3. Rounds. In each, every side in turn, shuffled, does a block of steps of about `BLOCK` seconds. So a busy machine
   slows all of them; a ratio is taken within each round, and its median and quartiles are over the rounds.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from types import TracebackType
from typing import Any, Protocol, Self

BLOCK = 0.3
"""Seconds that a block of steps lasts about, or one step."""

ROOT = Path(__file__).parents[1]
"""Where workers run, so that they find this package."""

MOST = 1000
"""Steps in a block at most."""

Numbers = dict[str, list[float]]


class Side(Protocol):
    """One way to do a workload's work. May have ``facts``, a dict to be kept with its results."""

    def prove(self) -> Numbers:
        """Numbers from a fixed seed on which all sides must agree; asked once, of a process that is then done."""

    def step(self) -> None:
        """One unit of the work that is timed; done when it returns, not merely begun."""


class Workload(Protocol):
    """What a module ``benchmarks/wN.py`` has; ``IMPORTS``, ``draw`` and ``summary`` may be left out.

    A name with dots is that of any other module.

    ``SIDES[name](**variant)`` builds a side, importing its peer only then; what it cannot do is an `Unsupported`.
    ``threads`` is for the worker, and 1 where a variant does not say; factories that name it are given it as well.
    ``TOLERANCE``: largest difference of two sides in one of the proof's lists, over the largest entry of the list;
    a dict gives one for each name (or its first word). Sides whose name begins with ``ours`` are ours, others peers.
    """

    TITLE: str
    VARIANTS: dict[str, dict[str, Any]]
    SIDES: dict[str, Callable[..., Side]]
    TOLERANCE: float | dict[str, float]
    IMPORTS: dict[str, list[str]]
    """Modules by side that are imported before memory is counted from there; what is imported later counts."""

    def draw(self, result: dict[str, Any], path: Path) -> None:
        """A picture of its own of a whole result, as it is kept in JSON, instead of bars."""

    def summary(self, result: dict[str, Any]) -> list[str]:
        """Lines to print behind the tables."""


class Unsupported(Exception):  # noqa: N818
    """A side has no such variant, by its nature (a plain optimizer has no tower); it gets no row."""


class WorkerError(Exception):
    """A worker failed; the message is its own."""


@dataclass
class Row:
    """What is known of one side in one variant."""

    why: str | None = None  # why it was not timed; None if it was
    unsupported: bool = False
    differs: dict[str, float] = field(default_factory=dict)  # by name, see `Workload.TOLERANCE`
    seconds: list[float] = field(default_factory=list)  # a step, by round
    cpu: list[float] = field(default_factory=list)  # processor seconds a step, all threads, by round
    steps: int = 0  # in a block
    first: float = 0.0  # seconds of the first step
    build: float = 0.0  # seconds of building the side, imports included
    peak: int = 0  # bytes that timed steps need at most beyond what the process held after imports
    peak_warm: int = 0  # the same with building and compiling included
    facts: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


class Worker:
    """A process that holds one side; see `benchmarks.worker` for what it understands."""

    def __init__(self, workload: str, side: str, variant: dict[str, Any], kept: str = "", *, root: Path = ROOT) -> None:
        """``kept``: folder for what is compiled; one of its own without. ``root``: the checkout whose code runs."""
        self.cache = tempfile.TemporaryDirectory(prefix="benchmark-cache-")
        command = [sys.executable, "-m", "benchmarks.worker", workload, side, json.dumps(variant)]
        environment = os.environ | surroundings(variant.get("threads", 1), kept or self.cache.name, root)
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True, env=environment, cwd=root
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()
        self.cache.cleanup()

    def ask(self, **question: Any) -> dict[str, Any]:
        """The answer to one question. WorkerError if there is none."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            last = self.errors.read().strip()[-300:] or "no message"
            raise WorkerError(f"died with status {self.process.returncode}: {last}")
        answer: dict[str, Any] = json.loads(line)
        if answer.get("unsupported"):
            raise Unsupported(answer["unsupported"])
        if answer.get("error"):
            raise WorkerError(answer["error"])
        return answer


def surroundings(threads: int, cache: str, root: Path = ROOT) -> dict[str, str]:
    """Environment of a worker: where its code is, numbers of threads, and compile caches of its own."""
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
    caches = {
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "XDG_CACHE_HOME": cache,
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    return {name: str(threads) for name in pools} | caches | {"PYTHONPATH": str(root)}


def chosen_variants(workload: Any, threads: list[int] | None, parts: list[str] | None) -> dict[str, dict[str, Any]]:
    """Variants whose label contains one of ``parts`` as whole words, at the wanted numbers of threads.

    Where the workload says its numbers of threads, others are left out; where it does not, each is run with each.
    """
    found: dict[str, dict[str, Any]] = {}
    for label, settings in workload.VARIANTS.items():
        if parts and not any(re.search(rf"(?<!\w){re.escape(part)}(?!\w)", label) for part in parts):
            continue
        if not threads or settings.get("threads", 0) in threads:
            found[label] = settings
        elif "threads" not in settings:
            found |= {f"{label}, {n} thread{'s' * (n > 1)}": settings | {"threads": n} for n in threads}
    return found


Tell = Callable[[str], None]


def run(
    name: str, workload: Any, variant: dict[str, Any], sides: list[str], rounds: int, tell: Tell, kept: str = ""
) -> dict[str, Row]:
    """Prove, warm up and time ``sides`` in one variant; ``tell`` hears what is done next, `count` times.

    ``kept``: folder for what proofs compile, if variants share it.
    """
    starts = {side: partial(Worker, name, side, variant) for side in sides}
    return compare(starts, workload.TOLERANCE, rounds, tell, kept)


def compare(
    starts: Mapping[str, Callable[[str], Worker]],
    tolerance: float | dict[str, float],
    rounds: int,
    tell: Tell,
    kept: str = "",
) -> dict[str, Row]:
    """As `run`. ``starts``: what makes a worker of each side, given the folder for what it compiles, or ``""``."""
    rows = {side: Row() for side in starts}
    proofs: dict[str, Numbers] = {}
    for side, start in starts.items():
        tell(f"{side}: proof")
        with start(kept) as worker, noting(rows[side]):
            proofs[side] = worker.ask(do="prove")["numbers"]
    check_proofs(rows, proofs, tolerance)
    with ExitStack() as stack:
        workers = {}
        for side, start in starts.items():
            tell(f"{side}: warm-up")
            if rows[side].why is None:
                workers[side] = stack.enter_context(start(""))
                with noting(rows[side]):
                    warm(workers[side], rows[side])
        for number in range(rounds):
            tell(f"round {number + 1}")
            order = [side for side in workers if rows[side].why is None]
            random.Random(number).shuffle(order)
            for side in order:
                with noting(rows[side]):
                    time_block(workers[side], rows[side])
        for side, worker in workers.items():
            with noting(rows[side]):
                rows[side].peak = worker.ask(do="memory")["peak"]
    return rows


def count(sides: list[str], rounds: int) -> int:
    """How often `run` tells of progress."""
    return 2 * len(sides) + rounds


class noting:  # noqa: N801, used as a verb
    """What a worker raises is noted in its row, and goes no further."""

    def __init__(self, row: Row) -> None:
        self.row = row

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        if isinstance(error, (Unsupported, WorkerError)):
            self.row.why, self.row.unsupported = str(error), isinstance(error, Unsupported)
            return True
        return False


def warm(worker: Worker, row: Row) -> None:
    """First steps, and how many make a block."""
    answer = worker.ask(do="warm")
    row.first, row.build, row.peak_warm = answer["first"], answer["build"], answer["peak"]
    row.facts, row.versions = answer["facts"], answer["versions"]
    row.steps = min(MOST, max(1, round(BLOCK / answer["step"] + 0.5)))


def time_block(worker: Worker, row: Row) -> None:
    answer = worker.ask(do="time", steps=row.steps)
    row.seconds.append(answer["seconds"] / row.steps)
    row.cpu.append(answer["cpu"] / row.steps)


def check_proofs(rows: dict[str, Row], proofs: dict[str, Numbers], tolerance: float | dict[str, float]) -> None:
    """Compare all proofs with the first; note in `Row.why` who disagrees."""
    reference, *others = proofs or [""]
    for side in others:
        row = rows[side]
        row.differs = differences(proofs[side], proofs[reference])
        allowed = {name: allowed_for(name, tolerance) for name in row.differs}
        wrong = [f"{name} by {d:.1e}" for name, d in row.differs.items() if not d <= allowed[name]]
        if wrong or not row.differs:
            row.why = f"disagrees with {reference}: {', '.join(wrong) or 'it proves nothing that is compared'}"


def differences(a: Numbers, b: Numbers) -> dict[str, float]:
    """Largest difference in each list that both have, over the largest entry of ``b``'s; inf where lengths differ."""
    found = {}
    for name in sorted(a.keys() & b.keys()):
        scale = max(map(abs, b[name]), default=0.0) or 1.0
        same = len(a[name]) == len(b[name])
        gaps = [abs(x - y) if x - y == x - y else float("inf") for x, y in zip(a[name], b[name])]
        found[name] = max(gaps, default=0.0) / scale if same else float("inf")
    return found


def allowed_for(name: str, tolerance: float | dict[str, float]) -> float:
    """The tolerance of a list, by its name or the first word of it."""
    if not isinstance(tolerance, dict):
        return tolerance
    return tolerance[name] if name in tolerance else tolerance[name.split()[0]]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        low, high = quantiles(values, n=4, method="inclusive")[::2] if len(values) > 1 else (values[0], values[0])
        return cls(median(values), low, high)

    def list(self) -> list[float]:
        return [self.middle, self.low, self.high]


def ours(side: str) -> bool:
    """Whether a side is this project's."""
    return side.startswith("ours")


def fastest_peer(rows: dict[str, Row]) -> str | None:
    """The peer with the smallest median; None if no peer was timed."""
    peers = {side: median(row.seconds) for side, row in rows.items() if row.seconds and not ours(side)}
    return min(peers, key=lambda side: peers[side]) if peers else None


def ratios(row: Row, peer: Row) -> Iterator[float]:
    """Seconds over the peer's, round by round."""
    return (a / b for a, b in zip(row.seconds, peer.seconds))
