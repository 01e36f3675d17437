"""Differentiable rules for the classes of torch.optim, put into `higher` (Grefenstette et al. 2019) by `register`.

Higher's own Adadelta and Adamax are right here and used as they are. The others stand below, because higher 0.2.1
has none (AdamW, NAdam, RAdam) or one that a level cannot use:

- SGD and RMSprop ask ``momentum != 0``, which a batch of momenta cannot answer; SGD, ASGD and Rprop count one step for
  all copies; Rprop cannot take a batch of etas.
- Adam has epsilon in another place and a wrong derivative in beta2. ASGD drops the derivatives in lr, lambd and alpha.
- Centered RMSprop has no finite derivative where a gradient is always 0, and Adagrad no second one.

All settings may be numbers, or tensors that broadcast against x; the step count ``t`` (from 1) may differ between
copies. So one call serves every copy of a batch. Where a second moment is exactly 0 its root has no derivative and 0
is taken, so hypergradients stay finite.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)  # higher 0.2.1 compares `len(v) is 1`
    import higher
    from higher.optim import DifferentiableOptimizer

Group = Mapping[str, Any]
"""Settings by torch's names: numbers, booleans, tensors, pairs of them."""

Slots = Mapping[str, Tensor]
"""What a rule remembers, by torch's names, shaped as x; 0 at the first step."""

Rule = Callable[[Group, Slots, Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""Step ``t`` from ``x``, elementwise and after weight decay: settings, slots, t, g, x -> the next x and slots."""


def is_on(setting: Any) -> bool:
    """Whether a momentum or weight decay is there: a tensor always is, a number if it is not 0."""
    return isinstance(setting, Tensor) or bool(setting != 0)


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


def sgd(group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """b <- momentum b + (1 - dampening) g, the first g undampened; x <- x - lr b, or Nesterov's g + momentum b."""
    momentum = group["momentum"]
    if not is_on(momentum):
        return x - group["lr"] * g, {}
    b = momentum * slots["momentum_buffer"] + (1 - group["dampening"] * (t > 1).to(x.dtype)) * g
    return x - group["lr"] * (g + momentum * b if group["nesterov"] else b), {"momentum_buffer": b}


def adam(group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Kingma and Ba 2015, with AMSGrad (Reddi et al. 2018); AdamW (Loshchilov and Hutter 2019) in its weight decay."""
    beta1, beta2 = group["betas"]
    new = _moments(group, slots, g)
    v = new["exp_avg_sq"]
    if group["amsgrad"]:
        new["max_exp_avg_sq"] = v = torch.maximum(slots["max_exp_avg_sq"], v)
    scale = _root(v) / torch.sqrt(1 - beta2**t) + group["eps"]
    return x - group["lr"] / (1 - beta1**t) * new["exp_avg"] / scale, new


def nadam(group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Dozat 2016: Adam with Nesterov's look-ahead and a momentum that grows, mu_t = beta1 (1 - 0.96^(t decay) / 2)."""
    beta1, beta2 = group["betas"]
    mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (step * group["momentum_decay"])) for step in (t, t + 1))
    product = torch.where(t == 1, 1.0, slots["mu_product"]) * mu
    new = _moments(group, slots, g) | {"mu_product": product}
    scale = _root(new["exp_avg_sq"] / (1 - beta2**t)) + group["eps"]
    direction = (1 - mu) / (1 - product) * g + mu_next / (1 - product * mu_next) * new["exp_avg"]
    return x - group["lr"] * direction / scale, new


def radam(group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Liu et al. 2020: Adam, rectified while its second moment has seen few gradients; momentum alone before that."""
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


def rmsprop(group: Group, slots: Slots, _: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Tieleman and Hinton 2012; centered, by the variance of the gradient (Graves 2013); momentum as torch has it."""
    alpha = group["alpha"]
    v = alpha * slots["square_avg"] + (1 - alpha) * g * g
    new = {"square_avg": v}
    if group["centered"]:
        new["grad_avg"] = mean = alpha * slots["grad_avg"] + (1 - alpha) * g
        v = v - mean * mean
    direction = g / (_root(v) + group["eps"])
    if is_on(group["momentum"]):
        new["momentum_buffer"] = direction = group["momentum"] * slots["momentum_buffer"] + direction
    return x - group["lr"] * direction, new


def adagrad(group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Duchi et al. 2011, with a step size that may fall as 1 / (1 + lr_decay (t - 1))."""
    total = torch.where(t == 1, group["initial_accumulator_value"], slots["sum"]) + g * g
    rate = group["lr"] / (1 + (t - 1) * group["lr_decay"])
    return x - rate * g / (_root(total) + group["eps"]), {"sum": total}


def rprop(group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Riedmiller and Braun 1993: a step size each, larger while a gradient keeps its sign, smaller when it turns.

    ``lr`` is the first step size: it has a derivative in a window in which a trajectory starts, and 0 in others.
    """
    (shrink, grow), edges = group["etas"], group["step_sizes"]
    agree = g * slots["prev"]
    size = torch.where(t == 1, group["lr"], slots["step_size"])
    size = torch.where(agree > 0, size * grow, torch.where(agree < 0, size * shrink, size))
    size = torch.clamp(size, *(number(edge, x) for edge in edges))
    g = torch.where(agree < 0, 0.0, g)
    return x - g.sign() * size, {"prev": g, "step_size": size}


def asgd(group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Polyak and Juditsky 1992: eta_t = lr / (1 + lambd lr (t - 1))^alpha; ``ax`` is the average from step t0 on."""
    eta = group["lr"] / (1 + group["lambd"] * group["lr"] * (t - 1)) ** group["alpha"]
    x = x * (1 - group["lambd"] * eta) - eta * g
    return x, {"ax": slots["ax"] + (x - slots["ax"]) / (t - 1 - group["t0"]).clamp_min(1)}


def _moments(group: Group, slots: Slots, g: Tensor) -> dict[str, Tensor]:
    """Running means of the gradient and its square."""
    values = {"exp_avg": g, "exp_avg_sq": g * g}
    return {name: beta * slots[name] + (1 - beta) * value
            for (name, value), beta in zip(values.items(), group["betas"])}  # fmt: skip


def _root(v: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0 (and just below, where rounding leads)."""
    return torch.sqrt(v.clamp_min(torch.finfo(v.dtype).tiny))


def of_higher(cls: type[DifferentiableOptimizer], group: Group, slots: Slots, t: Tensor, g: Tensor, x: Tensor) -> Any:
    """Higher's own rule, which is called alone: higher's `step` would ask autograd for the gradient, and g is here."""
    theirs = object.__new__(cls)
    theirs.param_groups = [{**group, "params": [x], "weight_decay": 0}]
    theirs.state = [{0: {"step": t - 1, **slots} if slots else {}}]
    theirs._update([[g]])
    return theirs.param_groups[0]["params"][0], {k: v for k, v in theirs.state[0][0].items() if k != "step"}


OURS: dict[type[torch.optim.Optimizer], Rule] = {
    torch.optim.SGD: sgd,
    torch.optim.Adam: adam,
    torch.optim.AdamW: adam,
    torch.optim.NAdam: nadam,
    torch.optim.RAdam: radam,
    torch.optim.RMSprop: rmsprop,
    torch.optim.Adagrad: adagrad,
    torch.optim.Rprop: rprop,
    torch.optim.ASGD: asgd,
}
RULES: dict[type[torch.optim.Optimizer], Rule] = OURS | {
    torch.optim.Adadelta: partial(of_higher, higher.optim.DifferentiableAdadelta),
    torch.optim.Adamax: partial(of_higher, higher.optim.DifferentiableAdamax),
}


class Elementwise(DifferentiableOptimizer):  # type: ignore[misc]
    """A rule as higher takes it; abstract."""

    formula: Rule

    def _update(self, grouped_grads: list[list[Tensor | None]], **kwargs: Any) -> None:
        for group, grads, states in zip(self.param_groups, grouped_grads, self.state):
            for i, (x, grad) in enumerate(zip(group["params"], grads)):
                if grad is not None:
                    old = states[i]
                    t = number(old.get("step", len(old) > 0), x) + 1
                    slots = defaultdict(partial(torch.zeros_like, x), old)
                    group["params"][i], new = self.formula(group, slots, t, *prepared(group, grad, x))
                    states[i] = {"step": t, **new}


def register() -> None:
    """Put our rules into higher, for this process; they replace higher's own but Adadelta and Adamax."""
    for kind, formula in OURS.items():
        higher.register_optim(kind, type(kind.__name__, (Elementwise,), {"formula": staticmethod(formula)}))
