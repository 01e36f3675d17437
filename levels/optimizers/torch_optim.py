"""Any torch.optim.Optimizer as an optimizer of a level.

    TorchOptim(torch.optim.SGD, lr=0.1, momentum=Logit(0.9))        torch(sgd, lr=0.1, momentum=logit(0.9))
    TorchOptim(pytorch_optimizer.Lion, lr=Log(1e-3))                torch("pytorch_optimizer.Lion", lr=log(0.001))

What torch.optim has and can be differentiated runs by the rules of `levels.optimizers.torch_rules`, in part higher's:
one call for all copies, every hyperparameter a parameter of the level, torch's defaults included. Everything else is a
black box (`levels.optimizers.black_box`): the class itself runs, copy by copy, and cannot be differentiated, so it is
the topmost level, or trained by something that needs no derivative. Of a black box only what is given as a `Hyper` is
a parameter; a plain number is a constant, because the space of a setting that is not torch's is unknown.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from levels.base import OptimizerTraits, Problem
from levels.fields import format_value, free, require
from levels.hyper import Hyper, HyperparamOptimizer, Linear, Log, Logit
from levels.layout import Layout
from levels.optimizers import torch_names, torch_rules
from levels.optimizers.black_box import BlackBox, BoxState

Value = Hyper | float | bool | str | None | tuple[Hyper | float | None, ...]
"""What a setting takes."""

REFUSED = {
    "LBFGS": "it asks for the loss several times a step and remembers more with every step",
    "SparseAdam": "it takes sparse gradients only; use adam",
}
SPACES: dict[str, type[Hyper] | None] = {
    "lr": Log, "momentum": Logit, "dampening": Linear, "weight_decay": Log, "betas.0": Logit, "betas.1": Logit,
    "eps": Log, "rho": Logit, "alpha": Logit, "lambd": Log, "lr_decay": Log, "momentum_decay": Log,
    "initial_accumulator_value": Log, "etas.0": Logit, "etas.1": Log, "step_sizes.0": None, "step_sizes.1": None,
}  # fmt: skip
"""Where a plain number given for a hyperparameter moves; None: it stays, unless a `Hyper` is given."""

HOW = ("foreach", "fused", "capturable", "differentiable")  # options that say how torch computes, not what


class TorchState(NamedTuple):
    """What a differentiable rule remembers."""

    t: Tensor  # int64 [*batch, copies], steps so far
    slots: dict[str, Tensor]  # [*batch, copies, n], by torch's names


@dataclass(frozen=True, repr=False, init=False)
class TorchOptim(HyperparamOptimizer):
    """``algorithm``: a class, its name in torch.optim, or its dotted path. ``settings``: what its constructor takes.

    A number moves in the space that suits it (``lr`` and the like in log, decay rates in logit), a `Hyper` in its own.
    A plain 0 switches something off, as in torch; ``linear(0)`` is learned from 0. ValueError for what a rule lacks.
    """

    name = "torch"

    algorithm: str | type
    settings: tuple[tuple[str, Value], ...] = free(Value)

    def __init__(self, algorithm: str | type, **settings: Value) -> None:
        pairs = tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in settings.items())
        object.__setattr__(self, "algorithm", torch_names.name_of(torch_names.find(algorithm)))
        object.__setattr__(self, "settings", pairs)
        self._check()

    @property
    def traits(self) -> OptimizerTraits:
        return OptimizerTraits(differentiable=self._known, locality="elementwise" if self._known else "global")

    @cached_property
    def kind(self) -> torch_names.Kind:
        """The class."""
        return torch_names.find(self.algorithm)

    @cached_property
    def hypers(self) -> dict[str, Hyper]:
        """The hyperparameters by torch's names; ``betas.0`` is the first of ``betas``."""
        every = {name: self._hyper(name, given) for name, given in _flat(self._complete).items()}
        return {name: hyper for name, hyper in every.items() if hyper is not None}

    def bind(self, site: Problem | Layout) -> Self:
        bound = type(self)(self.algorithm, **dict(self.settings))
        object.__setattr__(bound, "site", site)
        _ = None if self._known else bound._black_box  # refuses here what does not run over it
        return bound

    def init_state(self, theta: Tensor, x: Tensor, key: Tensor) -> TorchState | BoxState:
        if not self._known:
            return self._black_box.init_state(x)
        steps = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
        return TorchState(steps, {name: torch.zeros_like(x) for name in self._slots})

    def update(self, theta: Tensor, x: Tensor, state: Any, f: Tensor, g: Tensor) -> tuple[Tensor, Any]:
        if not self._known:
            parts = zip(self.hypers.items(), torch.split_with_sizes(theta, self.layout.sizes, -1))
            lead = (*x.shape[:-1], len(self.param_layout.entries))
            values = {name: hyper.constrain(part)[..., None, :].expand(lead) for (name, hyper), part in parts}
            return self._black_box.step(values, g, state, x)
        t = state.t + 1
        new, slots = self._stepped(self.read(theta), state.slots, t[..., None].to(x.dtype), g, x)
        return new, TorchState(t, slots)

    @property
    def _known(self) -> bool:
        """Whether there is a differentiable rule."""
        return self.kind in torch_rules.RULES

    @cached_property
    def _black_box(self) -> BlackBox:
        return BlackBox(self._over_tensors, self._starts, self.param_layout, repr(self))

    @cached_property
    def _complete(self) -> dict[str, Any]:
        """All settings that matter: those given, over torch's defaults where there is a rule."""
        return (torch_names.defaults(self.kind) if self._known else {}) | dict(self.settings)

    @cached_property
    def _starts(self) -> dict[str, float]:
        return {name: hyper.start for name, hyper in self.hypers.items()}

    @cached_property
    def _group(self) -> dict[str, Any]:
        """Torch's settings where hyperparameters start. ValueError or TypeError for what torch refuses."""
        return self.kind([nn.Parameter(torch.zeros(1))], **self._filled(self._starts)).param_groups[0]

    @cached_property
    def _slots(self) -> list[str]:
        """What the rule remembers."""
        values, one = {name: torch.tensor(start) for name, start in self._starts.items()}, torch.ones(1)
        return sorted(self._stepped(values, defaultdict(lambda: one), one, one, one)[1])

    def _stepped(self, values: Mapping[str, Any], slots: torch_rules.Slots, t: Tensor, g: Tensor, x: Tensor) -> Any:
        """Step ``t`` of the rule, with ``values`` for hyperparameters: the next x and slots."""
        group = self._group | self._filled(values)
        return torch_rules.RULES[self.kind](group, slots, t, *torch_rules.prepared(group, g, x))

    def _hyper(self, name: str, given: Value) -> Hyper | None:
        """The hyperparameter that a setting is, None if it is a constant."""
        if isinstance(given, Hyper):
            return given
        space = self._space(name, given)
        return None if space is None else space(float(given))  # type: ignore[arg-type]

    def _space(self, name: str, given: Any) -> type[Hyper] | None:
        """Where a plain value moves, None if it does not: in a black box, and 0, which switches off all but ``lr``."""
        if not self._known or name not in SPACES or (given == 0 and name != "lr"):
            return None
        return Log if self.kind is torch.optim.ASGD and name == "alpha" else SPACES[name]  # there it is an exponent

    def _filled(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with ``values`` for hyperparameters; in the pairs of torch.optim a whole number is a float."""
        filled: dict[str, Any] = {}
        for name, given in self._complete.items():
            if not isinstance(given, tuple):
                filled[name] = values.get(name, given)
                continue
            items = [values.get(f"{name}.{i}", item) for i, item in enumerate(given)]
            filled[name] = tuple(float(item) if self._known and isinstance(item, int) else item for item in items)
        return filled

    def _over_tensors(self, tensors: list[nn.Parameter], values: Sequence[Mapping[str, float]]) -> Any:
        """The class over the tensors of a layout; one param group for all unless something is shared by tensor."""
        if all(hyper.shared_over == "value" for hyper in self.hypers.values()):
            return self.kind(tensors, **self._filled(values[0]))
        varied = {name.partition(".")[0] for name in self.hypers}
        groups = [{"params": [tensor]} | {name: self._filled(own)[name] for name in varied}
                  for tensor, own in zip(tensors, values)]  # fmt: skip
        return self.kind(groups, **self._filled(self._starts))

    # What is refused, by name.

    def _check(self) -> None:
        for base in self.kind.__mro__:
            if base.__module__.startswith("torch.optim.") and base.__name__ in REFUSED:
                raise ValueError(f"{self}: {base.__name__} cannot run as a level: {REFUSED[base.__name__]}")
        takes = torch_names.defaults(self.kind)
        for name, given in self.settings:
            known = name in takes or torch_names.takes_any(self.kind)
            require(known, f"{self}: {self.kind.__name__} has no setting {name!r}; it has {', '.join(takes)}")
            how = name in HOW and bool(given) and (self._known or name == "differentiable")
            require(not how, f"{self}: {name} says how torch computes and has no place here; leave it out")
            if self._known:
                self._check_shape(f"{self}: {name} must be", given, takes[name])
        for name, given in _flat(dict(self.settings)).items():
            self._check_value(name, given)
        if self._known:
            try:
                _ = self._group
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self}: {error}") from error

    def _check_shape(self, what: str, given: Value, default: Value) -> None:
        count, got = (len(value) if isinstance(value, tuple) else 0 for value in (default, given))
        require(got == count, f"{what} {f'a list of {count}' if count else 'one value'}, got {format_value(given)}")
        good = isinstance(given, bool) or not isinstance(default, bool)
        require(good, f"{what} true or false, got {format_value(given)}")

    def _check_value(self, name: str, given: Any) -> None:
        good = given is None or isinstance(given, (Hyper, bool, int, float, str))
        require(good, f"{self}: {name} must be a number, a word or a hyperparameter, got {format_value(given)}")
        if isinstance(given, Hyper):
            fine = self._known or given.shared_over != "coordinate"
            require(fine, f"{self}: a black box has one {name} for each tensor at most; use per=tensor")
            require(not self._known or name in SPACES, f"{self}: {name} cannot be learned; give it a plain value")
        elif self._known and name in SPACES:
            number = isinstance(given, (int, float)) and not isinstance(given, bool)
            require(number, f"{self}: {name} must be a number, got {format_value(given)}")
            space = self._space(name, given)
            inside = space is None or space.low < given < space.high
            require(inside, f"{self}: {name}={given} cannot be learned in {space and space.name}; use linear({given})")


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with each item of a tuple under a name of its own: ``betas.0``, ``betas.1``."""
    flat: dict[str, Any] = {}
    for name, given in settings.items():
        flat |= {f"{name}.{i}": item for i, item in enumerate(given)} if isinstance(given, tuple) else {name: given}
    return flat
