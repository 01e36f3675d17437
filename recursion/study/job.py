"""Job: one run of an ablation, from nothing to its rows.

    found = perform(run, request, Path("runs/depths/runs/depth-2-seed-0"), tell)

A tower that learns an optimizer is trained and what it learned is put to use (`recursion.study.learning`). A tower
that is an optimizer itself has nothing to be trained: it is run on each problem. A hand-made rule is tuned.

Everything is made once and kept in the folder (`recursion.study.kept`); a run that was killed goes on from there.
On one thread and without a compiler, so its rows are the same whenever it is repeated, but for seconds and bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from levels import keys
from levels.compiled import compiling
from levels.hyper import HandMade
from levels.optimizer import Optimizer
from levels.task import Task
from recursion import deploy
from recursion.notation import parse
from recursion.study.bench import BUDGETED, LEARNING, SPLITS, Bench
from recursion.study.kept import Kept
from recursion.study.learning import Learning
from recursion.study.ledger import Row, process_peak, row
from recursion.study.reported import curve, known_rows, reported, results, use_rows
from recursion.study.request import Request, Run
from recursion.study.search import search
from recursion.tower import Tower
from recursion.work import Work, base_flops, lived_work

Tell = Callable[[str, float], None]


def perform(run: Run, request: Request, folder: Path, tell: Tell) -> dict[str, Any]:
    """One run from where its folder left off: ``rows`` as a store takes them, and ``facts``; plain JSON.

    ``tell(what, fraction)`` hears of each step. Killed at any moment and called again, it ends with the same rows,
    seconds and bytes apart. Raises ValueError for a budget that is too small and for a folder of another run;
    NonFiniteError if training diverged before its first snapshot; OSError if the folder cannot be written.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with compiling(False):
            return _perform(run, request, folder, tell)
    finally:
        torch.set_num_threads(threads)


def _perform(run: Run, request: Request, folder: Path, tell: Tell) -> dict[str, Any]:
    tell("measuring", 0.0)
    kept = Kept(folder)
    ours = {"run": json.loads(run.to_json()), "request": json.loads(request.to_json())}
    if kept.numbers("of", lambda: ours) != ours:
        raise ValueError(f"{folder} holds a run of something else; choose another folder, or delete it")
    tower = parse(run.tower)
    if not isinstance(tower.task, Task):
        raise TypeError(f"an ablation needs a task with held-out splits, got {tower.task!r}")
    bench = Bench(tower.task, request, kept, tell)
    if run.kind == "search":
        rows, facts = _tuned(run, bench)
    elif deploy.is_optimizer(tower):
        rows, facts = _itself(run, tower, bench)
    else:
        rows, facts = Learning(run, tower, bench, folder).perform()
    spent = bench.ledger.spent(*BUDGETED)
    common = {
        "budget": repr(request.budget),
        "spent": spent,
        "base step": base_flops(tower.task),
        "repeatable": request.budget.unit == "base steps",
    }
    rows += [*bench.ledger.rows(), row("training", "peak bytes", process_peak())]
    tell("done", 1.0)
    return {"rows": rows, "facts": common | facts}


def _tuned(run: Run, bench: Bench) -> tuple[list[Row], dict[str, Any]]:
    """A hand-made rule, or the best of some, with step size and schedule searched for the whole budget."""
    rules, task = [_rule(text, bench.task) for text in run.rules], bench.task
    found = bench.kept.numbers("search", lambda: _searched(run, rules, bench))
    bench.ledger.add("search", Work(found["gradients"], (found["work"],)), found["seconds"])
    chosen, start = _rule(found["setting"], task), next((rule for rule in rules if repr(rule) == "adam"), rules[0])
    rows = reported("start", "start", start, _settings(start, task), bench)
    rows += reported("chosen", "chosen", chosen, _settings(chosen, task), bench)
    rows += use_rows(chosen, _settings(chosen, task), bench)
    familiar, known_facts = known_rows(bench, set())
    facts = {"steps": 0, "chosen": 0, "setting": found["setting"], "tried": found["tried"], "ended": found["ended"]}
    return rows + familiar, facts | known_facts


def _searched(run: Run, rules: list[Optimizer], bench: Bench) -> dict[str, Any]:
    request, began = bench.request, time.process_time()
    in_seconds = request.budget.unit == "seconds"
    hand_made = [rule for rule in rules if isinstance(rule, HandMade)]
    first: list[float] = []

    def over() -> bool:
        first.append(time.process_time())  # the clock starts with the first run; what is loaded before is not charged
        return in_seconds and first[-1] - first[0] >= request.budget.amount

    found = search(
        hand_made,
        bench.task.on("validation"),
        bench.key("select"),
        steps=request.steps,
        budget=1e15 if in_seconds else request.budget.amount,
        method=request.search,
        seed=run.seed,
        tell=lambda what, fraction: bench.tell(what, LEARNING * fraction),
        work=bench.work,
        over=over,
    )
    return {
        "setting": found.setting,
        "tried": len(found.scores),
        "ended": found.ended,
        "gradients": found.gradients,
        "work": found.work,
        "seconds": time.process_time() - began,
    }


def _itself(run: Run, tower: Tower, bench: Bench) -> tuple[list[Row], dict[str, Any]]:
    """A tower that is an optimizer: nothing to train."""
    lived = lived_work(deploy.alone(tower))
    work = lived.start.plus(lived.step, bench.request.steps + 1 - tower.depth)
    rows: list[Row] = []
    for split in SPLITS:
        losses = bench.afresh(tower, split, run.seed, work)
        rows += results("chosen", split, losses)
    rows += curve("chosen", "report", losses)  # the last of the splits

    def make(steps: int) -> None:
        task, one = bench.task.on("test"), bench.key("report")[:1]
        deploy.run_afresh(tower, task, 1, steps + tower.depth, seed=run.seed, params=None, key=one)

    rows.append(row("use", "work of a step", sum(lived.step.optimizer)))
    rows.append(row("use", "seconds of a step", bench.seconds_of_step(make)))
    familiar, known_facts = known_rows(bench, set())
    return rows + familiar, {"steps": 0, "chosen": 0, "setting": str(tower), "ended": ""} | known_facts


def _rule(text: str, task: Task) -> Optimizer:
    """The optimizer that a notation describes."""
    return parse(f"{task!r}: {text}").levels[0].optimizer


def _settings(rule: Optimizer, task: Task) -> Tensor:
    """Parameters ``[1, m]`` of a hand-made rule: as it is set."""
    return rule.over(task.layout).init_params(keys.seed(0, device=task.layout.device))[None]
