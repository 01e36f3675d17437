"""Does what a tower learned beat tuned hand-made optimizers on problems that it never saw?

    evaluation = evaluate(tower, states)              # or one state
    print(evaluation.scenarios[0].comparisons[0].verdict)

Training problems train, validation problems tune the baselines' step sizes, test problems are reported on. All
optimizers of a scenario run on the same test problems with the same minibatches, so differences are paired.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from levels import keys
from levels.fields import require
from levels.tasks.task import Task
from recursion.evaluation.baselines import BASELINES, MEASURES, Tuned, tune
from recursion.evaluation.deploy import Subject, require_counts, run
from recursion.evaluation.statistics import Estimate, Values, difference, estimate
from recursion.tower import Tower, TowerState

OURS = "this tower"
LONG = 10  # the long scenario has this many times the steps, a quarter of the test and half of the tuning problems
Progress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One optimizer by one measure, over all problems (and training seeds)."""

    mean: Estimate
    diverged: int  # runs in which some loss was not finite
    runs: int
    step_size: float | None  # as tuned for this measure; None for what was learned


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Loss against steps, the start first: median and quartiles over all runs."""

    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One optimizer in one scenario. ``curve``: with the step size tuned for the mean loss."""

    name: str
    measures: dict[str, Measured]
    curve: Curve


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was learned against the baseline with the lowest mean on these very problems: the strictest choice."""

    measure: str
    baseline: str
    difference: Estimate  # learned less baseline, paired by problem
    share_lower: float  # of problems (and training seeds) on which the learned one is lower
    verdict: str  # lower than, higher than, or no difference shown: only if the interval excludes 0


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One family of held-out problems for a number of steps; ``results``: what was learned first."""

    label: str
    task: str
    steps: int
    problems: int
    results: tuple[Result, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """All numbers of an evaluation, with the measures ``final`` and ``mean`` of `recursion.evaluation.baselines`.

    ``base_steps`` counts task gradients of each copy, by purpose: ``deployment`` (getting what was learned out of a
    deep tower), ``tuning`` (of baselines), ``runs`` (on test problems).
    """

    tower: str
    training_seeds: int  # resampled for the intervals if more than one
    seed: int
    scenarios: tuple[Scenario, ...]
    refused: dict[str, str]  # scenarios that what was learned does not fit, and why
    base_steps: dict[str, int]

    def __repr__(self) -> str:
        lines = [f"  {each.label}, {one.measure} loss: {one.verdict}"
                 for each in self.scenarios for one in each.comparisons]  # fmt: skip
        return "\n".join([f"Evaluation of {self.tower}", *lines])

    def to_json(self) -> str:
        """JSON text; numbers that are infinite (a run diverged) become null."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=1, allow_nan=False)


def held_out(who: str, tower: Tower, states: Sequence[TowerState], on: Task | None, **counts: int | None) -> Task:
    """The family of problems to report on: ``on``, or the tower's. Raises ValueError or TypeError in the name of
    ``who`` if ``counts`` are out of range, ``states`` is empty, or the family has no splits."""
    require_counts(f"{who}: ", **counts)
    require(len(states) >= 1, f"{who}: states is empty; give one trained state for each training seed")
    family = tower.task if on is None else on
    if not isinstance(family, Task):
        raise TypeError(f"{who}: a task with held-out splits is needed, got {family!r}")
    return family


def evaluate(
    tower: Tower, states: TowerState | Sequence[TowerState], *, on: Task | None = None, seed: int = 0,
    problems: int = 64, tuning: int = 16, steps: int = 100, windows: int | None = None, transfer: bool = True,
    progress: Progress | None = None,
) -> Evaluation:  # fmt: skip
    """Compare what the tower learned with tuned baselines on held-out problems.

    ``states``: of this tower after training, one, or one for each training seed; copies in one are averaged. ``on``:
    another family than the tower's. ``problems``: test problems a scenario. ``tuning``: validation problems for each
    baseline's step size; with too few it diverges on some test problem, which flatters what was learned. ``steps``:
    base steps a run. ``windows``: see `deploy.learned`. ``transfer``: also the task's variants, and runs 10 times as
    long. ``progress`` is called with the present activity and the fraction done. Raises ValueError or TypeError for
    arguments that do not fit; NonFiniteError if a tower below diverges.
    """
    states = [states] if isinstance(states, TowerState) else states
    family = held_out("evaluate", tower, states, on, problems=problems, tuning=tuning, steps=steps, windows=windows)
    tell = progress or (lambda _what, _fraction: None)
    tell("deploying what was learned", 0.0)
    subject = Subject.of(tower, states, windows=windows, seed=seed)
    require(on is None or not subject.misfit(family), f"evaluate: {subject.misfit(family)}")
    plans = [_Plan("the task itself", family, steps, problems, tuning)]
    if transfer:
        plans += [plans[0]._replace(label=label, task=variant) for label, variant in family.variants().items()]
        few = max(1, problems // 4), max(1, tuning // 2)
        plans.append(_Plan(f"{LONG * steps} steps", family, LONG * steps, *few))
    refused = {plan.label: why for plan in plans if (why := subject.misfit(plan.task))}
    plans = [plan for plan in plans if plan.label not in refused]
    spent = {"deployment": subject.base_steps, "tuning": 0, "runs": 0}
    done = list(accumulate((plan.steps * (plan.problems + plan.tuning) for plan in plans), initial=0))
    scenarios = []
    for plan, start, end in zip(plans, done, done[1:]):

        def within(what: str, fraction: float, start: int = start, end: int = end) -> None:
            tell(what, (start + fraction * (end - start)) / done[-1])

        scenarios.append(_scenario(subject, plan, seed, spent, within))
    tell("done", 1.0)
    return Evaluation(tower=repr(tower), training_seeds=len(subject.sizes), seed=seed,
                      scenarios=tuple(scenarios), refused=refused, base_steps=spent)  # fmt: skip


class _Plan(NamedTuple):
    label: str
    task: Task
    steps: int
    problems: int
    tuning: int


def _scenario(subject: Subject, plan: _Plan, seed: int, spent: dict[str, int], tell: Progress) -> Scenario:
    tell(f"{plan.label}: {OURS}", 0.0)
    test = plan.task.on("test")
    ours, key, cost = subject.losses(test, plan.problems, plan.steps, seed)
    spent["runs"] += cost
    results = [_result(OURS, dict.fromkeys(MEASURES, ours), subject.sizes, None, seed)]
    theirs: dict[str, dict[str, Tensor]] = {}
    validation_key = keys.split(keys.fold_in(keys.seed(seed, device=key.device), 1), plan.tuning)
    for number, (name, optimizer) in enumerate(BASELINES.items(), 1):
        tell(f"{plan.label}: tuning {name}", number / (len(BASELINES) + 1))
        tuned = tune(optimizer, plan.task, validation_key, plan.steps)
        losses = run(optimizer, tuned.params, test, key, plan.steps)
        theirs[name] = {measure: losses[:, i : i + 1] for i, measure in enumerate(MEASURES)}
        results.append(_result(name, theirs[name], [1], tuned, seed))
        spent["tuning"] += tuned.base_steps
        spent["runs"] += losses.numel()
    comparisons = []
    for measure in MEASURES:
        best = min(results[1:], key=lambda result: result.measures[measure].mean.value).name
        gap = difference(_values(measure, ours, subject.sizes), _values(measure, theirs[best][measure], [1]))
        estimated, share = estimate(gap, seed=seed), float((gap < 0).mean())
        words = {-1: f"lower than {best}", 0: f"no difference from {best} shown", 1: f"higher than {best}"}
        comparisons.append(Comparison(measure=measure, baseline=best, difference=estimated, share_lower=share,
                                      verdict=words[estimated.sign]))  # fmt: skip
    return Scenario(label=plan.label, task=repr(plan.task), steps=plan.steps, problems=plan.problems,
                    results=tuple(results), comparisons=tuple(comparisons))  # fmt: skip


def _result(name: str, losses: dict[str, Tensor], sizes: list[int], tuned: Tuned | None, seed: int) -> Result:
    """``losses`` by the measure that they were tuned for; ``sizes``: copies of each training seed."""
    measures = {}
    for measure, run_losses in losses.items():
        finite, step_size = torch.isfinite(run_losses).all(0), None if tuned is None else tuned.step_sizes[measure]
        estimated = estimate(_values(measure, run_losses, sizes), seed=seed)
        diverged, runs = int((~finite).sum()), finite.numel()
        measures[measure] = Measured(mean=estimated, diverged=diverged, runs=runs, step_size=step_size)
    drawn = losses["mean"].double().cpu().numpy()
    quartiles = np.quantile(drawn, (0.25, 0.5, 0.75), axis=(1, 2), method="inverted_cdf")
    low, median, high = (tuple(float(f"{value:.6g}") for value in row) for row in quartiles)
    return Result(name=name, measures=measures, curve=Curve(low=low, median=median, high=high))


def _values(measure: str, losses: Tensor, sizes: list[int]) -> Values:
    """Losses ``[steps + 1, S, P]`` as ``[seeds, P]``: the mean over the copies of each training seed."""
    values = torch.split(MEASURES[measure](losses).double(), sizes)
    return np.asarray(torch.stack([copies.mean(0) for copies in values]).cpu().numpy())


def _plain(value: Any) -> Any:
    """Nested data in which numbers that JSON cannot write are None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
