"""This project and its peers, side by side in one run.

    python -m benchmarks W1 [--rounds 15] [--threads 1 2] [--only ours "JAX scan"] [--variants TEXT ...] [--out DIR]
    python -m benchmarks all
    python -m benchmarks gpu                    (where there is one; not in all)
    python -m benchmarks W1 --profile
    python -m benchmarks old-new --old DIR      (another checkout against this one: `benchmarks.old_new`)

Peers come with ``pip install "descent-tower[bench]"``; one that is missing or fails gets a row that says so. Writes
``wN.json`` (each round, versions, machine) and ``wN.png``. Exits with 1 if a side disagrees with the first.
See `benchmarks.harness` for how it is measured.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import harness, old_new, showing
from benchmarks.harness import Row, chosen_variants

WIDTH = 130  # columns; tables are not squeezed into less
WORKLOADS = ("W1", "W2", "W3", "W4", "W5")  # of `all`; `gpu` is apart, for machines that have one


def chosen_sides(workload: Any, only: list[str] | None) -> list[str]:
    """Names of sides; ValueError for one that is not there."""
    known = list(workload.SIDES)
    for name in only or []:
        if name not in known:
            raise ValueError(f"no side {name!r}; there are {', '.join(known)}")
    return [name for name in known if not only or name in only]


def measure(name: str, args: argparse.Namespace, console: Console) -> bool:
    """Run one workload, show and keep what was found; whether all sides agree."""
    workload = importlib.import_module(f"benchmarks.{name.lower()}")
    sides = chosen_sides(workload, args.only)
    variants = chosen_variants(workload, args.threads, args.variants)
    found = run_all(name.lower(), workload, variants, sides, args.rounds, console)
    result = showing.as_result(f"{name}: {workload.TITLE}", args.rounds, found)
    console.print(result["title"], style="bold")
    for label, rows in result["variants"].items():
        console.print(showing.table(label, rows))
        console.print(*showing.missing(rows), sep="\n", style="red", highlight=False)
    for line in workload.summary(result) if hasattr(workload, "summary") else []:
        console.print(line, highlight=False)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{name.lower()}.json").write_text(json.dumps(result, indent=1) + "\n")
    picture = args.out / f"{name.lower()}.png"
    getattr(workload, "draw", showing.draw)(result, picture)
    console.print(f"written: {picture.with_suffix('.json')}, {picture}")
    return not any("disagrees" in (row.why or "") for _, rows in found.values() for row in rows.values())


def run_all(
    name: str,
    workload: Any,
    variants: dict[str, dict[str, Any]],
    sides: list[str],
    rounds: int,
    console: Console,
) -> dict[str, tuple[dict[str, Any], dict[str, Row]]]:
    """All variants, under a bar with the time that is left."""
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), "left", TimeRemainingColumn())
    found = {}
    with Progress(*columns, console=console) as progress, TemporaryDirectory(prefix="benchmark-proofs-") as kept:
        task = progress.add_task(name, total=len(variants) * harness.count(sides, rounds))
        for label, settings in variants.items():
            tell = teller(progress, task, f"{name}, {label}")
            found[label] = settings, harness.run(name, workload, settings, sides, rounds, tell, kept)
    return found


def teller(progress: Progress, task: TaskID, where: str) -> harness.Tell:
    """What tells the bar that one more thing begins."""
    return lambda what: progress.update(task, advance=1, description=f"{where}: {what}")


def main() -> int:
    """Exit status: 1 if sides disagree."""
    if sys.argv[1:2] == ["old-new"]:
        return old_new.main(sys.argv[2:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "workload",
        choices=(*WORKLOADS, "all", "gpu"),
        type=lambda text: text if text in ("all", "gpu") else text.upper(),
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads")
    parser.add_argument(
        "--only", nargs="+", metavar="SIDE", help="these sides only; the first that runs is compared with"
    )
    parser.add_argument("--variants", nargs="+", metavar="TEXT", help="only variants whose label contains a text")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument(
        "--profile", action="store_true", help="where our time goes, instead: W1's tower and a deeper one"
    )
    args = parser.parse_args()
    console = Console(width=max(Console().width, WIDTH))
    if args.profile:
        if args.workload != "W1":
            parser.error(f"--profile goes with W1, got {args.workload}")
        from benchmarks.profiling import TOWERS, profile

        for name in TOWERS:
            console.print(f"written: {profile(name, args.out)}")
        return 0
    try:
        agree = [measure(name, args, console) for name in (WORKLOADS if args.workload == "all" else [args.workload])]
    except ValueError as error:
        parser.error(str(error))
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main())
