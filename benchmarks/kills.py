"""A study that is killed again and again, against one that is not; and one on a Ray cluster, against processes.

    python -m benchmarks.kills [--kills 10] [--seed 0] [--ray] [--out DIR]

A small ``tower ablate`` runs to its end. The same one is begun in another folder, killed with SIGKILL at a random
moment, all its processes with it, and begun again, as often as asked; then it runs to its end. Everything that either
found is compared, bit for bit but for seconds and bytes, and so is what ``tower report`` prints. With ``--ray`` the
same is done once more by two Ray workers, and compared seed by seed. Exits with 1 if anything differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from recursion.study.results import load
from recursion.training import CHECKPOINT

TOWER = "quadratic: lstm(hidden=4)@5 / adam"
SETTINGS = ["--depths", "1-2", "--seeds", "2", "--budget", "6e7", "--steps", "30", "--problems", "16", "--select", "8"]
SHOWN = 5  # differences
LONGEST = 15.0  # seconds of work before a kill; a training keeps its state every ten
STARTING = 60.0  # seconds in which a command must get to work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=10, help="times; default 10")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments; default 0")
    parser.add_argument("--ray", action="store_true", help="also two Ray workers against two processes")
    parser.add_argument("--out", type=Path, help="folder to keep the studies in; default one that is removed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = args.out or Path(scratch)
        began = time.monotonic()
        finish(out / "whole")
        seconds = time.monotonic() - began
        print(f"uninterrupted: {described(out / 'whole')}, {seconds:.0f} s")
        kills = killed(out / "killed", args.kills, random.Random(args.seed))
        finish(out / "killed")
        good = same(out / "whole", out / "killed", f"killed {kills} times and continued") and kills == args.kills
        if args.ray:
            finish(out / "ray", "--ray", "local")
            good &= same(out / "whole", out / "ray", "by two Ray workers")
    sys.exit(not good)


def killed(folder: Path, kills: int, moments: random.Random) -> int:
    """Begin, or go on, and kill, as often as asked; fewer times if it comes to its end before."""
    for done in range(kills):
        process = start(folder, "--workers", "2")
        worked = at_work(process, folder)
        time.sleep(moments.uniform(0.0, LONGEST) if worked else 0)
        if process.poll() is not None:
            print(f"it came to its end after {done} kills")
            return done
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        waited = gone(folder)
        runs = load(folder).runs
        counts = ", ".join(f"{sum(runs.status == state)} {state}" for state in ("done", "running", "waiting", "failed"))
        kept = sum((folder / "runs" / run / CHECKPOINT).exists() for run in runs.run[runs.status == "running"])
        print(f"kill {done + 1}: {counts}, {kept} in mid-training; all processes were gone {waited:.1f} s later")
    return kills


def start(folder: Path, *words: str) -> "subprocess.Popen[bytes]":
    """``tower ablate`` in a process group of its own."""
    command = [sys.executable, "-m", "recursion.cli", "ablate", TOWER, *SETTINGS, "--no-report", "--out", str(folder)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with log_of(folder).open("ab") as log:
        return subprocess.Popen([*command, *words], start_new_session=True, stderr=log)


def log_of(folder: Path) -> Path:
    """What the commands of a study print."""
    return folder.with_suffix(".log")


def finish(folder: Path, *words: str) -> None:
    """``tower ablate`` to its end."""
    process = start(folder, "--workers", "2", *words)
    if process.wait():
        print(log_of(folder).read_text())
        raise SystemExit(f"tower ablate in {folder} ended with exit code {process.returncode}")


def at_work(process: "subprocess.Popen[bytes]", folder: Path) -> bool:
    """Wait until a run has been given to a worker; False if the command ended before."""
    began, end = time.time(), time.monotonic() + STARTING
    while process.poll() is None and time.monotonic() < end:
        if any(path.stat().st_mtime > began for path in folder.glob("runs/*/.lock")):
            return True
        time.sleep(0.02)
    return False


def gone(folder: Path) -> float:
    """Seconds until no process has a file of the study open."""
    began = time.monotonic()
    while using(folder.absolute()):
        if time.monotonic() - began > STARTING:
            raise SystemExit(f"processes {using(folder.absolute())} outlive the study that began them")
        time.sleep(0.05)
    return time.monotonic() - began


def using(folder: Path) -> list[int]:
    """Processes that have a file in a folder open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if Path(os.readlink(link)).is_relative_to(folder):
                found.add(int(link.parts[2]))
        except OSError:
            continue
    return sorted(found)


def described(folder: Path) -> str:
    """How much a study found."""
    found = load(folder)
    done, failed = (sum(found.runs.status == state) for state in ("done", "failed"))
    return f"{done} runs done, {failed} failed, {len(found.rows)} rows"


def same(one: Path, other: Path, what: str) -> bool:
    """Whether two studies found the same; says what was compared, and what differs."""
    ours, theirs = ([*map(repr, load(folder).repeatable()), *reported(folder)] for folder in (one, other))
    differ = [pair for pair in zip(ours, theirs) if pair[0] != pair[1]]
    good = not differ and len(ours) == len(theirs)
    print(f"{what}: {described(other)}; {len(theirs)} runs, rows and lines of the report compared: ", end="")
    print("the same" if good else f"{len(differ)} DIFFER, and there are {len(ours)} in the uninterrupted one")
    for pair in differ[:SHOWN]:
        print("  {}\n  {}".format(*pair))
    return good


def reported(folder: Path) -> Sequence[str]:
    """What ``tower report`` prints, without where it wrote."""
    command = [sys.executable, "-m", "recursion.cli", "report", str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line for line in told.stdout.splitlines() if not line.startswith("written")]


if __name__ == "__main__":
    main()
