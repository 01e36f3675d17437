"""Studies with known answers: what `tower ablate` would have written, had its trainings come out as planted."""

from dataclasses import dataclass, field

import numpy as np

from recursion.study import records
from recursion.study.findings import Findings
from recursion.study.results import load

START = 2.0  # mean loss at the start of training
ABOUT = {
    "version": "0.1.0", "torch": "2.13.0", "python": "3.11.2", "machine": "x86_64, 2 cores", "threads": 1,
    "started": "2026-11-24T09:00:00+00:00", "seconds": 65.0,
}  # fmt: skip


@dataclass
class Planted:
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


def write_study(folder, request, plant, *, argv=("tower", "ablate", "...")):
    folder.mkdir(parents=True, exist_ok=True)
    records.begin(folder, request, list(argv))
    for run in request.runs():
        planted = plant(run)
        if planted.status == "done":
            facts = {"steps": 320, "chosen": 256, "setting": run.tower, "budget": repr(request.budget)}
            rows = [list(row) for row in _rows(run, request, planted)]
            records.finish(folder, run, {"rows": rows, "facts": facts, "about": ABOUT})
        elif planted.status == "failed":
            records.finish(folder, run, {"why": planted.why})
    return folder


def findings_of(folder, request, plant):
    return Findings(load(write_study(folder, request, plant)))


def _rows(run, request, planted):
    generator = np.random.default_rng([run.seed, *run.cell.encode()])
    seed_effect = generator.normal(0.0, planted.seeds)
    for split, count in (("train", request.select), ("select", request.select), ("report", request.problems)):
        problems = np.random.default_rng(len(split)).normal(0.0, planted.spread, count)  # the same for all runs
        noise = generator.normal(0.0, planted.noise, (2, count))
        chosen = planted.loss * planted.gains.get(split, 1.0) * np.exp(problems + seed_effect + noise[0])
        fell_back = (np.arange(count) < planted.rescued * count) & (split == "report")
        stages = {"chosen": chosen, "guarded": np.where(fell_back, np.minimum(chosen, 0.7), chosen)}
        stages |= {"start": START * np.exp(problems + noise[1])} if run.kind == "tower" else {}
        for stage, losses in stages.items():
            for problem, loss in enumerate(losses):
                yield stage, split, None, problem, None, "mean loss", loss
                yield stage, split, None, problem, None, "final loss", loss / 5
                if stage == "guarded":
                    yield stage, split, None, problem, None, "rescued", float(fell_back[problem])
    steps = np.arange(request.steps + 1)
    curve = planted.exact_curve or planted.loss / 5 + 2.3 * np.exp(-planted.rate * np.exp(seed_effect) * steps)
    for step, loss in enumerate(curve):
        for name, factor in (("median loss", 1.0), ("lower quartile", 0.9), ("upper quartile", 1.12)):
            yield "chosen", "report", None, None, step, name, loss * factor
    yield from _costs(run, planted, generator)


def _costs(run, planted, generator):
    below = range(1, (run.depth or 1) + 1)
    stages = {"search" if run.kind == "search" else "training": 0.85, "selection": 0.1, "reporting": 0.2}
    for name, part in (stages | ({"deployment": 0.05} if len(below) > 2 else {})).items():
        yield name, None, 0, None, None, "task gradients", planted.gradients * part
        for level in below:
            yield name, None, level, None, None, "optimizer work", (2e6 - planted.gradients) * part / 2**level
        yield name, None, None, None, None, "seconds", 65 * part
    for level in below if run.kind == "tower" else ():
        yield "training", None, level, None, None, "seconds", 50 / 2**level
        yield "training", None, level, None, None, "peak bytes", 3e7 / level
        for step in range(0, 320, 8):
            loss = 0.4 * level + np.exp(-step / 60) + generator.normal(0, 0.02)
            yield "training", "train", level, None, step, "loss", loss
    for step in range(64, 321, 64) if run.kind == "tower" else ():
        yield "snapshot", "select", None, None, step, "mean loss", planted.loss * (1 + np.exp(-step / 60))
    yield "training", None, None, None, None, "peak bytes", 4.1e8
    yield "chosen", None, None, None, 256, "chosen", 1.0
    yield "use", None, None, None, None, "work of a step", planted.work
    yield "use", None, None, None, None, "seconds of a step", planted.step_seconds
    yield "reporting", "report", None, None, None, "problems trained on", float(planted.trained_on)
