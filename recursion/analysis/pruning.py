"""Pruning: a tower with gates, cut down to what its gates let through.

    shallow, state = prune(tower, state)

The tower ends at its lowest gate that is exactly closed: nothing above it reaches the levels below. A gate that is
exactly open is removed. One in between keeps its value, as ``gated(sgd, gate=fixed(0.4))``. With the gates go the
optimizers that moved them, and levels with nothing to train.

The pruned tower gives the losses that the whole tower would give, as long as the gates keep their values and nothing
above the cut restarts. Lost are the price, which leaves the meta-losses where a gate is gone, and the count of steps,
which are windows of another level now.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from levels.base import Carry, Optimizer
from levels.fields import require
from levels.gradients.bootstrapped import Bootstrapped
from levels.gradients.first_order import Backpropagation
from levels.gradients.forward import Forward
from levels.hyper import Fixed
from levels.layout import Layout
from levels.optimizers.gated import Gated
from levels.optimizers.partition import Partition
from levels.tree import State, leaves, map_leaves, with_leaves
from recursion.analysis.depth import gates, whole
from recursion.pieces import fits_any_layout
from recursion.tower import Tower, TowerState

UNPERTURBED = (Backpropagation, Bootstrapped, Forward)  # estimators that run windows with the parameters themselves


def prune(
    tower: Tower, state: TowerState, *, rounded: bool = False, copy: int | None = None
) -> tuple[Tower, TowerState]:
    """The tower without its gates, cut above the lowest closed one, and its state; ``step`` counts from 0 again.

    ``rounded``: gates in between count as open from 0.5 on, else as closed. ``copy``: of the towers that the topmost
    level has side by side, from 1; None for all, whose gates must agree. Of several copies under a cut the first stays.
    Raises ValueError for a tower without gates; where copies disagree; where an estimator ran what is left with
    perturbed parameters, as PES does; and where the mover of a gate cannot be removed below an optimizer that is not
    elementwise.
    """
    require(bool(gates(tower, state)), f"{tower} has no gates; there is nothing to prune")
    if copy is not None:
        (*rest, top), count = tower.levels, tower.top.copies
        require(1 <= copy <= count, f"there are {count} towers side by side, counted from 1; got copy {copy}")
        tower = Tower(tower.task, *rest, replace(top, batch=1))
        state = state._replace(carry=map_leaves(lambda leaf: leaf[copy - 1 : copy], state.carry))
    for gate in gates(tower, state):
        shut = float(gate.mean) < 0.5 if rounded else gate.is_closed
        if shut and whole(tower.levels[gate.level - 1]):
            tower, state = _cut(tower, state, gate.level)
            break
    return _ungated(tower, state, rounded)


def _cut(tower: Tower, state: TowerState, level: int) -> tuple[Tower, TowerState]:
    """The tower below that level; of several copies, the first."""
    *rest, top = tower.levels[: level - 1]
    what = f"level {level - 1} ({top}) was run with perturbed parameters, which cannot go on"
    fix = "build the shallow tower and begin anew with Tower.init(seed, theta=...)"
    require(isinstance(top.gradient, UNPERTURBED), f"{what}; {fix}")
    carries, first = tower.carries(state), (0,) * (tower.depth - level + 1)
    carry: Carry = map_leaves(lambda leaf: leaf[first], carries[level - 2])
    shallow = Tower(tower.task, *rest, replace(top, lookahead=None))
    return shallow, TowerState(carries[level - 1].x[first], carry, state.step)


class _Pruned(NamedTuple):
    """An optimizer whose gates were removed or fixed."""

    optimizer: Optimizer
    rows: Tensor  # int64, which of its parameters are left
    state: State


def _ungated(tower: Tower, state: TowerState, rounded: bool) -> tuple[Tower, TowerState]:
    """Every level with its gates removed or fixed, from the bottom up; with each goes a parameter of its level."""
    carries, levels = tower.carries(state), []
    rows, problem_state = torch.arange(tower.task.layout.size), carries[0].problem_state
    for i, (level, bound, carry) in enumerate(zip(tower.levels, tower.bound, carries)):
        theta = carries[i + 1].x if i + 1 < tower.depth else state.theta
        try:
            pruned = _pruned(bound.optimizer, theta, carry.state, rows, rounded)
        except ValueError as error:
            raise ValueError(f"level {i + 1} ({level}): {error}") from error
        if len(pruned.rows) == 0 and i + 1 < tower.depth:  # what is above has nothing left to train
            return _ungated(*_cut(tower, state, i + 2), rounded)
        x, g = carry.x[..., rows], carry.g[..., rows]
        left = carry._replace(x=x, g=g, state=pruned.state, problem_state=problem_state)
        if i + 1 < tower.depth:
            memory, all_left = carries[i + 1].problem_state.memory, len(pruned.rows) == theta.shape[-1]
            fix = "use gradient=first-order or gradient=exact on levels with gates"
            what = f"{level}: {level.gradient} remembers each parameter, the gate too; {fix}"
            require(all_left or not leaves(memory), what)
            problem_state = carries[i + 1].problem_state._replace(carry=left)
        levels.append(replace(level, optimizer=pruned.optimizer))
        rows = pruned.rows
    step = torch.zeros_like(state.step)
    return Tower(tower.task, *levels), TowerState(state.theta[..., rows], left, step)


def _pruned(optimizer: Optimizer, theta: Tensor, state: State, rows_left: Tensor, rounded: bool) -> _Pruned:
    """A bound optimizer, its parameters ``[*batch, m]`` and its state, where only the rows ``rows_left`` are left."""
    if isinstance(optimizer, Gated):
        width = optimizer.split_theta(theta)[0].shape[-1]
        inner = _pruned(optimizer.inner, theta[..., width:], state[1], rows_left, rounded)
        gate, rows = _common_gate(optimizer.open(theta), rounded), inner.rows + width
        if gate == 1:
            return inner._replace(rows=rows)
        gated = Gated(inner.optimizer, gate=Fixed(gate), price=optimizer.price)
        return _Pruned(gated, rows, (torch.full_like(state[0], gate) if rounded else state[0], inner.state))
    if isinstance(optimizer, Partition):
        return _pruned_partition(optimizer, theta, state, rows_left, rounded)
    rows, all_left = torch.arange(theta.shape[-1]), len(rows_left) == optimizer.param_layout.size
    left = state if all_left else _narrowed(optimizer, state, rows_left)
    return _Pruned(replace(optimizer, site=None), rows, left)


def _pruned_partition(
    partition: Partition, theta: Tensor, state: tuple[State, ...], rows_left: Tensor, rounded: bool
) -> _Pruned:
    """The optimizers that have something left to update; a single one needs no names."""
    patterns, left_over, start = [], [], 0
    parts = zip(partition.patterns, partition.optimizers, partition.split_theta(theta)[1:], state[1:])
    for number, (pattern, one, own, inner_state) in enumerate(parts):
        left = torch.isin(partition.rows[number], rows_left).nonzero().squeeze(-1)
        if len(left):
            inner = _pruned(one, own, inner_state, left, rounded)
            left_over.append(inner._replace(rows=inner.rows + start))
            patterns.append(pattern)
        start += own.shape[-1]
    if len(left_over) == 1:
        return left_over[0]
    optimizer = Partition(tuple(patterns), tuple(one.optimizer for one in left_over))
    return _Pruned(optimizer, torch.cat([one.rows for one in left_over]), (None, *(one.state for one in left_over)))


def _common_gate(gate: Tensor, rounded: bool) -> float:
    """The value of the gates of all copies."""
    if rounded:
        return float(gate.mean() >= 0.5)
    low, high = float(gate.min()), float(gate.max())
    fix = "train on, choose one with copy (--copy), or round them with rounded (--round)"
    require(low == high, f"its gates stand at {low:.3g} to {high:.3g} in several copies; {fix}")
    return low


def _narrowed(optimizer: Optimizer, state: State, rows_left: Tensor) -> State:
    """The state of an elementwise optimizer, where only the coordinates ``rows_left`` are left."""
    free = optimizer.traits.locality == "elementwise" and fits_any_layout(optimizer)
    why = f"{optimizer} does not treat each coordinate by itself, so what moved the gates cannot be taken"
    fix = "let them be moved by a rule without parameters, as sgd(lr=fixed(0.1))"
    require(free, f"{why} from beneath it; {fix}")
    layout, size = optimizer.param_layout, optimizer.param_layout.size
    old, new = (_state_shapes(optimizer, layout, n) for n in (size, len(rows_left)))
    tensors = []
    for leaf, before, after in zip(leaves(state), old, new):
        axes = [i - len(before) for i, sizes in enumerate(zip(before, after)) if sizes == (size, len(rows_left))]
        tensors.append(leaf.index_select(axes[0], rows_left) if axes else leaf)
    return with_leaves(state, tensors)


def _state_shapes(optimizer: Optimizer, like: Layout, n: int) -> list[torch.Size]:
    """Shapes of the tensors of a state for one copy of ``n`` coordinates."""
    bound = optimizer.bind(Layout.of({"some": (n,)}, like.dtype, like.device))
    theta, x = (torch.zeros(*shape, dtype=like.dtype, device=like.device) for shape in ((bound.layout.size,), (1, n)))
    return [leaf.shape for leaf in leaves(bound.init_state(theta, x, torch.zeros(1, dtype=torch.int64)))]
