"""Trials of a level: how good its parameters are over a whole life of what they train, from a fresh start.

A window in the middle of training tells how the parameters do from where they were led. To compare parameters, each is
given a life of its own, from the start to the next restart, on the same fresh problems: all copies begin together, and
the trial is the mean meta-loss over the windows. Copies that go wrong do not stop anybody: such a trial is inf.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from levels import keys
from levels.restart import Skip, looked_at

if TYPE_CHECKING:
    from levels.bound_levels import Level


def run(laid: Level, params: Tensor, key: Tensor) -> Tensor:
    """The mean meta-loss ``[*batch]`` of parameters ``[*batch, m]``, and what they are charged; inf if not finite."""
    patient, count = laid.patient, windows(laid)
    total = torch.zeros(key.shape, dtype=laid.layout.dtype, device=laid.layout.device)
    with looked_at():
        carry = patient.begin(params, keys.split(key, laid.batch), policy=Skip())
        for _ in range(count):
            carry, window = patient.window(params, carry, record=False)
            total = total + patient.meta_loss(window.losses)[0] / count
    penalty = laid.optimizer.penalty(params)
    total = total if penalty is None else total + penalty[0]
    sound = torch.isfinite(total) & (carry.skipped == 0).all(-1)
    return torch.where(sound, total, torch.inf)


def windows(laid: Level) -> int:
    """Windows of a trial: those of a life, or one if there is no horizon."""
    return 1 if laid.level.episode_length is None else laid.level.episode_length // laid.level.unroll


def cost(laid: Level) -> int | Fraction:
    """Task gradients that a trial costs, for each copy of the task."""
    each = laid.problem.cost * (1 + laid.problem.judging) + laid.optimizer.asking
    return laid.starting + windows(laid) * laid.level.reach * each
