"""Random numbers as a pure function of a key: the reason a tower can be copied, resumed and taken apart.

Every copy of a problem owns one int64 key. Its draws depend on that key alone: alone or among a thousand it behaves the
same, a checkpoint is tensors and nothing else, and no global generator is read or moved. Numbers come from SplitMix64
(Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"): the n-th draw of a key is its output
function at ``key + n * gamma``. Integer arithmetic wraps, as two's complement does.
"""

import math

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15 - 2**64  # the golden ratio's 64 bits, as a signed number
MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
MIX_2 = 0x94D049BB133111EB - 2**64
UNMIX_1, UNMIX_2 = ((pow(factor, -1, 2**64) + 2**63) % 2**64 - 2**63 for factor in (MIX_1, MIX_2))


def seed(number: int, *, device: torch.device | str = "cpu") -> Tensor:
    """The key of a seed: int64 scalar ``[]``. ``number`` is any integer that fits in 64 bits."""
    return _mix(torch.tensor(number, dtype=torch.int64, device=device) + GAMMA)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """Keys derived from ``key`` and ``data`` (broadcast together); another datum, an unrelated key."""
    salt = _mixed(data * GAMMA + MIX_2) if isinstance(data, int) else _mix(data * GAMMA + MIX_2)
    return _mix(key ^ salt)


def unfold_in(key: Tensor, data: int) -> Tensor:
    """The keys of which ``fold(..., data)`` gave these: SplitMix64 is a bijection."""
    return _unmix(key) ^ _mixed(data * GAMMA + MIX_2)


def split(key: Tensor, count: int) -> Tensor:
    """``count`` unrelated keys for each key: ``[*batch]`` to ``[*batch, count]``."""
    return fold_in(key[..., None], torch.arange(1, count + 1, device=key.device))


def bits(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """64 random bits an entry: int64 ``[*batch, *shape]`` for keys ``[*batch]``."""
    draws = torch.arange(1, math.prod(shape) + 1, device=key.device)
    return _mix(key[..., None] + draws * GAMMA).reshape((*key.shape, *shape))


def uniform(key: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uniform in [0, 1): ``[*batch, *shape]``; 24 random bits in float32, 53 in float64."""
    digits = 53 if dtype == torch.float64 else 24
    return _shift(bits(key, shape), 64 - digits).to(dtype) * 2.0**-digits


def normal(key: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Standard normal ``[*batch, *shape]``, by Box and Muller (1958)."""
    radius, angle = uniform(key, (2, *shape), dtype).unbind(key.dim())
    return torch.sqrt(-2 * torch.log1p(-radius)) * torch.cos(2 * math.pi * angle)


def integers(key: Tensor, shape: tuple[int, ...], high: int) -> Tensor:
    """Integers from 0 to ``high - 1``: int64 ``[*batch, *shape]``; ``high`` at most 2^31 (bias below 2^-32)."""
    return _shift(bits(key, shape), 1) % high


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * MIX_1
    z = (z ^ _shift(z, 27)) * MIX_2
    return z ^ _shift(z, 31)


def _mixed(number: int) -> int:
    """`_mix` of a plain number, whatever its size, as a signed one of 64 bits."""
    z = number % 2**64
    z = (z ^ z >> 30) * MIX_1 % 2**64
    z = (z ^ z >> 27) * MIX_2 % 2**64
    return ((z ^ z >> 31) + 2**63) % 2**64 - 2**63


def _unmix(z: Tensor) -> Tensor:
    z = _unshift(z, 31) * UNMIX_2
    z = _unshift(z, 27) * UNMIX_1
    return _unshift(z, 30)


def _unshift(z: Tensor, count: int) -> Tensor:
    """The inverse of ``z ^ (z >> count)`` with a logical shift, for a count of at least 22."""
    return z ^ _shift(z, count) ^ _shift(z, 2 * count)


def _shift(z: Tensor, count: int) -> Tensor:
    """Logical right shift; torch's own carries the sign along."""
    return (z >> count) & ((1 << (64 - count)) - 1)
