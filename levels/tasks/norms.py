"""Norms from plain operations: second derivatives of torch's own weight norm and third ones of its layer norm and batch
norm are wrong (torch 2.13), and exact levels ask for them.

    with PlainNorms():
        model(inputs)        # nn.LayerNorm, nn.BatchNorm1d and the like, and torch.nn.functional's, are composed here
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class PlainNorms(TorchFunctionMode):
    """Inside, what `PLAIN` lists is computed by plain operations."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        plain = PLAIN.get(func) or NAMED.get(getattr(func, "__name__", ""), func)
        return plain(*args, **(kwargs or {}))


def standardised(x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
    """``x`` with mean 0 and variance 1 over some dimensions."""
    centred = x - x.mean(tuple(dims), keepdim=True)
    scale: Tensor = (centred.square().mean(tuple(dims), keepdim=True) + eps).rsqrt()
    return centred * scale


def scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None, channels: int | None = None) -> Tensor:
    """``x * weight + bias``, either of which may be None; by dimension 1 of ``x`` if it has ``channels``."""
    shape = None if channels is None else (-1, *[1] * (x.dim() - 2))
    weight, bias = (part if part is None or shape is None else part.reshape(shape) for part in (weight, bias))
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,  # noqa: A002
    eps: float = 1e-5, *_: bool,
) -> Tensor:  # fmt: skip
    """As `torch.nn.functional.layer_norm`; a last argument of `torch.layer_norm` says which kernel, and is not read."""
    return scaled(standardised(input, range(-len(normalized_shape), 0), eps), weight, bias)


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,  # noqa: A002
    eps: float = 1e-5, *_: bool,
) -> Tensor:  # fmt: skip
    """As `torch.nn.functional.group_norm`, and `torch.group_norm`."""
    groups = input.reshape(len(input), num_groups, -1)
    return scaled(standardised(groups, [-1], eps).reshape(input.shape), weight, bias, input.shape[1])


def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,  # noqa: A002
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """As `torch.nn.functional.batch_norm`; running statistics are updated in place."""
    if not training:
        assert running_mean is not None
        assert running_var is not None
        scale = (running_var + eps).rsqrt()
        return scaled(scaled(input, scale, -running_mean * scale, input.shape[1]), weight, bias, input.shape[1])
    dims = [dim for dim in range(input.dim()) if dim != 1]
    remember(input, dims, running_mean, running_var, momentum)
    return scaled(standardised(input, dims, eps), weight, bias, input.shape[1])


@torch.no_grad()
def remember(
    x: Tensor, dims: Sequence[int], running_mean: Tensor | None, running_var: Tensor | None, momentum: float
) -> None:
    """Move running statistics towards the mean and the unbiased variance of ``x`` over ``dims``, of each channel."""
    for running, moment in ((running_mean, torch.mean), (running_var, torch.var)):
        if running is not None:
            new = moment(x.detach(), tuple(dims))
            running.mul_(1 - momentum).add_(momentum * (new if new.dim() == 1 else new.mean(0)))


def instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,  # noqa: A002
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """As `torch.nn.functional.instance_norm`; running statistics are updated in place."""
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    remember(input, range(2, input.dim()), running_mean, running_var, momentum)
    return scaled(standardised(input, range(2, input.dim()), eps), weight, bias, input.shape[1])


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``g v / |v|``, the norm over all dimensions but ``dim`` (all of them: -1), as in `torch.nn.utils.weight_norm`."""
    dims = [other for other in range(v.dim()) if dim == -1 or other != dim % v.dim()]
    norm: Tensor = torch.linalg.vector_norm(v, dim=dims, keepdim=dim != -1)
    return v * (g / norm)


PLAIN: dict[Any, Callable[..., Any]] = {
    functional.layer_norm: layer_norm,
    functional.group_norm: group_norm,
    functional.batch_norm: batch_norm,
    functional.instance_norm: instance_norm,
    torch.layer_norm: layer_norm,
    torch.group_norm: group_norm,
}
"""What is replaced, and by what."""

NAMED: dict[str, Callable[..., Any]] = {"_weight_norm": weight_norm}
"""The same for what is private in torch."""
