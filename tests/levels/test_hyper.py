"""Hyperparameters: spaces, sharing, bounds."""

import math

import pytest
import torch

from levels import SGD, Adam, Fixed, Layout, Linear, Log, Logit, RMSprop

BELOW = Layout.of({"weight": (2, 2), "bias": (3,)}, torch.float64)


@pytest.mark.parametrize(
    ("space", "values", "raw"),
    [
        (Linear, (-3.0, 0.0, 1e6), lambda v: v),
        (Log, (1e-12, 0.01, 1.0, 1e3), math.log),
        (Logit, (1e-9, 0.1, 0.5, 0.999, 0.999999), lambda v: math.log(v / (1 - v))),
    ],
)
def test_spaces_and_back(space, values, raw):
    for value in values:
        stored = space(value).unconstrain(value)
        assert stored == pytest.approx(raw(value), rel=1e-9)
        again = space(value).constrain(torch.tensor(stored, dtype=torch.float64))
        assert float(again) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("space", "outside"),
    [(Log, 0.0), (Log, -1.0), (Logit, 0.0), (Logit, 1.0), (Logit, 1.5), (Linear, math.inf), (Log, math.nan)],
)
def test_starts_outside_are_refused(space, outside):
    with pytest.raises(
        ValueError, match=rf"^{space.name}\({outside}\) is outside \(.*\), where it has no stored value$"
    ):
        space(outside)


def test_bad_settings():
    with pytest.raises(ValueError, match=r"^log: per must be one of value, tensor, coordinate, got row$"):
        Log(0.1, "row")
    with pytest.raises(ValueError, match=r"^log: start must be a number, got big$"):
        Log("big")
    with pytest.raises(ValueError, match=r"^fixed: per must be value, got tensor$"):
        Fixed(0.1, "tensor")
    with pytest.raises(ValueError, match=r"^sgd: lr must be a number, got big$"):
        SGD(lr="big")
    with pytest.raises(ValueError, match=r"^sgd: lr must be a number, got true$"):
        SGD(lr=True)
    with pytest.raises(ValueError, match=r"^sgd: lr must be a number, got none$"):
        SGD(lr=None)
    with pytest.raises(ValueError, match=r"^sgd: nesterov needs momentum; set momentum=0.9$"):
        SGD(nesterov=True)
    with pytest.raises(ValueError, match=r"linear\(0\) to let it start there$"):
        SGD(momentum=0)
    with pytest.raises(ValueError, match=r"^adam: beta1=1.0 is outside \(0.0, 1.0\); use a value in between$"):
        Adam(beta1=1.0)
    with pytest.raises(ValueError, match=r"^adam: eps must be a number, got none$"):
        Adam(eps=None)
    with pytest.raises(ValueError, match=r"^rmsprop: decay must be a number, got none$"):
        RMSprop(decay=None)


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_reading_broadcasts_over_copies_and_coordinates(batch):
    raw = torch.randn(*batch, 1, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(Log(1.0).read(raw[..., :1], BELOW), raw[..., :1].exp())
    tensors = Log(1.0, "tensor").read(raw[..., :2], BELOW)
    assert tensors.shape == (*batch, 1, 7)
    assert torch.equal(tensors, torch.cat([raw[..., :1].exp()] * 4 + [raw[..., 1:2].exp()] * 3, -1))
    assert torch.equal(Logit(0.5, "coordinate").read(raw, BELOW), raw.sigmoid())
    constant = Fixed(0.25).read(raw[..., :0], BELOW)
    assert constant.shape == (*batch, 1, 1)
    assert (constant == 0.25).all()


def test_parameters_of_a_hand_made_rule():
    rule = Adam(lr=Log(0.02, "tensor"), beta1=Fixed(0.8), beta2=Linear(0.9, "coordinate")).bind(BELOW)
    assert dict(rule.layout.entries) == {"lr": (2,), "beta1": (0,), "beta2": (7,), "eps": ()}
    params = rule.init(torch.arange(6).reshape(2, 3))
    assert params.shape == (2, 3, 10)
    assert torch.allclose(params[1, 2, :2].exp(), torch.tensor(0.02, dtype=torch.float64))
    assert (params[..., 2:9] == 0.9).all()
    assert list(rule.hypers) == ["lr", "beta1", "beta2", "eps"]
    assert list(SGD().hypers) == ["lr"]


def test_a_bare_number_moves_in_the_space_of_its_field():
    hypers = SGD(lr=2, momentum=0.5, weight_decay=Linear(0.0)).hypers
    assert [type(hyper) for hyper in hypers.values()] == [Log, Logit, Linear]
    assert [hyper.start for hyper in hypers.values()] == [2.0, 0.5, 0.0]


def test_a_rule_must_be_bound_first():
    with pytest.raises(ValueError, match=r"^sgd is not bound yet; call bind\(problem\) or bind\(layout\) first$"):
        SGD().init(torch.tensor(0))
