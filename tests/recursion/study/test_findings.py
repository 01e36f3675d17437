"""Findings of studies whose answers are known."""

import dataclasses
import math
import re

import numpy as np
import pytest
from synthetic import Planted, findings_of

from recursion.evaluation.statistics import interquartile_mean
from recursion.study.comparing import gain as gain_of
from recursion.study.request import Budget, Request

TOWER = "quadratic: lstm(hidden=4)@5 / lstm(hidden=4)@2 / adam"
SMALL = Request(tower=TOWER, depths=(1, 2, 3), seeds=4, problems=16, select=12, steps=20, budget=Budget(amount=2e6))
TWO = dataclasses.replace(SMALL, tower="quadratic: lstm(hidden=4)@5 / adam", depths=(2,), seeds=3)
VALUES = ("1e-3", "1e-2", "1e-1", "1", "1e1", "1e2", "1e3")
HEIGHTS = Request(
    tower="quadratic: sgd@1 / ... / sgd", depths=(1, 2, 3), grid=(("lr*", VALUES),), seeds=2, problems=8, select=4,
    steps=20, baseline=False,
)  # fmt: skip
LOSS = {1: 0.5, 2: 0.4, 3: 0.4, None: 0.45}
DIVERGED = "level 2 (lstm@5): gradient is not finite at top step 41; lower its learning rate or clip it"


def by_depth(**changed):
    """Depth 2 is better than depth 1 and no worse than depth 3."""
    return lambda run: dataclasses.replace(Planted(loss=LOSS[run.depth]), **changed)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return findings_of(tmp_path_factory.mktemp("sound"), SMALL, by_depth())


def test_the_table_holds_interquartile_means_of_report_problems(sound):
    assert [line.cell.label for line in sound.lines] == ["depth 1", "depth 2", "depth 3", "tuned baseline"]
    line = sound.lines[1]
    losses = line.cell.losses("chosen", "report", "mean loss")
    assert losses.shape == (4, 16)
    assert line.losses["mean loss"].value == interquartile_mean(losses.to_numpy().reshape(-1))
    assert line.losses["mean loss"].low < 0.4 < line.losses["mean loss"].high
    assert line.losses["final loss"].value == pytest.approx(line.losses["mean loss"].value / 5)


def test_a_level_that_pays_and_one_that_does_not(sound):
    pairs = {(each.ours.depth, each.factor): each for each in sound.comparisons}
    assert pairs[2, "depth"].verdict == "another level pays"
    assert pairs[2, "depth"].main.difference.value == pytest.approx(-0.1, abs=0.02)
    assert pairs[2, "depth"].main.improvement.value == 1.0
    assert pairs[3, "depth"].verdict == "not shown that another level pays"
    assert [pairs[d, "tuned baseline"].verdict for d in (1, 2, 3)] == ["worse", "better", "better"]
    first, second, third = sound.answer
    assert re.search(r"going from depth 1 to 2 lowers the mean loss by (19|20)\.\d% \[1\d\.\d%, 2\d\.\d%\]", first)
    assert "going from depth 2 to 3 shows no difference" in first
    assert "lower than the tuned baseline's" in second
    assert third.startswith("No alarm")


def test_differences_are_paired_by_problem_and_seed(tmp_path):
    """The same noise in both cells cancels: the difference is known far better than either loss."""
    request = dataclasses.replace(TWO, depths=(1, 2), seeds=4, baseline=False)
    plant = lambda run: Planted({1: 0.5, 2: 0.49}[run.depth], spread=0.5, seeds=0.0, noise=0.001)  # noqa: E731
    findings = findings_of(tmp_path, request, plant)
    one, two = (line.losses["mean loss"] for line in findings.lines)
    assert two.high > one.low
    assert findings.comparisons[0].sign == -1


def test_a_diverged_run_counts_as_the_worst_and_another_failure_is_left_out(tmp_path):
    failed = {"depth-3-seed-2": DIVERGED, "depth-2-seed-1": "MemoryError"}
    planted = {run: Planted(status="failed", why=why) for run, why in failed.items()}
    findings = findings_of(tmp_path, SMALL, lambda run: planted.get(run.id) or by_depth()(run))
    two, three = (line.cell.losses("chosen", "report") for line in findings.lines[1:3])
    assert list(two.index) == [0, 2, 3]
    assert list(three.index) == [0, 1, 2, 3]
    assert np.isinf(three.loc[2]).all()
    assert np.isfinite(findings.lines[2].losses["mean loss"].value)
    assert findings.lines[2].losses["mean loss"].high == math.inf
    diverged = {run: why == DIVERGED for run, why in failed.items()}
    assert dict(zip(findings.failed.run, findings.failed.diverged)) == diverged
    pair = findings.lines[2].lower
    assert (pair.main.seeds, pair.lacking) == ((0, 2, 3), 1)
    assert pair.main.improvement.value < 0.8


def test_the_alarm_fires_on_an_overfitted_optimizer_and_not_on_a_sound_one(tmp_path, sound):
    assert sound.alarms == []
    assert all(abs(gap.gap) < 0.1 for gap in sound.gaps)
    overfitted = Planted(loss=2.0, gains={"train": 0.2, "select": 1.0}, noise=0.05)
    findings = findings_of(tmp_path, SMALL, lambda run: overfitted if run.depth == 3 else by_depth()(run))
    (alarm,) = findings.alarms
    assert alarm.startswith("depth 3 improves on train problems (gain 1.6")
    assert "not on report problems" in alarm
    assert next(gap for gap in findings.gaps if gap.cell.depth == 3).gap == pytest.approx(math.log(5), abs=0.1)
    assert findings.answer[2].startswith("Alarm: depth 3 improves")


@pytest.mark.parametrize(("plant", "alarm"), [
    (by_depth(loss=2.1, gains={"select": 0.5}), r"depth 2 improves on select problems \([^)]*\) but not on report .*"),
    (lambda run: Planted(gains={"select": 0.5} if run.depth == 2 else {}), "select problems prefer depth 2 to depth .*"),
    (lambda run: Planted(trained_on=3 * (run.id == "depth-2-seed-0")),
     "depth 2 was trained on 3 problems of those that are reported"),
])  # fmt: skip
def test_other_alarms(plant, alarm, tmp_path):
    assert any(re.fullmatch(alarm, each) for each in findings_of(tmp_path, SMALL, plant).alarms)


def test_no_alarm_where_report_problems_show_most_of_a_gain_and_only_the_noise_hides_it(tmp_path):
    """Few reported problems, many to select by: the gain is shown on these alone, and is the same."""
    request = dataclasses.replace(SMALL, problems=2, select=64)
    gap = findings_of(tmp_path, request, by_depth(loss=1.9, noise=0.1)).gaps[0]
    assert gap.gains["select"].sign > 0 >= gap.gains["report"].sign
    assert gap.gains["report"].value > gap.gains["select"].value / 2
    assert gap.alarming == []


@pytest.mark.parametrize(("start", "chosen", "gain"), [
    ([2.0, 4.0, np.inf], [1.0, 2.0, np.inf], 2 * math.log(2) / 3),  # of three, none is cut off
    ([-1.0], [-3.0], 1.0),
    ([0.0, 0.0], [0.0, 0.0], 0.0),
])  # fmt: skip
def test_gains_are_logs_of_ratios_and_hold_for_losses_below_zero(start, chosen, gain):
    assert gain_of(np.array([start]), np.array([chosen])).value == pytest.approx(gain)


def test_the_guards_rescues_are_counted(tmp_path):
    findings = findings_of(tmp_path, SMALL, lambda run: Planted(loss=2.0, rescued=0.25))
    guard = next(each for each in findings.guards if each.cell.depth == 2)
    assert (guard.rescued, guard.uses) == (4 * 4, 4 * 16)
    assert guard.guarded.value < guard.bare.value


def curve(reaches, end=0.1):
    """A loss that falls below 0.2 at one step, and to ``end`` after it."""
    return tuple(1.0 if step < reaches else end for step in range(21))


def test_uses_to_break_even_have_a_closed_form(tmp_path):
    def plant(run):
        if run.kind == "search":
            return Planted(work=0.5, gradients=1e6, exact_curve=curve(20, 0.15))
        return Planted(work=1.0, gradients=1.5e6, exact_curve=curve(8 + run.seed, 0.15))

    findings = findings_of(tmp_path, TWO, plant)
    (even,), data = findings.break_even, findings.data
    assert (even.target, even.reached, even.steps) == (0.15, 9.0, 20)
    paid, tuning = (each.costs().loc[1] for each in (data.cells[0], data.baseline))
    saving, unit = 20 * 1.5 - 9 * 2.0, even.units.loc["base steps"]
    assert unit.saving == saving
    assert unit.full == pytest.approx(paid["base steps"] / saving)
    assert unit.uses == pytest.approx((paid["base steps"] - tuning["base steps"]) / saving)
    ends = paid["base steps"] / (saving + 2), paid["base steps"] / (saving - 2)
    assert (unit.full_low, unit.full_high) == pytest.approx(ends)
    assert even.units.saving["task gradients"] == 20 - 9
    assert even.units.full["task gradients"] == pytest.approx(paid["task gradients"] / 11)
    assert even.units.saving["seconds"] == pytest.approx(11 * 1e-3)


@pytest.mark.parametrize(("tuned", "learned", "words"), [
    ({"exact_curve": curve(20, 0.1)}, {"exact_curve": curve(5, 0.12)}, "does not reach the loss"),
    ({"work": 0.0, "exact_curve": curve(10)}, {"work": 5.0, "exact_curve": curve(10)},
     "a use costs as much as the baseline's, or more"),
])  # fmt: skip
def test_never_for_two_reasons(tuned, learned, words, tmp_path):
    (even,) = findings_of(tmp_path, TWO, lambda run: Planted(**tuned if run.kind == "search" else learned)).break_even
    assert even.units.uses["base steps"] == math.inf
    assert even.never == 3
    assert words in even.sentence
    if "work" in learned:
        assert even.units.saving["task gradients"] == 0  # the baseline is there at the same step, and then only goes on


def test_the_robust_range_by_construction(tmp_path):
    """Height h bears h decades to either side; beyond, the loss is 3 times the best, or infinite far above."""

    def plant(run):
        off = math.log10(float(run.factors["lr*"]))
        loss = 0.2 if abs(off) <= run.depth else math.inf if off > 2 else 0.6
        return Planted(loss=loss, spread=0.0, seeds=0.0, noise=0.0, step_seconds=1e-3 * run.depth)

    findings = findings_of(tmp_path, HEIGHTS, plant)
    (each,) = findings.sensitivities
    assert each.factor == "lr*"
    assert each.best == pytest.approx(0.2)
    assert [height.height for height in each.heights] == [1, 2, 3]
    for height in each.heights:
        for ends in height.ranges:
            assert (ends.decades, ends.low, ends.high) == pytest.approx((2 * height.height,) * 3)
            assert ends.open == (height.height == 3)
        assert height.seconds.value == pytest.approx(1e-3 * height.height)
    assert each.heights[2].ranges[0].text == "at least 6"
    assert "1 ms for each level more" in each.slower
    assert not findings.comparisons  # pairs of depths at one step size are not what such a grid is about


def test_a_height_at_which_no_step_size_will_do(tmp_path):
    request = dataclasses.replace(HEIGHTS, depths=(1, 2), grid=(("lr*", VALUES[:2]),))
    findings = findings_of(tmp_path, request, lambda run: Planted(loss=0.2 if run.depth == 2 else 5.0))
    ends = findings.sensitivities[0].heights[0].ranges[1]
    assert math.isnan(ends.decades)
    assert ends.text == "none"


def test_a_mixed_grid_has_a_row_a_cell_and_compares_one_factor_at_a_time(tmp_path):
    request = dataclasses.replace(TWO, depths=(1, 2), seeds=4, grid=(("1.unroll", ("5", "20")),))
    loss = LOSS | {"20": 0.3}
    plant = lambda run: Planted(loss=loss.get(run.factors.get("1.unroll"), LOSS[run.depth]))  # noqa: E731
    findings = findings_of(tmp_path, request, plant)
    assert len(findings.lines) == 4
    pairs = [(each.factor, each.ours.factors, each.theirs.factors) for each in findings.comparisons]
    assert ("1.unroll", {"depth": "2", "1.unroll": "20"}, {"depth": "2", "1.unroll": "5"}) in pairs
    assert ("depth", {"depth": "2", "1.unroll": "20"}, {"depth": "1"}) in pairs
    assert next(each for each in findings.comparisons if each.factor == "1.unroll").verdict == "lower"
    assert "another level" in findings.answer[0]


def test_an_unfinished_study_says_nothing_of_what_is_not_there(tmp_path):
    findings = findings_of(tmp_path, SMALL, lambda run: Planted(status="waiting"))
    assert findings.caveats[0].startswith("This ablation is not finished: 0 of 16 runs done.")
    assert not findings.comparisons
    assert findings.best is None
    assert findings.answer[0] == "No two depths can be compared yet."


def test_the_ledger_adds_up(sound):
    ledger = sound.lines[1].ledger
    stages, rows = ledger.stages, sound.data.rows[sound.data.rows.cell == ledger.cell.label]
    assert list(stages.index) == ["training", "selection", "reporting"]
    assert ledger.paid["base steps"] == pytest.approx(stages["base steps"][["training", "selection"]].sum())
    assert (stages["base steps"] == stages["task gradients"] + stages["optimizer work"]).all()
    rows = rows[(rows.stage == "training") & (rows.measure == "task gradients")]
    assert stages["task gradients"]["training"] == pytest.approx(rows.value.mean())
    assert list(ledger.levels.index) == [1, 2]
    assert tuple(ledger.levels.loc[1, ["seconds", "peak bytes"]]) == pytest.approx((25.0, 3e7))
    assert ledger.paid.seconds == pytest.approx(65 * 0.95)
    assert ledger.peak == pytest.approx(4.1e8)
