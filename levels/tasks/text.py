"""Character language models on real text: a recurrent one and a small transformer, cross entropy in nats a character.

The text is the documentation that Python's standard library carries (`pydoc_data.topics`), English and some code. It
differs between Python versions, so numbers compare only where `Characters.sha256` is the same; for Python 3.11.7 it
begins with 6d5b0d1e6aed. The splits are stretches of it, in order: 80, 10 and 10 percent. The alphabet is printable
ASCII and the line break, 96 in all. Every key draws another start and other places of the text.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import Tensor

from levels.base import ProblemTraits
from levels.fields import Count, require
from levels.layout import Layout
from levels.tasks.data import ALPHABET, Text, load
from levels.tasks.nets import Cursor, dense, dense_shape
from levels.tasks.predicting import Predicting
from levels.tasks.task import SPLITS, Task


@dataclass(frozen=True, repr=False)
class Characters(Predicting):
    """A model of the next character; abstract in the model.

    ``width``: units of the model. ``length``: characters read in a row; the model predicts the one after each.
    ``minibatch``: pieces of text in each loss, drawn with replacement.
    """

    width: Count = 32
    length: Count = 32
    minibatch: Count = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        here = find_spec("pydoc_data") is not None
        require(here, f"{self.name}: this Python lacks pydoc_data of its standard library; install a complete Python")
        shortest = min(len(load("text.topics", split).codes) for split in SPLITS)
        what = f"{self.name}: length must be below the {shortest} of a split, got {self.length}"
        require(self.length < shortest, what)

    traits = ProblemTraits(copies=2)

    def text(self) -> Text:
        """The text of this task's split."""
        text: Text = load("text.topics", self.split, device=self.device)
        return text

    @property
    def sha256(self) -> str:
        """Hash of the whole text in UTF-8: identifies its version."""
        return self.text().sha256

    @abstractmethod
    def logits(self, tensors: Mapping[str, Tensor], read: Tensor) -> Tensor:
        """Logits of the next character: ``[*batch, minibatch, length]`` to ``[*batch, minibatch * length, 96]``."""

    def examples(self, state: Cursor) -> tuple[Tensor, Tensor]:
        codes = self.text().codes
        starts = state.draw(self.minibatch, len(codes) - self.length)
        places = torch.arange(self.length + 1, device=self.device)
        piece = codes[starts[..., None] + places]  # [*batch, minibatch, length + 1]
        return piece[..., :-1], piece[..., 1:].flatten(-2)

    def predict(self, params: Tensor, inputs: Tensor) -> Tensor:
        return self.logits(self.layout.unravel(params), inputs)

    def hands_out(self) -> list[tuple[Tensor, ...]]:
        return [(self.text().codes.unfold(0, self.length + 1, 1),)]

    def variants(self) -> dict[str, Task]:
        return {
            f"{2 * self.width} units": replace(self, width=2 * self.width),
            f"{2 * self.length} characters": replace(self, length=2 * self.length),
        }


def embed(embedding: Tensor, tokens: Tensor) -> Tensor:
    """Each copy's own rows: ``[*batch, words, width]`` and int64 ``[*batch, count]`` to ``[*batch, count, width]``."""
    return embedding.gather(-2, tokens[..., None].expand(*tokens.shape, embedding.shape[-1]))


@dataclass(frozen=True, repr=False)
class CharGRU(Characters):
    """One gated recurrent unit (Cho et al. 2014, arXiv 1406.1078), as torch has it, from a state of 0:

        r, z = sigmoid(E_rz[c] + U_rz h + b_rz),    n = tanh(E_n[c] + r * (U_n h + b_n)),    h <- (1 - z) n + z h

    and a dense layer to the next character: 15,552 parameters with 32 units. ``embedding`` holds E for r, z and n.
    """

    name = "char-gru"

    @property
    def layout(self) -> Layout:
        units = self.width
        shapes: dict[str, tuple[int, ...]] = {"gates.embedding": (len(ALPHABET), 3 * units)}
        shapes |= dense_shape("state", units, 3 * units) | dense_shape("out", units, len(ALPHABET))
        return Layout.of(shapes, self.torch_dtype, self.device)

    def logits(self, tensors: Mapping[str, Tensor], read: Tensor) -> Tensor:
        gates = embed(tensors["gates.embedding"], read.flatten(-2)).reshape(*read.shape, -1)
        h = gates.new_zeros(*read.shape[:-1], self.width)  # [*batch, minibatch, width]
        states = []
        for gate in gates.unbind(-2):  # one character after another
            r, z, n = gate.chunk(3, -1)
            u_r, u_z, u_n = dense(tensors, "state", h).chunk(3, -1)
            z = torch.sigmoid(z + u_z)
            h = (1 - z) * torch.tanh(n + torch.sigmoid(r + u_r) * u_n) + z * h
            states.append(h)
        return dense(tensors, "out", torch.stack(states, -2).flatten(-3, -2))


@dataclass(frozen=True, repr=False)
class CharTransformer(Characters):
    """A decoder with normalisation before each part, as in GPT-2 (Radford et al. 2019), positions learned.

    ``heads``: of attention, a divisor of ``width``. ``blocks``: of attention and a perceptron four times as wide.
    Attention is written out, because the fused one has no second derivative on a CPU. 20,032 parameters.
    """

    name = "char-transformer"

    heads: Count = 2
    blocks: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.width % self.heads == 0
        require(fits, f"{self.name}: heads must divide the width {self.width}, got {self.heads}")

    @property
    def layout(self) -> Layout:
        width = self.width
        shapes: dict[str, tuple[int, ...]] = {"token.embedding": (len(ALPHABET), width)}
        shapes["place.embedding"] = (self.length, width)
        for i in range(self.blocks):
            shapes |= _norm(f"block{i}.norm0", width) | dense_shape(f"block{i}.mix", width, 3 * width)
            shapes |= dense_shape(f"block{i}.join", width, width) | _norm(f"block{i}.norm1", width)
            shapes |= dense_shape(f"block{i}.up", width, 4 * width) | dense_shape(f"block{i}.down", 4 * width, width)
        shapes |= _norm("norm", width) | dense_shape("out", width, len(ALPHABET))
        return Layout.of(shapes, self.torch_dtype, self.device)

    def logits(self, tensors: Mapping[str, Tensor], read: Tensor) -> Tensor:
        count = read.shape[-2]
        places = torch.cat([tensors["place.embedding"]] * count, -2)  # [*batch, minibatch * length, width]
        x = embed(tensors["token.embedding"], read.flatten(-2)) + places
        for i in range(self.blocks):
            x = x + self._attend(tensors, f"block{i}", normalise(tensors, f"block{i}.norm0", x), count)
            up = dense(tensors, f"block{i}.up", normalise(tensors, f"block{i}.norm1", x))
            x = x + dense(tensors, f"block{i}.down", torch.nn.functional.gelu(up))
        return dense(tensors, "out", normalise(tensors, "norm", x))

    def _attend(self, tensors: Mapping[str, Tensor], block: str, x: Tensor, count: int) -> Tensor:
        """Causal attention within each of ``count`` pieces: ``[*batch, count * length, width]`` to the same."""
        mixed = dense(tensors, f"{block}.mix", x).reshape(*x.shape[:-2], count, self.length, 3, self.heads, -1)
        query, key, value = mixed.movedim((-3, -2), (0, -3)).unbind(0)  # [*batch, count, heads, length, width / heads]
        scores = torch.matmul(query, key.mT) / math.sqrt(key.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        shares = scores.masked_fill(future, -math.inf).softmax(-1)
        joined = torch.matmul(shares, value).transpose(-3, -2).flatten(-2).flatten(-3, -2)
        return dense(tensors, f"{block}.join", joined)


def normalise(tensors: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Layer normalisation with each copy's own scale and shift, epsilon 1e-5: ``[*batch, rows, width]`` to the same."""
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    scale, shift = tensors[f"{name}.scale"][..., None, :], tensors[f"{name}.shift"][..., None, :]
    return (x - mean) * torch.rsqrt(variance + 1e-5) * scale + shift


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.scale": (width,), f"{name}.shift": (width,)}
