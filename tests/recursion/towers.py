"""What tests of whole towers share: small and random ones, a stranger's part, and how states and runs are compared."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from levels import LSTM, SGD, Adam, DigitsMLP, Fixed, Level, Linear, Log, Logit, Quadratic, RMSprop, Skip, Stop
from levels.objectives import Discounted, Last, MeanLog, Objective, Sum
from levels.tree import named_leaves
from recursion import Tower, TowerState

SMALL = "quadratic(dims=3): lstm(hidden=4, layers=1)@5[batch=2, horizon=10] / adam"
CANONICAL = [
    "quadratic: adam",
    "digits-mlp: lstm@20 / lstm@5 / adam",
    "digits-mlp(hidden=[20, 20], activation=relu): sgd(lr=linear(0.1), momentum=0.9)@1 / sgd(lr=linear(0.0001))",
    "quadratic(split=test, dtype=float64, dims=3): adam(lr=log(0.01, per=tensor), beta1=fixed(0.8))@7",
    "quadratic: lstm(hidden=5, layers=1)@20[horizon=100, batch=64, ahead=40, objective=mean-log, clip=1] / adam",
    "quadratic: lstm@20[horizon=none, stagger=false] / sgd(momentum=logit(0.9, per=coordinate), nesterov=true)",
    "quadratic: lstm(p=5)@2[objective=discounted(discount=0.5)] / adam(eps=1e-10)@2[clip=0.125, nonfinite=skip]",
    "quadratic: by-name([x], [relay(adam, sgd, after=2)])@4[gradient=mix(first-order, pes(pairs=2))] / adam",
    "quadratic: " + " / ".join(["sgd@1", "lstm(hidden=2, layers=1)@3"] * 25),
]


@dataclass(frozen=True, repr=False, kw_only=True)
class Odd(SGD):
    """A stranger's optimizer, with settings of every type."""

    name = "odd"
    path: str = "a.csv"
    widths: list[int] = field(default_factory=list)
    betas: tuple[float, float] = (0.9, 0.99)
    grid: tuple[tuple[int, ...], ...] = ()
    objectives: tuple[Objective, ...] = (Sum(),)
    anything: Any = None
    needed: str

    def __post_init__(self):
        super().__post_init__()
        if self.path == "bad":
            raise TypeError("path must lead\n  somewhere")


def same(one: Tower, other: Tower) -> bool:
    return one.task == other.task and one.levels == other.levels


def assert_same(one: TowerState, other: TowerState) -> None:
    left, right = named_leaves(one), named_leaves(other)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def after(tower: Tower, steps: int, seed: int = 0) -> TowerState:
    state = tower.init(seed)
    for state, _ in tower.run(state, steps):  # noqa: B007, B020
        pass
    return state


def metrics(folder: Path) -> list[dict]:
    """The metrics of a run but for the seconds, which must rise, and the speed."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = [line.pop("seconds") for line in lines]
    assert seconds == sorted(seconds)
    assert all(line.pop("steps_a_second", 1.0) > 0 for line in lines)
    return lines


def random_tower(rng: random.Random) -> Tower:
    common = {"split": rng.choice(["train", "test"]), "dtype": rng.choice(["float32", "float64"])}
    widths = tuple(rng.randint(1, 30) for _ in range(rng.randint(1, 3)))
    task = rng.choice([Quadratic(dims=rng.randint(1, 30), **common), DigitsMLP(hidden=widths, **common)])
    return Tower(task, *(_level(rng) for _ in range(rng.randint(1, 4))))


def _hyper(rng):
    start, per = rng.choice([0.5, 1e-3, 0.123456789, 1e-12]), rng.choice(["value", "tensor", "coordinate"])
    return rng.choice([start, Fixed(start), Log(start, per), Logit(start, per), Linear(start, per)])


def _level(rng):
    unroll, momentum = rng.randint(1, 20), rng.choice([None, 0.9, Logit(0.5)])
    nesterov = momentum is not None and rng.random() < 0.5
    optimizer = rng.choice([
        LSTM(hidden=rng.randint(1, 30), layers=rng.randint(1, 3), scale=rng.random() + 0.1),
        Adam(lr=_hyper(rng), beta2=_hyper(rng)),
        RMSprop(decay=_hyper(rng)),
        SGD(lr=Log(rng.random() + 1e-9), weight_decay=_hyper(rng), momentum=momentum, nesterov=nesterov),
    ])  # fmt: skip
    return Level(
        optimizer=optimizer, unroll=unroll, horizon=rng.choice([None, "auto", unroll, 7 * unroll]),
        batch=rng.randint(1, 4), stagger=rng.random() < 0.5, clip=rng.choice([None, 1, 0.25]),
        objective=rng.choice([Sum(), Last(), MeanLog(), Discounted(rng.random() + 1e-9)]),
        nonfinite=rng.choice([Stop(), Skip()]),
    )  # fmt: skip
