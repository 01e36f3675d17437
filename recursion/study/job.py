"""One run of a study, from nothing to its rows.

    result = perform(run, request, Path("runs/depths/runs/depth-2-seed-0"), tell)

A tower that learns an optimizer is trained, and what it learned is used (`recursion.study.learning`). A tower that is
an optimizer itself is run on each problem. A hand-made optimizer is tuned. Each piece is made once and stored in the
folder, and a run that was killed goes on from there. It works on one thread and without a compiler, so its rows are the
same whenever it is repeated, but for seconds and bytes.
"""

import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from levels.base import Optimizer
from levels.hyper import HyperparamOptimizer
from levels.tasks.task import Task
from recursion.analysis.work import Work, lived_work
from recursion.evaluate import afresh
from recursion.evaluate.baselines import BASELINES
from recursion.notation import parse
from recursion.study.bench import BUDGETED, LEARNING, SPLITS, Bench, Row, Tell, curve_rows, loss_rows, parameters, row
from recursion.study.learning import Learning
from recursion.study.records import Store
from recursion.study.request import Request, Run, plain
from recursion.study.search import search
from recursion.tower import Tower


def perform(run: Run, request: Request, folder: Path, tell: Tell) -> dict[str, Any]:
    """One run from where its folder left off: ``rows`` and ``facts``; plain JSON.

    ``tell(what, fraction)`` hears of each step. Killed at any moment and called again, it ends with the same rows,
    seconds and bytes apart. Raises ValueError for a budget that is too small and for a folder of another run;
    NonFiniteError if training diverged before its first snapshot; OSError if the folder cannot be written.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _perform(run, request, folder, tell)
    finally:
        torch.set_num_threads(threads)


def _perform(run: Run, request: Request, folder: Path, tell: Tell) -> dict[str, Any]:
    tell("measuring", 0.0)
    store, ours = Store(folder), {"run": plain(run), "request": plain(request)}
    if store.numbers("of", lambda: ours) != ours:
        raise ValueError(f"{folder} holds a run of something else; choose another folder, or delete it")
    tower = parse(run.tower)
    if not isinstance(tower.task, Task):
        raise TypeError(f"a study needs a task with held-out splits, got {tower.task!r}")
    bench = Bench(tower.task, request, store, tell)
    if run.kind == "search":
        rows, facts = _tuned(run, tower, bench)
    elif afresh.is_optimizer(tower):
        rows, facts = _itself(run, tower, bench)
    else:
        rows, facts = Learning(run, tower, bench, folder).perform()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0  # most bytes that this process ever had
    rows += [*bench.ledger(), row("training", "peak bytes", peak)]
    tell("done", 1.0)
    return {"rows": rows, "facts": facts | {"spent": bench.spent(*BUDGETED)}}


def _tuned(run: Run, tower: Tower, bench: Bench) -> tuple[list[Row], dict[str, Any]]:
    """A hand-made optimizer, or the best of some, with step size and schedule searched for the whole budget."""
    task = bench.task
    every: Sequence[Optimizer] = [tower.levels[0].optimizer] if run.depth else list(BASELINES.values())
    best = bench.store.numbers("search", lambda: _searched(run, every, bench))
    bench.book("search", Work(best["gradients"], (best["work"],)), best["seconds"])
    chosen = parse(f"{task!r}: {best['setting']}").levels[0].optimizer
    start, params = next((one for one in every if repr(one) == "adam"), every[0]), parameters(chosen, task)
    rows = [*bench.reported("start", "start", start, parameters(start, task))]
    rows += bench.reported("chosen", "chosen", chosen, params)
    rows += [*bench.optimizer_rows(chosen, params), bench.known_row(set())]
    return rows, {"steps": 0, "chosen": 0} | {name: best[name] for name in ("setting", "tried", "ended")}


def _searched(run: Run, every: Sequence[Optimizer], bench: Bench) -> dict[str, Any]:
    request, began = bench.request, time.process_time()
    in_seconds, first = request.budget.unit == "seconds", list[float]()

    def over() -> bool:
        first.append(time.process_time())  # the clock starts with the first run; what is loaded before is not charged
        return in_seconds and first[-1] - first[0] >= request.budget.amount

    searched = search(
        [each for each in every if isinstance(each, HyperparamOptimizer)], bench.task, bench.key("select"),
        steps=request.steps, budget=1e15 if in_seconds else request.budget.amount, method=request.search, seed=run.seed,
        tell=lambda what, fraction: bench.tell(what, LEARNING * fraction), work=bench.work_of, over=over,
    )  # fmt: skip
    return searched._asdict() | {"tried": len(searched.scores), "seconds": time.process_time() - began}


def _itself(run: Run, tower: Tower, bench: Bench) -> tuple[list[Row], dict[str, Any]]:
    """A tower that is an optimizer: nothing to train."""
    lived = lived_work(afresh.alone(tower))
    work = lived.start.plus(lived.step, bench.request.steps + 1 - tower.depth)
    rows: list[Row] = []
    for split in SPLITS:
        losses = bench.afresh(tower, split, run.seed, work)
        rows += loss_rows("chosen", split, losses)

    def make(steps: int) -> None:
        task, one = bench.task.on("test"), bench.key("report")[:1]
        afresh.run_afresh(tower, task, 1, steps + tower.depth, seed=run.seed, theta=None, key=one)

    rows += [*curve_rows(losses), *bench.use_rows(sum(lived.step.optimizer), make), bench.known_row(set())]
    return rows, {"steps": 0, "chosen": 0, "setting": str(tower), "ended": ""}
