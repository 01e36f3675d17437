"""Trials: some updates in a row on random values and gradients, the experiment that the suite repeats."""

from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.base import Optimizer
from levels.testing.shared import check_advanced, check_state, check_tensor, untouched
from levels.tree import State


class Trial(NamedTuple):
    """Inputs of some updates in a row."""

    params: Tensor  # [*batch, m]
    x: Tensor  # [*batch, copies, n]
    f: Tensor  # [*batch, copies, steps]
    g: Tensor  # [*batch, copies, n, steps]


class End(NamedTuple):
    """Where some updates lead."""

    x: Tensor
    state: State


def trial_of(rule: Optimizer, key: Tensor, copies: int, steps: int) -> Trial:
    """Fresh parameters, each somewhat off its start so that none is 0, and random values and gradients."""
    n, dtype = rule.below.size, rule.below.dtype
    with torch.enable_grad(), untouched(rule, "init_params", key=key):
        params = rule.init(key)
    check_tensor(rule, "init_params", params, (*key.shape, rule.layout.size), dtype)
    noise = 0.1 * keys.normal(keys.fold_in(key, 1), params.shape[-1:], dtype)
    params = torch.where(params == 0, noise, params * (1 + noise))
    f = 0.1 + keys.normal(keys.fold_in(key, 2), (copies, steps), dtype).square()
    g = keys.normal(keys.fold_in(key, 3), (copies, n, steps), dtype)
    return Trial(params, keys.normal(keys.fold_in(key, 4), (copies, n), dtype), f, g)


def run(rule: Optimizer, trial: Trial, steps: int | None = None) -> End:
    """``x`` and ``state`` after all updates of a trial or its first ``steps``, each checked."""
    params, x = trial.params, trial.x
    with torch.enable_grad(), untouched(rule, "init_state", params=params, x=x):
        state = rule.init_state(params, x)
    check_state(rule, "init_state", state, x.shape[:-1])
    for f, g in list(zip(trial.f.unbind(-1), trial.g.unbind(-1), strict=True))[:steps]:
        with torch.enable_grad(), untouched(rule, "update", params=params, f=f, g=g, state=state, x=x):
            new_x, new_state = rule.update(params, f, g, state, x)
        check_tensor(rule, "the updated x", new_x, x.shape, x.dtype)
        check_advanced(rule, state, new_state)
        check_state(rule, "state", new_state, x.shape[:-1])
        x, state = new_x, new_state
    return End(x, state)


def started(rule: Optimizer, trial: Trial) -> Trial:
    """The trial from where the rule would start it, were ``trial.x`` what the problem offers."""
    key = torch.zeros(trial.x.shape[:-1], dtype=torch.int64, device=trial.x.device)
    return trial._replace(x=rule.start(trial.params, lambda _key: trial.x, key))
