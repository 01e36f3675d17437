"""Three networks of torch.nn on handwritten digits, as tasks that the command line takes by their file's name.

    tower train "examples/networks.py:resnet: lstm@20 / adam" --steps 50
    tower train "held-out(examples/networks.py:recurrent): start(sgd(lr=0.1))@5[horizon=5, gradient=exact] / adam"

Batch norm carries its statistics in each copy's state and dropout draws from the copy's key, so a run that is killed
and resumed equals one that is not. `held-out` counts the loss on validation data, in evaluation mode. What cannot run
in one `vmap` (dropout, an nn.LSTM) runs one copy after the other, with a warning; ``vectorize=False`` says so yourself.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from levels import LoaderTask, ModuleTask

IMAGES, LABELS = (torch.as_tensor(each) for each in load_digits(return_X_y=True))  # 1797 of 64 pixels, 0 to 16
PARTS = {"train": slice(0, 1200), "validation": slice(1200, 1500), "test": slice(1500, None)}


class Block(nn.Module):
    """A residual block with batch norm and dropout."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Dropout(0.1),
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.inner(x))


class Recurrent(nn.Module):
    """An LSTM that reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.lstm(rows)[0][:, -1])


class Transformer(nn.Module):
    """A transformer layer over 16 tokens, whose embedding is random and frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.place = nn.Embedding(17, 16), nn.Parameter(0.1 * torch.randn(16, 16))
        self.embedding.requires_grad_(False)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens) + self.place).mean(1))


def small_resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), Block(8), nn.MaxPool2d(2), Block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 10),
    )  # fmt: skip


def resnet() -> ModuleTask:
    images = (IMAGES / 16 - 0.5).reshape(-1, 1, 8, 8)
    data = {name: (images[rows], LABELS[rows]) for name, rows in PARTS.items()}
    return ModuleTask(
        make=small_resnet, loss_function=nn.functional.cross_entropy, minibatch=32, vectorize=False, **data
    )


def recurrent() -> LoaderTask:
    rows = (IMAGES / 16 - 0.5).reshape(-1, 8, 8).float()
    data = {name: DataLoader(TensorDataset(rows[part], LABELS[part]), 32, shuffle=True) for name, part in PARTS.items()}
    return LoaderTask(make=Recurrent, loss_function=nn.functional.cross_entropy, vectorize=False, **data)


def transformer() -> ModuleTask:
    pooled = nn.functional.avg_pool2d(IMAGES.reshape(-1, 1, 8, 8), 2).flatten(1).round().long()
    data = {name: (pooled[rows], LABELS[rows]) for name, rows in PARTS.items()}
    return ModuleTask(make=Transformer, loss_function=nn.functional.cross_entropy, minibatch=32, **data)
