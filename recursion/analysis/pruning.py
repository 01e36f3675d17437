"""Pruning: a tower with gates, cut down to what its gates let through.

    shallow, state = prune(tower, state)

Above a gate that is exactly closed nothing reaches the levels below, so they go on without it: the lowest such gate is
where the tower ends. A gate that is exactly open is taken away, and what is in between stays where it is, as
``gated(sgd, gate=fixed(0.4))``. With the gates go the optimizers that moved them, and levels with
nothing left to train.

What is left gives the losses that the whole tower gives from there on, as long as its gates stay where they are and
nothing above the cut restarts. Two things are not carried on: the price, which no longer stands in meta-losses where a
gate is gone, and the count of steps, which are windows of another level now.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from levels.gradients.backward import Backward
from levels.gradients.bootstrapped import Bootstrapped
from levels.base import LevelState
from levels.gradients.forward import Forward
from levels.hyper import Fixed
from levels.layout import Layout
from levels.level import Level
from levels.base import Optimizer
from levels.optimizers.partition import Partition
from levels.optimizers.gated import Gated, GatedState
from levels.config import require
from levels.tree import State, leaves, map_leaves, with_leaves
from levels.base import Carry
from recursion.analysis.depth import gates, whole
from recursion.pieces import fits_any_layout
from recursion.tower import Tower, TowerState

UNPERTURBED = (Backward, Bootstrapped, Forward)  # estimators that run windows with the parameters themselves


def prune(
    tower: Tower, state: TowerState, *, rounded: bool = False, copy: int | None = None
) -> tuple[Tower, TowerState]:
    """The tower without its gates, cut above the lowest that is closed, and its state; ``step`` counts from 0 again.

    ``rounded``: gates in between count as open from 0.5 on, else as closed. ``copy``: of the towers that the topmost
    level holds side by side, from 1; None for all, whose gates must agree. Where levels that are cut away held
    several copies of what is below, the first is kept.

    Raises ValueError for a tower without gates; where copies disagree; where what is left was run with perturbed
    parameters, as for PES; and where the mover of a gate cannot be taken from beneath an optimizer, because that one
    does not treat each of its coordinates by itself.
    """
    require(bool(gates(tower, state)), f"{tower} has no gates; there is nothing to prune")
    if copy is not None:
        tower, state = _one(tower, state, copy)
    for gate in gates(tower, state):
        closed = float(gate.mean) < 0.5 if rounded else gate.closed
        if closed and whole(tower.levels[gate.level - 1]):
            tower, state = _cut(tower, state, gate.level)
            break
    return _ungated(tower, state, rounded)


def _one(tower: Tower, state: TowerState, copy: int) -> tuple[Tower, TowerState]:
    """One of the towers side by side."""
    count = tower.top.batch
    require(1 <= copy <= count, f"there are {count} towers side by side, counted from 1; got copy {copy}")
    *rest, top = tower.levels
    alone: TowerState = state._replace(carry=map_leaves(lambda leaf: leaf[copy - 1 : copy], state.carry))
    return Tower(tower.task, *rest, dataclasses.replace(top, batch=1)), alone


def _cut(tower: Tower, state: TowerState, level: int) -> tuple[Tower, TowerState]:
    """The tower below that level, which moves nothing; of several copies, the first."""
    *rest, top = tower.levels[: level - 1]
    what = f"level {level - 1} ({top}) was run with perturbed parameters, which cannot go on"
    fix = "build the shallow tower and begin anew with Tower.init(seed, params=...)"
    require(isinstance(top.gradient, UNPERTURBED), f"{what}; {fix}")
    carries, first = tower.carries(state), (0,) * (tower.depth - level + 1)
    carry: Carry = map_leaves(lambda leaf: leaf[first], carries[level - 2])
    shallow = Tower(tower.task, *rest, dataclasses.replace(top, lookahead=None))
    return shallow, TowerState(carries[level - 1].x[first], carry, state.step)


class _Held(NamedTuple):
    """An optimizer whose gates were taken away or fixed."""

    rule: Optimizer
    rows: Tensor  # int64, which of its parameters are left
    state: State


def _ungated(tower: Tower, state: TowerState, rounded: bool) -> tuple[Tower, TowerState]:
    """Every level with its gates taken away or fixed, from the bottom up; with each goes a parameter of its level."""
    carries, levels = tower.carries(state), []
    rows, below = torch.arange(tower.task.layout.size), carries[0].below
    for i, (level, laid, carry) in enumerate(zip(tower.levels, tower.bound, carries)):
        own = carries[i + 1].x if i + 1 < tower.depth else state.params
        try:
            held = _held(laid.optimizer, own, carry.state, rows, rounded)
        except ValueError as error:
            raise ValueError(f"level {i + 1} ({level}): {error}") from error
        if len(held.rows) == 0 and i + 1 < tower.depth:  # what is above has nothing left to train
            return _ungated(*_cut(tower, state, i + 2), rounded)
        left = carry._replace(x=carry.x[..., rows], g=carry.g[..., rows], state=held.state, below=below)
        if i + 1 < tower.depth:
            below = LevelState(left, _remembered(level, carries[i + 1].below.memory, len(held.rows) == own.shape[-1]))
        levels.append(dataclasses.replace(level, optimizer=held.rule))
        rows = held.rows
    step = torch.zeros_like(state.step)
    return Tower(tower.task, *levels), TowerState(state.params[..., rows], left, step)


def _held(laid: Optimizer, params: Tensor, state: State, below: Tensor, rounded: bool) -> _Held:
    """An optimizer, its parameters ``[*batch, m]`` and its state, where only the rows ``below`` are left to update."""
    if isinstance(laid, Gated):
        return _held_gate(laid, params, state, below, rounded)
    if isinstance(laid, Partition):
        return _held_shares(laid, params, state, below, rounded)
    rows = torch.arange(params.shape[-1])
    return _Held(laid, rows, state if len(below) == laid.below.size else _narrowed(laid, state, below))


def _held_gate(laid: Gated, params: Tensor, state: GatedState, below: Tensor, rounded: bool) -> _Held:
    own = 0 if isinstance(laid.gate, Fixed) else 1
    inside = _held(laid.rule.over(laid.below), params[..., own:], state.rule, below, rounded)
    gate = _settled(laid.open(params), rounded)
    if gate == 1:
        return inside._replace(rows=inside.rows + own)
    rule = Gated(inside.rule, gate=Fixed(gate), price=laid.price)
    held = state.gate if not rounded else torch.full_like(state.gate, gate)
    return _Held(rule, inside.rows + own, GatedState(inside.state, held))


def _held_shares(laid: Partition, params: Tensor, state: Sequence[State], below: Tensor, rounded: bool) -> _Held:
    """Those of several optimizers that have something left to update; one alone needs no names."""
    patterns, found = [], []
    for pattern, share, own in zip(laid.patterns, laid.shares, state):
        left = torch.isin(share.rows, below).nonzero().squeeze(-1)
        if len(left):
            inside = _held(share.rule, params[..., share.params], own, left, rounded)
            found.append(inside._replace(rows=inside.rows + share.params.start))
            patterns.append(pattern)
    if len(found) == 1:
        return found[0]
    rule = Partition(tuple(patterns), tuple(held.rule for held in found))
    return _Held(rule, torch.cat([held.rows for held in found]), tuple(held.state for held in found))


def _settled(gate: Tensor, rounded: bool) -> float:
    """Where the gates of all copies stand."""
    if rounded:
        return float(gate.mean() >= 0.5)
    low, high = float(gate.min()), float(gate.max())
    fix = "train on, choose one with copy (--copy), or round them with rounded (--round)"
    require(low == high, f"its gates stand at {low:.3g} to {high:.3g} in several copies; {fix}")
    return low


def _narrowed(laid: Optimizer, state: State, below: Tensor) -> State:
    """The state of a rule that reads one coordinate at a time, where only the coordinates ``below`` are left."""
    free = laid.scope == "coordinate" and fits_any_layout(laid)
    why = f"{laid} does not treat each coordinate by itself, so what moved the gates cannot be taken from beneath it"
    require(free, f"{why}; let them be moved by a rule without parameters, as sgd(lr=fixed(0.1))")
    size = laid.below.size
    old, new = (_state_shapes(laid, laid.below, n) for n in (size, len(below)))
    tensors = []
    for leaf, before, after in zip(leaves(state), old, new):
        axes = [i - len(before) for i, sizes in enumerate(zip(before, after)) if sizes == (size, len(below))]
        tensors.append(leaf.index_select(axes[0], below) if axes else leaf)
    return with_leaves(state, tensors)


def _state_shapes(rule: Optimizer, like: Layout, n: int) -> list[torch.Size]:
    """Shapes of the tensors of a state for one copy of ``n`` coordinates."""
    laid = rule.over(Layout.of({"some": (n,)}, like.dtype, like.device))
    params, x = (torch.zeros(*shape, dtype=like.dtype, device=like.device) for shape in ((laid.layout.size,), (1, n)))
    return [leaf.shape for leaf in leaves(laid.init_state(params, x))]


def _remembered(level: Level, memory: State, whole: bool) -> State:
    """What the level's estimator remembers; it is of every parameter, so none may be gone."""
    fix = "use gradient=first-order or gradient=exact on levels with gates"
    require(whole or not leaves(memory), f"{level}: {level.gradient} remembers each parameter, the gate too; {fix}")
    return memory
