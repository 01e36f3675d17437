"""Training is stepping, stops with whole states, and goes on from them as if it had not stopped."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pytest
import torch
from towers import SMALL, assert_same, metrics

from levels import SGD, Adam, Level, NonFiniteError, Quadratic, Skip
from recursion import Tower, checkpoint
from recursion.notation import parse
from recursion.training import train

TOWERS = {
    "depth 1": Tower(Quadratic(dims=3), Level(optimizer=SGD(momentum=0.9, lr=0.01), unroll=2, batch=3, horizon=4)),
    "unrolls 1": parse("quadratic(dims=3): sgd@1 / sgd"),
    "views": parse("quadratic(dims=50): sgd(lr=1e-4)@1 / sgd"),  # its state begins as views, which round differently
    "restarts": parse(SMALL),
    "depth 3": parse(
        "quadratic(dims=3): lstm(hidden=4, layers=1)@4[batch=2, horizon=8] / lstm(hidden=3)@2[horizon=4] / adam"
    ),
    "digits": parse("digits-mlp(hidden=[3], minibatch=8): adam@2[batch=2, horizon=4] / sgd"),
}
STEPS = 6


@dataclass(frozen=True, repr=False)
class Fragile(Quadratic):
    """Does something at its n-th evaluation."""

    name = "fragile"
    calls: ClassVar[int] = 0
    at: ClassVar[tuple[int, ...]] = ()
    error: ClassVar[BaseException | None] = None

    def value_and_grad(self, params, state):
        Fragile.calls += 1
        value, grad, state = super().value_and_grad(params, state)
        if Fragile.calls in Fragile.at:
            if Fragile.error is not None:
                raise Fragile.error
            value = value * torch.nan
        return value, grad, state


@pytest.fixture
def fragile():
    """Sets at which evaluations and how the task breaks; None for a loss that is not a number."""

    def arm(*at, error=None):
        Fragile.calls, Fragile.at, Fragile.error = 0, at, error

    yield arm
    arm()


FRAGILE = Tower(Fragile(dims=3), Level(optimizer=SGD(lr=0.01), unroll=3, batch=2), Level(optimizer=Adam()))


@pytest.mark.parametrize("name", TOWERS)
def test_resuming_equals_an_uninterrupted_run(name, tmp_path):
    tower = TOWERS[name]
    whole = train(tower, steps=STEPS, seed=3, out=tmp_path / "whole")
    assert int(whole.step) == STEPS
    for stop in range(1, STEPS):
        out = tmp_path / str(stop)
        train(tower, steps=stop, seed=3, out=out)
        assert_same(train(tower, steps=STEPS, seed=3, out=out, resume=True), whole)
        assert_same(checkpoint.load(out / "checkpoint.safetensors", tower).state, whole)
        assert metrics(out) == metrics(tmp_path / "whole")


def test_training_is_stepping(tmp_path):
    tower, seen = parse(SMALL), []
    states, reports = zip(*tower.run(tower.init(3), STEPS))
    assert_same(train(tower, steps=STEPS, seed=3, out=tmp_path / "a" / "b", on_report=seen.append), states[-1])
    assert seen == list(reports)
    assert metrics(tmp_path / "a" / "b") == [
        {"step": r.step, "losses": r.losses, "skipped": r.skipped, "base_steps": 5 * r.step} for r in reports
    ]


def test_tensorboard_events_hold_every_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(parse(SMALL), steps=2, seed=0, out=tmp_path)
    train(parse(SMALL), steps=4, seed=0, out=tmp_path, resume=True)
    events = EventAccumulator(str(tmp_path)).Reload()
    losses = [event.value for event in events.Scalars("loss/level 2")]
    assert losses == pytest.approx([line["losses"][1] for line in metrics(tmp_path)])
    assert len(losses) == 4


def test_without_tensorboard_there_are_no_events(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(parse(SMALL), steps=2, seed=0, out=tmp_path)
    assert len(metrics(tmp_path)) == 2
    assert not list(tmp_path.glob("events*"))


def test_what_parts_report_is_written_under_metrics(tmp_path):
    reports = []
    train(
        parse("quadratic: depth(sgd@2[batch=2] / sgd@2) / sgd"), steps=2, seed=0, out=tmp_path, on_report=reports.append
    )
    assert [line["metrics"] for line in metrics(tmp_path)] == [dict(report.metrics) for report in reports]
    assert list(reports[0].metrics) == ["level 2 gate"]


@pytest.mark.parametrize("at", [1, 2, 5, 6, 7, 12, 18])
def test_an_interrupt_inside_a_step_keeps_the_last_whole_state(at, tmp_path, fragile):
    whole = train(FRAGILE, steps=STEPS, seed=1, out=tmp_path / "whole")
    fragile(at, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(FRAGILE, steps=STEPS, seed=1, out=tmp_path / "stopped")
    path = tmp_path / "stopped" / "checkpoint.safetensors"
    startup = 1 + 3
    if at <= startup:
        assert not path.exists()
    else:
        assert int(checkpoint.load(path, FRAGILE).state.step) == (at - startup - 1) // 3
    assert_same(train(FRAGILE, steps=STEPS, seed=1, out=tmp_path / "stopped", resume=True), whole)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


@pytest.mark.parametrize(("error", "sentence"), [
    (None, r"level 1 .* at top step 3"), (RuntimeError("broken"), "broken"),
], ids=["not finite", "broken"])  # fmt: skip
def test_an_error_keeps_the_last_good_state(error, sentence, tmp_path, fragile):
    plain = partial(train, FRAGILE, steps=STEPS, seed=1, compile=False)
    whole = plain(out=tmp_path / "whole")
    fragile(12, error=error)
    with pytest.raises(NonFiniteError if error is None else RuntimeError, match=sentence):
        plain(out=tmp_path / "stopped")
    assert int(checkpoint.load(tmp_path / "stopped" / "checkpoint.safetensors", FRAGILE).state.step) == 2
    assert_same(plain(out=tmp_path / "stopped", resume=True), whole)


def test_a_run_that_stopped_goes_on_skipping(tmp_path, fragile):
    skipping = Tower(FRAGILE.task, *(dataclasses.replace(level, nonfinite=Skip()) for level in FRAGILE.levels))
    fragile(12)
    with pytest.raises(NonFiniteError):
        train(FRAGILE, steps=STEPS, seed=1, out=tmp_path, compile=False)
    fragile(6)  # the template's start takes four
    train(skipping, steps=STEPS, seed=1, out=tmp_path, resume=True, compile=False)
    assert [line["skipped"] for line in metrics(tmp_path)] == [[0, 0]] * 2 + [[2, 0]] * 4
    assert json.loads((tmp_path / "spec.json").read_text())["levels"][0]["nonfinite"]["name"] == "skip"


def test_an_interrupt_between_steps_keeps_that_step(tmp_path):
    def stop(report):
        if report.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(parse(SMALL), steps=STEPS, seed=0, out=tmp_path, on_report=stop)
    assert int(checkpoint.load(tmp_path / "checkpoint.safetensors").state.step) == 4


@pytest.mark.parametrize(("every", "steps"), [(0.0, [0, 1, 2]), (1000.0, [0, 0, 0])])
def test_checkpoints_come_by_the_clock(every, steps, tmp_path):
    """A step is saved after it was reported."""
    saved = []
    look = lambda report: saved.append(int(checkpoint.load(tmp_path / "checkpoint.safetensors").state.step))  # noqa: E731
    train(parse(SMALL), steps=3, seed=0, out=tmp_path, every=every, on_report=look)
    assert saved == steps


def test_a_folder_with_a_run_is_refused_unless_resuming(tmp_path):
    train(parse(SMALL), steps=2, seed=0, out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for tower, seed, resume, sentence in (
        (SMALL, 0, False, r"already holds a run; resume it \(--resume\) or choose another"),
        (SMALL, 1, True, r"holds a run with seed 0, got seed 1; resume it with its own"),
        ("quadratic: sgd", 0, True, r"is of the tower 'quadratic\(dims=3\): lstm.*not of 'quadratic: sgd'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            train(parse(tower), steps=3, seed=seed, out=tmp_path, resume=resume)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_resuming_a_finished_run_does_nothing_and_says_so(tmp_path):
    notices, reports = [], []
    done = train(parse(SMALL), steps=3, seed=0, out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for steps in (2, 3):
        again = train(parse(SMALL), steps=steps, seed=0, out=tmp_path, resume=True,
                      on_notice=notices.append, on_report=reports.append)  # fmt: skip
        assert_same(again, done)
    assert notices == [f"{tmp_path} is already at step 3 of {steps}; nothing left to train" for steps in (2, 3)]
    assert reports == []
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_resuming_where_there_is_nothing_begins(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")  # killed before its first checkpoint
    state = train(parse(SMALL), steps=2, seed=0, out=tmp_path, resume=True)
    assert_same(state, train(parse(SMALL), steps=2, seed=0, out=tmp_path / "other"))
    assert metrics(tmp_path) == metrics(tmp_path / "other")


def test_a_lost_checkpoint_does_not_cost_the_metrics(tmp_path):
    train(parse(SMALL), steps=2, seed=0, out=tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "checkpoint.safetensors").unlink()
    for resume in (True, False):
        with pytest.raises(ValueError, match="holds metrics of a run, and no checkpoint.safetensors; restore that, or"):
            train(parse(SMALL), steps=3, seed=0, out=tmp_path, resume=resume)
    (tmp_path / "checkpoint.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="checkpoint.safetensors is a link to nothing"):
        train(parse(SMALL), steps=3, seed=0, out=tmp_path, resume=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("tail", ['{"step": 3, "losses": [1', '{"step": 3}\n{"step": 4}\n', "nonsense\n", "[]\n"])
def test_metrics_beyond_the_checkpoint_are_cut(tail, tmp_path):
    train(parse(SMALL), steps=2, seed=0, out=tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(tail)
    train(parse(SMALL), steps=3, seed=0, out=tmp_path, resume=True)
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3]


def test_missing_metrics_and_other_threads_are_noticed(tmp_path):
    notices, threads = [], torch.get_num_threads()
    train(parse(SMALL), steps=3, seed=0, out=tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    try:
        torch.set_num_threads(threads + 1)
        train(parse(SMALL), steps=4, seed=0, out=tmp_path, resume=True, on_notice=notices.append)
    finally:
        torch.set_num_threads(threads)
    assert f"threads {threads}, updates accelerated, it goes on with" in notices[0]
    assert f"threads {threads + 1}, updates accelerated: last digits may differ" in notices[0]
    assert notices[1:] == [f"{tmp_path / 'metrics.jsonl'} has no lines for steps 1 to 3"]
    assert [line["step"] for line in metrics(tmp_path)] == [4]


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"steps": 2.5}, {"steps": True}, {"seed": 2**63}, {"seed": "0"}, {"every": -1.0}], ids=str
)
def test_settings_out_of_range_are_refused(wrong, tmp_path):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} must be"):
        train(parse(SMALL), **{"steps": 1, "seed": 0, "out": tmp_path / "new", **wrong})
    assert not (tmp_path / "new").exists()


def test_a_folder_in_use_is_refused(tmp_path):
    def nested(report):
        with pytest.raises(ValueError, match="is being trained by another process"):
            train(parse(SMALL), steps=9, seed=0, out=tmp_path, resume=True)
        seen.append(report.step)

    seen: list[int] = []
    train(parse(SMALL), steps=2, seed=0, out=tmp_path, on_report=nested)
    assert seen == [1, 2]
