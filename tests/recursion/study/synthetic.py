"""Studies with known answers: what `tower ablate` would have written, had its trainings come out as told."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recursion.study import records
from recursion.study.request import Request, Run

START = 2.0  # mean loss at the start of training


@dataclass
class Told:
    """How a run came out. ``loss``: mean loss on report problems. ``gains``: by what factor train and select are better
    or worse than that. ``rate``: of its curve at use. ``work``: of an update at use, in base steps."""

    loss: float = 0.5
    gains: dict[str, float] = field(default_factory=dict)
    rate: float = 0.05
    work: float = 0.2
    step_seconds: float = 1e-3
    gradients: float = 1e6
    spread: float = 0.05  # of problems, relative
    seeds: float = 0.02  # of seeds
    noise: float = 0.01
    trained_on: int = 0
    rescued: float = 0.0
    status: str = "done"
    why: str = ""
    exact_curve: tuple[float, ...] | None = None


ABOUT = {
    "version": "0.1.0", "torch": "2.13.0", "python": "3.11.2", "machine": "x86_64, 2 cores", "threads": 1,
    "started": "2026-11-24T09:00:00+00:00", "seconds": 65.0,
}  # fmt: skip


def write_study(
    folder: Path, request: Request, tell: Callable[[Run], Told], *, argv: Iterable[str] = ("tower", "ablate", "...")
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    records.begin(folder, request, list(argv))
    for run in request.runs():
        told = tell(run)
        if told.status == "done":
            facts = {"steps": 320, "chosen": 256, "setting": run.tower, "budget": repr(request.budget)}
            rows = [list(row) for row in _rows(run, request, told)]
            records.finish(folder, run, {"rows": rows, "facts": facts, "about": ABOUT})
        elif told.status == "failed":
            records.finish(folder, run, {"why": told.why})
    return folder


def _rows(run, request, told):
    generator = np.random.default_rng([run.seed, *run.cell.encode()])
    seed_effect = generator.normal(0.0, told.seeds)
    for split, count in (("train", request.select), ("select", request.select), ("report", request.problems)):
        problems = np.random.default_rng(len(split)).normal(0.0, told.spread, count)  # the same for all runs
        noise = generator.normal(0.0, told.noise, (2, count))
        chosen = told.loss * told.gains.get(split, 1.0) * np.exp(problems + seed_effect + noise[0])
        start = START * np.exp(problems + noise[1])
        for stage, losses in (("start", start), ("chosen", chosen)):
            if stage == "start" and run.kind == "search":
                continue
            for problem, loss in enumerate(losses):
                yield stage, split, None, problem, None, "mean loss", loss
                yield stage, split, None, problem, None, "final loss", loss / 5
        if split == "report":
            for problem, loss in enumerate(chosen):
                fell_back = problem < told.rescued * count
                yield "guarded", split, None, problem, None, "mean loss", min(loss, 0.7) if fell_back else loss
                yield "guarded", split, None, problem, None, "final loss", loss / 5
                yield "guarded", split, None, problem, None, "rescued", float(fell_back)
    steps = np.arange(request.steps + 1)
    curve = told.exact_curve or tuple(told.loss / 5 + 2.3 * np.exp(-told.rate * np.exp(seed_effect) * steps))
    for step, loss in enumerate(curve):
        yield "chosen", "report", None, None, step, "median loss", loss
        yield "chosen", "report", None, None, step, "lower quartile", loss * 0.9
        yield "chosen", "report", None, None, step, "upper quartile", loss * 1.12
    yield from _costs(run, request, told, generator)


def _costs(run, request, told, generator):
    below = range(1, (run.depth or 1) + 1)
    stage = "search" if run.kind == "search" else "training"
    for name, part in (
        (stage, 0.85),
        ("selection", 0.1),
        ("deployment", 0.05 if len(below) > 2 else 0.0),
        ("reporting", 0.2),
    ):
        yield name, None, 0, None, None, "task gradients", told.gradients * part
        for level in below:
            yield name, None, level, None, None, "optimizer work", (2e6 - told.gradients) * part / 2**level
        yield name, None, None, None, None, "seconds", 65 * part
    if run.kind == "tower":
        for level in below:
            yield "training", None, level, None, None, "seconds", 50 / 2**level
            yield "training", None, level, None, None, "peak bytes", 3e7 / level
            for step in range(0, 320, 8):
                loss = 0.4 * level + np.exp(-step / 60) + generator.normal(0, 0.02)
                yield "training", "train", level, None, step, "loss", loss
        for step in range(64, 321, 64):
            yield "snapshot", "select", None, None, step, "mean loss", told.loss * (1 + np.exp(-step / 60))
    yield "training", None, None, None, None, "peak bytes", 4.1e8
    yield "chosen", None, None, None, 256, "chosen", 1.0
    yield "use", None, None, None, None, "work of a step", told.work
    yield "use", None, None, None, None, "seconds of a step", told.step_seconds
    yield "reporting", "report", None, None, None, "problems trained on", float(told.trained_on)
