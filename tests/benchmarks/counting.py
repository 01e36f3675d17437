"""A workload whose sides count: what the tests of the harness run in its workers."""

import os
import time

import numpy as np

from benchmarks.harness import Unsupported

TITLE = "counting"
VARIANTS = {"to ten": {"top": 10}, "to ten, 2 threads": {"top": 10, "threads": 2}}
TOLERANCE = {"sum": 1e-3, "alone": 0.0}


class Counter:
    def __init__(self, top, *, step=1, seconds=0.001, held=0):
        self.top, self.by, self.seconds = top, step, seconds
        self.facts = {"top": top}
        self.held = np.ones(held, np.uint8)

    def prove(self):
        return {"sum": [float(sum(range(0, self.top, self.by)))], "alone": [1.0]}

    def step(self):
        time.sleep(self.seconds)


class Talker(Counter):
    """Prints, which must not reach the answers."""

    def prove(self):
        print("a peer says something")  # noqa: T201
        os.system("echo so does its library")
        return super().prove()


class Spender(Counter):
    """Needs 100 MB for a moment, 200 MB once at the start, and the processor."""

    def __init__(self, top):
        super().__init__(top)
        np.ones(200_000_000, np.uint8)

    def step(self):
        np.ones(100_000_000, np.uint8)


class Dying(Counter):
    def step(self):
        os.write(2, b"out of luck\n")
        os._exit(3)


def failing(top):
    raise RuntimeError("no such\ndevice")


def absent(top):
    import no_such_peer  # noqa: F401


def unable(top):
    raise Unsupported("cannot count")


def threaded(top, threads):
    side = Counter(top)
    side.facts["threads"] = [threads, len(os.sched_getaffinity(0)), int(os.environ["OMP_NUM_THREADS"])]
    return side


SIDES = {
    "ours": lambda top: Counter(top, seconds=0.002),
    "peer": lambda top: Counter(top, seconds=0.004),
    "slow peer": lambda top: Counter(top, seconds=0.008),
    "wrong": lambda top: Counter(top, step=2),
    "talker": Talker,
    "spender": Spender,
    "dying": Dying,
    "failing": failing,
    "absent": absent,
    "unable": unable,
    "threaded": threaded,
}
