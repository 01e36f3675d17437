"""Naive nested autograd that follows every path: the oracle of exact gradients, and of towers that mix estimators.

As in oracle.py, one copy at a time and from the equations, but gradients stay in the graph: a level's answer is a
graph of its parameters that holds the graphs, and the backward graphs, of all windows below. Where a level does not
give the derivative of its value (first order; a clipped gradient), what it gives is taken for that derivative.
"""

from typing import Any

import torch
from oracle import OBJECTIVES, RULES, Copy, NaiveLevel, NaiveTask
from torch import Tensor

from levels import Bootstrapped, FirstOrder, Forward, Level, Task, keys
from levels.tree import leaves, with_leaves


class Word(torch.autograd.Function):
    """A value whose derivative in ``x`` is said to be ``g``; that is differentiable again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, g: Tensor) -> Tensor:
        ctx.save_for_backward(g)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        (g,) = ctx.saved_tensors
        return slope * g, None, None


class ExactTask(NaiveTask):
    """A task: value and gradient are graphs of ``x``."""

    true = True

    def ask(self, x: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        f, state = self.value(x, state)
        (g,) = torch.autograd.grad(f, x, create_graph=True)
        return f, g, state


class ExactLevel(NaiveLevel):
    """A level whose gradient, exact or first order, is a graph of ``theta``. Without learned starts.

    It runs on as far as its level looks ahead; what it carries on is where the unroll ended.
    """

    cut = False  # whether updates read gradients as data

    def __init__(self, level: Level, problem: Any) -> None:
        super().__init__(level, problem)
        self.exact = not isinstance(level.gradient, FirstOrder)
        self.true = self.exact and level.clip is None and problem.true

    def ask(self, theta: Tensor, copies: list[Copy]) -> tuple[Tensor, Tensor, list[Copy]]:
        """Value, gradient and the copies behind the window; the first two as graphs of ``theta``."""
        runs = [self.run(theta, copy) for copy in copies]
        value = sum(self.meta(losses) for losses, *_ in runs) / len(runs)
        if self.exact:
            (g,) = torch.autograd.grad(value, theta, create_graph=True)
        else:
            g = sum(self.first_order(*run[:4]) for run in runs) / len(runs)
        if self.level.clip is not None:
            g = g * (self.level.clip / g.norm()).clamp(max=1.0)
        return value if self.true else Word.apply(theta, value.detach(), g), g, [run[4] for run in runs]

    def meta(self, losses: list[Tensor]) -> Tensor:
        return OBJECTIVES[type(self.level.objective)](self.level.objective, losses)

    def run(self, theta: Tensor, copy: Copy) -> tuple[list[Tensor], list[Tensor], list[Any], list[Any], Copy]:
        """Losses and gradients of one copy's window, what each update read (through aliases) and returned, the end."""
        if self.level.episode_length is not None and copy.age >= self.level.episode_length:
            copy = self.begin(keys.fold_in(copy.key, -1))
        x, s, _, g, problem_state, age, key = copy
        losses, grads, reads, returns = [], [], [], []
        for t in range(1, (self.level.lookahead or self.level.unroll) + 1):
            read = alias(theta), alias(s), alias(x)
            x, s = RULES[type(self.optimizer)](self.optimizer, read[0], g.detach() if self.cut else g, *read[1:])
            reads.append(read)
            returns.append((x, s))
            x = x if x.requires_grad else x.requires_grad_()
            f, g, problem_state = self.problem.ask(x, problem_state)
            loss, slope, problem_state = self.counted(x, f, g, problem_state)
            losses.append(loss)
            grads.append(slope)
            if t == self.level.unroll:
                end = self.kept(Copy(x, s, f, g, problem_state, age + t, key))
        return losses, grads, reads, returns, end

    def counted(self, x: Tensor, f: Tensor, g: Tensor, problem_state: Any) -> tuple[Tensor, Tensor, Any]:
        """What the meta-loss counts at ``x``, where the problem answered ``f`` and ``g``."""
        return f, g, problem_state

    def kept(self, copy: Copy) -> Copy:
        """What a copy carries on: constants; the problem below keeps what it wants to."""
        return on_tensors(torch.detach, copy._replace(problem_state=None))._replace(problem_state=copy.problem_state)

    def first_order(self, losses: list[Tensor], grads: list[Tensor], reads: list[Any], returns: list[Any]) -> Tensor:
        """Backpropagation that stops at gradients, as a graph: only what was read through aliases is followed."""
        weights = torch.autograd.grad(self.meta(losses), losses, create_graph=True, allow_unused=True)
        dtheta, dx, ds = torch.zeros_like(reads[0][0]), torch.zeros_like(reads[0][2]), None
        for weight, g, read, (x, s) in reversed(list(zip(weights, grads, reads, returns))):
            dx = dx if weight is None else dx + weight * g
            floats = [leaf for leaf in tensors(s) if leaf.requires_grad]
            slopes = [dx, *(ds or [torch.zeros_like(leaf) for leaf in floats])]
            inputs = [read[0], read[2], *tensors(read[1])]
            dp, dx, *ds = torch.autograd.grad(
                [x, *floats], inputs, slopes, create_graph=True, allow_unused=True, materialize_grads=True
            )
            dtheta = dtheta + dp
        return dtheta

    def begin(self, key: Tensor) -> Copy:
        x = self.problem.init(keys.fold_in(key, 1)).requires_grad_()
        f, g, problem_state = self.problem.ask(x, self.problem.start(x.detach(), keys.fold_in(key, 2)))
        return Copy(x.detach(), None, f.detach(), g.detach(), problem_state, 0, key)


def alias(tree: Any) -> Any:
    """The same numbers at another place of the graph; constants become leaves."""

    def twin(leaf: Any) -> Any:
        return leaf * 1 if leaf.requires_grad else leaf.clone().requires_grad_()

    return None if tree is None else on_tensors(twin, tree)


def on_tensors(function: Any, tree: Any) -> Any:
    """``function`` of the tensors of a rule's memory; its step counts are plain numbers."""
    done = [function(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves(tree)]
    return with_leaves(tree, done)


def tensors(tree: Any) -> list[Tensor]:
    return [] if tree is None else [leaf for leaf in leaves(tree) if isinstance(leaf, Tensor)]


class Whole(ExactLevel):
    """Forward mode: trajectories stay one graph, of one shift that is added to the parameters of all windows."""

    def __init__(self, level: Level, problem: Any) -> None:
        super().__init__(level, problem)
        self.shift = torch.zeros(self.layout.size, dtype=torch.float64, requires_grad=True)

    def ask(self, theta: Tensor, copies: list[Copy]) -> tuple[Tensor, Tensor, list[Copy]]:
        runs = [self.run(theta.detach() + self.shift, copy) for copy in copies]
        value = sum(self.meta(losses) for losses, *_ in runs) / len(runs)
        (g,) = torch.autograd.grad(value, self.shift, retain_graph=True)
        return Word.apply(theta, value.detach(), g), g, [run[4] for run in runs]

    def kept(self, copy: Copy) -> Copy:
        return copy


class BootLevel(ExactLevel):
    """1/2 |x_T - x_ahead|^2 as a graph of ``theta`` through T updates, x_ahead being data."""

    def __init__(self, level: Level, problem: Any) -> None:
        super().__init__(level, problem)
        self.cut, self.true = isinstance(level.gradient.through, FirstOrder), False

    def ask(self, theta: Tensor, copies: list[Copy]) -> tuple[Tensor, Tensor, list[Copy]]:
        runs, last = [self.run(theta, copy) for copy in copies], self.level.unroll - 1
        value = sum(self.meta(losses[: last + 1]) for losses, *_ in runs) / len(runs)
        gaps = [(xs[last][0] - xs[-1][0].detach()).square().sum() / 2 for *_, xs, _ in runs]
        (g,) = torch.autograd.grad(sum(gaps) / len(gaps), theta)
        return Word.apply(theta, value.detach(), g), g, [run[4] for run in runs]


def exactly(task: Any, *levels: Level) -> Any:
    """The oracle of ``levels`` stacked over a task, or over an oracle."""
    problem: Any = ExactTask(task) if isinstance(task, Task) else task
    for level in levels:
        problem = {Forward: Whole, Bootstrapped: BootLevel}.get(type(level.gradient), ExactLevel)(level, problem)
    return problem
