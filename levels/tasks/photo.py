"""Coordinate regression: a perceptron learns a piece of a photo, colour as a function of place.

Places enter as sines and cosines of random frequencies (Fourier features, Tancik et al. 2020, arXiv 2006.10739):

    u(p) = (cos 2 pi B p, sin 2 pi B p),    B ~ N(0, bandwidth^2),    p in [0, 1)^2

without which such a network learns smooth functions only. Every key draws another piece of one of scikit-learn's two
photos, another B, start and order of pixels; splits are different strips of the photos and share no pixel.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from levels import keys
from levels.fields import Between, Count, Positive
from levels.layout import Layout
from levels.tasks.data import stored
from levels.tasks.nets import Activation, Cursor, Network, dense_shapes, fresh, perceptron
from levels.tasks.task import LossTask, Task

WIDEST = 128  # columns of the narrowest strip


class PhotoState(NamedTuple):
    """The piece and the frequencies that a copy drew."""

    corner: Tensor  # int64 [*batch, 3]: photo, top row, left column
    frequencies: Tensor  # [*batch, 2, features], in periods a piece
    cursor: Cursor


@dataclass(frozen=True, repr=False)
class Photo(Network, LossTask):
    """``hidden``: units of each hidden layer. ``activation``: sigmoid, tanh or relu. ``size``: pixels on a side of the
    piece, 2 to 128. ``features``: frequencies. ``bandwidth``: their deviation, in periods a piece, above 0.
    ``minibatch``: pixels in each loss, drawn with replacement. The loss is the mean square over pixels and colours,
    which go from -1 to 1.
    """

    name = "photo"

    hidden: tuple[Count, ...] = (32, 32)
    activation: Activation = "relu"
    size: Annotated[int, Between(2, WIDEST, inclusive=True)] = 64
    features: Count = 32
    bandwidth: Positive = 4.0
    minibatch: Count = 256

    strips = stored("scikit.photos")
    """What this split has of both photos, ``[2, rows, columns, 3]``; a column of pixels is in one split only."""

    @property
    def layout(self) -> Layout:
        return Layout.of(dense_shapes((2 * self.features, *self.hidden, 3)), self.torch_dtype, self.device)

    def init(self, key: Tensor) -> Tensor:
        return fresh(self.layout, self.own(key))

    def init_state(self, params: Tensor, key: Tensor) -> PhotoState:
        for_corner, for_frequencies, for_pixels = keys.split(self.own(key), 3).unbind(-1)
        count, height, width, _ = self.strips().shape
        places = torch.tensor([count, height - self.size + 1, width - self.size + 1], device=key.device)
        corner = torch.floor(keys.uniform(for_corner, (3,), torch.float64) * places).long()
        frequencies = self.bandwidth * keys.normal(for_frequencies, (2, self.features), self.torch_dtype)
        return PhotoState(corner, frequencies, Cursor.start(for_pixels))

    def loss(self, params: Tensor, state: PhotoState) -> tuple[Tensor, PhotoState]:
        pixels = state.cursor.draw(self.minibatch, self.size**2)
        row, column = pixels // self.size, pixels % self.size  # [*batch, minibatch] each
        photo, top, left = state.corner[..., None].unbind(-2)
        colours = self.strips()[photo, top + row, left + column]
        place = torch.stack((row, column), -1).to(self.torch_dtype) / self.size
        phase = 2 * math.pi * torch.matmul(place, state.frequencies)
        inputs = torch.cat((phase.cos(), phase.sin()), -1)  # [*batch, minibatch, 2 * features]
        out = perceptron(self.layout.unravel(params), inputs, self.activation)
        return (out - colours).square().mean((-2, -1)), state._replace(cursor=state.cursor.next())

    def hands_out(self) -> list[tuple[Tensor, ...]]:
        return [(self.strips().movedim(2, 1).flatten(0, 1),)]

    def variants(self) -> dict[str, Task]:
        return {
            f"{2 * self.features} features": replace(self, features=2 * self.features),
            "twice the bandwidth": replace(self, bandwidth=2 * self.bandwidth),
        }
