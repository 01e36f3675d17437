"""A small MLP as an optimizer, coordinate by coordinate, in the manner of small_fc_lopt (Metz et al. 2022, arXiv
2203.11860, section 3.2) and Celo2 (Moudgil, Knyazev and Belilovsky 2026, arXiv 2602.19142).

    m_i <- b_i * m_i + (1 - b_i) * g                  for each b_i of ``momenta``
    v_j <- c_j * v_j + (1 - c_j) * g^2                for each c_j of ``moments``
    z    = unit(g), unit(x), unit(m_i), unit(m_i / sqrt(v_j)), log(v_j / mean v_j) / 14, (t^2 - s^2) / (t^2 + s^2)
    d, a = MLP(z)                                     ELU layers, the same weights for every coordinate
    x   <- x - lr * unit(d) * exp(a)

unit(u) = u / sqrt(mean u^2) and the mean of v_j are taken over each tensor, by the named views; s runs over ``times``,
scales of the step count t, so these features are tanh(log(t / s)). No feature changes when a gradient or all weights
of a tensor are multiplied by a number, and without exp(a) the step of each tensor has a root mean square of ``lr``.

As small_fc_lopt: momenta, second moments, features of unit mean square, direction and log-magnitude. As Celo2: the
normalised step. Deviations: no factored moments; the logarithm of v relative to the tensor for its inverse root, as a
weight that is always dead would swamp a mean of inverses; the magnitude comes after the normalisation, with a factor of
1 for their 0.001, so that steps can shrink without a schedule; ELU for ReLU, for a continuous derivative; ``lr`` is
learned in log space. 194 weights as it is; ``mlp(hidden=4, momenta=0.9, moments=0.99, times=100)`` has 39 and an lr.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.base import Optimizer, OptimizerTraits
from levels.fields import Count, DecayRate, Positive
from levels.hyper import Hyper, Log
from levels.layout import Layout, constants
from levels.optimizers.cells import by_feature

DEAD = 1e-6  # the least square, relative to the mean over the tensor: -log(DEAD) is 14
FLAT = 1e-8  # added to the mean squares of x, m_i / sqrt(v_j) and d, which keeps their derivatives finite


class MLPState(NamedTuple):
    """Averages and step count of each copy."""

    m: Tensor  # [*batch, copies, momenta, n]
    v: Tensor  # [*batch, copies, moments, n]
    t: Tensor  # int64 [*batch, copies]


@dataclass(frozen=True, repr=False)
class MLPOptimizer(Optimizer):
    """``hidden``: units of each layer. ``momenta`` and ``moments``: decay rates, at least 0 and below 1. ``times``:
    steps, above 0. ``lr``: root mean square of a tensor's step at magnitude 0; a number moves in log space."""

    name = "mlp"

    hidden: tuple[Count, ...] = (8, 8)
    momenta: tuple[DecayRate, ...] = (0.9, 0.99)
    moments: tuple[DecayRate, ...] = (0.99, 0.999)
    times: tuple[Positive, ...] = (10.0, 1000.0)
    lr: Hyper | Positive = 0.01

    traits = OptimizerTraits(locality="per_tensor")

    def __post_init__(self) -> None:
        for field in ("hidden", "momenta", "moments", "times"):
            value = getattr(self, field)
            object.__setattr__(self, field, tuple(value) if isinstance(value, Sequence) else (value,))
        super().__post_init__()

    @cached_property
    def rate(self) -> Hyper:
        """``lr`` with its space."""
        return self.lr if isinstance(self.lr, Hyper) else Log(float(self.lr))

    @property
    def features(self) -> int:
        """Numbers that the MLP reads for each coordinate."""
        momenta, moments = len(self.momenta), len(self.moments)
        return 2 + momenta + momenta * moments + moments + len(self.times)

    def shapes(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        inputs = self.features
        for layer, width in enumerate(self.hidden):
            shapes[f"layer{layer}.weight"], shapes[f"layer{layer}.bias"] = (inputs, width), (width,)
            inputs = width
        return shapes | {"out.weight": (inputs, 2), "out.bias": (2,), "lr": self.rate.shape(layout)}

    def init(self, key: Tensor) -> Tensor:
        """Weights uniform within 1/sqrt(inputs), biases 0."""
        layout = self.layout
        tensors = layout.unravel(2 * keys.uniform(key, (layout.size,), layout.dtype) - 1)
        for name, shape in layout.entries:
            tensors[name] = tensors[name] * (shape[0] ** -0.5 if name.endswith("weight") else 0.0)
        tensors["lr"] = tensors["lr"] + self.rate.unconstrain(self.rate.start)
        return layout.ravel(tensors)

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> MLPState:
        m, v = (x.new_zeros(*x.shape[:-1], len(rates), x.shape[-1]) for rates in (self.momenta, self.moments))
        return MLPState(m, v, torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device))

    def update(self, theta: Tensor, x: Tensor, state: MLPState, f: Tensor, g: Tensor) -> tuple[Tensor, MLPState]:
        b, c = (constants(rates, g)[:, None] for rates in (self.momenta, self.moments))
        each = g[..., None, :]
        state = MLPState(b * state.m + (1 - b) * each, c * state.v + (1 - c) * each * each, state.t + 1)
        tensors = self.layout.unravel(theta)
        out = self._network(tensors, by_feature(self._features(g, state, x)).mT)
        direction, magnitude = out.reshape(*x.shape, 2).unbind(-1)
        rate = self.rate.read(tensors["lr"].reshape(*theta.shape[:-1], 1, -1), self.param_layout)
        return x - rate * self._unit(direction) * magnitude.exp(), state

    def _features(self, g: Tensor, state: MLPState, x: Tensor) -> Tensor:
        """What the MLP reads: ``[*batch, copies, n, features]``."""
        floor = torch.finfo(x.dtype).tiny ** 0.75  # so that its inverse is far from overflow
        steady = torch.cat((g[..., None, :], state.m, x[..., None, :]), dim=-2)
        means = self._means(torch.cat((steady.square(), state.v), dim=-2)) + floor
        mean_v = means[..., steady.shape[-2] :, :]
        relative = state.v / mean_v + DEAD
        ratio = state.m[..., :, None, :] / torch.sqrt(mean_v * relative)[..., None, :, :]
        floors = torch.cat((x.new_zeros(1 + len(self.momenta), 1), x.new_full((1, 1), FLAT)))
        steady = steady / torch.sqrt(means[..., : steady.shape[-2], :] + floors)
        parts = (steady, self._unit(ratio.flatten(-3, -2)), relative.log() / -math.log(DEAD), self._age(state.t, x))
        return torch.cat(parts, dim=-2).mT

    def _age(self, t: Tensor, x: Tensor) -> Tensor:
        """The step count on the scales of ``times``: ``[*batch, copies, times, n]``, between -1 and 1."""
        t, s = t.to(x.dtype)[..., None].square(), constants(self.times, x).square()
        return ((t - s) / (t + s))[..., None].expand(*t.shape[:-1], len(self.times), x.shape[-1])

    def _network(self, tensors: dict[str, Tensor], z: Tensor) -> Tensor:
        """``[groups, rows, features]`` to ``[groups, rows, 2]``."""
        for layer in range(len(self.hidden)):
            z = torch.nn.functional.elu(_linear(tensors, f"layer{layer}", z))
        return _linear(tensors, "out", z)

    def _unit(self, values: Tensor) -> Tensor:
        """``values`` ``[..., n]`` of unit mean square over each tensor; less where that is below `FLAT`."""
        return values / torch.sqrt(self._means(values.square()) + FLAT)

    def _means(self, values: Tensor) -> Tensor:
        """The mean over its tensor for each entry of ``[..., n]``."""
        tensors = self.param_layout.unravel(values)
        means = [view.flatten(values.dim() - 1).mean(-1) if view.dim() >= values.dim() else view
                 for view in tensors.values()]  # fmt: skip
        return self.param_layout.spread(torch.stack(means, dim=-1))


def _linear(tensors: dict[str, Tensor], layer: str, z: Tensor) -> Tensor:
    """A layer with a weight ``[*batch, i, o]`` and a bias ``[*batch, o]``, for rows ``[groups, rows, i]``."""
    weight, bias = tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
    return torch.baddbmm(bias.reshape(-1, 1, bias.shape[-1]), z, weight.reshape(-1, *weight.shape[-2:]))
