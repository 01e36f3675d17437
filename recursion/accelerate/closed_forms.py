"""Closed forms: the sweeps of small update rules, whose derivatives are written out.

The cotangents of hyperparameters are summed over the window, at each coordinate, before they are summed over the
coordinates that share a number. Numbers that are stored in another way than those in `SLOPES`, or are shared over less
than the whole problem, are left to autograd, once a window.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from levels.base import Optimizer
from levels.hyper import Fixed, Hyper, Linear, Log, Logit
from levels.optimizers.adagrad import Adagrad, AdagradState
from levels.optimizers.adam import Adam, AdamState, moments
from levels.optimizers.adamw import AdamW
from levels.optimizers.rmsprop import RMSprop, RMSpropState
from levels.optimizers.sgd import SGD
from levels.tree import State
from recursion.accelerate.sweeps import SWEEPS, Read, Sweep

Hypers = dict[str, Tensor]
Slopes = list[Tensor | None]
"""Cotangents of the floating tensors of a state in turn, None for zero."""

Pulled = tuple[Hypers, Slopes, Tensor]

SLOPES: dict[type[Hyper], Callable[[Tensor, Tensor], Tensor]] = {
    Linear: lambda _, slope: slope,
    Log: lambda value, slope: value * slope,
    Logit: lambda value, slope: value * (1 - value) * slope,
    Fixed: lambda _, slope: slope,  # not stored
}
"""The cotangent of what is stored, for that of the value."""


class ClosedForm(Sweep):
    """The sweep of a rule whose parameters are hyperparameters; abstract in `pull`."""

    decoupled = False  # whether the weight decay is added to the step, not to the gradient

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
        updated: tuple[Tensor, State] = self.known.update(self.theta, *read[:4])
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
        """The vector-Jacobian product of the update that read ``x``, ``state`` and ``g``, which contains the decay.

        ``dx`` and ``dstate`` are the cotangents of what it returned. Returns those of the hyperparameters at each
        coordinate, of the state, and of what ``weight_decay x`` was added to.
        """

    def slopes(self, reads: list[Read], cotangents: Tensor) -> Hypers:
        """Cotangents of the hyperparameters, ``[*batch, copies, n]``, summed over the window."""
        total: Hypers = {}
        dstate: Slopes = [None] * 3
        dx, decay = torch.zeros_like(cotangents[0]), self.h.get("weight_decay")
        for read, cotangent in zip(reversed(reads), cotangents.unbind(0)[::-1]):
            dx = dx + cotangent
            g = read.g if decay is None or self.decoupled else read.g + decay * read.x
            dh, dstate, dg = self.pull(read.x, read.state, g, dx, dstate)
            if read.hvp is not None:
                dx = dx + read.hvp(dg)
            if decay is not None:
                dh["weight_decay"], dx = dg * read.x, dx + decay * dg
            total = {name: total[name] + slope for name, slope in dh.items()} if total else dh
        return total


class SGDSweep(ClosedForm):
    """The sweep of `SGD`; without a state all updates of the window are pulled back at once."""

    def pull(self, x: Tensor, state: Tensor | None, g: Tensor, dx: Tensor, dstate: Slopes) -> Pulled:
        """With b the buffer and d the direction: dd = -lr dx, and what d and b are made of in turn."""
        h, dg = self.h, -self.h["lr"] * dx
        if state is None:
            return {"lr": -g * dx}, dstate, dg
        direction = buffer = h["momentum"] * state + g
        dbuffer, dmomentum = dg, 0.0
        if self.optimizer.nesterov:
            direction = g + h["momentum"] * buffer
            dbuffer, dmomentum = h["momentum"] * dg, dg * buffer
        dbuffer = dbuffer if dstate[0] is None else dbuffer + dstate[0]
        dh = {"lr": -direction * dx, "momentum": dmomentum + dbuffer * state}
        return dh, [h["momentum"] * dbuffer], dg + dbuffer if self.optimizer.nesterov else dbuffer

    def slopes(self, reads: list[Read], cotangents: Tensor) -> Hypers:
        if "momentum" in self.h or "weight_decay" in self.h or reads[-1].hvp is not None:
            return super().slopes(reads, cotangents)
        dx = cotangents.flip(0).cumsum(0).flip(0) if len(reads) > 1 else cotangents  # x_{t+1} is x_t and a step
        return {"lr": -(torch.stack([read.g for read in reads]) * dx).sum(0)}


class AdamSweep(ClosedForm):
    """The sweep of `Adam`."""

    decoupled = True

    def pull(self, x: Tensor, state: AdamState, g: Tensor, dx: Tensor, dstate: Slopes) -> Pulled:
        """With u = m_hat / (root + eps) and x <- x - lr u:

        dlr = -u dx,   deps = -u du',   dm_hat = du',   dv_hat = -u du' / (2 root),   du' = -lr dx / (root + eps)
        """
        h = self.h
        m_hat, root, new = moments(h["beta1"], h["beta2"], g, state)
        power = new.t[..., None].to(g.dtype)
        scale = 1 / (root + h["eps"])
        du = -h["lr"] * dx
        u, dm_hat = m_hat * scale, du * scale
        deps = -u * dm_hat
        one, two = 1 / (1 - h["beta1"] ** power), 1 / (1 - h["beta2"] ** power)  # of the bias: numbers, not coordinates
        dm, dv = dm_hat * one, deps / (2 * root) * two
        dbeta1 = dm * m_hat * (power * h["beta1"] ** (power - 1))  # through what corrects the bias
        dbeta2 = dv * (new.v * two) * (power * h["beta2"] ** (power - 1))
        dm = dm if dstate[0] is None else dm + dstate[0]
        dv = dv if dstate[1] is None else dv + dstate[1]
        dbeta1, dbeta2 = torch.addcmul(dbeta1, dm, state.m - g), torch.addcmul(dbeta2, dv, state.v - g * g)
        dh = {"lr": -u * dx, "beta1": dbeta1, "beta2": dbeta2, "eps": deps}
        return dh, [h["beta1"] * dm, h["beta2"] * dv], du


class AdamWSweep(AdamSweep):
    """The sweep of `AdamW`: as Adam, with u + weight_decay x for u."""

    def pull(self, x: Tensor, state: AdamState, g: Tensor, dx: Tensor, dstate: Slopes) -> Pulled:
        dh, dstate, du = super().pull(x, state, g, dx, dstate)
        return dh | {"lr": dh["lr"] - self.h["weight_decay"] * x * dx}, dstate, du


class RMSpropSweep(ClosedForm):
    """The sweep of `RMSprop`."""

    def pull(self, x: Tensor, state: RMSpropState, g: Tensor, dx: Tensor, dstate: Slopes) -> Pulled:
        """With u = g / (root + eps), b <- momentum b + u, x <- x - lr b."""
        h, decay, a = self.h, self.h["decay"], None
        spread = decay * state.v + (1 - decay) * g * g
        if state.a is not None:
            a = decay * state.a + (1 - decay) * g
            spread = torch.where(spread - a * a > 0, spread - a * a, 0.0)
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
        dg = scale * du + 2 * (1 - decay) * g * dv
        dold: Slopes = [decay * dv]
        if state.a is not None and da is not None:
            dh["decay"], dg = dh["decay"] + da * (state.a - g), dg + (1 - decay) * da
            dold.append(decay * da)
        if state.b is not None:
            dold.append(h["momentum"] * du)
        return dh, dold, dg


class AdagradSweep(ClosedForm):
    """The sweep of `Adagrad`."""

    def pull(self, x: Tensor, state: AdagradState, g: Tensor, dx: Tensor, dstate: Slopes) -> Pulled:
        """With u = g / (root + eps) and x <- x - rate u, rate = lr / (1 + t lr_decay)."""
        h, t = self.h, state.t[..., None]
        slowing = 1 + t * h["lr_decay"] if "lr_decay" in h else 1.0
        v = state.v + g * g
        root = torch.sqrt((v + h["initial"] if "initial" in h else v) + torch.finfo(v.dtype).tiny)
        scale, du = 1 / (root + h["eps"]), -h["lr"] / slowing * dx
        u = g * scale
        dh = {"lr": -u * dx / slowing, "eps": -u * scale * du}
        if "lr_decay" in h:
            dh["lr_decay"] = -u * du * t / slowing
        dunder = dh["eps"] / (2 * root)
        if "initial" in h:
            dh["initial"] = dunder
        dv = dunder if dstate[0] is None else dunder + dstate[0]
        return dh, [dv], scale * du + 2 * g * dv


RULES: dict[type[Optimizer], type[ClosedForm]] = {
    SGD: SGDSweep, Adam: AdamSweep, AdamW: AdamWSweep, RMSprop: RMSpropSweep, Adagrad: AdagradSweep
}  # fmt: skip
SWEEPS.update(RULES)
