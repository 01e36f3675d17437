"""LSTM cells for coordinatewise optimizers: a stack of layers, one step forward and its derivative.

Each coordinate of each copy is a row with hidden states of its own; the copies of one optimizer share its weights,
so everything is ``[groups, ..., rows]``: one group for each set of weights, for batched matrix products, and each gate
in one piece of memory. States are handed out with their copies first, but lie in memory as they were made.

The cell is plain matrix products. tanh(a) is taken as 2 sigmoid(2a) - 1, so that one sigmoid serves all four gates,
and the derivative is written out: both are several times faster than what autograd makes of separate gates. Weights
start uniform within 1/sqrt(hidden), as torch's do, with a forget gate's bias of 1 (Jozefowicz et al. 2015).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys, native
from levels.compiled import compilable
from levels.layout import Layout
from levels.optimizers import cells_native
from levels.tree import State, leaves

LSTMState = tuple[tuple[Tensor, Tensor], ...]
"""(h, c) of each layer, ``[*batch, copies, n, hidden]``."""

Views = dict[str, Tensor]

ROWS = 2**12  # most rows at once
SWEPT = 2**14  # most rows times steps of which a sweep keeps what it made
KEPT = 2**18  # most hidden units over all rows of which a step is kept for its derivative: about 7 MiB of float32


class Cell(NamedTuple):
    """One layer of one step, with what its derivative needs; all ``[groups, ..., rows]``."""

    z: Tensor  # [.., inputs + hidden, ..] what the gates read
    gates: Tensor  # [.., 4 * hidden, ..] sigmoids: input, forget, cell (of twice its argument), output
    fresh: Tensor  # [.., hidden, ..] tanh of the cell gate's argument
    c_old: Tensor
    tanh_c: Tensor
    h: Tensor
    c: Tensor


@dataclass(frozen=True)
class Cells:
    """``layers`` layers of ``hidden`` units over ``inputs`` inputs, and a linear output of one number a row."""

    inputs: int
    hidden: int
    layers: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all weights."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.layers):
            inputs = self.inputs if layer == 0 else self.hidden
            shapes[f"layer{layer}.weight"] = (inputs + self.hidden, 4 * self.hidden)
            shapes[f"layer{layer}.bias"] = (4 * self.hidden,)
        shapes["out.weight"] = (self.hidden, 1)
        shapes["out.bias"] = (1,)
        return shapes

    def start(self, layout: Layout, key: Tensor) -> Views:
        """Fresh numbers ``[*batch, *shape]`` for the whole ``layout`` that the weights stand in, see the top."""
        views = layout.unravel((2 * keys.uniform(key, (layout.size,), layout.dtype) - 1) * self.hidden**-0.5)
        forget = torch.zeros(4 * self.hidden, dtype=layout.dtype, device=layout.device)
        forget[self.hidden : 2 * self.hidden] = 1.0
        for layer in range(self.layers):
            views[f"layer{layer}.bias"] = forget.expand(*key.shape, -1)
        views["out.bias"] = torch.zeros_like(views["out.bias"])
        return views

    def start_state(self, x: Tensor) -> LSTMState:
        """Zeros for ``x`` ``[*batch, copies, n]``."""
        zeros = x.new_zeros(*x.shape, self.hidden)
        return tuple((zeros, zeros) for _ in range(self.layers))

    def weights(self, layout: Layout, params: Tensor) -> Views:
        """Weights ``[groups, i, o]`` and biases ``[groups, o, 1]``; the cell gate's are doubled, see the top."""
        views = layout.unravel(params.reshape(-1, params.shape[-1]))
        double = params.new_ones(4 * self.hidden)
        double[2 * self.hidden : 3 * self.hidden] = 2.0
        for layer in range(self.layers):
            views[f"layer{layer}.weight"] = views[f"layer{layer}.weight"] * double
            views[f"layer{layer}.bias"] = (views[f"layer{layer}.bias"] * double)[..., None]
        views["out.bias"] = views["out.bias"][..., None]
        return views

    @compilable
    def forward(self, views: Views, inputs: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, list[Cell]]:
        """The output ``[groups, 1, rows]`` for inputs ``[groups, inputs, rows]``, and the cells.

        ``state``: h and c of each layer in turn, ``[groups, hidden, rows]``.
        """
        cells: list[Cell] = []
        out = inputs
        for layer, (h, c_old) in enumerate(zip(state[::2], state[1::2])):
            z = torch.cat((out, h), dim=-2)
            gates = torch.baddbmm(views[f"layer{layer}.bias"], views[f"layer{layer}.weight"].mT, z).sigmoid()
            i, forget, cell, o = gates.chunk(4, dim=-2)
            fresh = 2 * cell - 1
            c_new = torch.addcmul(forget * c_old, i, fresh)
            tanh_c = 2 * torch.sigmoid(2 * c_new) - 1
            out = o * tanh_c
            cells.append(Cell(z, gates, fresh, c_old, tanh_c, out, c_new))
        return torch.baddbmm(views["out.bias"], views["out.weight"].mT, out), cells

    @compilable
    def backward(
        self, views: Views, cells: list[Cell], dout: Tensor, dstate: Sequence[Tensor | None]
    ) -> tuple[Views, list[Tensor], Tensor]:
        """Cotangents of the weights by name, of the state as `forward` takes it, and of the inputs.

        ``dstate`` are those of h and c behind the step, None for zero.
        """
        slopes = {"out.weight": cells[-1].h @ dout.mT, "out.bias": dout.sum(-1)}
        dh = views["out.weight"] * dout  # [groups, hidden, rows]
        dold: list[Tensor] = []
        for layer in reversed(range(self.layers)):
            dgates, dc = _cell_slopes(cells[layer], dh, *dstate[2 * layer : 2 * layer + 2])
            slopes[f"layer{layer}.weight"] = cells[layer].z @ dgates.mT
            slopes[f"layer{layer}.bias"] = dgates.sum(-1)
            dz = views[f"layer{layer}.weight"] @ dgates
            dold = [dz[..., -self.hidden :, :], dc, *dold]
            dh = dz[..., : -self.hidden, :]
        for layer in range(self.layers):
            for name in (f"layer{layer}.weight", f"layer{layer}.bias"):
                slopes[name][..., 2 * self.hidden : 3 * self.hidden] *= 2
        return slopes, dold, dh

    def move(self, weights: Tensor, inputs: Tensor, state: LSTMState, *, p: float = 0.0) -> tuple[Tensor, LSTMState]:
        """The output ``[*batch, copies, n]`` and the next state; ``weights``: see `flat_views`.

        ``inputs``: ``[groups, inputs, rows]`` or, if there is a ``p``, the gradients ``[groups, rows]`` of which
        `log_and_sign` makes them.
        """
        if native.serves(inputs):
            return cells_native.forward(weights, inputs, state, p=p)
        views, old, shape = self.flat_views(weights), opened(state), state[0][0].shape[:-1]
        if p:
            inputs = log_and_sign(inputs, p, dim=-2)
        parts = [
            self.forward(views, inputs[..., span], [leaf[..., span] for leaf in old])
            for span in spans(inputs.shape[-1], len(weights))
        ]
        new = [joined(leaf) for leaf in zip(*(_carried(kept) for _, kept in parts))]
        return joined([out for out, _ in parts]).reshape(shape), closed(new, shape)

    def sweep(
        self,
        weights: Tensor,
        inputs: Tensor,
        state: Sequence[Tensor],
        dout: Tensor,
        *,
        p: float = 0.0,
        bounded: bool = False,
        above: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Cotangents of ``weights`` and of ``inputs`` over a whole window, of which only the first state is given.

        ``inputs``: ``[steps, ...]`` of `move`'s; ``state``: as `forward`'s; ``dout``: ``[steps, groups, rows]``, of the
        outputs or, if ``bounded``, of their tanh. Those of the inputs are None unless something ``above`` asks for
        them; there are none of gradients.
        """
        if native.serves(inputs):
            return cells_native.sweep(weights, inputs, state, dout, p=p, bounded=bounded, above=above)
        if p:
            inputs = log_and_sign(inputs, p, dim=-2)
        views, total, dinputs = self.flat_views(weights), torch.zeros_like(weights), []
        for span in spans(inputs.shape[-1], len(weights), len(inputs)):
            old = [leaf[..., span] for leaf in state]
            named, dread = self._swept(views, inputs[..., span], old, dout[..., span], bounded)
            total += torch.cat([named[name].flatten(1) for name in self.shapes()], dim=-1)
            dinputs += [dread] if above else []
        return total, torch.cat(dinputs, dim=-1) if above else None

    def _swept(
        self, views: Views, inputs: Tensor, state: Sequence[Tensor], dout: Tensor, bounded: bool
    ) -> tuple[Views, Tensor]:
        """Cotangents of the weights by name and of the inputs, for some rows over the whole window."""
        made: list[tuple[Tensor, list[Cell]]] = []
        for read in inputs:
            made.append(self.forward(views, read, state))
            state = _carried(made[-1][1])
        total: Views = {}
        later: Sequence[Tensor | None] = [None] * len(state)
        dinputs = []
        for (out, cells), slope in zip(made[::-1], dout.flip(0).unsqueeze(-2)):
            slope = slope * (1 - out.tanh().square()) if bounded else slope
            slopes, later, dread = self.backward(views, cells, slope, later)
            total = {name: total[name] + slopes[name] if total else slopes[name] for name in slopes}
            dinputs.append(dread)
        return total, torch.stack(dinputs[::-1])

    def flat_views(self, weights: Tensor) -> Views:
        """`weights` by name of all numbers ``[groups, m]`` in the order of `shapes`."""
        return self.weights(_layout(self, weights.dtype, weights.device), weights)

    def keeps(self, g: Tensor) -> bool:
        """Whether what a step made of ``g`` ``[*batch, copies, n]`` is kept for its derivative, not made again."""
        return g.numel() <= ROWS and g.numel() * self.hidden * self.layers <= KEPT


@cache
def _layout(cells: Cells, dtype: torch.dtype, device: torch.device) -> Layout:
    return Layout.of(cells.shapes(), dtype, device)


def log_and_sign(g: Tensor, p: float, dim: int = -1) -> Tensor:
    """The gradient as a size and a sign of comparable scale, along a new dimension ``dim`` of 2 (appendix A)."""
    magnitude = g.abs()
    large = magnitude >= math.exp(-p)
    size = torch.where(large, magnitude.clamp_min(math.exp(-p)).log() / p, -1.0)
    sign = torch.where(large, g.sign(), g * math.exp(p))
    return torch.stack((size, sign), dim=dim)


def opened(state: State) -> list[Tensor]:
    """The tensors of a state, ``[*batch, copies, n, k]``, by feature."""
    tensors = leaves(state)
    groups = math.prod(tensors[0].shape[:-3])
    return [tensor.reshape(groups, -1, tensor.shape[-1]).mT for tensor in tensors]


def closed(tensors: Sequence[Tensor], shape: torch.Size) -> LSTMState:
    """The inverse of `opened` for copies and coordinates of the ``shape`` ``[*batch, copies, n]``."""
    whole = (*shape, tensors[0].shape[-2])
    h_and_c = [tensor.mT.view(whole) for tensor in tensors]
    return tuple(zip(h_and_c[::2], h_and_c[1::2]))


def spans(rows: int, groups: int, steps: int = 1) -> list[slice]:
    """Rows that are worked on at once, so that what is made of them on the way, in all steps, stays in the processor's
    cache or does not need much memory."""
    most = max(ROWS // 8, ROWS // groups) if steps == 1 else max(ROWS // 64, SWEPT // (steps * groups))
    return [slice(start, start + most) for start in range(0, rows, most)]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Pieces ``[groups, k, span]`` together."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=-1)


def by_group(tensor: Tensor) -> Tensor:
    """``[*batch, copies, n, k]`` as ``[groups, rows, k]``."""
    groups = math.prod(tensor.shape[:-3])
    return tensor.reshape(groups, -1, tensor.shape[-1])


def by_feature(tensor: Tensor) -> Tensor:
    """``[*batch, copies, n, k]`` as ``[groups, k, rows]``; nothing is copied of what `by_copy` made."""
    return by_group(tensor).mT


def by_copy(tensor: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `by_feature`, laid out in memory as it is; ``shape``: ``[*batch, copies, n]``."""
    return tensor.mT.view(*shape, tensor.shape[-2])


def ungrouped(layout: Layout, slopes: Views, params: Tensor) -> Tensor:
    """Cotangents by name, ``[groups, ...]``, as those of ``params`` ``[*batch, m]``."""
    batch = params.shape[:-1]
    return layout.ravel({name: slopes[name].reshape(*batch, *shape) for name, shape in layout.entries})


def _carried(cells: list[Cell]) -> list[Tensor]:
    return [leaf for cell in cells for leaf in (cell.h, cell.c)]


def _cell_slopes(cell: Cell, dh: Tensor, dh_next: Tensor | None, dc_next: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cotangents of the gates' arguments and of ``c_old``, given those of h (from above and from later) and c."""
    i, forget, _, o = cell.gates.chunk(4, dim=-2)
    if dh_next is not None:
        dh = dh + dh_next
    dc = dh * o
    dc = torch.addcmul(dc, dc, cell.tanh_c.square(), value=-1)
    if dc_next is not None:
        dc = dc + dc_next
    slopes = torch.cat((dc * cell.fresh, dc * cell.c_old, 2 * dc * i, dh * cell.tanh_c), dim=-2)
    return slopes * torch.addcmul(cell.gates, cell.gates, cell.gates, value=-1), dc * forget
