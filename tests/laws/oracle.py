"""Naive nested autograd: the oracle that a tower's first-order gradients are held against.

Everything here is written from the equations, one copy at a time. A level's loss is built as one autograd graph
of the level's parameters, which holds the graphs of all windows below it: memory is the product of the unrolls,
and each level sweeps all of it once more for its own gradient. The gradient handed to an update is detached, and
so is what is carried over a window's edge. Shared with the library: what a tower is told (settings, layouts,
where the numbers of a key come from), nothing of how it runs, updates or differentiates.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from levels import (
    LSTM,
    SGD,
    Adam,
    DigitsMLP,
    Discounted,
    Fixed,
    Last,
    Level,
    LevelState,
    Linear,
    Log,
    Logit,
    MeanLog,
    Quadratic,
    RMSprop,
    Sum,
    Task,
    keys,
)
from levels.tree import leaves, map_leaves

TINY = torch.finfo(torch.float64).tiny


class Copy(NamedTuple):
    """One copy of a problem that a level works on, at the edge of a window."""

    x: Tensor  # [n]
    s: Any
    f: Tensor  # []
    g: Tensor  # [n]
    problem_state: Any  # state of the problem
    age: int
    key: Tensor  # []


# Update rules: x, state <- rule(optimizer, theta, g, state, x) for one copy: theta [m], g and x [n].


def _hypers(optimizer: Any, theta: Tensor) -> dict[str, Any]:
    spaces = {Linear: lambda u: u, Log: torch.exp, Logit: lambda u: 1 / (1 + torch.exp(-u))}
    stored, read = optimizer.layout.unravel(theta), {}
    for name, hyper in optimizer.hypers.items():
        if isinstance(hyper, Fixed):
            read[name] = hyper.start
            continue
        value = spaces[type(hyper)](stored[name])
        if hyper.shared_over == "tensor":
            value = torch.cat([value[i].repeat(size) for i, size in enumerate(optimizer.param_layout.sizes)])
        read[name] = value
    return read


def _sgd(optimizer: SGD, theta: Tensor, g: Tensor, s: Any, x: Tensor) -> tuple[Tensor, Any]:
    h = _hypers(optimizer, theta)
    if optimizer.weight_decay is not None:
        g = g + h["weight_decay"] * x
    if optimizer.momentum is None:
        return x - h["lr"] * g, None
    buffer = h["momentum"] * (torch.zeros_like(x) if s is None else s) + g
    return x - h["lr"] * (g + h["momentum"] * buffer if optimizer.nesterov else buffer), buffer


def _adam(optimizer: Adam, theta: Tensor, g: Tensor, s: Any, x: Tensor) -> tuple[Tensor, Any]:
    h = _hypers(optimizer, theta)
    m, v, t = s or (torch.zeros_like(x), torch.zeros_like(x), 0)
    m = h["beta1"] * m + (1 - h["beta1"]) * g
    v = h["beta2"] * v + (1 - h["beta2"]) * g**2
    m_hat, v_hat = m / (1 - h["beta1"] ** (t + 1)), v / (1 - h["beta2"] ** (t + 1))
    return x - h["lr"] * m_hat / ((v_hat + TINY).sqrt() + h["eps"]), (m, v, t + 1)


def _rmsprop(optimizer: RMSprop, theta: Tensor, g: Tensor, s: Any, x: Tensor) -> tuple[Tensor, Any]:
    h = _hypers(optimizer, theta)
    v = h["decay"] * (torch.zeros_like(x) if s is None else s) + (1 - h["decay"]) * g**2
    return x - h["lr"] * g / ((v + TINY).sqrt() + h["eps"]), v


def _lstm(optimizer: LSTM, theta: Tensor, g: Tensor, s: Any, x: Tensor) -> tuple[Tensor, Any]:
    """torch's own cell; its weights are the transposes, its gates in the same order."""
    views, hidden = optimizer.layout.unravel(theta), optimizer.hidden
    s = s or tuple((x.new_zeros(len(x), hidden),) * 2 for _ in range(optimizer.layers))
    big = g.abs() >= math.exp(-optimizer.p)
    first = torch.where(big, torch.log(torch.where(big, g.abs(), 1.0)) / optimizer.p, torch.tensor(-1.0))
    out, new = torch.stack([first, torch.where(big, g.sign(), math.exp(optimizer.p) * g)], dim=1), []
    for layer, state in enumerate(s):
        weight, bias = views[f"layer{layer}.weight"].T, views[f"layer{layer}.bias"]
        inputs = weight.shape[1] - hidden
        out, c = torch.lstm_cell(out, state, weight[:, :inputs], weight[:, inputs:], bias, torch.zeros_like(bias))
        new.append((out, c))
    return x + optimizer.scale * (out @ views["out.weight"] + views["out.bias"])[:, 0], tuple(new)


RULES: dict[type, Callable[..., tuple[Tensor, Any]]] = {
    SGD: _sgd, Adam: _adam, RMSprop: _rmsprop, LSTM: _lstm
}  # fmt: skip

OBJECTIVES: dict[type, Callable[[Any, list[Tensor]], Tensor]] = {
    Sum: lambda _, losses: sum(losses),
    Last: lambda _, losses: losses[-1],
    MeanLog: lambda _, losses: sum(torch.log(loss) for loss in losses) / len(losses),
    Discounted: lambda objective, losses: sum(objective.discount**t * loss for t, loss in enumerate(losses)),
}


# Losses of the tasks: loss, next state <- loss(task, x, state).


def _quadratic(task: Quadratic, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    return torch.sum((state.w @ x - state.y) ** 2), state


def _mlp(task: DigitsMLP, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    data, (*weights,) = task.data(), task.layout.unravel(x).values()
    rows = keys.integers(keys.fold_in(state.key, state.step), (task.minibatch,), len(data.labels))
    out = functional.linear(data.inputs[rows], weights[0].T, weights[1])
    for weight, bias in zip(weights[2::2], weights[3::2]):
        out = functional.linear(torch.sigmoid(out), weight.T, bias)
    return functional.cross_entropy(out, data.labels[rows]), state._replace(step=state.step + 1)


LOSSES: dict[type, Callable[..., tuple[Tensor, Any]]] = {Quadratic: _quadratic, DigitsMLP: _mlp}


class NaiveTask:
    """A task: `value` is a graph of ``x``."""

    def __init__(self, task: Task) -> None:
        self.task, self.layout, self.init = task, task.layout, task.init
        self.start = task.init_state

    def value(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return LOSSES[type(self.task)](self.task, x, state)


class NaiveLevel:
    """A level over a `NaiveTask` or `NaiveLevel`; its state is the list of its copies."""

    def __init__(self, level: Level, problem: Any) -> None:
        self.level, self.problem = level, problem
        self.optimizer = level.optimizer.bind(problem.layout)
        self.layout, self.init = self.optimizer.layout, self.optimizer.init

    def start(self, theta: Tensor, key: Tensor) -> list[Copy]:
        """Copies at the start of trajectories; their ages spread evenly over the windows of a life, if staggered."""
        copies = [self.begin(keys.fold_in(key, 1 + i)) for i in range(self.level.batch)]
        if not self.level.stagger or self.level.episode_length is None:
            return copies
        windows = self.level.episode_length // self.level.unroll
        return [copy._replace(age=i * windows // self.level.batch * self.level.unroll) for i, copy in enumerate(copies)]

    def begin(self, key: Tensor) -> Copy:
        x = self.problem.init(keys.fold_in(key, 1))
        f, g, problem_state = evaluate(self.problem, x, self.problem.start(x, keys.fold_in(key, 2)))
        return Copy(x, None, f.detach(), g, problem_state, 0, key)

    def value(self, theta: Tensor, copies: list[Copy]) -> tuple[Tensor, list[Copy]]:
        """The meta-loss of one window as a graph of ``theta``, and the copies behind it."""
        losses, ends = zip(*(self.one(theta, copy) for copy in copies))
        return sum(losses) / len(losses), list(ends)

    def ask(self, theta: Tensor, copies: list[Copy]) -> tuple[Tensor, Tensor, list[Copy]]:
        """Value and gradient of one window, and the copies behind it."""
        return evaluate(self, theta, copies)  # type: ignore[return-value]

    def one(self, theta: Tensor, copy: Copy) -> tuple[Tensor, Copy]:
        """One copy's part of `value`; a copy whose trajectory is over starts afresh first."""
        if self.level.episode_length is not None and copy.age >= self.level.episode_length:
            copy = self.begin(keys.fold_in(copy.key, -1))
        x, s, _, g, problem_state, age, key = copy
        losses = []
        for _ in range(self.level.unroll):
            x, s = RULES[type(self.optimizer)](self.optimizer, theta, g, s, x)
            f, g, problem_state = evaluate(self.problem, x, problem_state)
            losses.append(f)
        end = Copy(x.detach(), _constant(s), losses[-1].detach(), g, problem_state, age + self.level.unroll, key)
        return OBJECTIVES[type(self.level.objective)](self.level.objective, losses), end


def evaluate(problem: Any, x: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
    """Value with its graph, gradient as data, next state. ``x`` may be part of a graph or not."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    f, state = problem.value(x, state)
    (g,) = torch.autograd.grad(f, x, retain_graph=True)
    return f, g, state


def naive(task: Task, *levels: Level) -> Any:
    """The oracle of ``levels`` stacked over ``task``."""
    problem: Any = NaiveTask(task)
    for level in levels:
        problem = NaiveLevel(level, problem)
    return problem


def _constant(s: Any) -> Any:
    return map_leaves(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, s)


# Comparison.


def equal(one: Any, other: Any) -> bool:
    """Whether two states are equal bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(leaves(one), leaves(other), strict=True))


def error(ours: Tensor, theirs: Tensor | float) -> float:
    """Largest difference over the largest entry of the oracle's tensor."""
    theirs = torch.as_tensor(theirs, dtype=torch.float64)
    assert ours.shape == theirs.shape
    scale = theirs.abs().max()
    return float((ours - theirs).abs().max() / (scale if scale > 0 else 1.0))


def state_error(ours: LevelState, copies: list[Copy], index: tuple[int, ...] = ()) -> float:
    """Largest `error` over everything that a level and all levels below carry; ages must be the same."""
    carry, worst = ours.carry, 0.0
    for i, copy in enumerate(copies):
        at = (*index, i)
        assert int(carry.age[at]) == copy.age
        pairs = [(carry.x, copy.x), (carry.f, copy.f), (carry.g, copy.g)]
        if copy.s is not None:
            pairs += list(zip(leaves(carry.state), leaves(copy.s), strict=True))
        worst = max(worst, *(error(a[at], b) for a, b in pairs))
        if isinstance(carry.problem_state, LevelState):
            worst = max(worst, state_error(carry.problem_state, copy.problem_state, at))
    return worst


def settled(copies: Any) -> Any:
    """Copies as constants at all depths."""
    if not isinstance(copies, list):
        return copies
    return [
        _constant(copy._replace(problem_state=None))._replace(problem_state=settled(copy.problem_state))
        for copy in copies
    ]


def compare(
    ours: Any, theirs: Any, windows: int, *, batch: int = 1, move: float = 0.01, also: Any = None, seed: int = 7
) -> float:
    """Largest error of values, gradients and carries over some windows, ``batch`` levels side by side.

    Parameters move along the gradient in between, each side's along its own. ``also(state, copies, index)``: an error
    of whatever else the estimator remembers.
    """
    key = keys.split(keys.seed(seed), batch)
    params = ours.init(key)
    state, mine = ours.init_state(params, key), list(params.clone())
    copies = [theirs.start(row, k) for row, k in zip(mine, key)]

    def carried() -> list[float]:
        errors = [state_error(state, settled(one), (i,)) for i, one in enumerate(copies)]
        return errors + [also(state, one, (i,)) for i, one in enumerate(copies) if also is not None]

    errors = carried()
    for _ in range(windows):
        value, grad, state = ours.value_and_grad(params, state)
        params = params - move * grad / grad.norm(dim=-1, keepdim=True)
        for i in range(batch):
            f, g, copies[i] = theirs.ask(mine[i].detach().requires_grad_(), copies[i])
            f, g = f.detach(), g.detach()
            errors += [error(value[i], f), error(grad[i], g)]
            mine[i] = mine[i].detach() - move * g / g.norm()
        errors += carried()
    return float(torch.tensor(errors, dtype=torch.float64).max())  # nan if any is
