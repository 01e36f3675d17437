"""What a tower learned, in one file, for use outside of any tower.

    exported = export(tower, state)                  # or Exported.of(LSTM(), weights)
    exported.save("lstm.safetensors")
    make = Exported.load("lstm.safetensors")
    optimizer = make(model.parameters())             # a torch.optim.Optimizer

The file is safetensors: one tensor ``weights`` ``[m]``, and as metadata the format's name and version, a digest, and
one JSON object with the spec of the optimizer alone, the layout that it was learned on, and where it comes from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from levels.base import Optimizer
from levels.fields import require
from levels.layout import Layout
from levels.reading import located
from recursion.pieces import fits_any_layout
from recursion.sealed import Format, read_sealed, write_sealed
from recursion.spec import part_from_spec, part_to_spec
from recursion.torch_optimizer import LearnedTorchOptimizer

WHAT, IF_DAMAGED = "an exported optimizer (tower export writes one)", "restore it from a copy, or export it again"
FIELDS: dict[str, Any] = {"optimizer": dict, "below": (list, type(None)), "source": dict}
FORMAT = Format("descent-tower optimizer", "export", 1, WHAT, IF_DAMAGED, "export it again", FIELDS)


@dataclass(frozen=True, eq=False)
class Exported:
    """An optimizer with what it learned: call it with the parameters of a model, as a class of `torch.optim`.

    ``weights`` ``[m]``: the optimizer's own parameters. ``layout``: the one that they were learned on, if known; an
    optimizer with parameters for each tensor or coordinate fits no other. ``source``: where they come from, JSON data.
    """

    optimizer: Optimizer
    weights: Tensor
    layout: Layout | None = None
    source: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, params: Any, *, lr: float | Tensor = 1.0) -> LearnedTorchOptimizer:
        """A `torch.optim.Optimizer` over ``params``; ``lr`` multiplies the step. ValueError if it does not fit."""
        return LearnedTorchOptimizer(params, self.optimizer, self.weights, layout=self.layout, lr=lr)

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all. Raises OSError; ValueError if the optimizer holds Python objects."""
        entries = None if self.layout is None else [[name, list(shape)] for name, shape in self.layout.entries]
        about = {"optimizer": part_to_spec(self.optimizer), "notation": str(self.optimizer)}
        content = {**about, "below": entries, "source": dict(self.source)}
        write_sealed(Path(path), FORMAT, content, {"weights": self.weights})

    @classmethod
    def of(
        cls,
        optimizer: Optimizer,
        weights: Tensor,
        *,
        layout: Layout | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> Self:
        """An optimizer and its parameters ``weights`` ``[m]``. ValueError if they cannot be its.

        ``layout``: the one that they were learned on, if known. ``source``: where they come from, JSON data.
        """
        good = weights.dim() == 1 and weights.is_floating_point() and bool(torch.isfinite(weights).all())
        require(good, f"{optimizer}: its weights must be finite numbers [m], got {weights.dtype} {list(weights.shape)}")
        if layout is not None or fits_any_layout(optimizer):
            size = optimizer.bind(layout or Layout.of({"one": ()})).layout.size
            require(size == len(weights), f"{optimizer} takes {size} parameters, got {len(weights)}")
        return cls(optimizer, weights.detach().clone(), layout, dict(source or {}))

    @classmethod
    def load(cls, path: str | Path, *, trust: Sequence[str] = ()) -> Self:
        """Read an exported optimizer back, bit for bit. ``trust``: modules whose code may run because it names them.

        Raises OSError if the file cannot be read; ValueError, in one sentence, if it is truncated or garbled, is
        something else, was written by a newer version, or names an optimizer that is not here.
        """
        path = Path(path)
        content, tensors = read_sealed(path, FORMAT)
        with located(path):
            optimizer = part_from_spec(content["optimizer"], "optimizer", trust)
            entries = content["below"]
            layout = None if entries is None else Layout.of(dict(entries), tensors["weights"].dtype)
            return cls.of(optimizer, tensors["weights"], layout=layout, source=content["source"])
