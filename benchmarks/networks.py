"""Networks of torch.nn's own layers: is each gradient that a tower takes through them right?

    python -m benchmarks.networks [NAME ...]

A line a network: whether copies run in one vmap or one after the other, then the largest relative error, against
differences along three random directions in float64, of the task's gradient, and of the exact meta-gradients of towers
of depth 2 and 3; or the sentence of a refusal. Two minutes on one core.
"""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from levels import SGD, Exact, Level, ModuleTask, keys

GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(12, 6, generator=GENERATOR, dtype=torch.float64)
IMAGES = torch.randn(12, 2, 6, 6, generator=GENERATOR, dtype=torch.float64)
WORDS = torch.randint(5, (12, 4), generator=GENERATOR)
LABELS = torch.randint(3, (12,), generator=GENERATOR)
ACTIVATIONS = [
    "ELU",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "LeakyReLU",
    "LogSigmoid",
    "PReLU",
    "ReLU",
    "ReLU6",
    "SELU",
    "CELU",
    "GELU",
    "Sigmoid",
    "SiLU",
    "Mish",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Tanhshrink",
    "RReLU",
    "Dropout",
    "AlphaDropout",
    "Identity",
]
Make = Callable[[], nn.Module]


class Around(nn.Module):
    """``before``, an inner module called as ``call`` says, and a linear layer."""

    def __init__(
        self, inner: nn.Module, call: Callable[[nn.Module, Tensor], Tensor], width: int, before: int = 0
    ) -> None:
        super().__init__()
        self.before = nn.Linear(3, before) if before else nn.Identity()
        self.inner, self.call, self.out = inner, call, nn.Linear(width, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.call(self.inner, self.before(inputs)))


def between(layer: Callable[..., nn.Module], width: int = 5) -> Make:
    return lambda: nn.Sequential(nn.Linear(6, width), layer(), nn.Linear(5 if width != 6 else 6, 3))


def convolved(*layers: Callable[[], nn.Module], size: int) -> Make:
    return lambda: nn.Sequential(*(layer() for layer in layers), nn.Flatten(), nn.Linear(size, 3))


def sequence(layer: Callable[..., nn.Module], width: int = 4, **settings: Any) -> Make:
    def last(rnn: nn.Module, inputs: Tensor) -> Tensor:
        return rnn(inputs.unflatten(1, (2, 3)))[0][:, -1]

    return lambda: Around(layer(3, 4, batch_first=True, **settings), last, width)


def tokens(make: Make, call: Callable[[nn.Module, Tensor], Tensor]) -> Make:
    return lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), Around(make(), call, 4, before=4))


def attention(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x, x, x, need_weights=False)[0].mean(1)


def bilinear(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x[:, :3].contiguous(), x[:, 3:].contiguous()).tanh()


def networks() -> dict[str, tuple[Make, Tensor]]:
    """Each network and its inputs, by name."""
    conv, tanh = partial(nn.Conv2d, 2, 3, 3), nn.Tanh
    normed = {"LayerNorm": partial(nn.LayerNorm, 5), "RMSNorm": partial(nn.RMSNorm, 5),
              "BatchNorm1d": partial(nn.BatchNorm1d, 5), "BatchNorm1d, momentum=None": partial(nn.BatchNorm1d, 5, momentum=None)}  # fmt: skip
    pooled = {"MaxPool2d": partial(nn.MaxPool2d, 2), "AvgPool2d": partial(nn.AvgPool2d, 2),
              "AdaptiveAvgPool2d": partial(nn.AdaptiveAvgPool2d, 2), "AdaptiveMaxPool2d": partial(nn.AdaptiveMaxPool2d, 2)}  # fmt: skip
    parametrized = nn.utils.parametrizations
    encoder = partial(nn.TransformerEncoderLayer, 4, 2, 6, activation="gelu", batch_first=True)
    return {
        **{name: (between(getattr(nn, name)), ROWS) for name in ACTIVATIONS},
        **{name: (between(partial(getattr(nn, name), dim=-1)), ROWS) for name in ("Softmax", "Softmin", "LogSoftmax")},
        "GLU": (between(nn.GLU, 10), ROWS),
        **{name: (between(lambda layer=layer: nn.Sequential(tanh(), layer())), ROWS) for name, layer in normed.items()},
        "GroupNorm": (between(lambda: nn.Sequential(tanh(), nn.GroupNorm(2, 6)), 6), ROWS),
        "InstanceNorm2d": (convolved(conv, tanh, partial(nn.InstanceNorm2d, 3, affine=True), size=48), IMAGES),
        "BatchNorm2d": (convolved(conv, tanh, partial(nn.BatchNorm2d, 3), size=48), IMAGES),
        "LocalResponseNorm": (convolved(conv, tanh, partial(nn.LocalResponseNorm, 2), size=48), IMAGES),
        "Conv1d": (lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 3, 2), tanh(), nn.Flatten(), nn.Linear(6, 3)), ROWS),
        "Conv2d": (convolved(conv, tanh, size=48), IMAGES),
        "Conv2d, strided": (convolved(partial(nn.Conv2d, 2, 3, 3, stride=2, padding=1), tanh, size=27), IMAGES),
        "ConvTranspose2d": (convolved(partial(nn.ConvTranspose2d, 2, 2, 2), tanh, size=98), IMAGES),
        **{name: (convolved(conv, tanh, layer, size=12), IMAGES) for name, layer in pooled.items()},
        "LPPool2d": (convolved(conv, nn.Sigmoid, partial(nn.LPPool2d, 2, 2), size=12), IMAGES),
        "Upsample": (convolved(conv, tanh, partial(nn.Upsample, scale_factor=2, mode="bilinear"), size=192), IMAGES),
        "PixelShuffle": (convolved(partial(nn.Conv2d, 2, 4, 3), tanh, partial(nn.PixelShuffle, 2), size=64), IMAGES),
        "RNN": (sequence(nn.RNN), ROWS), "LSTM": (sequence(nn.LSTM), ROWS), "GRU": (sequence(nn.GRU), ROWS),
        "LSTM, two ways": (sequence(nn.LSTM, 8, bidirectional=True), ROWS),
        "MultiheadAttention": (tokens(partial(nn.MultiheadAttention, 4, 2, batch_first=True), attention), ROWS),
        "TransformerEncoderLayer": (tokens(partial(encoder, dropout=0.0), lambda layer, x: layer(x).mean(1)), ROWS),
        "the same with dropout": (tokens(partial(encoder, dropout=0.2), lambda layer, x: layer(x).mean(1)), ROWS),
        "Embedding": (lambda: Around(nn.Embedding(5, 3), lambda layer, x: layer(x).flatten(1).tanh(), 12), WORDS),
        "Embedding, max_norm": (lambda: Around(nn.Embedding(5, 3, max_norm=0.5), lambda layer, x: layer(x).flatten(1), 12), WORDS),
        "Embedding, sparse": (lambda: Around(nn.Embedding(5, 3, sparse=True), lambda layer, x: layer(x).flatten(1), 12), WORDS),
        "EmbeddingBag": (lambda: Around(nn.EmbeddingBag(5, 3), lambda layer, x: layer(x).tanh(), 3), WORDS),
        "Bilinear": (lambda: Around(nn.Bilinear(3, 3, 4), bilinear, 4), ROWS),
        **{name: (lambda way=way: nn.Sequential(way(nn.Linear(6, 5)), tanh(), nn.Linear(5, 3)), ROWS)
           for name, way in (("weight_norm", parametrized.weight_norm), ("spectral_norm", parametrized.spectral_norm),
                             ("orthogonal", parametrized.orthogonal))},
    }  # fmt: skip


def error(value: Callable[[Tensor], Tensor], grad: Tensor, at: Tensor, width: float) -> float:
    """The largest relative error of a gradient of a sum against the five-point rule."""
    worst = 0.0
    for number in range(3):
        way = keys.normal(keys.seed(100 + number), tuple(at.shape), at.dtype)
        way = width * way / way.norm()
        near, far = ((value(at + k * way) - value(at - k * way)).sum() for k in (1, 2))
        measured, claimed = float(8 * near - far) / 12, float((grad * way).sum())
        worst = max(worst, abs(measured - claimed) / max(abs(measured), 1e-3 * width * float(grad.norm())))
    return worst


def checked(make: Make, inputs: Tensor) -> str:
    """The line of one network."""
    loss = nn.functional.cross_entropy
    try:
        task = ModuleTask(make=make, loss_function=loss, train=(inputs, LABELS), minibatch=6, dtype="float64")
    except ValueError as refused:
        return f"refused: {refused}"
    x = task.init(keys.split(keys.seed(1), 2))
    state = task.init_state(x, keys.split(keys.seed(1), 2))
    words = [f"{error(lambda at: task.value(at, state)[0], task.value_and_grad(x, state)[1], x, 1e-4):.0e}"]
    for depth in (2, 3):
        rule, horizon = SGD(lr=0.3, momentum=0.5), 3 if depth == 3 else None
        try:
            level = Level(optimizer=rule, unroll=3, batch=2, horizon=horizon, gradient=Exact()).over(task)
            if depth == 3:
                level = Level(optimizer=SGD(lr=0.05), unroll=2, batch=1, horizon=None, gradient=Exact()).over(level)
            theta = level.init(keys.seed(3))
            begun = level.init_state(theta, keys.seed(4))
            level.gradient.check(level)
            grad = level.value_and_grad(theta, begun)[1]
            words.append(
                f"{error(lambda at, level=level, begun=begun: level.value(at, begun)[0], grad, theta, 3e-4):.0e}"
            )
        except ValueError as refused:
            words.append(f"refused: {str(refused)[:90]}")
    return f"{'vmap' if task.vectorized else 'loop'}  " + "  ".join(words)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of copies that run one after the other
    torch.manual_seed(0)
    for name, (make, inputs) in networks().items():
        if not sys.argv[1:] or name in sys.argv[1:]:
            print(f"{name:28}", checked(make, inputs), flush=True)
