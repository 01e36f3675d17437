"""Black box: a torch optimizer that cannot be differentiated, run as it is, one copy after another.

Such an optimizer works on one model only. So each copy of each step builds it afresh over its own tensors, restores
what it remembered (the entries of ``state``, and those of ``param_groups`` that change), takes the step and reads what
it remembers now. Numbers become tensors, so the state is a tree of tensors like any other.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, nn

from levels.fields import require
from levels.layout import Layout

Groups = Sequence[Mapping[str, float]]  # the hyperparameters of each tensor by name
Build = Callable[[list[nn.Parameter], Groups], torch.optim.Optimizer]
NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}
PROBES = 3  # steps after which a structure is taken to stay


class BoxState(NamedTuple):
    """What a black box remembers."""

    t: Tensor  # int64 [*batch, copies], steps so far
    slots: tuple[Tensor, ...]  # [*batch, copies, ...]


class BlackBox:
    """A torch optimizer over a layout. Raises ValueError if it does not run there, or if its state cannot be read."""

    def __init__(self, build: Build, starts: Mapping[str, float], layout: Layout, label: str) -> None:
        self.build, self.layout, self.label = build, layout, label
        self.counted: list[set[str]] = []  # for each param group, the entries that change
        ones = torch.ones(layout.size, dtype=layout.dtype, device=layout.device)
        generator = torch.get_rng_state()
        try:
            first, last, fault = self._probe(ones, [starts] * len(layout.entries))
        except Exception as error:  # whatever foreign code raises
            names = ", ".join(f"{name}{list(shape)}" for name, shape in layout.entries)
            raise ValueError(f"{label} does not run over {names}: {error}") from error
        drew = not torch.equal(generator, torch.get_rng_state())
        torch.set_rng_state(generator)
        require(not drew, f"{label} draws random numbers from torch's global generator; runs could not be repeated")
        require(not fault, f"{label} keeps {fault} where a copy's state cannot be read and put back")
        self.values, self.spec = optree.tree_flatten(last)
        require(_kinds(first) == _kinds(last), f"{label} changes what it remembers from step to step")

    def init_state(self, x: Tensor) -> BoxState:
        """Nothing remembered, for ``x`` ``[*batch, copies, n]``."""
        slots = (value for value in map(_as_tensor, self.values) if value is not None)
        empty = tuple(x.new_zeros(x.shape[:-1] + value.shape, dtype=value.dtype) for value in slots)
        return BoxState(x.new_zeros(x.shape[:-1], dtype=torch.int64), empty)

    @torch.no_grad()
    def step(self, values: Mapping[str, Tensor], g: Tensor, state: BoxState, x: Tensor) -> tuple[Tensor, BoxState]:
        """One step of every copy; ``values`` are the hyperparameters of each tensor, ``[*batch, copies, tensors]``."""
        lead, dims, n = x.shape[:-1], x.dim() - 1, x.shape[-1]
        flat = {name: value.flatten(0, dims - 1).tolist() for name, value in values.items()}
        slots = [slot.flatten(0, dims - 1) for slot in state.slots]
        rows = []
        for i, (old, grad, t) in enumerate(zip(x.reshape(-1, n), g.reshape(-1, n), state.t.flatten())):
            groups = [{name: copies[i][j] for name, copies in flat.items()} for j in range(len(self.layout.entries))]
            rows.append(self._step_alone(old, grad, groups, [slot[i] for slot in slots] if t > 0 else None))
        stacked = [torch.stack(column) for column in zip(*rows)]
        new, *new_slots = (column.reshape(lead + column.shape[1:]) for column in stacked)
        return new, BoxState(state.t + 1, tuple(new_slots))

    def _step_alone(self, x: Tensor, g: Tensor, groups: Groups, slots: list[Tensor] | None) -> list[Tensor]:
        """One copy: its next ``x`` ``[n]``, then its slots."""
        tensors = self._tensors(x)
        optimizer = self.build(tensors, groups)
        if slots is not None:
            self._restore(optimizer, tensors, slots)
        self._advance(optimizer, tensors, g)
        memory = self._memory(optimizer, tensors)
        same = _kinds(memory) == _kinds(optree.tree_unflatten(self.spec, self.values))
        require(same, f"{self.label} remembers something else than at its first steps; it cannot run here")
        leaves = [one.to(x.device) for one in map(_as_tensor, optree.tree_leaves(memory)) if one is not None]
        return [self.layout.ravel(dict(zip(dict(self.layout.entries), (p.detach() for p in tensors)))), *leaves]

    def _probe(self, x: Tensor, groups: Groups) -> tuple[Any, Any, str]:
        """What it remembers after one step and after `PROBES`, and what it keeps elsewhere, if anything."""
        tensors = self._tensors(x)
        optimizer = self.build(tensors, groups)
        before, hidden = [dict(group) for group in optimizer.param_groups], _plain_attributes(optimizer)
        self._advance(optimizer, tensors, x / 2)
        first = _entries(optimizer, tensors)
        for _ in range(PROBES - 1):
            self._advance(optimizer, tensors, x / 2)
        for old, group in zip(before, optimizer.param_groups):
            same = {key for key in group if key in old and _same(old[key], group[key])}
            self.counted.append(group.keys() - same - {"params"})
        faults = [name for name, value in _plain_attributes(optimizer).items() if not _same(hidden.get(name), value)]
        faults += [str(key) for key in optimizer.state if not isinstance(key, Tensor)]
        odd = {type(value) for value in optree.tree_leaves(first)} - {*NUMBERS, str, Tensor, nn.Parameter}
        last = self._memory(optimizer, tensors)
        return (first, last[1]), last, ", ".join(faults + [kind.__name__ for kind in odd])

    def _tensors(self, x: Tensor) -> list[nn.Parameter]:
        return [nn.Parameter(view.clone()) for view in self.layout.unravel(x).values()]

    @torch.no_grad()
    def _advance(self, optimizer: torch.optim.Optimizer, tensors: list[nn.Parameter], g: Tensor) -> None:
        for tensor, grad in zip(tensors, self.layout.unravel(g).values()):
            tensor.grad = grad.clone()
        optimizer.step()

    def _memory(self, optimizer: torch.optim.Optimizer, tensors: list[nn.Parameter]) -> Any:
        pairs = zip(optimizer.param_groups, self.counted)
        return _entries(optimizer, tensors), [{key: group[key] for key in group.keys() & keys} for group, keys in pairs]

    def _restore(self, optimizer: torch.optim.Optimizer, tensors: list[nn.Parameter], slots: list[Tensor]) -> None:
        """Give back what a copy remembered."""
        given = iter(slots)
        values = [value if _as_tensor(value) is None else _like(value, next(given)) for value in self.values]
        states, groups = optree.tree_unflatten(self.spec, values)
        optimizer.state.update((tensor, entries) for tensor, entries in zip(tensors, states) if entries)
        for group, entries in zip(optimizer.param_groups, groups):
            group.update(entries)


def _kinds(memory: Any) -> Any:
    """The structure of what is remembered, with shapes and dtypes; other things as they are."""
    values, spec = optree.tree_flatten(memory)
    pairs = [(value, _as_tensor(value)) for value in values]
    return spec, [value if one is None else (type(value), one.shape, one.dtype) for value, one in pairs]


def _entries(optimizer: torch.optim.Optimizer, tensors: list[nn.Parameter]) -> Any:
    """The entries of each tensor, in containers of their own, for an optimizer may fill its lists in place."""
    entries: Any = [dict(optimizer.state[tensor]) if tensor in optimizer.state else {} for tensor in tensors]
    return optree.tree_map(lambda value: value, entries)


def _plain_attributes(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {name: value for name, value in vars(optimizer).items() if isinstance(value, (int, float, Tensor))}


def _as_tensor(value: Any) -> Tensor | None:
    """A tensor or number as a tensor of its own; None for anything else."""
    if isinstance(value, Tensor):
        return value.detach()
    return torch.tensor(value, dtype=NUMBERS[type(value)]) if type(value) in NUMBERS else None


def _like(value: Any, slot: Tensor) -> Any:
    """A slot as the kind of thing that ``value`` is; torch keeps step counts in memory of the CPU."""
    return slot.to(value.device, copy=True) if isinstance(value, Tensor) else slot.item()


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return bool(one is other or one == other)
