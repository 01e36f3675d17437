"""A trained optimizer as a `torch.optim.Optimizer`, for ordinary models in ordinary loops.

    optimizer = LearnedTorchOptimizer(model.parameters(), LSTM(), weights)
    loss.backward()
    optimizer.step()

Each param group has an ``lr``, which multiplies the learned step: 1.0 (the default) is that step to the last bit, and
schedulers scale it as they scale any other. The optimizer's state lies in ``state``, a tensor for each name, and
loading a ``state_dict`` rounds nothing. Parameters in bfloat16 or float16 are updated in float32 and rounded.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from levels.base import Optimizer
from levels.fields import require
from levels.layout import Layout
from recursion.pieces import Memory, Pieces

LOW = (torch.bfloat16, torch.float16)


class LearnedTorchOptimizer(torch.optim.Optimizer):
    """The optimizer ``learned`` with its ``weights`` ``[m]``, on the parameters of a model.

    ``params``: tensors, named tensors or param groups, as torch's optimizers take them. ``layout``: the one that the
    weights were learned on, if known. ``lr``: multiplies the learned step, at least 0. Parameters without a gradient
    stay. An optimizer whose locality is global takes each group as one problem, with a gradient of 0 where there is
    none; one that reads the loss needs a closure. Raises ValueError for weights, groups and gradients that do not fit.
    """

    def __init__(
        self, params: Any, learned: Optimizer, weights: Tensor, *, layout: Layout | None = None,
        lr: float | Tensor = 1.0,
    ) -> None:  # fmt: skip
        self.learned, self.weights, self.layout = learned, weights.detach(), layout
        self.pieces = Pieces(learned, self.weights)
        super().__init__(params, {"lr": lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; ValueError if the optimizer does not fit the group, which is then not added."""
        super().add_param_group(param_group)
        try:
            self._vet(self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what the closure returned, the loss, or None without one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if loss is None and self.learned.traits.reads_loss:
            raise ValueError(f"{self.learned} reads the loss; call step(closure)")
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            sparse = f"{self.learned} takes dense gradients, got {p.grad.layout}; set sparse=False where it comes from"
            require(p.grad.layout == torch.strided, sparse)
        for group in self.param_groups:
            for members in self._members(group):
                if any(p.grad is not None for p in members.values()):
                    self._advance(members, loss, group["lr"])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but bit for bit: torch casts what is loaded to the dtype of the parameters.

        Raises ValueError if the state is not one of this optimizer on these parameters; nothing is loaded then.
        """
        given: dict[str, Any] = {}
        before = self.state, self.param_groups
        with ExitStack() as hooks:
            hooks.callback(self.register_load_state_dict_pre_hook(lambda _, final: given.update(final)).remove)
            restore = self.register_load_state_dict_post_hook(lambda _: self._restore(given["state"]), prepend=True)
            hooks.callback(restore.remove)
            try:
                super().load_state_dict(state_dict)
            except Exception:
                self.state, self.param_groups = before
                raise

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "learned": self.learned, "weights": self.weights, "layout": self.layout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "learned" in state:
            self.pieces = Pieces(self.learned, self.weights)

    def _members(self, group: Mapping[str, Any]) -> Iterable[dict[str, Tensor]]:
        """What the optimizer works on at a time, by name: single tensors, or the group. Empty tensors are left out."""
        names = group.get("param_names") or [str(i) for i in range(len(group["params"]))]
        named = {name: p for name, p in zip(names, group["params"]) if p.numel()}
        if self.pieces.locality == "global":
            return [named] if named else []
        return [{name: p} for name, p in named.items()]

    def _layout(self, members: Mapping[str, Tensor]) -> Layout:
        """Of what the optimizer works on; the one that it was trained on where it fits no other."""
        first = next(iter(members.values()))
        dtype = torch.float32 if first.dtype in LOW else first.dtype
        layout = Layout.of({name: tuple(p.shape) for name, p in members.items()}, dtype, first.device)
        if self.layout is None or self.pieces.free:
            return layout
        return Layout(self.layout.entries, dtype, first.device)

    def _advance(self, members: Mapping[str, Tensor], loss: Any, lr: float | Tensor) -> None:
        layout, (first, *_) = self._layout(members), members.values()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in members.values()]
        x, g = _joined(members.values()), _joined(gradients)
        memory: Memory = self.state[first]
        if not memory:
            memory.update(self.pieces.init_state(layout, x))
        f = torch.zeros(1, dtype=layout.dtype, device=layout.device)
        if self.learned.traits.reads_loss:
            f += loss
        self.pieces.update(layout, f, g, memory, x, lr)
        for p, new in zip(members.values(), torch.split(x, [p.numel() for p in members.values()])):
            if p.grad is not None and new.data_ptr() != p.data_ptr():
                p.copy_(new.view(p.shape))

    @torch.no_grad()
    def _restore(self, saved: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Put the tensors of a loaded state in place as they were saved."""
        place = {id(p): i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
        for group in self.param_groups:
            for members in self._members(group):
                first = next(iter(members.values()))
                before = saved.get(place[id(first)])
                if before:
                    fresh = self.pieces.init_state(self._layout(members), _joined(members.values()))
                    got = {
                        name: list(leaf.shape) if isinstance(leaf, Tensor) else leaf for name, leaf in before.items()
                    }
                    expected = {name: list(leaf.shape) for name, leaf in fresh.items()}
                    what = f"the state to load is not one of {self.learned} on these parameters"
                    require(got == expected, f"{what}: got {got}, expected {expected}")
                    self.state[first] = {name: leaf.copy_(before[name]) for name, leaf in fresh.items()}

    def _vet(self, group: Mapping[str, Any]) -> None:
        """ValueError unless the optimizer fits a param group."""
        lr = group["lr"]
        number = lr.numel() == 1 if isinstance(lr, Tensor) else isinstance(lr, (int, float))
        good = number and 0 <= float(lr) < math.inf
        require(good, f"lr multiplies the learned step, it must be at least 0, got {lr}")
        for p in group["params"]:
            good = p.is_floating_point() and p.layout == torch.strided
            require(good, f"{self.learned} updates dense real parameters, got one in {p.dtype}, {p.layout}")
        for members in self._members(group):
            kinds = {(p.dtype, p.device) for p in members.values()}
            apart = f"{self.learned} takes a param group as one problem, got {len(kinds)} dtypes or devices in it"
            require(len(kinds) == 1, f"{apart}; make a group of each")
            got = tuple((name, tuple(p.shape)) for name, p in members.items())
            if self.layout is not None and not self.pieces.free:
                which = slice(None) if "param_names" in group else 1  # names count where torch knows them
                same = [entry[which] for entry in self.layout.entries] == [entry[which] for entry in got]
                only = f"{self.learned} fits only the tensors that it was trained on"
                require(same, f"{only}, {_named(self.layout.entries)}, got {_named(got)}")
            needed, have = self.learned.bind(self._layout(members)).layout.size, self.weights.numel()
            require(needed == have, f"{self.learned} takes {needed} parameters on {_named(got)}, got {have}")


def _joined(tensors: Iterable[Tensor]) -> Tensor:
    """Tensors as one vector ``[n]``; a single contiguous one is not copied."""
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def _named(entries: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    shown = [f"{name}{list(shape)}" for name, shape in entries]
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")
