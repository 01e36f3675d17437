"""Closed forms: the sweeps of small update rules, whose derivatives are written out.

The cotangents of hyperparameters are summed over the window, at each coordinate, before they are summed over the
coordinates that share a number. Numbers that are stored in another way than those in `SLOPES`, or are shared over less
than the whole problem, are left to autograd, once a window.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from levels.base import Optimizer
from levels.hyper import Fixed, Hyper, Linear, Log, Logit
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

SLOPES: dict[type[Hyper], Callable[[Tensor, Tensor], Tensor]] = {
    Linear: lambda _, slope: slope,
    Log: lambda value, slope: value * slope,
    Logit: lambda value, slope: value * (1 - value) * slope,
    Fixed: lambda _, slope: slope,  # not stored
}
"""The cotangent of what is stored, for that of the value."""


class ClosedForm(Sweep):
    """The sweep of a rule whose parameters are hyperparameters; abstract in `pull`."""

    def __init__(self, optimizer: Any, theta: Tensor) -> None:
        self.optimizer, self.theta = optimizer, theta
        self.single = all(type(hyper) in SLOPES and hyper.shared_over == "value" for hyper in optimizer.hypers.values())
        if self.single:
            self.h = optimizer.read(theta)
        else:
            with torch.enable_grad():
                self.leaf = theta.detach().requires_grad_()
                self.followed = optimizer.read(self.leaf)
            self.h = {name: value.detach() for name, value in self.followed.items()}
        self.known = copy.copy(optimizer)  # the same rule, whose numbers are known
        object.__setattr__(self.known, "read", lambda _: self.h)

    def update(self, read: Read) -> tuple[Tensor, State]:
        updated: tuple[Tensor, State] = self.known.update(self.theta, *read)
        return updated

    def vjp(self, reads: list[Read], cotangents: Tensor) -> Tensor:
        total = self.slopes(reads, cotangents)
        if self.single:
            parts = [SLOPES[type(hyper)](self.h[name], total[name].sum((-2, -1), keepdim=True))[..., 0]
                     for name, hyper in self.optimizer.hypers.items() if type(hyper) is not Fixed]  # fmt: skip
            return torch.cat(parts, -1) if len(parts) > 1 else parts[0] if parts else torch.zeros_like(self.theta)
        learned = [name for name, value in self.followed.items() if value.requires_grad]
        if not learned:
            return torch.zeros_like(self.theta)
        slopes = [total[name].sum_to_size(self.h[name].shape) for name in learned]
        (dtheta,) = torch.autograd.grad([self.followed[name] for name in learned], self.leaf, slopes)
        return dtheta

    @abstractmethod
    def pull(self, x: Tensor, state: Any, g: Tensor, dx: Tensor, dstate: Slopes) -> Pulled:
        """The vector-Jacobian product of the update that read ``x``, ``state`` and ``g``.

        ``dx`` and ``dstate`` are the cotangents of what it returned. Returns those of the hyperparameters at each
        coordinate, of ``x`` and of the state.
        """

    def slopes(self, reads: list[Read], cotangents: Tensor) -> Hypers:
        """Cotangents of the hyperparameters, ``[*batch, copies, n]``, summed over the window."""
        total: Hypers = {}
        dstate: Slopes = [None] * 3
        dx = torch.zeros_like(cotangents[0])
        for read, cotangent in zip(reversed(reads), cotangents.unbind(0)[::-1]):
            dx = dx + cotangent
            dh, dx, dstate = self.pull(read.x, read.state, read.g, dx, dstate)
            total = {name: total[name] + slope for name, slope in dh.items()} if total else dh
        return total


class SGDSweep(ClosedForm):
    """The sweep of `SGD`; without a state all updates of the window are pulled back at once."""

    def pull(self, x: Tensor, state: Tensor | None, g: Tensor, dx: Tensor, dstate: Slopes) -> Pulled:
        """With b the buffer and d the direction: dd = -lr dx, and what d and b are made of in turn."""
        h = self.h
        decayed = "weight_decay" in h
        g = g + h["weight_decay"] * x if decayed else g
        dg = along = -h["lr"] * dx
        direction, dh = g, {}
        if state is not None:
            direction = buffer = h["momentum"] * state + g
            dbuffer, through = along, None
            if self.optimizer.nesterov:
                direction = g + h["momentum"] * buffer
                dbuffer, through = h["momentum"] * along, along * buffer
            dbuffer = dbuffer if dstate[0] is None else dbuffer + dstate[0]
            dh["momentum"] = dbuffer * state if through is None else through + dbuffer * state
            dg = along + dbuffer if self.optimizer.nesterov else dbuffer
            dstate = [h["momentum"] * dbuffer]
        dh["lr"] = -direction * dx
        if decayed:
            dh["weight_decay"], dx = dg * x, dx + h["weight_decay"] * dg
        return dh, dx, dstate

    def slopes(self, reads: list[Read], cotangents: Tensor) -> Hypers:
        if "momentum" in self.h or "weight_decay" in self.h:
            return super().slopes(reads, cotangents)
        dx = cotangents.flip(0).cumsum(0).flip(0) if len(reads) > 1 else cotangents  # x_{t+1} is x_t and a step
        return {"lr": -(torch.stack([read.g for read in reads]) * dx).sum(0)}


class AdamSweep(ClosedForm):
    """The sweep of `Adam`."""

    def pull(self, x: Tensor, state: AdamState, g: Tensor, dx: Tensor, dstate: Slopes) -> Pulled:
        """With u = m_hat / (root + eps) and x <- x - lr u:

        dlr = -u dx,   deps = -u du',   dm_hat = du',   dv_hat = -u du' / (2 root),   du' = -lr dx / (root + eps)
        """
        h = self.h
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


class AdamWSweep(AdamSweep):
    """The sweep of `AdamW`."""

    def pull(self, x: Tensor, state: AdamState, g: Tensor, dx: Tensor, dstate: Slopes) -> Pulled:
        """As Adam, and x <- x (1 - lr weight_decay) before."""
        h = self.h
        dh, _, dstate = super().pull(x, state, g, dx, dstate)
        shrunk = x * dx
        dh["lr"], dh["weight_decay"] = dh["lr"] - h["weight_decay"] * shrunk, -h["lr"] * shrunk
        return dh, dx * (1 - h["lr"] * h["weight_decay"]), dstate


class RMSpropSweep(ClosedForm):
    """The sweep of `RMSprop`."""

    def pull(self, x: Tensor, state: RMSpropState, g: Tensor, dx: Tensor, dstate: Slopes) -> Pulled:
        """With u = g / (root + eps), b <- momentum b + u, x <- x - lr b."""
        h = self.h
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


class AdagradSweep(ClosedForm):
    """The sweep of `Adagrad`."""

    def pull(self, x: Tensor, state: AdagradState, g: Tensor, dx: Tensor, dstate: Slopes) -> Pulled:
        """With u = g / (root + eps) and x <- x - rate u, rate = lr / (1 + t lr_decay)."""
        h = self.h
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


RULES: dict[type[Optimizer], type[ClosedForm]] = {
    SGD: SGDSweep,
    Adam: AdamSweep,
    AdamW: AdamWSweep,
    RMSprop: RMSpropSweep,
    Adagrad: AdagradSweep,
}
SWEEPS.update(RULES)
