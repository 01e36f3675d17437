"""Notation reads back what towers print, and says in one line what is wrong with anything else."""

import random

import pytest
import torch
from torch import nn
from towers import CANONICAL, Odd, random_tower, same

from levels import LSTM, SGD, Adam, DigitsMLP, Fixed, Level, Linear, Log, ModuleTask, Quadratic, Stop
from levels.fields import format_value
from levels.objectives import Discounted, Last, MeanLog, Sum
from recursion.notation import parse
from recursion.spec import dumps, from_spec, loads, to_spec
from recursion.tower import Tower

SPACED = (
    "\n quadratic ( 3 ,dtype = float64 )  :sgd(.5,momentum=none)@ 2 [ objective=discounted ( 0.9 ),"
    "\tgradient=first-order, horizon = auto,stagger=true ]/sgd(lr=linear(-2,per=coordinate)) [] "
)
GIVEN = {
    "digits-mlp: lstm@20 / adam(lr=1e-3)":
        Tower(DigitsMLP(), Level(optimizer=LSTM(), unroll=20), Level(optimizer=Adam(lr=0.001))),
    SPACED:
        Tower(Quadratic(dims=3, dtype="float64"), Level(optimizer=SGD(lr=0.5), unroll=2, objective=Discounted(0.9)),
              Level(optimizer=SGD(lr=Linear(-2, "coordinate")))),
    'digits-mlp(40, "tanh", 7): adam()[ahead=1, objective=last, nonfinite=stop, horizon=none, clip=+1.5E1] / sgd':
        Tower(DigitsMLP(hidden=(40,), activation="tanh", minibatch=7),
              Level(optimizer=Adam(), lookahead=1, objective=Last(), nonfinite=Stop(), horizon=None, clip=15.0),
              Level(optimizer=SGD())),
    "quadratic: levels.optimizers.adam.Adam(1e-2)": Tower(Quadratic(), Level(optimizer=Adam(lr=0.01))),
}  # fmt: skip


@pytest.mark.parametrize("text", CANONICAL)
def test_canonical_text_is_what_the_tower_prints(text):
    assert repr(parse(text)) == text


@pytest.mark.parametrize(("text", "tower"), GIVEN.items())
def test_reads_what_is_meant(text, tower):
    assert same(parse(text), tower)


def test_notation_and_spec_give_a_tower_back():
    rng, texts = random.Random(0), set()
    for tower in (
        *map(parse, CANONICAL),
        *GIVEN.values(),
        *(random_tower(rng) for _ in range(50)),
    ):
        assert same(parse(repr(tower)), tower), repr(tower)
        assert same(from_spec(to_spec(tower)), tower), repr(tower)
        assert to_spec(loads(dumps(tower))) == to_spec(tower)
        texts.add(repr(tower))
    assert len(texts) > 50


def test_a_strangers_part():
    text = (
        "quadratic: towers.Odd(lr=0.1, path=\"data/my \\\"file\\\".csv\", widths=[1, 2], betas=[0, inf], "
        "grid=[[1], [], [2, 3]], objectives=[mean-log, discounted(discount=0.5)], anything=[1, [word, log(1.0)]], "
        "needed=\"true\")"
    )  # fmt: skip
    tower = parse(text)
    odd = tower.levels[0].optimizer
    assert odd.path == 'data/my "file".csv'
    assert odd.widths == [1, 2]
    assert odd.betas == (0, float("inf"))
    assert odd.grid == ((1,), (), (2, 3))
    assert odd.objectives == (MeanLog(), Discounted(0.5))
    assert odd.anything == (1, ("word", Log(1.0)))
    assert odd.needed == "true"
    assert repr(tower) == text
    assert same(parse(repr(tower)), tower)


@pytest.mark.parametrize("text", ["two words", "", "true", "inf", "3", "a.b-c_d", 'q"\\', "ä/b:c", "line\nbreak"])
def test_any_string_survives(text):
    tower = Tower(Quadratic(), Level(optimizer=Odd(path=text, needed=text)))
    assert parse(repr(tower)).levels[0].optimizer.needed == text
    assert same(parse(repr(tower)), tower)
    assert same(from_spec(to_spec(tower), ["towers"]), tower)


def test_what_parts_write():
    assert repr(Fixed(0.9)) == "fixed(0.9)"
    assert repr(Discounted(0.9)) == "discounted"
    assert format_value([1, (2.0, None), True, "a b", Sum()]) == '[1, [2.0, none], true, "a b", sum]'
    assert format_value(torch.zeros(100)) == "<Tensor>"
    level = parse("quadratic: sgd(lr=linear(1))[clip=2.0, batch=3]").levels[0]
    assert (type(level.optimizer.lr.start), type(level.clip), type(level.batch)) == (int, float, int)


TASKS = "a tower is written 'quadratic: lstm@20 / adam'"
LEVELS = "a level is written 'lstm(hidden=20)@20[batch=64]'"
END = "the end of the text"
OF_LEVEL = "it has horizon, batch, stagger, ahead, objective, gradient, clip, nonfinite"

SHAPES = {
    "quadratic": f"task (quadratic): expected ':' behind the task, got {END}; {TASKS}",
    "": f"task: expected a task, got {END}; {TASKS}",
    "quadratic:": f"level 1: expected an optimizer, got {END}; {TASKS}",
    "quadratic: adam: sgd": f"level 1 (adam): expected '/' or the end behind a level, got ':'; {LEVELS}",
    "adam: sgd": "task (adam): 'adam' is an optimizer, not a task; known: *",
    "quadratic: lstm@5 / lstm@0 / adam": "level 2 (lstm@0): unroll must be a whole number of at least 1, got 0",
    "quadratic:\n lstm(\n hidden=0)": "level 1 (lstm( hidden=0)): lstm: hidden must be a whole number of at least *",
}  # fmt: skip
PIECES = {  # without the place, which is the whole piece
    "quadratic: lstm[]@20": f"expected '/' or the end behind a level, got '@'; {LEVELS}",
    "quadratic: lstm@x": f"expected the unroll, a whole number, behind '@', got 'x'; {LEVELS}",
    "quadratics: sgd": "unknown task 'quadratics' (did you mean quadratic?); known: *",
    "quadratic: sgd[objective=lst]": "unknown objective 'lst' (did you mean last?); *",
    "quadratic: no.such.Rule@3": "cannot import 'no.such' (No module named 'no'); install *",
    "quadratic: adam(lrr=1)": "adam has no setting 'lrr' (did you mean lr?); it has lr, beta1, beta2, eps",
    "quadratic: adam[horzon=30]": f"a level has no setting 'horzon' (did you mean horizon?); {OF_LEVEL}",
    "quadratic: adam[unroll=30]":
        f"a level has no setting 'unroll'; {OF_LEVEL}; unroll: it is written @20, before the brackets",
    "quadratic: adam[4]": f"a level takes only named values, got one more, '4'; {OF_LEVEL}",
    "quadratic(3, 4): adam": "quadratic takes only dims without a name, got one more, '4'; it has split, dtype, dims",
    "quadratic: sgd[objective=sum(3)]": "sum has no settings, got '3'",
    "quadratic: adam(1, lr=2)": "adam is given lr twice; leave one out",
    "quadratic: adam(lr=1, 2)": "expected name=value in adam, got '2'; values without a name come first",
    "quadratic: sgd(lr=log)": "log is missing its setting start, a number",
    "quadratic: sgd(lr=0.1": f"expected ',' or ')' behind lr, got {END}; settings are *",
    "quadratic: sgd[batch=2)": "expected ',' or ']' behind batch, got ')'; settings are *",
    "quadratic: sgd(lr=0.1,)": "expected a setting of sgd, got ')'; it has lr, momentum, *",
    "quadratic: sgd(lr=)": "expected a value for lr, got ')'; lr is a hyperparameter space or *",
    "digits-mlp(hidden=[1 2]): sgd": "expected ',' or ']' in the list of hidden, got '2'; a list is written [20, 20]",
    'digits-mlp(activation="\\q"): sgd': "'\"\\q\"' is not a text as JSON *",
    'digits-mlp(activation="relu): sgd': "expected a value for activation, *",
    "quadratic: sgd(lr=[1])": "lr must be a hyperparameter space or a number, got a list",
    "quadratic: sgd(nesterov=3)": "sgd: nesterov must be true or false, got 3",
    "quadratic: sgd(nesterov=log(1))": "expected true or false for nesterov, got 'log'; it takes no part",
    "digits-mlp([a]): sgd": "digits-mlp: hidden must be a list (each a whole number), got [a]",
    "quadratic(big): sgd": "quadratic: dims must be a whole number, got big",
    "quadratic: lstm[horizon=ever]": "horizon must be a whole number, auto or none, *",
    "quadratic: lstm@20[horizon=30]": "horizon must be a multiple of the unroll 20, *",
    "quadratic: sgd(lr=log(-1))": "log(-1) is outside (0.0, inf), where it has no stored value",
}  # fmt: skip


def place(text: str) -> str:
    """Level 1, or the task where the mistake is there, and the piece as typed."""
    task, _, level = (" ".join(part.split()) for part in text.partition(": "))
    return f"level 1 ({level}): " if "(" not in task and level != "sgd" else f"task ({task}): "


WRONG = SHAPES | {text: place(text) + sentence for text, sentence in PIECES.items()}


@pytest.mark.parametrize("text", WRONG)
def test_mistakes_get_one_line_that_says_where(text):
    with pytest.raises(ValueError) as caught:
        parse(text)
    sentence, expected = str(caught.value), WRONG[text]
    assert "\n" not in sentence
    assert sentence.startswith(expected[:-1]) if expected.endswith("*") else sentence == expected


def test_a_task_of_python_objects_is_sent_to_python():
    data = (torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
    task = ModuleTask(make=lambda: nn.Linear(2, 3), loss_function=nn.functional.cross_entropy, train=data)
    holds = ": module holds Python objects (make, loss_function, train) and cannot be written down; build the tower in "
    for text in ("module: adam", repr(Tower(task, Level(optimizer=Adam())))):
        with pytest.raises(ValueError) as caught:
            parse(text)
        assert str(caught.value).endswith(holds + "Python: Tower(ModuleTask(...), ...)")
        assert "\n" not in str(caught.value)


def test_random_cuts_and_swaps_are_read_or_refused_in_one_line():
    rng, refused = random.Random(0), 0
    for _ in range(500):
        text = list(rng.choice(CANONICAL[:-1]))
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(text))
            text[place : place + rng.randint(0, 2)] = rng.choice([*':/()[],="x0 ', ""])
        sentence = ""
        try:
            tower = parse("".join(text))
            assert same(parse(repr(tower)), tower)
        except ValueError as error:
            sentence = str(error)
        refused += bool(sentence)
        assert "\n" not in sentence
        assert not sentence or sentence.startswith(("task", "level "))
    assert 150 < refused < 500


def test_nesting_without_end_and_what_is_no_text_are_refused():
    with pytest.raises(ValueError, match=r"^task: this text is nested too deeply to be a tower$"):
        parse("quadratic: towers.Odd(anything=" + "[" * 10_000)
    with pytest.raises(TypeError, match=r"^notation is text, got NoneType; a tower is written "):
        parse(None)
