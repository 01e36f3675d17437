"""One run of a study: what it costs, what it reports, and that being killed changes nothing."""

import dataclasses
import json

import pytest
from jobs import LEARNED, done, repeated, tiny, values

from levels import Adam, keys
from levels.faults import NonFiniteError
from recursion.analysis.work import own_work
from recursion.evaluation.baselines import mean_loss
from recursion.evaluation.deploy import learned, run
from recursion.notation import parse
from recursion.study import records
from recursion.study.findings import Findings
from recursion.study.job import perform
from recursion.study.learning import profile
from recursion.study.problems import Met
from recursion.study.results import ABOUT, load

ENDLESS = "quadratic(4): lstm(hidden=4)@4[batch=2, horizon=none] / adam"
MAML = "start(sgd(lr=fixed(0.01)))@10[horizon=10, objective=last, batch=4] / adam(lr=0.05)"


class Killed(Exception):
    """As if the process had been ended."""


def direct(optimizer, task, count, params=None, steps=10):
    """Mean losses ``[P]`` on the reported problems, by `recursion.evaluation.deploy.run` alone."""
    params = optimizer.bind(task.layout).init(keys.seed(0))[None] if params is None else params
    losses = run(optimizer, params, task.on("test"), keys.split(keys.seed(0), count), steps)
    return mean_loss(losses).double().mean(0).tolist()


@pytest.fixture(scope="module", params=[(2, "4e4"), (3, "2.5e5")], ids=str)
def ran(request, tmp_path_factory):
    """A request of one run, the run, its rows and facts, and how far it said that it was."""
    (depth, budget), fractions = request.param, []
    asked = tiny(depths=(depth,), budget=budget, snapshots=4)
    found = done(asked, tmp_path_factory.mktemp("ran"), tell=lambda what, fraction: fractions.append(fraction))
    return asked, *found, fractions


def test_what_is_spent_is_the_budget_to_within_one_step_and_progress_never_goes_back(ran):
    request, run, rows, facts, fractions = ran
    amount = request.budget.amount
    assert amount - 2 * facts["work of a step"] < facts["spent"] <= amount + 0.1 * facts["work of a step"]
    stages = ("training", "selection", "deployment")
    parts = [sum(values(rows, stage, measure)) for stage in stages for measure in ("task gradients", "optimizer work")]
    assert sum(parts) == pytest.approx(facts["spent"])
    assert (sum(values(rows, "deployment", "task gradients")) > 0) == (run.depth > 2)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert 0 < fractions[1] < 0.2


def test_snapshots_are_spread_evenly_and_the_best_is_chosen(ran):
    _, run, rows, facts, _ = ran
    steps = [row[4] for row in rows if row[0] == "snapshot"]
    assert len(steps) == (4 if run.depth == 2 else 1)  # deeper, their use would take over half of the budget
    assert steps[-1] == facts["steps"]
    gaps = [b - a for a, b in zip([0, *steps], steps)]
    assert max(gaps) - min(gaps) <= 2
    scores = dict(zip(steps, values(rows, "snapshot", "mean loss")))
    assert facts["chosen"] == min(scores, key=lambda step: scores[step])
    chosen = values(rows, "chosen", "mean loss", "select")
    assert sum(chosen) / len(chosen) == pytest.approx(min(scores.values()), rel=1e-6)


def test_what_is_reported_is_what_the_tower_learned_run_directly(ran):
    request, run, rows, facts, _ = ran
    tower = parse(run.tower)
    start = tower.init(run.seed)
    *_, (state, _) = tower.run(start, facts["chosen"])
    for stage, at in (("start", start), ("chosen", state)):
        params = learned(tower, at, seed=run.seed).params
        expected = direct(tower.levels[0].optimizer, tower.task, request.problems, params)
        assert values(rows, stage, "mean loss", "report") == pytest.approx(expected, rel=1e-5)


def test_every_copy_that_was_learned_is_used_and_paid_for(tmp_path):
    request = tiny("quadratic(4): lstm(hidden=4)@4[batch=2] / adam@1[batch=3]", budget="6e4")
    _, rows, facts = done(request, tmp_path)
    assert request.budget.amount - 2 * facts["work of a step"] < facts["spent"] <= 6e4
    assert values(rows, "selection", "task gradients") == [3 * 3 * request.select * (request.steps + 1)]
    assert len(values(rows, "chosen", "mean loss", "report")) == request.problems


def test_training_counts_the_gradients_that_the_tower_says_it_costs(tmp_path):
    _, rows, facts = done(tiny(ENDLESS), tmp_path)
    copies, start = 2, 2 * (1 + 4)
    gradients = start + facts["steps"] * parse(ENDLESS).base_steps * copies
    assert values(rows, "training", "task gradients") == [gradients]


def test_all_runs_report_on_the_same_problems_and_another_seed_is_another_run(tmp_path):
    request = tiny(depths=(1, 2), budget="4e4", baseline=True, seeds=2)
    every = [done(request, tmp_path, number)[1] for number in range(len(request.runs()))]
    assert json.loads(json.dumps(every)) == every
    reported = [values(rows, "chosen", "mean loss", "report") for rows in every]
    assert {len(losses) for losses in reported} == {request.problems}
    assert len({values(rows, "chosen", "median loss", "report")[0] for rows in every}) == 1  # where all begin
    one, other = (losses for run, losses in zip(request.runs(), reported) if run.kind == "tower")
    assert one != other


@pytest.mark.parametrize(("tower", "depth", "budget"), [
    (LEARNED, 2, "1e4"), pytest.param(LEARNED, 3, "2e5", marks=pytest.mark.slow), (ENDLESS, 1, "1e4"),
])  # fmt: skip
def test_killed_at_any_call_and_continued_it_ends_the_same(tmp_path, tower, depth, budget):
    request, calls = tiny(tower, depths=(depth,), budget=budget), []
    _, whole, _ = done(request, tmp_path / "whole", tell=lambda what, _fraction: calls.append(what))
    for last in {*range(1, len(calls), max(1, len(calls) // 8)), len(calls)}:
        left = iter(range(last - 1))

        def tell(_what, _fraction, left=left):
            if next(left, None) is None:
                raise Killed

        with pytest.raises(Killed):
            done(request, tmp_path / str(last), tell=tell)
        assert repeated(done(request, tmp_path / str(last))[1]) == repeated(whole)


@pytest.mark.parametrize("where", ["asked", "began"])
def test_interrupted_within_a_step_and_continued_it_ends_the_same(tmp_path, monkeypatch, where):
    """What a half step asked for must not be saved with the state before it."""
    request, plain, calls = tiny(budget="1e4"), getattr(Met, where), [0, 0]

    def interrupted(*args):
        calls[0] += 1
        if calls[0] == calls[1]:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(Met, where, interrupted)
    _, whole, _ = done(request, tmp_path / "whole")
    count = calls[0]
    for last in range(2, count, max(1, count // 5)):
        calls[:] = 0, last
        with pytest.raises(KeyboardInterrupt):
            done(request, tmp_path / str(last))
        calls[:] = 0, 0
        assert repeated(done(request, tmp_path / str(last))[1]) == repeated(whole)


def test_a_tower_that_is_an_optimizer_is_run_on_the_very_same_problems(tmp_path):
    request = tiny("quadratic(4): adam(lr=0.1)", depths=(1,), grid=(("lr", ("0.1", "0.3")),))
    ours, rows, facts = done(request, tmp_path)
    tower = parse(ours.tower)
    expected = direct(tower.levels[0].optimizer, tower.task, request.problems)
    assert (ours.kind, facts["steps"], facts["spent"]) == ("tower", 0, 0)
    assert values(rows, "chosen", "mean loss", "report") == pytest.approx(expected, rel=1e-5)
    assert values(rows, "reporting", "task gradients") == [(6 + 4 + 2) * 11]
    assert values(rows, "use", "seconds of a step")[0] > 0
    with pytest.raises(ValueError, match="holds a run of something else"):
        perform(request.runs()[1], request, tmp_path / ours.id, lambda what, fraction: None)


def test_a_search_costs_its_budget_at_most_and_beats_the_default(tmp_path):
    request = tiny("quadratic(4): adam", depths=(1,), budget="3e4")
    ours, rows, facts = done(request, tmp_path)
    assert ours.kind == "search"
    assert 0 < facts["spent"] <= 3e4
    assert sum(values(rows, "search", "task gradients")) > 0
    start, chosen = (values(rows, stage, "mean loss", "report") for stage in ("start", "chosen"))
    assert sum(chosen) < sum(start)
    assert start == pytest.approx(direct(Adam(), parse(ours.tower).task, request.problems), rel=1e-6)


def test_a_guard_does_about_as_well_as_the_better_of_both(tmp_path):
    """After so little training the learned optimizer is the worse one, and most runs end as the fallback's."""
    _, rows, _ = done(tiny(budget="1e4", steps=60), tmp_path)
    guarded, chosen = (values(rows, stage, "mean loss", "report") for stage in ("guarded", "chosen"))
    assert sum(guarded) < sum(chosen)
    assert sum(values(rows, "guarded", "rescued", "report")) >= 3


def test_a_training_that_diverges_uses_the_snapshots_it_has_and_a_budget_that_buys_none_is_refused(tmp_path):
    tower = "quadratic(4): lstm(hidden=4)@4[batch=2] / sgd(lr=1.0)"
    request = tiny(tower, budget="1e5", snapshots=30, steps=5, select=1, problems=2)
    _, _, facts = done(request, tmp_path)
    assert "not finite" in facts["ended"]
    assert facts["chosen"] in facts["snapshots"]
    assert facts["steps"] < 50
    with pytest.raises(NonFiniteError, match="not finite"):
        done(dataclasses.replace(request, snapshots=1), tmp_path / "none")
    with pytest.raises(ValueError, match=r"a budget of 1000 base steps buys 0 top steps of .*give it .* or more"):
        done(tiny(budget="1000"), tmp_path / "poor")


def test_seconds_are_spent_and_shared_by_level(tmp_path):
    _, rows, _ = done(tiny(budget="0.4s"), tmp_path / "tower")
    seconds = {row[2]: row[6] for row in rows if row[0] == "training" and row[5] == "seconds"}
    assert 0.3 <= seconds[None] <= 1.0
    assert sum(value for level, value in seconds.items() if level is not None) == pytest.approx(seconds[None])
    assert values(rows, "training", "peak bytes")[-1] > 1e7  # of the whole process
    assert done(tiny("quadratic(4): adam", depths=(1,), budget="0.4s"), tmp_path / "search")[2]["tried"] > 1


def test_a_profile_says_the_same_work_as_a_count_and_shares_that_are_all():
    tower = parse("quadratic(4): lstm(hidden=4)@4[batch=2] / lstm(hidden=3)@2 / adam")
    measured = profile(tower)
    assert tuple(measured["work"]) == own_work(tower)
    assert len(measured["shares"]) == 1 + tower.depth
    assert sum(measured["shares"]) == pytest.approx(1.0)
    assert min(measured["shares"]) >= 0


def test_bytes_of_a_level_grow_with_its_own_unroll_only():
    """And by as much for each update: what the pullback of an update keeps."""
    towers = (parse(f"quadratic(8): lstm(hidden=8)@{unroll}[batch=4] / adam") for unroll in (4, 8, 16, 4))
    one, two, four, again = (profile(tower)["bytes"] for tower in towers)
    assert (four[0] - two[0]) == pytest.approx(2 * (two[0] - one[0]), rel=0.05)
    assert one[1] == two[1] == four[1]
    assert one == again


def findings_of(request, folder):
    records.begin(folder, request)
    for each in request.runs():
        result = perform(each, request, folder / each.id, lambda what, fraction: None)
        records.finish(folder, each, result | {"about": dict.fromkeys(ABOUT, 0)})
    return Findings(load(folder))


def test_a_start_that_knows_one_problem_sets_the_alarm_off(tmp_path):
    """Chosen, too, by the one problem that it was trained on: only the report can tell."""
    request = tiny(f"few(quadratic, validation=same): {MAML}", budget="2e4", problems=16, select=4)
    (alarm,) = findings_of(request, tmp_path).alarms
    assert alarm.startswith("depth 2 improves on train problems")
    assert "but not on report problems" in alarm


@pytest.mark.parametrize("task", ["quadratic", "few(quadratic, 64)"])
def test_a_step_size_that_was_learned_does_not(task, tmp_path):
    tower = f"{task}: sgd(lr=1e-3)@10[horizon=10, objective=last, batch=16] / adam(lr=0.1)"
    findings = findings_of(tiny(tower, budget="3e4", problems=16, select=16), tmp_path)
    assert findings.alarms == []
    assert findings.gaps[0].gains["report"].sign > 0
