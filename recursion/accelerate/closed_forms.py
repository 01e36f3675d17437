"""Closed forms: the derivatives of small update rules, written out, for a window of any number of updates.

Each rule has one function, the vector-Jacobian product of its update with ``g`` as data:

    (h, x, state, g, dx, dstate)  ->  (dh, dx, dstate)

``h`` are the hyperparameters as the rule reads them; ``dh`` are their cotangents at each coordinate. They are summed
over the window before they are summed over the coordinates that share a number. How a number is stored is left to
autograd, once a window.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from levels.hyper import HyperparamOptimizer
from levels.optimizers.adagrad import Adagrad, AdagradState, _rate, _root
from levels.optimizers.adam import Adam, AdamState, moments
from levels.optimizers.adamw import AdamW
from levels.optimizers.rmsprop import RMSprop, RMSpropState, _averages
from levels.optimizers.sgd import SGD
from levels.tree import State
from recursion.accelerate.sweeps import SWEEPS, Read, Sweep

Hypers = dict[str, Tensor]
Slopes = list[Tensor | None]
"""Cotangents of the floating tensors of a state in turn, None for zero."""

Pulled = tuple[Hypers, Tensor, Slopes]
Pull = Callable[[Any, Hypers, Tensor, Any, Tensor, Tensor, Slopes], Pulled]
"""``pull(rule, h, x, state, g, dx, dstate)``: cotangents of the hyperparameters, of ``x`` and of the state before."""


class ClosedForm(Sweep):
    """The sweep of a rule with hyperparameters alone."""

    pull: Pull

    def __init__(self, rule: HyperparamOptimizer, theta: Tensor) -> None:
        self.rule, self.theta = rule, theta
        with torch.enable_grad():
            self.leaf = theta.detach().requires_grad_()
            self.read = rule.read(self.leaf)
        self.h = {name: value.detach() for name, value in self.read.items()}
        self.known = copy.copy(rule)  # the same rule, whose numbers are known
        object.__setattr__(self.known, "read", lambda _: self.h)

    def update(self, read: Read) -> tuple[Tensor, State]:
        return self.known.update(self.theta, *read[:2], read.f, read.g)

    def vjp(self, reads: list[Read], cotangents: Tensor) -> Tensor:
        dx, *earlier = cotangents.unbind(0)[::-1]
        total: Hypers = {}
        dstate: Slopes = [None] * 3
        for t, read in enumerate(reversed(reads)):
            if t:
                dx = dx + earlier[t - 1]
            dh, dx, dstate = type(self).pull(self.rule, self.h, read.x, read.state, read.g, dx, dstate)
            total = {name: total[name] + slope for name, slope in dh.items()} if t else dh
        learned = [name for name, value in self.read.items() if value.requires_grad and name in total]
        if not learned:
            return torch.zeros_like(self.theta)
        slopes = [total[name].sum_to_size(self.h[name].shape) for name in learned]
        (dtheta,) = torch.autograd.grad([self.read[name] for name in learned], self.leaf, slopes)
        return dtheta


def pull_sgd(rule: SGD, h: Hypers, x: Tensor, state: Tensor | None, g: Tensor, dx: Tensor, dstate: Slopes) -> Pulled:
    """With b the buffer and d the direction: dd = -lr dx, and what d and b are made of in turn."""
    decayed = "weight_decay" in h
    if state is None and not decayed:
        return {"lr": -g * dx}, dx, dstate
    g = g + h["weight_decay"] * x if decayed else g
    dg = along = -h["lr"] * dx
    direction, dh = g, {}
    if state is not None:
        direction = buffer = h["momentum"] * state + g
        dbuffer, through = along, None
        if rule.nesterov:
            direction = g + h["momentum"] * buffer
            dbuffer, through = h["momentum"] * along, along * buffer
        dbuffer = dbuffer if dstate[0] is None else dbuffer + dstate[0]
        dh["momentum"] = dbuffer * state if through is None else through + dbuffer * state
        dg = along + dbuffer if rule.nesterov else dbuffer
        dstate = [h["momentum"] * dbuffer]
    dh["lr"] = -direction * dx
    if decayed:
        dh["weight_decay"], dx = dg * x, dx + h["weight_decay"] * dg
    return dh, dx, dstate


def pull_adam(rule: Any, h: Hypers, x: Tensor, state: AdamState, g: Tensor, dx: Tensor, dstate: Slopes) -> Pulled:
    """With u = m_hat / (root + eps) and x <- x - lr u:

    dlr = -u dx,   deps = -u du',   dm_hat = du',   dv_hat = -u du' / (2 root),   du' = -lr dx / (root + eps)
    """
    m_hat, root, new = moments(h["beta1"], h["beta2"], g, state)
    power = new.t[..., None].to(g.dtype)
    scale = 1 / (root + h["eps"])
    u, dm_hat = m_hat * scale, -h["lr"] * dx * scale
    deps = -u * dm_hat
    one, two = 1 / (1 - h["beta1"] ** power), 1 / (1 - h["beta2"] ** power)  # of the bias: numbers, not coordinates
    dm, dv = dm_hat * one, deps / (2 * root) * two
    dbeta1 = dm * m_hat * (power * h["beta1"] ** (power - 1))  # through what corrects the bias
    dbeta2 = dv * (new.v * two) * (power * h["beta2"] ** (power - 1))
    dm = dm if dstate[0] is None else dm + dstate[0]
    dv = dv if dstate[1] is None else dv + dstate[1]
    dbeta1, dbeta2 = torch.addcmul(dbeta1, dm, state.m - g), torch.addcmul(dbeta2, dv, state.v - g * g)
    dh = {"lr": -u * dx, "beta1": dbeta1, "beta2": dbeta2, "eps": deps}
    return dh, dx, [h["beta1"] * dm, h["beta2"] * dv]


def pull_adamw(rule: AdamW, h: Hypers, x: Tensor, state: AdamState, g: Tensor, dx: Tensor, dstate: Slopes) -> Pulled:
    """As Adam, and x <- x (1 - lr weight_decay) before."""
    dh, _, dstate = pull_adam(rule, h, x, state, g, dx, dstate)
    shrunk = x * dx
    dh["lr"], dh["weight_decay"] = dh["lr"] - h["weight_decay"] * shrunk, -h["lr"] * shrunk
    return dh, dx * (1 - h["lr"] * h["weight_decay"]), dstate


def pull_rmsprop(
    rule: RMSprop, h: Hypers, x: Tensor, state: RMSpropState, g: Tensor, dx: Tensor, dstate: Slopes
) -> Pulled:
    """With u = g / (root + eps), b <- momentum b + u, x <- x - lr b."""
    g = g + h["weight_decay"] * x if "weight_decay" in h else g
    _, a, spread = _averages(h, g, state)
    root = torch.sqrt(spread + torch.finfo(x.dtype).tiny)
    scale, later, dh = 1 / (root + h["eps"]), iter(dstate), {}
    step = u = g * scale
    dv, da = next(later), None if a is None else next(later)
    du = -h["lr"] * dx
    if state.b is not None:
        step, dstep = h["momentum"] * state.b + u, next(later)
        du = du if dstep is None else du + dstep
        dh["momentum"] = du * state.b
    dh |= {"lr": -step * dx, "eps": -u * scale * du}
    dspread = dh["eps"] / (2 * root)
    if a is not None:
        dspread = torch.where(spread > 0, dspread, 0.0)
        da = -2 * a * dspread if da is None else da - 2 * a * dspread
    dv = dspread if dv is None else dv + dspread
    dh["decay"] = dv * (state.v - g * g)
    dg = scale * du + 2 * (1 - h["decay"]) * g * dv
    dold: Slopes = [h["decay"] * dv]
    if state.a is not None and da is not None:
        dh["decay"], dg = dh["decay"] + da * (state.a - g), dg + (1 - h["decay"]) * da
        dold.append(h["decay"] * da)
    if state.b is not None:
        dold.append(h["momentum"] * du)
    if "weight_decay" in h:
        dh["weight_decay"], dx = dg * x, dx + h["weight_decay"] * dg
    return dh, dx, dold


def pull_adagrad(
    rule: Adagrad, h: Hypers, x: Tensor, state: AdagradState, g: Tensor, dx: Tensor, dstate: Slopes
) -> Pulled:
    """With u = g / (root + eps) and x <- x - rate u, rate = lr / (1 + t lr_decay)."""
    g = g + h["weight_decay"] * x if "weight_decay" in h else g
    rate, root = _rate(h, state), _root(h, state.v + g * g)
    scale = 1 / (root + h["eps"])
    u, du = g * scale, -rate * dx
    dh = {"lr": -u * dx, "eps": -u * scale * du}
    if "lr_decay" in h:
        slowing, t = 1 + state.t[..., None] * h["lr_decay"], state.t[..., None]
        dh |= {"lr": dh["lr"] / slowing, "lr_decay": -dh["lr"] * rate * t / slowing}
    dunder = dh["eps"] / (2 * root)
    if "initial" in h:
        dh["initial"] = dunder
    dv = dunder if dstate[0] is None else dunder + dstate[0]
    if "weight_decay" in h:
        dg = scale * du + 2 * g * dv
        dh["weight_decay"], dx = dg * x, dx + h["weight_decay"] * dg
    return dh, dx, [dv]


PULLS: dict[type[HyperparamOptimizer], Any] = {
    SGD: pull_sgd, Adam: pull_adam, AdamW: pull_adamw, RMSprop: pull_rmsprop, Adagrad: pull_adagrad,
}  # fmt: skip
SWEEPS.update({rule: type(f"{rule.__name__}Sweep", (ClosedForm,), {"pull": staticmethod(pull)}) for rule, pull in PULLS.items()})  # fmt: skip
