"""CMA-ES (Hansen 2016, "The CMA evolution strategy: a tutorial", arXiv 1604.00772, version of figure 6).

Members are drawn from a normal distribution whose mean, step size and covariance follow the better ones:

    x_k = m + sigma y_k,    y_k ~ N(0, C),    k = 1..P;      x_(1), x_(2), ... in the order of their losses
    m       <- m + sigma y,                                  y = sum over the better half of w_i y_(i)
    p_sigma <- (1 - c_sigma) p_sigma + sqrt(c_sigma (2 - c_sigma) mu_eff) C^(-1/2) y
    sigma   <- sigma exp(c_sigma / d_sigma (|p_sigma| / E|N(0, I)| - 1))
    p_c     <- (1 - c_c) p_c + h sqrt(c_c (2 - c_c) mu_eff) y
    C       <- (1 + c_1 (1 - h) c_c (2 - c_c) - c_1 - c_mu sum w) C + c_1 p_c p_c' + c_mu sum w_i' y_(i) y_(i)'

h is 0 while p_sigma is long; members of the worse half have negative weights, scaled so that C stays positive definite.
All is kept in double precision. ``x`` is the mean: under noisy losses the best member is mostly a lucky one.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, NamedTuple, Self

import torch
from torch import Tensor

from levels import keys
from levels.base import Problem
from levels.fields import AtLeast, require
from levels.hyper import Hyper, Log, hyper
from levels.layout import Layout
from levels.optimizers.search import Population, Search, picked
from levels.tree import State

MOST = 2000  # parameters; a copy holds three matrices of that size, one of which is decomposed each generation
LEAST = 1e-20  # of the largest eigenvalue of C
WIDEST = 1e32  # sigma


class Distribution(NamedTuple):
    """What members are drawn from, and the paths; float64, leading dimensions ``[*batch, copies]``."""

    mean: Tensor  # [..., n]
    sigma: Tensor  # [...]
    c: Tensor  # [..., n, n]
    root: Tensor  # [..., n, n] its symmetric root, which is as smooth as C; eigenvectors are not
    inverse: Tensor  # [..., n, n] of the root
    p_sigma: Tensor  # [..., n]
    p_c: Tensor  # [..., n]


class Constants(NamedTuple):
    """Weights and rates (table 1 of the tutorial)."""

    weights: tuple[float, ...]  # P, of the members in the order of their losses
    better: int  # members with a positive weight
    mu_eff: float
    c_sigma: float
    d_sigma: float
    c_c: float
    c_1: float
    c_mu: float
    length: float  # E |N(0, I)|


def constants(n: int, size: int) -> Constants:
    """For ``n`` parameters and a population of ``size``."""
    raw = [math.log((size + 1) / 2) - math.log(i) for i in range(1, size + 1)]
    better = size // 2
    mu_eff, mu_bad = (sum(part) ** 2 / sum(w * w for w in part) for part in (raw[:better], raw[better:]))
    c_1 = 2 / ((n + 1.3) ** 2 + mu_eff)
    c_mu = min(1 - c_1 - 1e-8, 2 * (mu_eff - 2 + 1 / mu_eff) / ((n + 2) ** 2 + mu_eff))
    bad = min(1 + c_1 / c_mu, 1 + 2 * mu_bad / (mu_eff + 2), (1 - c_1 - c_mu) / (n * c_mu))
    plus, minus = sum(w for w in raw if w > 0), -sum(w for w in raw if w < 0)
    c_sigma = (mu_eff + 2) / (n + mu_eff + 5)
    d_sigma = 1 + 2 * max(0.0, math.sqrt((mu_eff - 1) / (n + 1)) - 1) + c_sigma
    c_c, length = (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n), math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))
    weights = tuple(w / plus if w >= 0 else bad * w / minus for w in raw)
    return Constants(weights, better, mu_eff, c_sigma, d_sigma, c_c, c_1, c_mu, length)


@dataclass(frozen=True, repr=False)
class CMA(Search):
    """``population``: members, at least 4; None for the tutorial's 4 + 3 log n, rounded down. ``sigma``: the first
    step size, in the units of the parameters, above 0; one number. Raises ValueError, when bound, for more than 2,000
    parameters.
    """

    name = "cma"

    population: Annotated[int, AtLeast(4)] | None = None
    sigma: Hyper | float = hyper(0.3, Log)

    def __post_init__(self) -> None:
        super().__post_init__()
        one = not isinstance(self.sigma, Hyper) or self.sigma.shared_over == "value"
        require(one, "cma: sigma is one number, it finds out by itself how coordinates differ; leave per out")

    def bind(self, site: Problem | Layout) -> Self:
        bound = super().bind(site)
        size = bound.param_layout.size
        what = f"cma keeps a matrix of {size} x {size} for {size} parameters"
        require(size <= MOST, f"{what}; it takes at most {MOST:,}, use ga")
        return bound

    @property
    def size(self) -> int:
        return self.population or 4 + math.floor(3 * math.log(self.param_layout.size))

    @cached_property
    def constants(self) -> Constants:
        """Weights and rates."""
        return constants(self.param_layout.size, self.size)

    def first(self, theta: Tensor, state: Population, x: Tensor) -> Population:
        mean = x.double()
        start = self.read(theta)["sigma"].squeeze(-1).double().expand(x.shape[:-1])
        eye = torch.eye(x.shape[-1], dtype=mean.dtype, device=x.device).expand(*x.shape, -1)
        none = torch.zeros_like(mean)
        return state._replace(memory=Distribution(mean, start, eye, eye, eye, none, none))

    def ask(self, theta: Tensor, state: Population, x: Tensor, key: Tensor) -> Population:
        d: Distribution = state.memory
        z = keys.normal(key, (self.size, x.shape[-1]), torch.float64)
        y = torch.matmul(z, d.root)
        return state._replace(members=(d.mean[..., None, :] + d.sigma[..., None, None] * y).to(x.dtype))

    def tell(self, theta: Tensor, state: Population) -> tuple[Tensor, State]:
        d = advanced(state.memory, self.constants, state.members, state.losses, state.generation)
        return d.mean.to(state.members.dtype), d


def advanced(d: Distribution, const: Constants, members: Tensor, losses: Tensor, generation: Tensor) -> Distribution:
    """The distribution after members ``[..., P, n]`` were judged, ``generation`` of them in all, this one counted."""
    order = losses.argsort(dim=-1, stable=True)
    y = (picked(order, members).double() - d.mean[..., None, :]) / d.sigma[..., None, None]
    weights = torch.tensor(const.weights, dtype=torch.float64, device=y.device)
    step = (weights[: const.better, None] * y[..., : const.better, :]).sum(-2)
    # step size
    rate = const.c_sigma
    p_sigma = (1 - rate) * d.p_sigma + math.sqrt(rate * (2 - rate) * const.mu_eff) * whitened(d, step)
    norm = torch.linalg.vector_norm(p_sigma, dim=-1)
    sigma = (d.sigma * torch.exp(rate / const.d_sigma * (norm / const.length - 1))).clamp_max(WIDEST)
    # covariance
    n = members.shape[-1]
    full = norm / torch.sqrt(1 - (1 - rate) ** (2 * generation.double()))
    h = (full < (1.4 + 2 / (n + 1)) * const.length).double()[..., None]
    spent = const.c_c * (2 - const.c_c)
    p_c = (1 - const.c_c) * d.p_c + h * math.sqrt(spent * const.mu_eff) * step
    size = whitened(d, y).square().sum(-1)
    scaled = torch.where(weights >= 0, weights, weights * n / size.clamp_min(1e-300))
    share = 1 + const.c_1 * (1 - h) * spent - const.c_1 - const.c_mu * weights.sum()
    one = p_c[..., :, None] * p_c[..., None, :]
    many = torch.matmul((scaled[..., None] * y).mT, y)
    return decomposed(
        d.mean + d.sigma[..., None] * step,
        sigma,
        share[..., None] * d.c + const.c_1 * one + const.c_mu * many,
        p_sigma,
        p_c,
    )


def whitened(d: Distribution, y: Tensor) -> Tensor:
    """``C^(-1/2) y`` for ``[..., n]`` or ``[..., k, n]``."""
    rows = y if y.dim() > d.mean.dim() else y[..., None, :]
    return torch.matmul(rows, d.inverse).reshape(y.shape)


def decomposed(mean: Tensor, sigma: Tensor, c: Tensor, p_sigma: Tensor, p_c: Tensor) -> Distribution:
    """The distribution, with the roots of C; rounding may not make it singular."""
    c = (c + c.mT) / 2
    values, axes = torch.linalg.eigh(c)
    lengths = values.clamp_min(LEAST * values[..., -1:]).sqrt()[..., None, :]
    root, inverse = torch.matmul(axes * lengths, axes.mT), torch.matmul(axes / lengths, axes.mT)
    return Distribution(mean, sigma, c, root, inverse, p_sigma, p_c)
