"""W5: exact meta-gradients of momentum SGD, step sizes for each tensor, over one window of a network's training.

    python -m benchmarks W5

The meta-loss is the sum of the losses after each of T updates from a fixed start; its gradient, in the logarithms of
the step sizes and the logit of the momentum, follows every path: also how each gradient moves with the weights. All
sides ask the same task for the same minibatches, so they run the same model code:

  - ours: a level with ``gradient=exact``.
  - naive autograd: one autograd graph for the whole window, ``create_graph=True`` at each gradient, kept until the end. Weights
    are one flat tensor, as in levels: that is quicker than one tensor for each parameter.
  - higher: `higher.innerloop_ctx` with its differentiable SGD; step sizes and momentum by ``override``.

A step is one value and gradient. The MLP has 8,970 parameters and minibatches of 128 digits; the transformer has
20,032 and minibatches of 8 pieces of 32 characters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.harness import Side
from levels import SGD, CharTransformer, DigitsMLP, Exact, Laid, Level, LevelState, Log, keys
from levels.task import LossTask

TITLE = "W5: exact meta-gradients of momentum SGD, by unroll"
TOLERANCE = 1e-3
UNROLLS = (20, 80, 320)
MODELS: dict[str, Callable[..., LossTask]] = {
    "mlp": lambda **settings: DigitsMLP(hidden=(64, 64), minibatch=128, **settings),
    "transformer": lambda **settings: CharTransformer(minibatch=8, **settings),
}
VARIANTS: dict[str, dict[str, Any]] = {
    f"{model} unroll {unroll}": {"model": model, "unroll": unroll} for model in MODELS for unroll in UNROLLS
}


class Start(NamedTuple):
    """Where every side begins: the same numbers."""

    task: LossTask
    laid: Laid  # the level over the task
    state: LevelState
    params: Tensor  # [m] raw: a step size for each tensor, then the momentum
    x: Tensor  # [n] weights
    cursor: Any  # of the minibatch at x
    unroll: int


def start(task: LossTask, unroll: int) -> Start:
    """The start of a window of ``unroll`` updates over ``task``, from fixed seeds."""
    rule = SGD(lr=Log(0.03, per="tensor"), momentum=0.9)
    laid = Level(optimizer=rule, unroll=unroll, horizon=None, batch=1, gradient=Exact()).over(task)
    params, key = laid.init_params(keys.seed(0)), keys.seed(1)
    state = laid.init_state(params, key)
    x = state.carry.x[0]
    return Start(task, laid, state, params, x, laid.asked_first(x, state.carry.key[0]), unroll)


class Measured(ABC):
    """A side by its meta-gradient; abstract in that."""

    def __init__(self, begun: Start) -> None:
        self.start = begun

    @abstractmethod
    def meta_gradient(self) -> tuple[Tensor, Tensor]:
        """Meta-loss ``[]`` and its gradient ``[m]`` in the raw parameters."""

    def prove(self) -> dict[str, list[float]]:
        value, grad = self.meta_gradient()
        return {"meta-loss": [float(value)], "meta-gradient": grad.tolist()}

    def step(self) -> None:
        self.meta_gradient()


class Ours(Measured):
    """The exact estimator of this project."""

    def meta_gradient(self) -> tuple[Tensor, Tensor]:
        value, grad, _ = self.start.laid.value_and_grad(self.start.params, self.start.state)
        return value, grad


class Naive(Measured):
    """Nested autograd with the whole graph retained."""

    def meta_gradient(self) -> tuple[Tensor, Tensor]:
        task, raw = self.start.task, self.start.params.clone().requires_grad_()
        rates, momentum = task.layout.spread(raw[:-1].exp()), raw[-1].sigmoid()
        x, buffer = self.start.x.clone().requires_grad_(), torch.zeros_like(self.start.x)
        f, cursor = task.loss(x, self.start.cursor)
        total = torch.zeros_like(f)
        for _ in range(self.start.unroll):
            (g,) = torch.autograd.grad(f, x, create_graph=True)
            buffer = momentum * buffer + g
            x = x - rates * buffer
            f, cursor = task.loss(x, cursor)
            total = total + f
        (grad,) = torch.autograd.grad(total, raw)
        return total.detach(), grad


class Model(nn.Module):
    """A task's weights as named parameters, and its loss as the forward pass: what `higher` takes."""

    def __init__(self, task: LossTask, x: Tensor) -> None:
        super().__init__()
        self.task = task
        for name, view in task.layout.views(x).items():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(view.clone()))

    def forward(self, cursor: Any) -> tuple[Tensor, Any]:
        named = {name: getattr(self, name.replace(".", "_")) for name, _ in self.task.layout.entries}
        return self.task.loss(self.task.layout.flat(named), cursor)


class Higher(Measured):
    """`higher` 0.2.1, as its documentation has it."""

    def __init__(self, begun: Start) -> None:
        super().__init__(begun)
        self.model = Model(begun.task, begun.x)
        groups = [{"params": [weights]} for weights in self.model.parameters()]
        self.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)

    def meta_gradient(self) -> tuple[Tensor, Tensor]:
        import higher

        raw = self.start.params.clone().requires_grad_()
        override = {"lr": list(raw[:-1].exp().unbind()), "momentum": [raw[-1].sigmoid()]}
        with higher.innerloop_ctx(self.model, self.optimizer, override=override) as (model, optimizer):
            f, cursor = model(self.start.cursor)
            total = torch.zeros_like(f)
            for _ in range(self.start.unroll):
                optimizer.step(f)
                f, cursor = model(cursor)
                total = total + f
        (grad,) = torch.autograd.grad(total, raw)
        return total.detach(), grad


def side(kind: type[Measured]) -> Callable[..., Side]:
    """What builds a side of that kind for a variant; ``dtype`` is float32 or float64."""

    def build(model: str, unroll: int, dtype: str = "float32") -> Side:
        return kind(start(MODELS[model](dtype=dtype), unroll))

    return build


SIDES: dict[str, Callable[..., Side]] = {"ours": side(Ours), "naive autograd": side(Naive), "higher": side(Higher)}
PREPARE: dict[str, Callable[[], object]] = {"higher": lambda: import_module("higher")}
