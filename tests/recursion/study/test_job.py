"""One run of an ablation: what it costs, what it reports, and that being killed changes nothing."""

import dataclasses
import json
from pathlib import Path

import pytest
from jobs import LEARNED, done, repeated, tiny, values
from torch import Tensor

from levels import Adam, keys
from levels.base import Optimizer
from levels.restart import NonFiniteError
from levels.tasks.task import Task
from recursion.evaluate.baselines import mean_loss
from recursion.evaluate.deploy import learned, run
from recursion.notation import parse
from recursion.study.job import perform
from recursion.study.problems import Met

ENDLESS = "quadratic(4): lstm(hidden=4)@4[batch=2, horizon=none] / adam"


class Killed(Exception):
    """As if somebody had ended the process."""


def direct(optimizer: Optimizer, params: Tensor, task: Task, count: int, steps: int = 10) -> Tensor:
    """Mean losses ``[P]`` on the reported problems, by `recursion.evaluate.deploy.run` alone."""
    losses = run(optimizer, params, task.on("test"), keys.split(keys.seed(0), count), steps)
    return mean_loss(losses).double().mean(0)


@pytest.mark.parametrize(("depth", "budget"), [(2, "4e4"), (3, "2.5e5")])
def test_what_is_spent_is_the_budget_to_within_one_step(tmp_path: Path, depth: int, budget: str):
    request = tiny(depths=(depth,), budget=budget)
    _, found = done(request, tmp_path)
    facts, amount = found["facts"], request.budget.amount
    assert amount - 2 * facts["work of a step"] < facts["spent"] <= amount + 0.1 * facts["work of a step"]
    stages = ("training", "selection", "deployment")
    parts = [sum(values(found, stage, measure)) for stage in stages for measure in ("task gradients", "optimizer work")]
    assert sum(parts) == pytest.approx(facts["spent"])
    assert (sum(values(found, "deployment", "task gradients")) > 0) == (depth > 2)


def test_every_copy_that_was_learned_is_used_and_paid_for(tmp_path: Path):
    tower = "quadratic(4): lstm(hidden=4)@4[batch=2] / adam@1[batch=3]"
    request = tiny(tower, budget="6e4")
    _, found = done(request, tmp_path)
    assert request.budget.amount - 2 * found["facts"]["work of a step"] < found["facts"]["spent"] <= 6e4
    assert values(found, "selection", "task gradients") == [3 * 3 * request.select * (request.steps + 1)]
    assert len(values(found, "chosen", "mean loss", "report")) == request.problems


def test_training_counts_the_gradients_that_the_tower_says_it_costs(tmp_path: Path):
    tower = parse(ENDLESS)
    _, found = done(tiny(ENDLESS), tmp_path)
    copies, start = 2, 2 * (1 + 4)
    assert values(found, "training", "task gradients") == [start + found["facts"]["steps"] * tower.base_steps * copies]


def test_snapshots_are_spread_evenly_and_the_best_is_chosen(tmp_path: Path):
    _, found = done(tiny(snapshots=4), tmp_path)
    steps = [row[4] for row in found["rows"] if row[0] == "snapshot"]
    assert len(steps) == 4
    assert steps[-1] == found["facts"]["steps"]
    gaps = [b - a for a, b in zip([0, *steps], steps)]
    assert max(gaps) - min(gaps) <= 2
    scores = dict(zip(steps, values(found, "snapshot", "mean loss")))
    assert found["facts"]["chosen"] == min(scores, key=lambda step: scores[step])
    chosen = values(found, "chosen", "mean loss", "select")
    assert sum(chosen) / len(chosen) == pytest.approx(min(scores.values()), rel=1e-6)


@pytest.mark.parametrize("depth", [2, 3])
def test_what_is_reported_is_what_the_tower_learned_run_directly(tmp_path: Path, depth: int):
    request = tiny(depths=(depth,), budget="2.5e5", snapshots=1)
    ours, found = done(request, tmp_path)
    tower = parse(ours.tower)
    start = tower.init(ours.seed)
    state, _ = list(tower.run(start, found["facts"]["chosen"]))[-1]
    for stage, at in (("start", start), ("chosen", state)):
        params = learned(tower, at, seed=ours.seed).params
        expected = direct(tower.levels[0].optimizer, params, tower.task, request.problems)
        assert values(found, stage, "mean loss", "report") == pytest.approx(expected.tolist(), rel=1e-5)


def test_all_runs_report_on_the_same_problems(tmp_path: Path):
    request = tiny(depths=(1, 2), budget="4e4", baseline=True, seeds=2)
    starts = set()
    for number in range(len(request.runs())):
        _, found = done(request, tmp_path, number)
        starts.add(values(found, "chosen", "median loss", "report")[0])
        assert len(values(found, "chosen", "mean loss", "report")) == request.problems
    assert len(starts) == 1  # where all begin, whatever then moves them


def test_a_seed_is_a_run_and_another_seed_is_another(tmp_path: Path):
    request = tiny(seeds=2)
    (_, first), (_, again), (_, other) = (
        done(request, tmp_path / name, number) for name, number in (("a", 0), ("b", 0), ("c", 1))
    )
    assert repeated(first) == repeated(again)
    assert values(first, "chosen", "mean loss", "report") != values(other, "chosen", "mean loss", "report")
    assert json.loads(json.dumps(first)) == first


@pytest.mark.parametrize(
    ("tower", "depth", "budget"),
    [(LEARNED, 2, "1e4"), pytest.param(LEARNED, 3, "2e5", marks=pytest.mark.slow), (ENDLESS, 1, "1e4")],
)
def test_killed_at_any_call_and_continued_it_ends_the_same(tmp_path: Path, tower: str, depth: int, budget: str):
    request, calls = tiny(tower, depths=(depth,), budget=budget), []
    _, whole = done(request, tmp_path / "whole", tell=lambda what, _fraction: calls.append(what))
    for last in {*range(1, len(calls), max(1, len(calls) // 8)), len(calls)}:
        left = [last]

        def tell(_what: str, _fraction: float, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        with pytest.raises(Killed):
            done(request, tmp_path / str(last), tell=tell)
        assert repeated(done(request, tmp_path / str(last))[1]) == repeated(whole)


@pytest.mark.parametrize("where", ["asked", "began"])
def test_interrupted_within_a_step_and_continued_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
):
    """What a half step asked for must not be saved with the state before it."""
    request, plain, calls = tiny(budget="1e4"), getattr(Met, where), [0, 0]

    def interrupted(met: Met, *args: object) -> object:
        calls[0] += 1
        if calls[0] == calls[1]:
            raise KeyboardInterrupt
        return plain(met, *args)

    monkeypatch.setattr(Met, where, interrupted)
    _, whole = done(request, tmp_path / "whole")
    count = calls[0]
    for last in range(2, count, max(1, count // 5)):
        calls[:] = 0, last
        with pytest.raises(KeyboardInterrupt):
            done(request, tmp_path / str(last))
        calls[:] = 0, 0
        assert repeated(done(request, tmp_path / str(last))[1]) == repeated(whole)


def test_a_tower_that_is_an_optimizer_is_run_on_the_very_same_problems(tmp_path: Path):
    request = tiny("quadratic(4): adam(lr=0.1)", depths=(1,), grid=(("lr", ("0.1", "0.3")),))
    ours, found = done(request, tmp_path)
    tower = parse(ours.tower)
    optimizer = tower.levels[0].optimizer
    params = optimizer.bind(tower.task.layout).init(keys.seed(0))[None]
    expected = direct(optimizer, params, tower.task, request.problems)
    assert ours.kind == "tower"
    assert found["facts"]["steps"] == 0
    assert values(found, "chosen", "mean loss", "report") == pytest.approx(expected.tolist(), rel=1e-5)
    assert values(found, "reporting", "task gradients") == [(6 + 4 + 2) * 11]
    assert found["facts"]["spent"] == 0
    assert values(found, "use", "seconds of a step")[0] > 0


def test_a_search_costs_its_budget_at_most_and_beats_the_default(tmp_path: Path):
    request = tiny("quadratic(4): adam", depths=(1,), budget="3e4")
    ours, found = done(request, tmp_path)
    assert ours.kind == "search"
    assert 0 < found["facts"]["spent"] <= 3e4
    assert sum(values(found, "search", "task gradients")) > 0
    start, chosen = (values(found, stage, "mean loss", "report") for stage in ("start", "chosen"))
    assert sum(chosen) < sum(start)
    params = Adam().bind(parse(ours.tower).task.layout).init(keys.seed(0))[None]
    expected = direct(Adam(), params, parse(ours.tower).task, request.problems)
    assert start == pytest.approx(expected.tolist(), rel=1e-6)


def test_a_guard_does_about_as_well_as_the_better_of_both(tmp_path: Path):
    """After so little training the learned rule is the worse one, and most runs end as the fallback's."""
    request = tiny(budget="1e4", steps=60)
    _, found = done(request, tmp_path)
    guarded, chosen = (values(found, stage, "mean loss", "report") for stage in ("guarded", "chosen"))
    assert sum(guarded) < sum(chosen)
    assert sum(values(found, "guarded", "rescued", "report")) >= 3


def test_a_training_that_diverges_uses_the_snapshots_it_has(tmp_path: Path):
    tower = "quadratic(4): lstm(hidden=4)@4[batch=2] / sgd(lr=1.0)"
    request = tiny(tower, budget="1e5", snapshots=30, steps=5, select=1, problems=2)
    _, found = done(request, tmp_path)
    assert "not finite" in found["facts"]["ended"]
    assert found["facts"]["snapshots"]
    assert found["facts"]["chosen"] in found["facts"]["snapshots"]
    assert found["facts"]["steps"] < 50
    with pytest.raises(NonFiniteError, match="not finite"):
        done(dataclasses.replace(request, snapshots=1), tmp_path / "none")


def test_a_budget_that_buys_too_little_is_refused_in_a_sentence(tmp_path: Path):
    with pytest.raises(ValueError, match=r"a budget of 1000 base steps buys 0 top steps of .*give it .* or more"):
        done(tiny(budget="1000"), tmp_path)


def test_a_folder_of_another_run_is_refused(tmp_path: Path):
    request = tiny(seeds=2)
    first, second = request.runs()
    perform(first, request, tmp_path, lambda what, fraction: None)
    with pytest.raises(ValueError, match="holds a run of something else"):
        perform(second, request, tmp_path, lambda what, fraction: None)


def test_seconds_are_spent_and_said_not_to_repeat(tmp_path: Path):
    _, found = done(tiny(budget="0.4s"), tmp_path)
    spent = [row[6] for row in found["rows"] if row[0] == "training" and row[5] == "seconds" and row[2] is None]
    assert 0.3 <= spent[0] <= 1.0
    _, searched = done(tiny("quadratic(4): adam", depths=(1,), budget="0.4s"), tmp_path)
    assert searched["facts"]["tried"] > 1


def test_progress_never_goes_back(tmp_path: Path):
    told: list[float] = []
    done(tiny(depths=(3,), budget="2e5"), tmp_path, tell=lambda what, fraction: told.append(fraction))
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert 0 < told[1] < 0.2
