"""What ``tower ablate`` and ``tower report`` do."""

import argparse
import math
import shlex
import sys
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from recursion.commands import RUNS, folder_name, read_tower
from recursion.study.ablate import ablate as carry_out
from recursion.study.cuts import every_depth, parse_depths, parse_grid
from recursion.study.overview import Overview, duration, overview
from recursion.study.pool import Event, Local, Pool, Ray
from recursion.study.request import BASELINE, Budget, Request
from recursion.study.store import Record, Store

SHOWN = 20  # cells that are named before an ablation begins


def ablate(args: argparse.Namespace) -> None:
    """``tower ablate``: carry out what is left of an ablation, then write its report."""
    request = _request(args)
    out = RUNS / f"{folder_name(request.tower)}-ablation" if args.out is None else Path(args.out)
    pool: Pool = Ray(args.ray or None, args.workers) if args.ray is not None else Local(args.workers)
    for line in planned(request, pool.size, out):
        sys.stderr.write(f"tower: {line}\n")
    with _carried_out(request, out, pool, args) as store:
        failed = store.runs("failed")
    if failed:
        again = shlex.join(["tower", *(word for word in args.words if word != "--retry"), "--retry"])
        some = f"{len(failed)} of {len(request.runs())} runs failed, as {failed[0].run.id}: {failed[0].why}"
        sys.stderr.write(f"tower: {some}; mend that, then try them again with: {again}\n")
    if not args.no_report:
        _write_report(out, None)


def report(args: argparse.Namespace) -> None:
    """``tower report``: the page of an ablation, as far as it is."""
    Store.open(args.run, readonly=True).close()
    _write_report(Path(args.run), None if args.out is None else Path(args.out))


def planned(request: Request, size: int, out: Path) -> list[str]:
    """What is about to be done, and what it costs, in lines."""
    labels = {run.cell: run.tower for run in request.runs()}
    count, budget = len(labels) * request.seeds, request.budget
    seeds = f"{request.seeds} seeds" if request.seeds > 1 else "1 seed"
    if budget.unit == "seconds":
        cost = f"{budget.amount:g} s each, about {duration(budget.amount * math.ceil(count / size))} {size} at a time"
        cost += "; a run in seconds is not repeatable, one in base steps is"
    else:
        cost = f"{budget} base steps each, {budget.amount * count:.3g} in all, {size} at a time"
    lines = [f"{count} runs in {out}, of {len(labels)} cells and {seeds}: {cost}"]
    lines += [f"  {label}: {'the best of the hand-made rules' if label == BASELINE else tower}"
              for label, tower in list(labels.items())[:SHOWN]]  # fmt: skip
    return lines + ([f"  and {len(labels) - SHOWN} more"] if len(labels) > SHOWN else [])


def _request(args: argparse.Namespace) -> Request:
    tower = str(read_tower(args.tower)) if args.tower.endswith(".json") else " ".join(args.tower.split())
    return Request(
        tower=tower,
        depths=every_depth(tower) if args.depths is None else parse_depths(args.depths),
        grid=parse_grid(args.grid),
        seeds=args.seeds,
        budget=Budget.parse(args.budget),
        steps=args.steps,
        problems=args.problems,
        select=args.select,
        snapshots=args.snapshots,
        search=args.search,
        baseline=args.baseline,
        windows=args.windows,
    )


def _carried_out(request: Request, out: Path, pool: Pool, args: argparse.Namespace) -> Store:
    """The store when all runs have ended; what interrupts it says how to go on."""
    shown: list[Overview] = []
    with ExitStack() as stack:

        def begin(records: list[Record]) -> None:
            done = sum(record.status == "done" for record in records)
            if done:
                sys.stderr.write(f"tower: going on, {done} of {len(records)} runs are done\n")
            shown.append(stack.enter_context(overview(records, pool.size, sys.stderr)))

        def tell(event: Event) -> None:
            shown[0](event)

        try:
            return carry_out(
                request, out, pool=pool, retry=args.retry, argv=["tower", *args.words],
                on_begin=begin, on_event=tell,
            )  # fmt: skip
        except KeyboardInterrupt:
            again = shlex.join(["tower", *args.words])
            raise KeyboardInterrupt(f"stopped; go on with the same command: {again}") from None


def _write_report(folder: Path, out: Path | None) -> None:
    from recursion.study.report import write

    console = Console(width=None if sys.stdout.isatty() else 120)
    written = write(folder, console) if out is None else write(folder, console, out=out)
    sys.stdout.write(f"written: {', '.join(map(str, written))}\n")
