"""Naive nested autograd, and evolution by a loop over particles: what the gradients of towers are held against.

Everything here is written from the equations, one copy at a time. A level's loss is one autograd graph of the level's
parameters, which holds the graphs of all windows below it: memory is the product of the unrolls. What is carried over
a window's edge is a constant. First order reads gradients as data; exact follows them, so below an exact level the
gradients are graphs too. Shared with the library: what a tower is told (settings, layouts, where the numbers of a key
come from), nothing of how it runs, updates or differentiates. No learned starts.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from levels import Level, LevelState, Task, keys
from levels.tasks.held_out import HeldOutState
from levels.tree import leaves, with_leaves

TINY = torch.finfo(torch.float64).tiny


class Copy(NamedTuple):
    """One copy of a problem that a level works on, at the edge of a window."""

    x: Tensor  # [n]
    s: Any
    f: Tensor  # []
    g: Tensor  # [n]
    problem_state: Any
    age: int
    key: Tensor  # []


class Window(NamedTuple):
    """One copy's window: the losses that count and the parameters behind each update, gradients, the copy behind it."""

    losses: list[Tensor]
    xs: list[Tensor]
    gs: list[Tensor]  # what each update read, and the last one's gradient
    end: Copy


# Update rules: x, state <- rule(optimizer, theta, g, state, x) for one copy: theta [m], g and x [n].


def _hypers(optimizer: Any, theta: Tensor) -> dict[str, Any]:
    spaces = {"Linear": lambda u: u, "Log": torch.exp, "Logit": lambda u: 1 / (1 + torch.exp(-u))}
    stored, read = optimizer.layout.unravel(theta), {}
    for name, hyper in optimizer.hypers.items():
        if type(hyper).__name__ == "Fixed":
            read[name] = hyper.start
            continue
        value = spaces[type(hyper).__name__](stored[name])
        if hyper.shared_over == "tensor":
            value = torch.cat([value[i].repeat(size) for i, size in enumerate(optimizer.param_layout.sizes)])
        read[name] = value
    return read


def _sgd(optimizer: Any, theta: Tensor, g: Tensor, s: Any, x: Tensor) -> tuple[Tensor, Any]:
    h = _hypers(optimizer, theta)
    if optimizer.weight_decay is not None:
        g = g + h["weight_decay"] * x
    if optimizer.momentum is None:
        return x - h["lr"] * g, None
    buffer = h["momentum"] * (torch.zeros_like(x) if s is None else s) + g
    return x - h["lr"] * (g + h["momentum"] * buffer if optimizer.nesterov else buffer), buffer


def _adam(optimizer: Any, theta: Tensor, g: Tensor, s: Any, x: Tensor) -> tuple[Tensor, Any]:
    h = _hypers(optimizer, theta)
    m, v, t = s or (torch.zeros_like(x), torch.zeros_like(x), 0)
    m = h["beta1"] * m + (1 - h["beta1"]) * g
    v = h["beta2"] * v + (1 - h["beta2"]) * g**2
    m_hat, v_hat = m / (1 - h["beta1"] ** (t + 1)), v / (1 - h["beta2"] ** (t + 1))
    return x - h["lr"] * m_hat / ((v_hat + TINY).sqrt() + h["eps"]), (m, v, t + 1)


def _rmsprop(optimizer: Any, theta: Tensor, g: Tensor, s: Any, x: Tensor) -> tuple[Tensor, Any]:
    h = _hypers(optimizer, theta)
    v = h["decay"] * (torch.zeros_like(x) if s is None else s) + (1 - h["decay"]) * g**2
    return x - h["lr"] * g / ((v + TINY).sqrt() + h["eps"]), v


def _lstm(optimizer: Any, theta: Tensor, g: Tensor, s: Any, x: Tensor) -> tuple[Tensor, Any]:
    """torch's own cell; its weights are the transposes, its gates in the same order."""
    weights, hidden = optimizer.layout.unravel(theta), optimizer.hidden
    s = s or tuple((x.new_zeros(len(x), hidden),) * 2 for _ in range(optimizer.layers))
    big = g.abs() >= math.exp(-optimizer.p)
    first = torch.where(big, torch.log(torch.where(big, g.abs(), 1.0)) / optimizer.p, torch.tensor(-1.0))
    out, new = torch.stack([first, torch.where(big, g.sign(), math.exp(optimizer.p) * g)], dim=1), []
    for layer, state in enumerate(s):
        weight, bias = weights[f"layer{layer}.weight"].T, weights[f"layer{layer}.bias"]
        inputs = weight.shape[1] - hidden
        out, c = torch.lstm_cell(out, state, weight[:, :inputs], weight[:, inputs:], bias, torch.zeros_like(bias))
        new.append((out, c))
    return x + optimizer.scale * (out @ weights["out.weight"] + weights["out.bias"])[:, 0], tuple(new)


RULES: dict[str, Callable[..., tuple[Tensor, Any]]] = {"SGD": _sgd, "Adam": _adam, "RMSprop": _rmsprop, "LSTM": _lstm}

OBJECTIVES: dict[str, Callable[[Any, list[Tensor]], Tensor]] = {
    "Sum": lambda _, losses: sum(losses),
    "Last": lambda _, losses: losses[-1],
    "MeanLog": lambda _, losses: sum(torch.log(loss) for loss in losses) / len(losses),
    "Discounted": lambda objective, losses: sum(objective.discount**t * loss for t, loss in enumerate(losses)),
}


# Losses of the tasks: loss, next state <- loss(task, x, state).


def _quadratic(task: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    return torch.sum((state.w @ x - state.y) ** 2), state


def _mlp(task: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    data, (*weights,) = task.data(), task.layout.unravel(x).values()
    rows = keys.integers(keys.fold_in(state.key, state.step), (task.minibatch,), len(data.labels))
    out = functional.linear(data.inputs[rows], weights[0].T, weights[1])
    for weight, bias in zip(weights[2::2], weights[3::2]):
        out = functional.linear(torch.sigmoid(out), weight.T, bias)
    return functional.cross_entropy(out, data.labels[rows]), state._replace(step=state.step + 1)


def _deathless(task: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """`parts.Dying` as it is for copies that never die."""
    return _quadratic(task, x, state.problem_state)[0], state._replace(calls=state.calls + 1)


def _training(task: Any, x: Tensor, state: HeldOutState) -> tuple[Tensor, HeldOutState]:
    f, training = _mlp(task.inner, x, state.training)
    return f, state._replace(training=training)


LOSSES: dict[str, Callable[..., tuple[Tensor, Any]]] = {
    "Quadratic": _quadratic, "DigitsMLP": _mlp, "Dying": _deathless, "Poisoned": _deathless, "HeldOut": _training,
}  # fmt: skip


# Problems.


class Said(torch.autograd.Function):
    """A value whose derivative in ``x`` is said to be ``g``; that is differentiable again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, g: Tensor) -> Tensor:
        ctx.save_for_backward(g)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        return slope * ctx.saved_tensors[0], None, None


class NaiveTask:
    """A task: a value that is a graph of ``x``, and a gradient that is one where an exact level follows it."""

    followed = False

    def __init__(self, task: Task) -> None:
        self.task, self.layout, self.init, self.start = task, task.layout, task.init, task.init_state

    def follow(self) -> None:
        self.followed = True

    def value(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return LOSSES[type(self.task).__name__](self.task, x, state)

    def ask(self, x: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        f, state = self.value(x, state)
        (g,) = torch.autograd.grad(f, x, retain_graph=True, create_graph=self.followed)
        return f, g, state

    def outer(self, x: Tensor, f: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The loss that counts at ``x``, where ``f`` is the one that updates read."""
        if not isinstance(state, HeldOutState):
            return f, state
        loss, counted = _mlp(self.task.counted, x, state.counted)
        return loss, state._replace(counted=counted)


class NaiveLevel:
    """A level over a `NaiveTask` or `NaiveLevel`; its state is the list of its copies.

    It runs on as far as its level looks ahead; what it carries on is where the unroll ended.
    """

    followed = False

    def __init__(self, level: Level, problem: Any) -> None:
        self.level, self.problem = level, problem
        self.optimizer = level.optimizer.bind(problem.layout)
        self.layout, self.init = self.optimizer.layout, self.optimizer.init
        self.first_order = type(level.gradient).__name__ == "FirstOrder"
        if not self.first_order:
            problem.follow()

    def follow(self) -> None:
        """Make gradients graphs, here and below."""
        self.followed = True
        self.problem.follow()

    def start(self, theta: Tensor, key: Tensor) -> list[Copy]:
        """Copies at the start of trajectories; their ages spread evenly over the windows of a life, if staggered."""
        copies = [self.begin(keys.fold_in(key, 1 + i)) for i in range(self.level.batch)]
        if not self.level.stagger or self.level.episode_length is None:
            return copies
        windows = self.level.episode_length // self.level.unroll
        return [copy._replace(age=i * windows // self.level.batch * self.level.unroll) for i, copy in enumerate(copies)]

    def begin(self, key: Tensor) -> Copy:
        x = self.problem.init(keys.fold_in(key, 1)).requires_grad_()
        f, g, problem_state = self.problem.ask(x, self.problem.start(x.detach(), keys.fold_in(key, 2)))
        return Copy(x.detach(), None, f.detach(), g.detach(), problem_state, 0, key)

    def run(self, theta: Tensor, copy: Copy, *, cut: bool = False, gs: list[Tensor] | None = None) -> Window:
        """One copy's window. Updates read gradients as graphs, as data (``cut``), or read the given ``gs``.

        A copy whose trajectory is over starts afresh first.
        """
        if self.level.episode_length is not None and copy.age >= self.level.episode_length:
            copy = self.begin(keys.fold_in(copy.key, -1))
        x, s, _, g, problem_state, age, key = copy
        losses, xs, read, end = [], [], [g], copy
        for t in range(self.level.lookahead or self.level.unroll):
            g = g.detach() if cut else g if gs is None else gs[t]
            x, s = RULES[type(self.optimizer).__name__](self.optimizer, theta, g, s, x)
            x = x if x.requires_grad else x.requires_grad_()
            f, g, problem_state = self.problem.ask(x, problem_state)
            loss, problem_state = self.problem.outer(x, f, problem_state)
            losses, xs, read = [*losses, loss], [*xs, x], [*read, g]
            if t + 1 == self.level.unroll:
                end = self.carried(Copy(x, s, f, g, problem_state, age + t + 1, key))
        return Window(losses, xs, read, end)

    def carried(self, copy: Copy) -> Copy:
        """What a copy carries on: constants; the problem below keeps what it wants to."""
        return _constant(copy)

    def meta(self, windows: list[Window]) -> Tensor:
        """The meta-loss: a mean over copies."""
        objective = self.level.objective
        return sum(OBJECTIVES[type(objective).__name__](objective, w.losses) for w in windows) / len(windows)

    def ask(self, theta: Tensor, copies: list[Copy]) -> tuple[Tensor, Tensor, list[Copy]]:
        """Value, gradient and the copies behind a window of each.

        Where first order is followed, the window is run again: its updates read the gradients of before, which are
        functions of theta, but not of the twin of theta that is differentiated by.
        """
        windows = [self.run(theta, copy, cut=self.first_order and not self.followed) for copy in copies]
        value, ends = self.meta(windows), [window.end for window in windows]
        if self.first_order and self.followed:
            twin = theta * 1
            again = self.meta([self.run(twin, copy, gs=window.gs) for copy, window in zip(copies, windows)])
            (g,) = torch.autograd.grad(again, twin, create_graph=True)
        else:
            (g,) = torch.autograd.grad(value, theta, retain_graph=True, create_graph=self.followed)
        if self.level.clip is not None:
            g = g * (self.level.clip / g.norm()).clamp(max=1.0)
        elif not (self.first_order and self.followed):
            return value, g, ends
        return Said.apply(theta, value.detach(), g), g, ends

    def outer(self, x: Tensor, f: Tensor, state: Any) -> tuple[Tensor, Any]:
        return f, state


class Whole(NaiveLevel):
    """Forward mode: trajectories stay one graph, of one shift that is added to the parameters of all windows."""

    def __init__(self, level: Level, problem: Any) -> None:
        super().__init__(level, problem)
        self.shift = torch.zeros(self.layout.size, dtype=torch.float64, requires_grad=True)

    def ask(self, theta: Tensor, copies: list[Copy]) -> tuple[Tensor, Tensor, list[Copy]]:
        windows = [self.run(theta.detach() + self.shift, copy) for copy in copies]
        value = self.meta(windows)
        (g,) = torch.autograd.grad(value, self.shift, retain_graph=True)
        return Said.apply(theta, value.detach(), g), g, [window.end for window in windows]

    def carried(self, copy: Copy) -> Copy:
        return copy


class Boot(NaiveLevel):
    """1/2 |x_T - x_ahead|^2 as a graph of ``theta`` through T updates, x_ahead being data."""

    def ask(self, theta: Tensor, copies: list[Copy]) -> tuple[Tensor, Tensor, list[Copy]]:
        cut, unroll = type(self.level.gradient.through).__name__ == "FirstOrder", self.level.unroll
        windows = [self.run(theta, copy, cut=cut) for copy in copies]
        value = self.meta([window._replace(losses=window.losses[:unroll]) for window in windows])
        gaps = [(w.xs[unroll - 1] - w.xs[-1].detach()).square().sum() / 2 for w in windows]
        (g,) = torch.autograd.grad(sum(gaps) / len(gaps), theta)
        return Said.apply(theta, value.detach(), g), g, [window.end for window in windows]


class Draw(NamedTuple):
    """What a pair of particles remembers."""

    noise: Tensor  # [m]
    seen: Tensor  # [m] sum of the draws of its trajectory
    key: Tensor  # []


class Swarm(list):  # of `Copy`, one for each particle: copies outermost, then pairs, then signs
    """The particles of a level, and what its pairs remember."""

    draws: list[Draw]


SCHEDULES = {  # for how long a draw is kept, and whether draws are summed: the table in `levels.gradients.evolution`
    "FullES": ("window", False), "TruncatedES": ("window", False), "PES": ("window", True),
    "ESSingle": ("episode", True), "NRES": ("episode", True),
}  # fmt: skip


class Evolving(NaiveLevel):
    """Antithetic pairs: the loss of each particle, one after the other."""

    def __init__(self, level: Level, problem: Any) -> None:
        super().__init__(level, problem)
        gradient = level.gradient
        self.pairs, self.sigma = gradient.pairs, gradient.sigma
        kept, self.summed = SCHEDULES.get(type(gradient).__name__) or (gradient.noise, gradient.accumulate)
        self.period = {"window": level.unroll, "episode": level.episode_length}.get(kept, kept)

    def start(self, theta: Tensor, key: Tensor) -> Swarm:
        swarm, draws = Swarm(), []
        for copy, begun in enumerate(super().start(theta, key)):
            for pair in range(self.pairs):
                own = keys.fold_in(keys.fold_in(key, -1), 1 + copy * self.pairs + pair)
                noise = keys.normal(own, (len(theta),), theta.dtype)
                draws.append(Draw(noise, noise, own))
                swarm += [begun, begun]  # the same problem for both, and for all pairs of a copy
        swarm.draws = draws
        return swarm

    def ask(self, theta: Tensor, swarm: Swarm) -> tuple[Tensor, Tensor, Swarm]:
        after, values, total, draws = Swarm(), [], torch.zeros_like(theta), []
        for number, draw in enumerate(swarm.draws):
            for member, sign in enumerate((1, -1)):
                window = self.run((theta + sign * self.sigma * draw.noise).detach(), swarm[2 * number + member])
                values.append(self.meta([window]).detach())
                after.append(window.end)
            total = total + (values[-2] - values[-1]) / (2 * self.sigma) * draw.seen
            draws.append(self.next(draw, after[-1].age))
        after.draws, grad = draws, total.detach() / len(draws)
        return Said.apply(theta, sum(values) / len(values), grad), grad, after

    def next(self, draw: Draw, age: int) -> Draw:
        """What the pair remembers for its next window, its trajectory having this age."""
        key, ended = keys.fold_in(draw.key, 1), age >= self.level.episode_length
        drawn = ended or age % self.period == 0
        noise = keys.normal(key, draw.noise.shape, draw.noise.dtype) if drawn else draw.noise
        if not self.summed:
            return Draw(noise, noise, key)
        before = torch.zeros_like(noise) if ended else draw.seen
        return Draw(noise, before + noise if drawn else before, key)


def naive(task: Any, *levels: Level) -> Any:
    """The oracle of ``levels`` stacked over a task, or over an oracle."""
    kinds = {"Forward": Whole, "Bootstrapped": Boot, "FirstOrder": NaiveLevel, "Exact": NaiveLevel}
    problem: Any = NaiveTask(task) if isinstance(task, Task) else task
    for level in levels:
        problem = kinds.get(type(level.gradient).__name__, Evolving)(level, problem)
    return problem


def _constant(copy: Copy) -> Copy:
    """The copy without graphs; what the problem carries is left as it is. A rule's step counts are plain numbers."""
    mine = copy._replace(problem_state=None)
    done = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves(mine)]
    return with_leaves(mine, done)._replace(problem_state=copy.problem_state)


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
    """Largest `error` over all that a level and all levels below carry; ages and keys of draws must be the same."""
    carry, worst = ours.carry, 0.0
    for i, draw in enumerate(getattr(copies, "draws", [])):
        at, memory = (*index, i), ours.memory
        assert int(memory.key[at]) == int(draw.key)
        worst = max(worst, error(memory.noise[at], draw.noise), error(memory.seen[at], draw.seen))
    for i, copy in enumerate(map(_constant, copies)):
        at = (*index, i)
        assert int(carry.age[at]) == copy.age
        pairs = [(carry.x, copy.x), (carry.f, copy.f), (carry.g, copy.g)]
        if copy.s is not None:
            pairs += list(zip(leaves(carry.state), leaves(copy.s), strict=True))
        worst = max(worst, *(error(a[at], b) for a, b in pairs))
        if isinstance(carry.problem_state, LevelState):
            worst = max(worst, state_error(carry.problem_state, copy.problem_state, at))
    return worst


def compare(ours: Any, theirs: Any, windows: int, *, batch: int = 1, move: float = 0.01, seed: int = 7) -> float:
    """Largest error of values, gradients and carries over some windows, ``batch`` levels side by side.

    Parameters move along the gradient in between, each side's along its own.
    """
    key = keys.split(keys.seed(seed), batch)
    params = ours.init(key)
    state, mine = ours.init_state(params, key), list(params.clone())
    copies = [theirs.start(row, k) for row, k in zip(mine, key)]
    errors = [state_error(state, one, (i,)) for i, one in enumerate(copies)]
    for _ in range(windows):
        value, grad, state = ours.value_and_grad(params, state)
        params = params - move * grad / grad.norm(dim=-1, keepdim=True)
        for i in range(batch):
            f, g, copies[i] = theirs.ask(mine[i].detach().requires_grad_(), copies[i])
            f, g = f.detach(), g.detach()
            errors += [error(value[i], f), error(grad[i], g), state_error(state, copies[i], (i,))]
            mine[i] = mine[i].detach() - move * g / g.norm()
    return float(torch.tensor(errors, dtype=torch.float64).max())  # nan if any is
