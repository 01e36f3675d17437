"""What hand-made rules write out for exact gradients is what autograd says, and another rule does not inherit it."""

import sys

import pytest
import torch

from levels import SGD, Adagrad, Adam, AdamW, Fixed, Layout, Linear, Log, Muon, RMSprop, keys
from levels.autodiff import Cotangents, pull_update
from levels.hyper import HyperparamOptimizer
from levels.base import Optimizer
from levels.tree import leaves

BELOW = Layout.of({"weight": (2, 2), "bias": (3,)}, torch.float64)
RULES = [
    SGD(lr=0.1),
    SGD(lr=Log(0.1, per="tensor"), momentum=0.8),
    SGD(lr=Fixed(0.1), momentum=0.8),
    SGD(lr=0.1, weight_decay=0.2),
    SGD(lr=Log(0.1, per="coordinate"), momentum=0.8, weight_decay=0.2, nesterov=True),
    Adam(lr=0.1, eps=1e-2),
    Adam(lr=Log(0.1, per="tensor"), beta1=Fixed(0.8), beta2=Linear(0.9, per="coordinate"), eps=1e-2),
    AdamW(lr=0.1, weight_decay=0.3, eps=1e-2),
    RMSprop(lr=0.1, eps=1e-2),
    RMSprop(lr=Log(0.1, per="tensor"), decay=Linear(0.9, per="coordinate"), eps=1e-2, momentum=0.8, weight_decay=0.2),
    RMSprop(lr=0.1, eps=1e-2, momentum=Fixed(0.8), centered=True),
    Adagrad(lr=0.1, eps=1e-2),
    Adagrad(lr=Log(0.1, per="tensor"), lr_decay=0.3, initial=0.1, eps=1e-2, weight_decay=0.2),
]


def both(rule: HyperparamOptimizer, steps: int, zero: bool = False) -> list[list[torch.Tensor]]:
    """Cotangents of step ``steps``, by `HandMade.pull_all` and by autograd."""
    rule = rule.over(BELOW)
    key = keys.split(keys.seed(5), 2)
    params = rule.init(key)
    f, (x, g, dx, *slopes) = torch.ones(2, 3), keys.normal(key, (6, 3, 7), torch.float64).unbind(1)
    g = 0 * g if zero else g
    state = rule.init_state(params, x)
    for _ in range(steps):
        x, state = rule.update(params, f, g, state, x)
    dstate = [s if leaf.is_floating_point() else None for leaf, s in zip(leaves(state), slopes)] if steps else []
    inputs = f, g, state, x, dx, dstate
    found: list[Cotangents] = [rule.pull_all(params)(*inputs), pull_update(rule, params, *inputs)]
    return [[leaf for leaf in leaves(tuple(slopes)) if leaf is not None] for slopes in found]


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_what_is_written_out_is_what_autograd_says(rule, steps, zero, monkeypatch):
    expected = both(rule, steps, zero)[1]
    assert type(rule).full_pullback is not HyperparamOptimizer.full_pullback
    torch.testing.assert_close(both(rule, steps, zero)[0], expected, rtol=1e-11, atol=1e-11)
    monkeypatch.setattr(sys.modules[Optimizer.__module__], "pull_update", None)  # none of these asks it
    both(rule, steps, zero)


class Doubled(SGD):
    """Another step."""

    def step(self, h, g, state, x):
        new, state = super().step(h, g, state, x)
        return 2 * new, state


class Halved(SGD):
    """Another update."""

    def update(self, params, f, g, state, x):
        new, state = super().update(params, f, g, state, x)
        return new / 2, state


class Reversed(SGD):
    """Another step and its derivative where gradients are data; with the gradient's own, nothing was said of it."""

    def step(self, h, g, state, x):
        return super().step(h, -g, state, x)

    def step_pullback(self, h, g, state, x, dx, dstate):
        return super().step_pullback(h, -g, state, x, dx, dstate)


@pytest.mark.parametrize(
    "rule", [Doubled(momentum=0.5), Halved(momentum=0.5), Reversed(momentum=0.5), Muon()], ids=repr
)
def test_other_rules_ask_autograd(rule):
    ours, expected = both(rule, 2)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_the_other_derivative_is_still_its_own():
    rule = Reversed(momentum=0.5, weight_decay=0.1).over(BELOW)
    params = rule.init(keys.seed(0)[None])
    x, g, dx = keys.normal(keys.seed(1), (3, 1, 2, 7), torch.float64)
    inputs = torch.ones(1, 2), g, rule.init_state(params, x) + 1, x, dx, [2 * dx]
    dparams, dstate, dx = rule.pullback(params, *inputs)
    expected = pull_update(rule, params, *inputs)
    torch.testing.assert_close([dparams, *dstate, dx], [expected.params, *expected.state, expected.x])
