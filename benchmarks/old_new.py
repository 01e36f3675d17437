"""Two checkouts of this project side by side in one run: is the new one as fast as the old one?

    python -m benchmarks old-new --old DIR [--new DIR] [--workloads W1 W3] [--variants TEXT ...] [--threads 1]
                                 [--rounds 15] [--kinds plain accelerated] [--beside torch] [--out DIR]

Each checkout runs its own ``benchmarks`` package in its own processes, so each side is written in the names of its own
tree. What both must have: ``benchmarks/wN.py`` (`harness.Workload`) with the same labels of variants, and a
`benchmarks.worker` that understands the questions of `harness`. ``plain`` is the side ``ours``; ``accelerated`` is
``ours, accelerated``, or ``ours, compiled`` as it was called before. ``--beside``: peers of the new checkout, timed in
the same rounds.

As in every benchmark here (`benchmarks.harness`), the sides first prove that they do the same work, and then take turns
in shuffled rounds. A ratio is old over new within each round, so above 1 the new one is faster; the table has its
median and quartiles. `SPEED` and `MEMORY` are the limits. The exit status is 1 where a median passes one, or where a
side of either checkout is missing, fails or disagrees. ``old_new.json`` is written after each variant.

Other work on the machine spreads the ratios. Compare a checkout with itself (the same ``--old`` and ``--new``) to see
by how much, and raise ``--rounds`` until those medians are near 1.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import harness, showing
from benchmarks.harness import Row, Spread, Worker

WORKLOADS = ("W1", "W2", "W3", "W4", "W5")
KINDS = {"plain": ("ours",), "accelerated": ("ours, accelerated", "ours, compiled")}
"""Names of the side, of which a checkout has one."""

SPEED = {("plain", "W1"): 0.9, ("plain", "W3"): 0.7, ("plain", "W4"): 0.9}
SPEED |= {("accelerated", workload): 0.95 for workload in WORKLOADS}
"""Least old over new seconds, by kind and workload; others have no limit."""

MEMORY = {("plain", "W3"): 1.1}
"""Most new over old peak bytes."""

DESCRIBE = """
import importlib, json, sys
import levels
module = importlib.import_module("benchmarks." + sys.argv[1])
told = {"TITLE": module.TITLE, "VARIANTS": module.VARIANTS, "TOLERANCE": module.TOLERANCE}
print("\\n" + json.dumps(told | {"SIDES": list(module.SIDES), "home": levels.__file__}))
"""
"""A program that prints what a workload of a checkout is; it needs nothing of the checkout but the workload."""


class MissingError(Exception):
    """A checkout has no such workload or side; the message says which."""


@dataclass(frozen=True)
class Checkout:
    """One tree: ``name`` is ``old`` or ``new``."""

    name: str
    root: Path

    def workload(self, name: str) -> Any:
        """Names of `harness.Workload` as data. MissingError where it cannot be imported from this tree."""
        environment = os.environ | {"PYTHONPATH": str(self.root)}
        command = [sys.executable, "-c", DESCRIBE, name.lower()]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        last = ((done.stderr if done.returncode else done.stdout).strip().splitlines() or ["no message"])[-1]
        if done.returncode:
            raise MissingError(f"{self.name} has no {name}: {last}")
        found = SimpleNamespace(**json.loads(last))
        if not Path(found.home).is_relative_to(self.root):
            raise MissingError(f"{self.name}: levels is imported from {found.home}, not from {self.root}")
        return found

    def side(self, workload: Any, kind: str) -> str:
        """The name that a side has here. MissingError if there is none."""
        for name in KINDS[kind]:
            if name in workload.SIDES:
                return name
        raise MissingError(f"{self.name} has no side {' or '.join(map(repr, KINDS[kind]))}")

    @property
    def commit(self) -> str:
        """What git calls the tree; empty outside a repository."""
        command = ["git", "-C", str(self.root), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@dataclass(frozen=True)
class Pair:
    """The old side and the new one of one kind in one variant; without ratios where one of them was not timed."""

    workload: str
    variant: str
    kind: str
    why: str = ""  # why there are no ratios
    ratio: Spread | None = None  # seconds, old over new
    cpu: Spread | None = None  # processor seconds, old over new
    memory: float = 0.0  # peak bytes, new over old

    @property
    def least(self) -> float | None:
        return SPEED.get((self.kind, self.workload))

    @property
    def most(self) -> float | None:
        return MEMORY.get((self.kind, self.workload))

    @property
    def verdict(self) -> str:
        """``ok``, or what is wrong."""
        if self.ratio is None:
            return self.why
        slow = self.least is not None and self.ratio.middle < self.least
        large = self.most is not None and self.memory > self.most
        return ", ".join(["slower"] * slow + ["more memory"] * large) or "ok"


def pair(workload: str, variant: str, kind: str, rows: dict[str, Row]) -> Pair:
    """The ratios of one kind, of the rows ``old KIND`` and ``new KIND``."""
    old, new = rows[f"old {kind}"], rows[f"new {kind}"]
    why = "; ".join(f"{name}: {row.why}" for name, row in (("old", old), ("new", new)) if row.why)
    if why or not old.seconds or not new.seconds:
        return Pair(workload, variant, kind, why or "not timed")
    cpu = [a / b for a, b in zip(old.cpu, new.cpu) if b] or [float("nan")]
    ratio = Spread.of(list(harness.ratios(old, new)))
    return Pair(workload, variant, kind, "", ratio, Spread.of(cpu), new.peak / max(old.peak, 1))


@dataclass(frozen=True)
class Comparison:
    """What is compared, and how often."""

    old: Checkout
    new: Checkout
    kinds: tuple[str, ...]
    beside: tuple[str, ...]
    rounds: int
    threads: list[int] | None
    parts: list[str] | None

    def of(self, name: str, console: Console) -> Iterator[tuple[str, dict[str, Row]]]:
        """Label and rows of each of the old variants. MissingError if a checkout lacks the workload or a side."""
        both = {checkout: checkout.workload(name) for checkout in (self.old, self.new)}
        chosen = {tree: harness.chosen_variants(work, self.threads, self.parts) for tree, work in both.items()}
        sides = [(f"{tree.name} {kind}", tree, tree.side(both[tree], kind)) for kind in self.kinds for tree in both]
        sides += [(peer, self.new, peer) for peer in self.beside if peer in both[self.new].SIDES]
        with TemporaryDirectory(prefix="benchmark-proofs-") as kept, console.status(name) as status:
            for label in chosen[self.old]:
                if label not in chosen[self.new]:
                    why = {self.old: None, self.new: "no such variant"}
                    yield label, {shown: Row(why[tree]) for shown, tree, _ in sides}
                    continue
                starts = {
                    shown: partial(Worker, name.lower(), side, chosen[tree][label], root=tree.root)
                    for shown, tree, side in sides
                }
                tolerance = both[self.old].TOLERANCE
                tell = teller(status, f"{name}, {label}")
                yield label, harness.compare(starts, tolerance, self.rounds, tell, kept)


def teller(status: Any, where: str) -> harness.Tell:
    """What shows the thing that begins."""
    return lambda what: status.update(f"{where}: {what}")


def table(title: str, rows: dict[str, Row], pairs: list[Pair]) -> Table:
    """One variant: the seconds of every side, and the ratios of the pairs behind the new ones."""
    shown = Table(title=title, title_justify="left", title_style="bold")
    shown.add_column("side", no_wrap=True)
    for head in ("ms a step", "first step s", "peak MB", "old/new", "at least", "cpu old/new", "memory", "at most"):
        shown.add_column(head, justify="right")
    shown.add_column("verdict")
    by_row = {f"new {pair.kind}": pair for pair in pairs}
    for side, row in rows.items():
        step = text(Spread.of(row.seconds), 1e3) if row.seconds else ""
        shown.add_row(
            side,
            step,
            f"{row.first:.2f}",
            f"{row.peak / 1e6:.0f}",
            *(cells(by_row[side]) if side in by_row else [""] * 5 + [row.why or ""]),
        )
    return shown


def cells(pair: Pair) -> list[str]:
    """Ratios, limits and the verdict."""
    if pair.ratio is None or pair.cpu is None:
        return [""] * 5 + [pair.verdict]
    least, most = (f"{limit}" if limit else "" for limit in (pair.least, pair.most))
    return [text(pair.ratio), least, f"{pair.cpu.middle:.3g}", f"{pair.memory:.2f}", most, pair.verdict]


def text(spread: Spread, scale: float = 1.0) -> str:
    """The median, and the quartiles in brackets."""
    scaled = (scale * value for value in spread.list())
    middle, low, high = (f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in scaled)
    return f"{middle} ({low}-{high})"


def as_data(rows: dict[str, Row], pairs: list[Pair]) -> dict[str, Any]:
    """One variant as it is kept."""
    ratios = [asdict(pair) | {"least": pair.least, "most": pair.most, "verdict": pair.verdict} for pair in pairs]
    return {"pairs": ratios, "sides": {side: asdict(row) for side, row in rows.items()}}


def main(arguments: list[str]) -> int:
    """Exit status: 1 where a limit is passed or a side was not timed."""
    args = parsed(arguments)
    console = Console(width=max(Console().width, 140))
    old, new = Checkout("old", args.old.resolve()), Checkout("new", args.new.resolve())
    what = Comparison(old, new, tuple(args.kinds), tuple(args.beside), args.rounds, args.threads, args.variants)
    commits = {tree.name: tree.commit for tree in (old, new)}
    result: dict[str, Any] = {"commits": commits, "machine": showing.machine(), "rounds": args.rounds, "variants": []}
    args.out.mkdir(parents=True, exist_ok=True)
    path, wrong = args.out / "old_new.json", 0
    for name in args.workloads:
        try:
            for label, rows in what.of(name, console):
                pairs = [pair(name, label, kind, rows) for kind in args.kinds]
                console.print(table(f"{name}, {label}", rows, pairs))
                wrong += sum(pair.verdict != "ok" for pair in pairs)
                result["variants"].append(as_data(rows, pairs))
                path.write_text(json.dumps(result | {"load at the end": os.getloadavg()}, indent=1) + "\n")
        except MissingError as error:
            wrong += 1
            console.print(f"{name}: {error}", style="red", highlight=False)
    console.print(f"{commits}: {wrong} wrong; written: {path}" if result["variants"] else "nothing was compared")
    return int(wrong > 0 or not result["variants"])


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The command's arguments."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks old-new", description=__doc__, formatter_class=kind)
    parser.add_argument("--old", type=Path, required=True, metavar="DIR", help="the checkout to compare with")
    parser.add_argument("--new", type=Path, default=harness.ROOT, metavar="DIR", help="this checkout without it")
    parser.add_argument("--workloads", nargs="+", type=str.upper, choices=WORKLOADS, default=WORKLOADS)
    parser.add_argument("--variants", nargs="+", metavar="TEXT", help="only variants whose label contains a text")
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--beside", nargs="+", metavar="SIDE", default=[], help="peers to time in the same rounds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args(arguments)
    for option, root in (("--old", args.old), ("--new", args.new)):
        if not (root / "benchmarks/worker.py").exists():
            parser.error(f"{option} {root}: no checkout with a benchmarks package")
    return args
