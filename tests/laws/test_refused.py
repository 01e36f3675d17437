"""What cannot work is refused when a tower is built: in a sentence, with the level, the reason and the way out."""

import re

import pytest
import torch
from parts import LSTM, MOMENTUM, SMALL
from torch import nn

from levels import Accumulated, Augmented, DigitsMLP, Forward, HeldOut, Mixture, ModuleTask, Quadratic, Rosenbrock
from recursion import Tower
from recursion.notation import parse

E, F = "gradient=exact", "gradient=forward"
FIRST_OR_PES = "use gradient=first-order or gradient=pes"
MOVES = "has a gradient whose derivative is not what differences of it say"
CUT = "cuts derivatives: its value has another one than its gradient...gradient=first-order"
FITS = "multiple of the unroll 20 and at most the horizon 100, got"
UNTRAINED = "is the topmost: nothing is trained by what it looks ahead to; leave"
REFUSED = {  # '...' stands for anything; the task is a quadratic if none is written
    # Exact gradients.
    f"parts.BlackBox@2[{E}] / sgd": "level 1 ...cannot be differentiated by exact; let it be the topmost level",
    f"parts.Numpy@2[{E}] / sgd": "level 1 ...cannot be differentiated twice ...; use another optimizer",
    f"parts.Detached: sgd@2[{E}] / sgd": f"level 1 ...{CUT}",
    f"parts.Stored: sgd@2[{E}] / sgd": f"level 1 ...{MOVES}...gradient=first-order",
    f"parts.Cut: sgd@2[{E}] / sgd": f"level 1 ...{CUT}",
    f"parts.Once: sgd@2[{E}] / sgd": "level 1 ...gradient that cannot be differentiated by exact; use gradient=first-order",
    f"sgd@2[gradient=pes] / sgd@2[{E}] / sgd": "level 2 ...the level below, ...pes... cannot be differentiated by exact",
    f"parts.Stored: sgd@2 / sgd(0.1)@2[{E}] / sgd": f"level 2 ...{MOVES}",
    # Forward mode.
    f"lstm(hidden=20)@2[{F}] / sgd": f"at most 64, and lstm has 5141; {FIRST_OR_PES}",
    f"{MOMENTUM}@2[gradient=forward(limit=1)] / sgd": f"at most 1, and sgd... has 2; {FIRST_OR_PES}",
    f"parts.BlackBox@2[{F}] / sgd": "BlackBox... cannot be differentiated by forward; ... by gradient=pes",
    f"parts.Numpy@2[{F}] / sgd": "Numpy... cannot be differentiated ... gradient=pes",
    f"parts.BlackBox@2 / sgd@2[{F}] / sgd": "BlackBox... cannot be differentiated",
    f"sgd@2[horizon=4, gradient=pes] / sgd@2[{F}] / sgd": f"sgd... by forward; {FIRST_OR_PES}",
    f"sgd@2[{F}] / sgd@2[{F}] / sgd": f"the level below, sgd... by forward; {FIRST_OR_PES}",
    f"sgd@2[{F}] / sgd@2[{E}] / sgd": f"the level below, sgd... by exact; {FIRST_OR_PES}",
    f"parts.Once: sgd@2[{F}] / sgd": f"Once... has a gradient that cannot be differentiated by forward; {FIRST_OR_PES}",
    **{f"parts.{task}: sgd@2[{F}] / sgd": f"{task}... cuts derivatives...{FIRST_OR_PES}" for task in ("Detached", "Cut")},
    f"parts.Stored: sgd@2[{F}] / sgd": f"Stored... {MOVES}...{FIRST_OR_PES}",
    # Windows that look ahead.
    "sgd@2[ahead=4]": f"level 1 (sgd@2[ahead=4]) {UNTRAINED} ahead out",
    "sgd@2 / adam[ahead=4]": f"level 2 ...{UNTRAINED} ahead out",
    "sgd@4[ahead=3] / adam": "ahead must be at least the unroll 4, or none, got 3",
    "sgd@4[ahead=0] / adam": "ahead must be a whole number of at least 1, or none, got 0",
    "sgd@4[ahead=4.5] / adam": "ahead...got 4.5",
    "sgd@5[gradient=bootstrapped] / adam": "after its window of 5; set ahead=20",
    "sgd@5[ahead=5, gradient=bootstrapped(exact)] / adam": "after its window of 5; set ahead=20",
    "sgd@5[ahead=9, gradient=bootstrapped(pes)] / adam": "bootstrapped: through must be ..., got pes",
    "sgd@2[ahead=9, gradient=bootstrapped(forward)] / adam": "through must be ..., got forward",
    "torch(adafactor, lr=log(0.1))@2[ahead=9, gradient=bootstrapped] / adam": "cannot be differentiated by first-order; ...gradient=pes",
    f"sgd@2[ahead=4, gradient=bootstrapped(exact)] / sgd@2[{E}] / adam": "level 2 ...the level below, ...bootstrapped... cannot be differentiated by exact; use",
    "sgd@2[gradient=pes] / sgd@2[ahead=3, gradient=bootstrapped(exact)] / adam": "level 2 ...the level below, ...pes... cannot be differentiated by exact; use",
    # The look-ahead chosen online.
    "sgd@2[gradient=online([])] / adam": "one or more whole numbers of at least 1, in rising order, got []",
    "sgd@2[gradient=online([4, 2])] / adam": "in rising order, got [4, 2]; write [1, 4, 16]",
    "sgd@2[gradient=online([2, 2])] / adam": "in rising order, got [2, 2]",
    "sgd@2[gradient=online([0, 2])] / adam": "online: candidates must be a list, each a whole number of at least 1, got [0, 2]",
    "sgd@2[gradient=online([2, 4.5])] / adam": "whole number",
    "sgd@2[gradient=online([2], every=0)] / adam": "every must be a whole number of at least 1, got 0",
    "sgd@2[gradient=online([2], decay=1.0)] / adam": "decay must be a number between 0 and 1, got 1.0",
    "sgd@2[gradient=online([2], through=pes)] / adam": "online: through must be first-order or exact, got pes",
    "sgd@4[gradient=online([2, 8])] / adam": "cannot look 2 updates ahead in a window of 4; begin the",
    "sgd@2[ahead=4, gradient=online([2, 8])] / adam": "and the level says ahead=4; leave ahead out",
    "sgd@2 / adam[gradient=online([1, 8])]": f"{UNTRAINED} onl",
    "sgd@2[gradient=online([2, 4])] / parts.BlackBox@2[gradient=online([2, 4])] / sgd": "cannot be differentiated by first-order",
    "sgd@2[gradient=online([2, 4])] / sgd@2[gradient=online([2, 4], through=exact)] / sgd": "has a gradient that cannot be differentiated by exact",
    # Evolution, mixtures and accumulated gradients.
    "lstm@20[gradient=pes, horizon=none] / adam": "pes sums noise over a trajectory, ... set horizon=100, or use truncated-es",
    "lstm[gradient=es-single] / adam": "this one never restarts; set horizon=5",
    "lstm@20[gradient=full-es] / adam": "full-es needs windows as long as the horizon 100, got 20; set horizon=20",
    "lstm@20[gradient=evolution(noise=30)] / adam": f"{FITS} 30",
    "lstm@20[gradient=evolution(noise=120)] / adam": f"{FITS} 120",
    "lstm@20[gradient=nres, stagger=false] / adam": "set stagger=true, or use es-single",
    "lstm@20[gradient=pes(sigma=0)] / adam": "pes: sigma must be a number above 0, got 0",
    "lstm@20[gradient=pes(pairs=0)] / adam": "pes: pairs must be a whole number of at least 1, got 0",
    "lstm@20[gradient=evolution(noise=0)] / adam": "noise must be one of window, episode, or a whole number of at least 1, got 0",
    "lstm@20[gradient=mix(first-order, full-es)] / adam": "full-es needs windows as long",
    "torch(Adafactor, lr=log(0.1))@20[gradient=mix(first-order, pes)] / adam": "cannot be differentiated",
    "torch(Adafactor, lr=log(0.1))@20 / adam": "cannot be differentiated",
    "lstm@20[gradient=mix(first-order, pes, decay=1)] / adam": "mix: decay must be a number between 0 and 1, got 1",
    "sgd@2[gradient=accumulated(copies=0)] / adam": "accumulated: copies must be a whole number of at least 1, got 0",
}  # fmt: skip


def words(message: str) -> str:
    return ".*".join(map(re.escape, message.split("...")))


@pytest.mark.parametrize(("text", "message"), REFUSED.items())
def test_a_tower(text, message):
    with pytest.raises((TypeError, ValueError), match=words(message)):
        parse(text if ": " in text else f"quadratic: {text}")


@pytest.mark.parametrize("gradients", [
    "pes / exact", "forward / exact", "es-single / first-order / exact", "forward / first-order / exact",
    "truncated-es / forward", "bootstrapped / forward",
])  # fmt: skip
def test_what_cannot_be_differentiated_however_deep(gradients):
    below, *_ = each = gradients.split(" / ")
    levels = [f"sgd@2[horizon=4, gradient={g}{', ahead=4' * (g == 'bootstrapped')}]" for g in each]
    what = f"level {len(each)} ...the level below, ...{below}... cannot be differentiated by"
    with pytest.raises(ValueError, match=words(what)):
        parse(f"{SMALL}{' / '.join(levels)} / sgd")
    parse(SMALL + " / ".join(levels))  # nothing is differentiated at the topmost level


@pytest.mark.parametrize("levels", [
    "parts.BlackBox@2[gradient=exact]", "parts.Numpy@2[gradient=exact]",
    f"start(sgd)@2[{F}] / sgd", f"{LSTM}@2[{F}] / sgd",
    f"sgd@2[clip=0.1] / sgd@2[{F}] / sgd@2 / sgd", f"sgd@2[{F}] / sgd@2[horizon=4, gradient=pes] / sgd",
])  # fmt: skip
def test_towers_that_work_are_not_refused(levels):
    parse(SMALL + levels)


@pytest.mark.parametrize("task", ["Detached", "Stored", "Cut", "Once"])
def test_a_task_that_only_the_top_moves_need_not_be_differentiated(task):
    parse(f"parts.{task}: sgd@2[{E}]")


DIGITS = DigitsMLP()
NO_DATA = "has no data that could be held out; its splits are other problems; use a task on data, as digits-mlp"
SET, OTHER = "held-out: set split, dtype and device on the held-out", "counts other data than it trains on"
PARTS = [
    *((lambda limit=limit: Forward(limit=limit), "...limit must be a whole number of at least 1")
      for limit in (0, 1.5, True, "many")),
    (lambda: Accumulated(through=None), "accumulated: through must be first-order or exact, got none"),
    *((lambda task=task: HeldOut(task), f"held-out: {task} {NO_DATA}")
      for task in (Quadratic(), Rosenbrock(), Mixture((Quadratic(),)), Augmented(Quadratic()))),
    (lambda: HeldOut(ModuleTask(make=lambda: nn.Linear(1, 1), loss_function=nn.functional.mse_loss,
                                train=(torch.zeros(1, 1),) * 2)),
     "module: there is no validation data; pass validation="),
    (lambda: HeldOut(HeldOut(DIGITS, dtype="float64")), f"{SET}, not"),
    (lambda: HeldOut(HeldOut(DIGITS)), f"held-out: held-out...{OTHER}"),
    (lambda: HeldOut(DigitsMLP(split="test")), SET),
    (lambda: HeldOut(DIGITS, split="test"), "held-out: ...it is the bare task; use digits-mlp"),
    (lambda: HeldOut("digits"), "held-out: task: unknown task 'digits' (did you mean digits-mlp?)"),
    (lambda: Augmented(HeldOut(DIGITS)), f"augmented: held-out...{OTHER}"),
    (lambda: Mixture((DIGITS, HeldOut(DIGITS))), f"mixture: held-out...{OTHER}"),
    (lambda: parse("held-out(quadratic): lstm@20 / adam"), f"task (held-out...: held-out: quadratic {NO_DATA[:26]}"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), PARTS, ids=[message[:60] for _, message in PARTS])
def test_a_part(make, message):
    with pytest.raises(ValueError, match=f"^{words(message)}") as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_tower_without_its_top_does_not_look_ahead():
    tower = parse("quadratic(dims=2): sgd@2 / adam@2[ahead=4] / adam")
    assert repr(tower.under()) == "quadratic(dims=2): sgd@2 / adam@2[horizon=none]"
    with pytest.raises(ValueError, match="leave ahead out"):
        Tower(tower.task, *tower.levels[:-1])
    tower = parse("quadratic: sgd@2 / adam@2[gradient=online([2, 4])] / sgd").under()
    assert repr(tower) == "quadratic: sgd@2 / adam@2[horizon=none]"
    tower.step(tower.init(seed=0))
