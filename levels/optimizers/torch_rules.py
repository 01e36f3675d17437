"""Differentiable rules for the classes of torch.optim, put into `higher` (Grefenstette et al. 2019) by `register`.

Higher's own Adadelta and Adamax are right here and used as they are. The others stand below, because higher 0.2.1
has none (AdamW, NAdam, RAdam) or one that a level cannot use:

- SGD and RMSprop ask ``momentum != 0``, which a batch of momenta cannot answer; SGD has one first step for all copies;
  RMSprop, centered, has no finite derivative where a gradient is always 0.
- Adam has epsilon in another place and a wrong derivative in beta2.
- Adagrad has no finite second derivatives, as exact gradients need them, where a gradient is always 0.
- ASGD computes its step size by ``math.pow``, which drops the derivatives in lr, lambd and alpha, and Rprop cannot take
  a batch of etas; both count one step for all copies.

All settings may be numbers, or tensors that broadcast against x; the step count ``t`` (from 1) may differ between
copies. So one call serves every copy of a batch. Where a second moment is exactly 0 its root has no derivative and 0
is taken, so hypergradients stay finite.
"""

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)  # higher 0.2.1 compares `len(v) is 1`
    import higher
    from higher.optim import DifferentiableOptimizer

Group = Mapping[str, Any]
"""Settings by torch's names: numbers, booleans, tensors, pairs of them."""

Slots = dict[str, Tensor]
"""What a rule remembers, by torch's names, shaped as x."""

Remembers = Mapping[str, str | None]
"""Names of what a rule remembers, each with the setting that must be on for it, if any."""


def is_on(setting: Any) -> bool:
    """Whether a momentum or weight decay is there: a tensor always is, a number if it is not 0."""
    return isinstance(setting, Tensor) or bool(setting != 0)


def slots_of(remembers: Remembers, group: Group) -> tuple[str, ...]:
    """Names of what is remembered under these settings."""
    return tuple(name for name, setting in remembers.items() if setting is None or is_on(group[setting]))


def number(value: float | Tensor, like: Tensor) -> Tensor:
    """A tensor of the dtype of another, on its device, where a number is made without a copy from elsewhere."""
    return value.to(like) if isinstance(value, Tensor) else like.new_full((), value)


def prepared(group: Group, g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and parameters after what every rule of torch does first: ``maximize``, then weight decay."""
    if group.get("maximize", False):
        g = -g
    decay = group.get("weight_decay", 0)
    if not is_on(decay):
        return g, x
    if group.get("decoupled_weight_decay", False):
        return g, x * (1 - group["lr"] * decay)
    return g + decay * x, x


class Rule(DifferentiableOptimizer):  # type: ignore[misc]
    """A rule for one tensor at a time, elementwise; abstract. All it remembers starts at 0, with ``t`` 1."""

    remembers: ClassVar[Remembers]

    @abstractmethod
    def move(self, group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Slots]:
        """Step ``t`` from ``x``, weight decay being done: the next ``x`` and what is remembered."""

    def _update(self, grouped_grads: list[list[Tensor | None]], **kwargs: Any) -> None:
        for group, grads, states in zip(self.param_groups, grouped_grads, self.state):
            for i, (x, grad) in enumerate(zip(group["params"], grads)):
                if grad is None:
                    continue
                old = states[i]
                slots = {
                    name: old[name] if name in old else torch.zeros_like(x) for name in slots_of(self.remembers, group)
                }
                t = number(old.get("step", len(old) > 0), x) + 1
                g, x = prepared(group, grad, x)
                group["params"][i], new = self.move(group, slots, t, g, x)
                states[i] = {"step": t, **new}


class SGD(Rule):
    """b <- momentum b + (1 - dampening) g, the first g undampened; x <- x - lr b, or Nesterov's g + momentum b."""

    remembers: ClassVar[Remembers] = {"momentum_buffer": "momentum"}

    def move(self, group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Slots]:
        momentum = group["momentum"]
        if not is_on(momentum):
            return x - group["lr"] * g, {}
        b = momentum * slots["momentum_buffer"] + (1 - group["dampening"] * (t > 1).to(x.dtype)) * g
        return x - group["lr"] * (g + momentum * b if group["nesterov"] else b), {"momentum_buffer": b}


class Adam(Rule):
    """Kingma and Ba 2015, with AMSGrad (Reddi et al. 2018); AdamW (Loshchilov and Hutter 2019) in its weight decay."""

    remembers: ClassVar[Remembers] = {"exp_avg": None, "exp_avg_sq": None, "max_exp_avg_sq": "amsgrad"}

    def move(self, group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Slots]:
        beta1, beta2 = group["betas"]
        new = _moments(group, slots, g)
        v = new["exp_avg_sq"]
        if group["amsgrad"]:
            new["max_exp_avg_sq"] = v = torch.maximum(slots["max_exp_avg_sq"], v)
        scale = _root(v) / torch.sqrt(1 - beta2**t) + group["eps"]
        return x - group["lr"] / (1 - beta1**t) * new["exp_avg"] / scale, new


class NAdam(Rule):
    """Dozat 2016: Adam with Nesterov's look-ahead and a momentum that grows, mu_t = beta1 (1 - 0.96^(t decay) / 2)."""

    remembers: ClassVar[Remembers] = {"exp_avg": None, "exp_avg_sq": None, "mu_product": None}

    def move(self, group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Slots]:
        beta1, beta2 = group["betas"]
        mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (step * group["momentum_decay"])) for step in (t, t + 1))
        product = torch.where(t == 1, 1.0, slots["mu_product"]) * mu
        new = _moments(group, slots, g) | {"mu_product": product}
        scale = _root(new["exp_avg_sq"] / (1 - beta2**t)) + group["eps"]
        direction = (1 - mu) / (1 - product) * g + mu_next / (1 - product * mu_next) * new["exp_avg"]
        return x - group["lr"] * direction / scale, new


class RAdam(Rule):
    """Liu et al. 2020: Adam, rectified while its second moment has seen few gradients; momentum alone before that."""

    remembers: ClassVar[Remembers] = {"exp_avg": None, "exp_avg_sq": None}

    def move(self, group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Slots]:
        beta1, beta2 = group["betas"]
        new = _moments(group, slots, g)
        left = 1 - beta2**t
        longest = number(2 / (1 - beta2) - 1, x)
        length = longest - 2 * t * beta2**t / left
        enough = length > 5
        length, longest = (torch.where(enough, rho, 6.0) for rho in (length, longest))  # else roots below 0
        rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        scale = torch.sqrt(rectified * left) / (_root(new["exp_avg_sq"]) + group["eps"])
        return x - group["lr"] / (1 - beta1**t) * new["exp_avg"] * torch.where(enough, scale, 1.0), new


class RMSprop(Rule):
    """Tieleman and Hinton 2012; centered, by the variance of the gradient (Graves 2013); momentum as torch has it."""

    remembers: ClassVar[Remembers] = {"square_avg": None, "grad_avg": "centered", "momentum_buffer": "momentum"}

    def move(self, group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Slots]:
        alpha = group["alpha"]
        v = alpha * slots["square_avg"] + (1 - alpha) * g * g
        new = {"square_avg": v}
        if group["centered"]:
            new["grad_avg"] = mean = alpha * slots["grad_avg"] + (1 - alpha) * g
            v = v - mean * mean
        direction = g / (_root(v) + group["eps"])
        if is_on(group["momentum"]):
            direction = group["momentum"] * slots["momentum_buffer"] + direction
            new["momentum_buffer"] = direction
        return x - group["lr"] * direction, new


class Adagrad(Rule):
    """Duchi et al. 2011, with a step size that may fall as 1 / (1 + lr_decay (t - 1))."""

    remembers: ClassVar[Remembers] = {"sum": None}

    def move(self, group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Slots]:
        total = torch.where(t == 1, group["initial_accumulator_value"], slots["sum"]) + g * g
        rate = group["lr"] / (1 + (t - 1) * group["lr_decay"])
        return x - rate * g / (_root(total) + group["eps"]), {"sum": total}


class Rprop(Rule):
    """Riedmiller and Braun 1993: a step size each, larger while a gradient keeps its sign, smaller when it turns.

    ``lr`` is the first step size: it has a derivative in a window in which a trajectory starts, and 0 in others.
    """

    remembers: ClassVar[Remembers] = {"prev": None, "step_size": None}

    def move(self, group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Slots]:
        (shrink, grow), (least, most) = group["etas"], group["step_sizes"]
        agree = g * slots["prev"]
        size = torch.where(t == 1, group["lr"], slots["step_size"])
        size = torch.where(agree > 0, size * grow, torch.where(agree < 0, size * shrink, size))
        size = torch.clamp(size, *(number(edge, x) for edge in (least, most)))
        g = torch.where(agree < 0, 0.0, g)
        return x - g.sign() * size, {"prev": g, "step_size": size}


class ASGD(Rule):
    """Polyak and Juditsky 1992: eta_t = lr / (1 + lambd lr (t - 1))^alpha; ``ax`` is the average from step t0 on."""

    remembers: ClassVar[Remembers] = {"ax": None}

    def move(self, group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, Slots]:
        eta = group["lr"] / (1 + group["lambd"] * group["lr"] * (t - 1)) ** group["alpha"]
        x = x * (1 - group["lambd"] * eta) - eta * g
        return x, {"ax": slots["ax"] + (x - slots["ax"]) / (t - 1 - group["t0"]).clamp_min(1)}


def _moments(group: Group, slots: Slots, g: Tensor) -> Slots:
    """Running means of the gradient and its square."""
    beta1, beta2 = group["betas"]
    return {
        "exp_avg": beta1 * slots["exp_avg"] + (1 - beta1) * g,
        "exp_avg_sq": beta2 * slots["exp_avg_sq"] + (1 - beta2) * g * g,
    }


def _root(v: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0 (and just below, where rounding leads)."""
    return torch.sqrt(v.clamp_min(torch.finfo(v.dtype).tiny))


RULES: dict[type[torch.optim.Optimizer], type[Rule]] = {
    torch.optim.SGD: SGD,
    torch.optim.Adam: Adam,
    torch.optim.AdamW: Adam,
    torch.optim.NAdam: NAdam,
    torch.optim.RAdam: RAdam,
    torch.optim.RMSprop: RMSprop,
    torch.optim.Adagrad: Adagrad,
    torch.optim.Rprop: Rprop,
    torch.optim.ASGD: ASGD,
}
REMEMBERS: dict[type[torch.optim.Optimizer], Remembers] = {
    torch.optim.Adadelta: {"square_avg": None, "acc_delta": None},
    torch.optim.Adamax: {"exp_avg": None, "exp_inf": None},
    **{kind: cls.remembers for kind, cls in RULES.items()},
}
"""What the rule of each class remembers; the first two are higher's own."""


def register() -> None:
    """Put the rules into higher, for this process; they replace higher's own but Adadelta and Adamax."""
    for kind, cls in RULES.items():
        higher.register_optim(kind, cls)
