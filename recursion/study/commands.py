"""The commands ``tower ablate`` (or ``tower study``) and ``tower report``.

How far a study is goes to a stream for people: bars with time left on a terminal, elsewhere a line now and then. The
time left is what rich estimates from the speed of all runs together, each of which counts as far as it is.
"""

import argparse
import math
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from math import fsum
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import TaskProgressColumn, TextColumn
from rich.text import Text

from levels.importing import names_in_text
from recursion.files import RUNS, folder_name
from recursion.progress import Display
from recursion.spec import read_tower
from recursion.study.cuts import every_depth, parse_depths, parse_grid
from recursion.study.pool import Event, Local, Pool, Ray
from recursion.study.pool import ablate as carry_out
from recursion.study.report import write
from recursion.study.request import BASELINE, Budget, Request
from recursion.study.results import load
from recursion.study.words import plural

LINES = 20  # over a whole study
SPEED = 3600.0  # seconds of the past that the speed is estimated from
ENDS = ("done", "failed")
SHOWN = 20  # cells that are named before a study begins
SAME = ("seeds", "steps", "problems", "select", "snapshots", "search", "baseline", "windows")  # options as they are


def ablate(args: argparse.Namespace) -> None:
    """``tower ablate``: carry out what is left of a study, then write its report."""
    tower = str(read_tower(args.tower, args.trust)) if args.tower.endswith(".json") else " ".join(args.tower.split())
    depths = every_depth(tower) if args.depths is None else parse_depths(args.depths)
    options = {name: getattr(args, name) for name in SAME}
    budget, grid = Budget.parse(args.budget), parse_grid(args.grid)
    request = Request(tower=tower, depths=depths, grid=grid, budget=budget, **options)
    out = RUNS / f"{folder_name(tower)}-ablation" if args.out is None else Path(args.out)
    names = [*args.trust, *names_in_text(" ".join([tower, *args.grid]))]  # the user typed these
    pool: Pool = Ray(args.ray or None, args.workers) if args.ray is not None else Local(args.workers)
    for line in _planned(request, pool.size, out):
        _say(line)
    _carry_out(request, out, pool, args)
    failed = load(out, names).runs.query("status == 'failed'")
    if len(failed):
        again = shlex.join(["tower", *(word for word in args.words if word != "--retry"), "--retry"])
        some = f"{len(failed)} of {len(request.runs())} runs failed, as {failed.iloc[0].run}: {failed.iloc[0].why}"
        _say(f"{some}; mend that, then try them again with: {again}")
    if not args.no_report:
        report(argparse.Namespace(run=out, out=None, trust=names))


def report(args: argparse.Namespace) -> None:
    """``tower report``: the page of a study, as far as it is."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    paths = write(Path(args.run), console, None if args.out is None else Path(args.out), args.trust)
    sys.stdout.write(f"written: {', '.join(map(str, paths))}\n")


def _planned(request: Request, size: int, out: Path) -> Iterator[str]:
    """What is about to be done, and what it costs, in lines."""
    labels = {run.cell: run.tower for run in request.runs()}
    count, budget = len(labels) * request.seeds, request.budget
    cost = f"{budget} base steps each, {budget.amount * count:.3g} in all, {size} at a time"
    if budget.unit == "seconds":
        whole = duration(budget.amount * math.ceil(count / size))
        cost = f"{budget.amount:g} s each, about {whole} {size} at a time"
        cost += "; a run in seconds is not repeatable, one in base steps is"
    yield f"{count} runs in {out}, of {len(labels)} cells and {plural(request.seeds, 'seed')}: {cost}"
    for label, tower in list(labels.items())[:SHOWN]:
        yield f"  {label}: {'the best of the hand-made rules' if label == BASELINE else tower}"
    if len(labels) > SHOWN:
        yield f"  and {len(labels) - SHOWN} more"


def _carry_out(request: Request, out: Path, pool: Pool, args: argparse.Namespace) -> None:
    """Carry out all runs, and show how far they are."""
    words, boards = ["tower", *args.words], list[Board]()

    def begin(status: Mapping[str, str]) -> None:
        done = sum(each == "done" for each in status.values())
        if done:
            _say(f"going on, {done} of {len(status)} runs are done")
        boards.append(stack.enter_context(Board(status, sys.stderr)))

    def tell(event: Event) -> None:
        boards[0](event)

    with ExitStack() as stack:
        try:
            carry_out(request, out, pool=pool, retry=args.retry, argv=words, on_begin=begin, on_event=tell)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; go on with the same command: {shlex.join(words)}") from None


def _say(line: str) -> None:
    sys.stderr.write(f"tower: {line}\n")


class Board(Display):
    """The runs of a study; a context manager, and called with each event. ``status``: of each run, by its id."""

    def __init__(self, status: Mapping[str, str], stream: TextIO) -> None:
        super().__init__(stream, TaskProgressColumn(), TextColumn("{task.description}"), total=len(status))
        self.progress.speed_estimate_period = SPEED
        self.status = dict(status)
        self.fraction = {run: float(each in ENDS) for run, each in status.items()}  # of each run that is done
        self.under_way = {run: self.progress.add_task(run, total=1.0, visible=False, status="") for run in status}
        self.progress.update(self.bar, completed=fsum(self.fraction.values()), description="all runs")
        self.last = self._place()

    def __call__(self, event: Event) -> None:
        run, ends = event.run.id, event.kind in ENDS
        self.status[run] = event.kind if ends else "running"
        self.fraction[run] = 1.0 if ends else event.fraction
        self.progress.update(self.under_way[run], completed=event.fraction, visible=not ends, status=event.what)
        self.progress.update(self.bar, completed=fsum(self.fraction.values()), status=self.counts())
        if event.kind == "failed":
            self._write(f"{run} failed: {event.what}")
        if not self.terminal and (self._place() > self.last or all(each in ENDS for each in self.status.values())):
            left = self.progress.tasks[0].time_remaining
            self._write(self.counts() + (f", about {duration(left)} left" if left else ""))
        self.last = max(self.last, self._place())

    def counts(self) -> str:
        """``12 of 25 runs done, 1 failed, 2 under way (40%, 7%)``."""
        counts = Counter(self.status.values())
        going = [f"{100 * self.fraction[run]:.0f}%" for run, each in self.status.items() if each == "running"]
        parts = [f"{counts['done']} of {len(self.status)} runs done"]
        parts += [f"{counts['failed']} failed"] if counts["failed"] else []
        return ", ".join(parts + ([f"{len(going)} under way ({', '.join(going)})"] if going else []))

    def _place(self) -> int:
        return int(fsum(self.fraction.values()) * LINES / max(1, len(self.status)) + 1e-9)

    def _write(self, line: str) -> None:
        if self.terminal:
            self.progress.console.print(Text(line, style="red"))
        else:
            self.stream.write(f"{line}\n")
            self.stream.flush()


def duration(seconds: float) -> str:
    """A time in words, roughly."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
