"""What a rule declares about what it reads is checked: scope and reads_loss."""

import dataclasses

import pytest
import torch

from levels import SGD, Adam, Hyper, Log, hyper
from levels.optimizers.learned_init import LearnedInit
from levels.optimizers.partition import Partition
from levels.testing import ConformanceError, check_optimizer


@dataclasses.dataclass(frozen=True, repr=False)
class Declared(SGD):
    name = "declared"
    lr: Hyper | float = hyper(0.1, Log)
    scope = "coordinate"


class Normalized(Declared):
    """Divides by the norm over the problem."""

    def step(self, h, g, state, x):
        return super().step(h, g / (1 + g.square().sum(-1, keepdim=True)), state, x)


class Counting(Declared):
    """Divides by the number of coordinates."""

    def step(self, h, g, state, x):
        return super().step(h, g / x.shape[-1], state, x)


class Remembers(Declared):
    """Mixes by way of the state only."""

    def init_state(self, params, x):
        return x.new_zeros(x.shape[:-1])

    def step(self, h, g, state, x):
        return x - h["lr"] * g * (1 + state[..., None]), state + g.square().sum(-1)


class ByTensor(Declared):
    """Divides by the norm of the tensor, which is no coordinate's own."""

    def step(self, h, g, state, x):
        parts = self.below.unravel(g).values()
        scaled = [part.reshape(*g.shape[:-1], -1) for part in parts]
        scaled = [part / (1 + part.square().sum(-1, keepdim=True)) for part in scaled]
        return super().step(h, torch.cat(scaled, dim=-1), state, x)


class OwnTensor(ByTensor):
    scope = "tensor"


class WholeTensor(Normalized):
    scope = "tensor"


class WholeProblem(Normalized):
    scope = "problem"


class PerTensor(Normalized):
    """With parameters that fit one layout only, so nothing can be tried alone."""


class ReadsLoss(Declared):
    def update(self, params, f, g, state, x):
        return super().update(params, f, g * f[..., None], state, x)


class Says(ReadsLoss):
    reads_loss = True


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (
            Normalized(),
            "another x when g and x of another coordinate changed, expected a step that reads its own coord",
        ),
        (Counting(), "another x for a coordinate alone, expected"),
        (Remembers(), "another x when g and x of another coordinate changed"),
        (ByTensor(), "another x when g and x of another coordinate changed"),
        (WholeTensor(), "another x when g and x of another tensor changed, .* declare another scope"),
        (PerTensor(lr=Log(0.1, "tensor")), "another x when g and x of another coordinate changed"),
        (ReadsLoss(), "another x for another f, expected none, as its reads_loss is false; declare reads_loss"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_breaks_its_declaration_is_named(rule, sentence):
    with pytest.raises(ConformanceError, match=sentence):
        check_optimizer(rule)


@pytest.mark.parametrize("rule", [Declared(), OwnTensor(), WholeProblem(), Says(), Adam(lr=Log(0.1, "coordinate"))])
def test_what_keeps_it_passes(rule):
    check_optimizer(rule)


def test_wrappers_read_what_their_rules_read():
    assert LearnedInit(Says()).reads_loss
    assert not LearnedInit(SGD()).reads_loss
    assert Partition(["a", "*"], [SGD(), Says()]).reads_loss
    assert LearnedInit(SGD()).scope == Partition(["*"], [SGD()]).scope == "problem"
