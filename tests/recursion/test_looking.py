"""Looking at towers: hyperparameters as numbers, modules of copies, descriptions; mistakes get sentences."""

import pytest
import torch
from torch import nn

from levels import LSTM, SGD, Adam, DigitsMLP, LearnedInit, Level, ModuleTask, Quadratic
from recursion import Tower, load, parse, save, train

INPUTS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


def network():
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def task():
    return ModuleTask(make=network, loss_function=nn.functional.mse_loss, train=(INPUTS, INPUTS.sum(1, keepdim=True)),
                      minibatch=None)  # fmt: skip


def test_hyperparameters_are_those_that_the_rule_reads():
    tower = parse("quadratic: start(sgd(lr=0.01, momentum=0.9))@2[batch=3] / adam(lr=log(0.1, per=tensor))")
    first, second = tower.hypers(tower.init(0))
    assert {name: float(value) for name, value in first.items()} == pytest.approx(
        {"inner.lr": 0.01, "inner.momentum": 0.9}
    )
    assert second["lr"].shape == (tower.bound[0].layout.size,)
    assert torch.allclose(second["lr"], torch.tensor(0.1))
    lstm = parse("quadratic: lstm@2 / adam")
    assert lstm.hypers(lstm.init(0))[0] == {}


def test_the_module_of_a_copy_predicts_what_the_copy_was_trained_to():
    """Its loss is the copy's own, its running statistics are those of the copy; a learned start comes along."""
    tower = Tower(task(), Level(optimizer=LearnedInit(SGD(lr=0.1)), unroll=3, batch=2), Level(optimizer=Adam()))
    *_, (state, _) = tower.run(tower.init(0), 2)
    carry = tower.carries(state)[0]
    for copy in range(2):
        module = tower.module(state, copy)
        assert torch.equal(module[1].running_mean, carry.problem_state.buffers["1.running_mean"][0, copy])
        loss = nn.functional.mse_loss(module(INPUTS), INPUTS.sum(1, keepdim=True))
        assert loss.item() == pytest.approx(carry.f[0, copy].item(), rel=1e-5)
    with pytest.raises(ValueError, match="copy must be from 0 to 1, got 2"):
        tower.module(state, 2)
    digits = Tower(DigitsMLP(), Level(optimizer=SGD()))
    with pytest.raises(ValueError, match="digits-mlp is not over a module; ModuleTask and LoaderTask are"):
        digits.module(digits.init(0))


def test_a_description_says_what_trains_what():
    assert parse("quadratic: lstm(hidden=2)@5[batch=3] / adam").describe().splitlines() == [
        "task: quadratic, 10 parameters",
        "level 1: lstm(hidden=2) on the task; 3 copies, 5 updates a window, 5 task gradients; 83 parameters, "
        "trained by first-order",
        "level 2: adam on the 83 parameters of level 1; 1 copy, 1 update a window, 5 task gradients; 4 parameters, fixed",
    ]


def test_what_people_need_is_offered_in_one_place(tmp_path):
    tower = parse("quadratic: sgd@2[batch=2] / adam")
    state = train(tower, steps=2, seed=0, out=tmp_path / "run")
    save(tmp_path / "one", tower, state, seed=0)
    assert torch.equal(load(tmp_path / "one").state.theta, state.theta)


LEVEL = Level(optimizer=SGD())
MISTAKES = {
    "rules for levels": (lambda: Tower(Quadratic(), LSTM(), Adam()),
                         r"level 1 must be a Level, got lstm; write Level\(optimizer=LSTM\(...\)\)"),
    "a class": (lambda: Tower(Quadratic(), Adam), r"level 1 must be a Level, .*; write Level\(optimizer=Adam\(...\)\)"),
    "torch's": (lambda: Tower(Quadratic(), torch.optim.Adam), r"write Level\(optimizer=TorchOptim\('Adam'\)\)"),
    "a list": (lambda: Tower(Quadratic(), [LEVEL]), r"give levels one by one: Tower\(task, \*levels\)"),
    "a module": (lambda: Tower(nn.Linear(2, 2), LEVEL), r"a tower stands on a task, got Linear.*; wrap it: ModuleTask\("),
    "text": (lambda: Tower("quadratic: adam"), r"a tower stands on a task, got 'quadratic: adam'; write recursion.parse\("),
    "nothing": (lambda: Tower(Quadratic()), "a tower needs at least one level, got none; add an optimizer"),
    "a number": (lambda: Tower(Quadratic(), 3), r"level 1 must be a Level, got 3; write Level\(optimizer=..., unroll=20\)"),
    "a state of less height": (lambda: parse("quadratic: sgd / sgd / sgd").step(parse("quadratic: sgd / sgd").init(0)),
                               "a tower of 3 levels under 1 parameters steps a state that it made, got that of another"),
    "of other sizes": (lambda: parse("quadratic: adam").step(parse("quadratic: sgd").init(0)), "got that of another tower"),
    "no state": (lambda: parse("quadratic: adam").step(None), "steps a state that it made, got NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_by_one_sentence(mistake):
    make, sentence = MISTAKES[mistake]
    with pytest.raises((TypeError, ValueError), match=sentence):
        make()
