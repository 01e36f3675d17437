"""One side of a workload in a process of its own.

    python -m benchmarks.worker w1 "JAX scan" '{"threads": 1}'

Reads a question a line on standard input, as JSON, and answers each with a line of JSON on standard output (whatever
the side prints goes to standard error); ends with its input. ``{"do": "prove"}``, ``{"do": "warm"}``,
``{"do": "time", "steps": 3}``, ``{"do": "memory"}``. The side is built at the first question. With fewer threads than
processors, the process keeps to that many processors, whatever pools of threads it starts.
"""

import ctypes
import gc
import importlib
import inspect
import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.harness import Side, Unsupported

PACKAGES = {
    "torch": "torch",
    "jax": "jax",
    "higher": "higher",
    "torchopt": "torchopt",
    "gradient_descent_the_ultimate_optimizer": "gradient-descent-the-ultimate-optimizer",
    "levels": "descent-tower",
}
PAGE = os.sysconf("SC_PAGE_SIZE")
WARM_STEPS, WARM_SECONDS = 3, 0.2


def resident() -> int:
    """Bytes of memory that this process holds now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def highest() -> int:
    """The most bytes that it held since `forget_highest`, or since it began (Linux).

    Not ``ru_maxrss``: that of a process begins with what its parent held.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def forget_highest() -> None:
    """Give back what was freed, and begin to measure the most memory anew (Linux)."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


class Host:
    """Builds a side and does what is asked of it."""

    def __init__(self, workload: str, name: str, variant: dict[str, Any]) -> None:
        self.module = importlib.import_module(workload if "." in workload else f"benchmarks.{workload}")
        self.name, self.variant = name, dict(variant)
        self.threads = self.variant.get("threads", 1)
        processors = sorted(os.sched_getaffinity(0))
        if self.threads < len(processors):
            first = os.getppid() % len(processors)  # the same for all sides of a run, another for another run's
            os.sched_setaffinity(0, (processors * 2)[first : first + self.threads])
        self.side: Side | None = None

    def built(self) -> Side:
        """The side, built at first use; memory is counted from where `Workload.IMPORTS` are in."""
        if self.side is None:
            begin = time.perf_counter()
            factory = self.module.SIDES[self.name]
            given = {k: v for k, v in self.variant.items() if k != "threads" or takes_threads(factory)}
            for name in getattr(self.module, "IMPORTS", {}).get(self.name, []):
                importlib.import_module(name)
            self.start = resident()
            self.side = factory(**given)
            self.build = time.perf_counter() - begin
        return self.side

    def prove(self) -> dict[str, Any]:
        return {"numbers": self.built().prove()}

    def warm(self) -> dict[str, Any]:
        """A first step, then more until `WARM_SECONDS` are over; the last ones say how long one takes."""
        side = self.built()
        first, _ = timed(side, 1)
        seconds, steps = 0.0, 0
        while steps < WARM_STEPS or seconds < WARM_SECONDS:
            more, _ = timed(side, 1)
            seconds, steps = seconds + more, steps + 1
        peak = highest() - self.start
        forget_highest()
        facts = getattr(side, "facts", {})
        answer = {"first": first, "step": seconds / steps, "build": self.build, "peak": peak, "facts": facts}
        return answer | {"versions": versions()}

    def time(self, steps: int) -> dict[str, Any]:
        seconds, cpu = timed(self.built(), steps)
        return {"seconds": seconds, "cpu": cpu}

    def memory(self) -> dict[str, Any]:
        return {"peak": highest() - self.start}

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer, or why there is none: a side that fails must not take the benchmark with it."""
        do = question.pop("do")
        try:
            return getattr(self, do)(**question)  # type: ignore[no-any-return]
        except Unsupported as error:
            return {"unsupported": str(error)}
        except ModuleNotFoundError as error:
            return {"error": f"not installed: {error.name}; pip install 'descent-tower[bench]'"}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def timed(side: Side, steps: int) -> tuple[float, float]:
    """Seconds, and processor seconds of all threads, of so many steps."""
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        side.step()
    return time.perf_counter() - begin, time.process_time() - cpu


def takes_threads(factory: Any) -> bool:
    """Whether a factory wants to know the number of threads."""
    return "threads" in inspect.signature(factory).parameters


def versions() -> dict[str, str]:
    """Versions of the packages that were imported."""
    found = {}
    for module, package in PACKAGES.items():
        if module in sys.modules:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                found[package] = "not installed as a package"
    return found


def main() -> None:
    """Answer questions until there are none."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    host = Host(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
    for line in sys.stdin:
        answers.write(json.dumps(host.answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
