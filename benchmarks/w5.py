"""W5: exact meta-gradients of one window of a network's training, beside nested autograd.

    python -m benchmarks W5

The meta-loss is the sum of the losses after each of T updates from a fixed start; its gradient follows every path:
also how each gradient moves with the weights. What is trained is momentum SGD, in the logarithms of a step size for
each tensor and the logit of the momentum; on one line, the coordinatewise LSTM. All sides ask the same task for the
same minibatches, so they run the same model code:

  - ours: a level with ``gradient=exact``.
  - ours, accelerated: the same level of an accelerated tower. One evaluation is compiled, whatever the unroll; how long
    that takes with an empty cache is the time of its first step.
  - naive autograd: one graph for the whole window, ``create_graph=True`` at each gradient, kept until the end.
    Weights are one flat tensor, as in levels, which is quicker than one tensor for each parameter.
  - higher: `higher.innerloop_ctx` with its differentiable SGD; step sizes and momentum by ``override``.

A step is one value and gradient. The MLP has 8,970 parameters and minibatches of 128 digits (1,510 under the LSTM);
the transformer has 20,032 and minibatches of 8 pieces of 32 characters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from benchmarks.harness import Numbers, Side, Spread, Unsupported
from levels import LSTM, SGD, CharTransformer, DigitsMLP, Exact, Level, LevelState, Log, Optimizer, keys
from levels.tasks.task import LossTask
from levels.tree import map_leaves
from recursion import Tower
from recursion.accelerate import accelerate

TITLE = "exact meta-gradients by unroll"
TOLERANCE = 1e-4
UNROLLS = (20, 80, 320)
MODELS: dict[str, Callable[..., LossTask]] = {
    "mlp": lambda **settings: DigitsMLP(hidden=(64, 64), **settings),
    "transformer": lambda **settings: CharTransformer(minibatch=8, **settings),
    "small mlp": DigitsMLP,
}
RULES: dict[str, Optimizer] = {"sgd": SGD(lr=Log(0.03, shared_over="tensor"), momentum=0.9), "lstm": LSTM()}
VARIANTS: dict[str, dict[str, Any]] = {
    f"{model} unroll {unroll}": {"model": model, "unroll": unroll}
    for model in ("mlp", "transformer")
    for unroll in UNROLLS
}
VARIANTS["transformer unroll 20 in float64"] = {"model": "transformer", "unroll": 20, "dtype": "float64"}
VARIANTS["small mlp unroll 20 by an lstm"] = {"model": "small mlp", "unroll": 20, "rule": "lstm"}


class LearnedInit(NamedTuple):
    """Where every side begins: the same numbers."""

    task: LossTask
    level: Level  # over the task
    fast: Level  # the same, of an accelerated tower
    state: LevelState
    params: Tensor  # [m] of the optimizer; for SGD as stored, a step size for each tensor and then the momentum
    x: Tensor  # [n] weights
    cursor: Any  # of the minibatch at x
    unroll: int


def start(task: LossTask, unroll: int, rule: str = "sgd") -> LearnedInit:
    """The start of a window of ``unroll`` updates over ``task``, from fixed seeds."""
    spec = Level(optimizer=RULES[rule], unroll=unroll, horizon=None, batch=1, gradient=Exact())
    tower = Tower(task, spec, Level(optimizer=SGD()))
    level = tower.bound[0]
    params, key = level.init(keys.seed(0)), keys.seed(1)
    state = level.init_state(params[None], key[None])  # of the one copy in a tower
    x, of_copy = state.carry.x[0, 0], state.carry.key[0, 0]
    cursor = task.init_state(x, keys.split(of_copy, 2)[1])
    return LearnedInit(task, level, accelerate(tower).bound[0], state, params, x, cursor, unroll)


class Measured(ABC):
    """A side by its meta-gradient; abstract in that."""

    def __init__(self, begun: LearnedInit) -> None:
        self.start = begun

    @abstractmethod
    def meta_gradient(self) -> tuple[Tensor, Tensor]:
        """Meta-loss ``[]`` and its gradient ``[m]`` in the optimizer's parameters."""

    def prove(self) -> Numbers:
        value, grad = self.meta_gradient()
        return {"meta-loss": [float(value)], "meta-gradient": grad.tolist()}

    def step(self) -> None:
        self.meta_gradient()


class Ours(Measured):
    """The exact estimator of this project."""

    def meta_gradient(self) -> tuple[Tensor, Tensor]:
        return self._of(self.start.level)

    def _of(self, level: Level) -> tuple[Tensor, Tensor]:
        value, grad, _ = level.value_and_grad(self.start.params[None], self.start.state)
        return value[0], grad[0]


class Accelerated(Ours):
    """The same, accelerated."""

    def meta_gradient(self) -> tuple[Tensor, Tensor]:
        return self._of(self.start.fast)


class Naive(Measured):
    """Nested autograd with the whole graph retained."""

    def meta_gradient(self) -> tuple[Tensor, Tensor]:
        task, params = self.start.task, self.start.params.clone().requires_grad_()
        x, state = self.start.x.clone().requires_grad_(), None
        update = self.by_sgd(params) if isinstance(self.start.level.optimizer, SGD) else self.by_rule(params)
        f, cursor = task.loss(x, self.start.cursor)
        total = torch.zeros_like(f)
        for _ in range(self.start.unroll):
            (g,) = torch.autograd.grad(f, x, create_graph=True)
            x, state = update(g, state, x)
            f, cursor = task.loss(x, cursor)
            total = total + f
        (grad,) = torch.autograd.grad(total, params)
        return total.detach(), grad

    def by_sgd(self, params: Tensor) -> Callable[[Tensor, Any, Tensor], tuple[Tensor, Tensor]]:
        """Momentum SGD as one writes it, hyperparameters read once."""
        rates, momentum = self.start.task.layout.spread(params[:-1].exp()), params[-1].sigmoid()

        def update(g: Tensor, buffer: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
            buffer = g if buffer is None else momentum * buffer + g
            return x - rates * buffer, buffer

        return update

    def by_rule(self, params: Tensor) -> Callable[[Tensor, Any, Tensor], tuple[Tensor, Any]]:
        """Another rule, by its own update for one copy."""
        rule, carry = self.start.level.optimizer, self.start.state.carry
        first, f = map_leaves(lambda leaf: leaf[0], carry.state), carry.f[0]

        def update(g: Tensor, state: Any, x: Tensor) -> tuple[Tensor, Any]:
            new, state = rule.update(params, x[None], first if state is None else state, f, g[None])
            return new[0], state

        return update


class Model(nn.Module):
    """A task's weights as named parameters, and its loss as the forward pass: what `higher` takes."""

    def __init__(self, task: LossTask, x: Tensor) -> None:
        super().__init__()
        self.task = task
        for name, view in task.layout.unravel(x).items():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(view.clone()))

    def forward(self, cursor: Any) -> tuple[Tensor, Any]:
        named = {name: getattr(self, name.replace(".", "_")) for name, _ in self.task.layout.entries}
        return self.task.loss(self.task.layout.ravel(named), cursor)


class Higher(Measured):
    """`higher` 0.2.1, as its documentation has it; one parameter group for each tensor. Unsupported for an LSTM."""

    def __init__(self, begun: LearnedInit) -> None:
        super().__init__(begun)
        if not isinstance(begun.level.optimizer, SGD):
            raise Unsupported("higher has no learned optimizers")
        self.model = Model(begun.task, begun.x)
        groups = [{"params": [weights]} for weights in self.model.parameters()]
        self.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)

    def meta_gradient(self) -> tuple[Tensor, Tensor]:
        import higher

        params = self.start.params.clone().requires_grad_()
        override = {"lr": list(params[:-1].exp().unbind()), "momentum": [params[-1].sigmoid()]}
        with higher.innerloop_ctx(self.model, self.optimizer, override=override) as (model, optimizer):
            f, cursor = model(self.start.cursor)
            total = torch.zeros_like(f)
            for _ in range(self.start.unroll):
                optimizer.step(f)
                f, cursor = model(cursor)
                total = total + f
        (grad,) = torch.autograd.grad(total, params)
        return total.detach(), grad


def side(kind: type[Measured]) -> Callable[..., Side]:
    """What builds a side of that kind for a variant."""

    def build(model: str, unroll: int, rule: str = "sgd", dtype: str = "float32") -> Side:
        return kind(start(MODELS[model](dtype=dtype), unroll, rule))

    return build


SIDES: dict[str, Callable[..., Side]] = {
    "ours": side(Ours),
    "ours, accelerated": side(Accelerated),
    "naive autograd": side(Naive),
    "higher": side(Higher),
}
IMPORTS = {"ours, accelerated": ["torch._dynamo", "torch._inductor.compile_fx"]}
PREPARE: dict[str, Callable[[], object]] = {"higher": lambda: import_module("higher")}


def over_naive(row: dict[str, Any], sides: dict[str, Any]) -> Spread:
    """A side's time over naive autograd's, taken within each round."""
    return Spread.of([a / b for a, b in zip(row["seconds"], sides["naive autograd"]["seconds"])])


def summary(result: dict[str, Any]) -> list[str]:
    """Ours over naive autograd, a line for each of our sides in each variant that has both."""
    lines = []
    for label, found in result["variants"].items():
        naive = found["sides"].get("naive autograd")
        for name, row in found["sides"].items():
            if name.startswith("ours") and row["seconds"] and naive and naive["seconds"]:
                time, memory = over_naive(row, found["sides"]).middle, row["peak"] / max(naive["peak"], 1)
                first = f" after a first step of {row['first']:.0f} s" if "accelerated" in name else ""
                what = f"{time:.2f} of naive autograd's time and {memory:.2f} of its memory"
                lines.append(f"{label}: {name} takes {what}{first}")
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Time over naive autograd's, and peak memory, against the unroll: a row of panels for each model."""
    curves: dict[str, dict[str, list[tuple[int, dict[str, Any], Spread]]]] = {}
    for found in result["variants"].values():
        settings, naive = found["settings"], found["sides"].get("naive autograd")
        if naive and naive["seconds"] and settings.keys() <= {"model", "unroll", "threads"}:
            for name, row in found["sides"].items():
                if row["seconds"]:
                    point = settings["unroll"], row, over_naive(row, found["sides"])
                    curves.setdefault(settings["model"], {}).setdefault(name, []).append(point)
    rows = max(1, len(curves))
    figure, panels = plt.subplots(rows, 2, figsize=(11, 3.8 * rows), layout="constrained", squeeze=False)
    for (model, sides), (left, right) in zip(curves.items(), panels):
        left.axhline(0.75, color="black", linewidth=0.8, linestyle=":", label="the goal at 320, 0.75")
        for color, (name, points) in zip(("C1", "C3", "C0", "C2"), sides.items()):
            unrolls = [unroll for unroll, _, _ in points]
            left.plot(unrolls, [time.middle for _, _, time in points], "-o", color=color, label=name)
            low, high = [time.low for _, _, time in points], [time.high for _, _, time in points]
            left.fill_between(unrolls, low, high, color=color, alpha=0.2, linewidth=0)
            right.plot(unrolls, [row["peak"] / 1e6 for _, row, _ in points], "-o", color=color, label=name)
        finish(left, f"{model}: time of a meta-gradient", "over naive autograd's; band: quartiles", unrolls)
        finish(right, f"{model}: peak memory", "MB beyond the process after imports", unrolls)
    figure.suptitle(f"{result['title']}\n{result['machine']['cpu']}, {result['rounds']} rounds", fontsize=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def finish(axes: Axes, title: str, label: str, unrolls: list[int]) -> None:
    axes.set(title=title, xlabel="unroll", ylabel=label, xscale="log", ylim=(0, None))
    axes.set_xticks(unrolls, [str(t) for t in unrolls])
    axes.minorticks_off()
    axes.grid(alpha=0.2)
    axes.legend(fontsize=8)
