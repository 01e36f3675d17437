"""Network: what tasks over any nn.Module share; `ModuleTask` and `LoaderTask` add the data.

Each copy's module is built under forked global generators, seeded with the copy's key: a loop over copies, at starts
and restarts only. All copies are evaluated in one vmap. Where a forward draws random numbers, or vmap cannot take it
(an nn.LSTM, ``.item()``), they are evaluated one after the other, the generators seeded with the copy's key and step.

What is trained are the parameters that require a gradient and have one, as in torch. Buffers that a forward changes
(running statistics, counters) belong to a copy's state. All else that a module holds (frozen, integer and unused
parameters, other buffers) is a constant, as ``make`` made it: one for all copies where two modules made apart agree,
else each copy's own, of another draw than the copy's start.
"""

import dataclasses
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy

from levels import keys
from levels.base import ProblemTraits
from levels.fields import require, unwritten
from levels.layout import Layout
from levels.tasks.nets import Cursor
from levels.tasks.norms import PlainNorms
from levels.tasks.seeded import generators, seeded
from levels.tasks.task import LossTask
from levels.tree import State, leaves, map_leaves

FORWARD = 9  # folded into the key of a minibatch for what a forward draws
Tensors = dict[str, Tensor]


class ModuleState(NamedTuple):
    """Where a copy stands in its data, and what its module holds beside what is trained; ``[*batch, *shape]``."""

    cursor: Cursor
    constants: Tensors  # those in which copies differ
    buffers: Tensors  # those that a forward changes


class Probe(NamedTuple):
    """What one plain evaluation found."""

    trained: list[str]  # parameters that require a gradient and have one
    buffers: list[str]  # that changed
    draws: bool  # whether random numbers were drawn


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class NetworkTask(LossTask):
    """``make()`` builds the module; ``loss_function(outputs, targets)`` is a mean over a minibatch; abstract.

    ``vectorize``: whether copies are evaluated in one vmap; None: where that is possible, else with one warning.
    ``evaluating``: whether the module is in evaluation mode; `evaluated` sets it. Raises ValueError, in one sentence,
    where one plain evaluation fails, and for lazy and complex parameters.
    """

    has_data = True
    traits = ProblemTraits(copies=4)

    make: Callable[[], nn.Module]
    loss_function: Callable[..., Tensor]
    vectorize: bool | None = None
    evaluating: bool = unwritten(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.layout.size > 0, f"{self.name}: it has no parameters; nothing there to optimize")
        _ = self.shared, self.vectorized  # refuse here what cannot run, and warn once

    @abstractmethod
    def minibatches(self, cursor: Cursor) -> State:
        """Inputs and targets ``[copies, minibatch, ...]`` where copies stand; a list of them if their shapes differ."""

    @abstractmethod
    def example(self) -> State:
        """Inputs and targets of some minibatch ``[minibatch, ...]``."""

    @cached_property
    def module(self) -> nn.Module:
        """One module, for its structure."""
        module = self.build(0)
        return module.eval() if self.evaluating else module

    def build(self, seed: int) -> nn.Module:
        """A module whose draws are those of ``seed``; the generators are left alone."""
        what = f"{self.name}: make must be a function that builds a new nn.Module"
        require(not isinstance(self.make, nn.Module), f"{what}, got a module; write make=lambda: ...")
        with seeded(seed):
            module = self.make()
        require(isinstance(module, nn.Module), f"{what}, and it returned {type(module).__name__}")
        return module

    @cached_property
    def probe(self) -> Probe:
        """One plain evaluation of one module on one minibatch. ValueError, in one sentence, where it fails.

        In evaluation mode what is trained and what changes is that of training: so both modes have one kind of state.
        """
        for name, part in self.module.named_modules():
            what, set_ = f"{self.name}: {name or 'the module'} ({type(part).__name__})", vars(part)
            require(set_.get("max_norm") is None, f"{what} renorms its weights in place; leave max_norm out")
            require(set_.get("sparse") is not True, f"{what} has sparse gradients; leave sparse out")
        for name, parameter in self.module.named_parameters():
            require(not is_lazy(parameter), f"{self.name}: {name} has no shape yet; use a module that is not lazy")
            what = f"{self.name}: {name} is complex; split it into real and imaginary parts"
            require(not parameter.is_complex(), what)
        tensors = {name: self.taken(tensor.detach()).clone() for name, tensor in tensors_of(self.module).items()}
        wanted = [name for name, p in self.module.named_parameters() if p.requires_grad and p.is_floating_point()]
        for name in wanted:
            tensors[name].requires_grad_()
        before, example = {name: tensor.detach().clone() for name, tensor in tensors.items()}, self.example()
        with seeded(0), torch.enable_grad():
            first = generators()
            try:
                loss = self._loss(tensors, *example)
            except Exception as error:  # whatever a user's code raises
                raise ValueError(f"{self.name}: {self._where(error)}: {_sentence(error)}") from error
            draws = generators() != first
        self._vet(loss, wanted)
        slots = [tensors[name] for name in wanted]
        grads = torch.autograd.grad(loss, slots, allow_unused=True) if wanted else ()
        changed = [name for name, _ in self.module.named_buffers() if not torch.equal(tensors[name], before[name])]
        if self.evaluating:
            return dataclasses.replace(self, evaluating=False).probe._replace(draws=draws)
        return Probe([name for name, grad in zip(wanted, grads) if grad is not None], changed, draws)

    def _vet(self, loss: Any, wanted: list[str]) -> None:
        """ValueError for a loss that has no gradient."""
        what = f"{self.name}: loss_function must return one number as a tensor"
        require(isinstance(loss, Tensor), f"{what}, got {type(loss).__name__}; leave .item() out")
        require(loss.dim() == 0, f"{what}, got the shape {list(loss.shape)}; take its mean")
        require(loss.is_floating_point(), f"{what}, got {loss.dtype}; a loss must be a floating number")
        fix = "it may be detached, or computed outside of torch"
        require(loss.requires_grad or not wanted, f"{self.name}: the loss depends on no parameter of the module; {fix}")

    def _where(self, error: Exception) -> str:
        """The innermost layer that was at work, from the error's traceback."""
        names = {id(part): name for name, part in self.module.named_modules()}
        place, traceback = "", error.__traceback__
        while traceback is not None:
            part = traceback.tb_frame.f_locals.get("self")
            if id(part) in names:
                place = f"{names[id(part)] or 'the module'} ({type(part).__name__})"
            traceback = traceback.tb_next
        return place or "the loss function"

    @cached_property
    def layout(self) -> Layout:
        parameters = dict(self.module.named_parameters())
        shapes = {name: tuple(parameters[name].shape) for name in self.probe.trained}
        return Layout.of(shapes, self.torch_dtype, self.device)

    @cached_property
    def shared(self) -> Tensors:
        """What is the same in every module that `make` returns, and neither trained nor changed; by name."""
        other = self.build(1)
        what = f"{self.name}: make returned"
        one = "so all copies would be one; build a new one"
        require(other is not self.build(0), f"{what} the same module twice, {one}")
        ours, theirs = tensors_of(self.module), tensors_of(other)
        same = [(name, tensor.shape) for name, tensor in ours.items()] == [(n, t.shape) for n, t in theirs.items()]
        require(same, f"{what} modules with other parameters; their names and shapes must not be random")
        apart = {*self.probe.trained, *self.probe.buffers}
        common = [name for name, tensor in ours.items() if name in apart and tensor is theirs[name]]
        require(not common, f"{what} modules with one {', '.join(common)}, {one} of each layer in make")
        return {name: self.taken(tensor.detach()) for name, tensor in ours.items()
                if name not in apart and torch.equal(tensor, theirs[name])}  # fmt: skip

    @cached_property
    def vectorized(self) -> bool:
        """Whether copies are evaluated in one vmap."""
        if self.vectorize is False:
            return False
        obstacle = "its forward draws random numbers" if self.probe.draws else self._obstacle()
        require(not (obstacle and self.vectorize), f"{self.name}: vectorize=true, but {obstacle}; leave vectorize out")
        if obstacle:
            slow = "copies are evaluated one after the other, which takes up to as many times longer"
            warnings.warn(f"{self.name}: {obstacle}, so {slow}", stacklevel=4)
            object.__setattr__(self, "vectorize", False)  # other splits and devices of it do not warn again
        return not obstacle

    def _obstacle(self) -> str:
        """Why vmap cannot take the module: what it raises, or that value and gradient are others than without it."""
        params, state = self._fresh(torch.arange(2, device=self.device))
        examples = map_leaves(lambda leaf: torch.stack((leaf, leaf)), self.example())
        answers: list[list[Tensor]] = []
        for evaluate in (self._one_by_one, self._together):
            at = params.clone().requires_grad_()
            try:
                with torch.enable_grad():
                    losses, buffers = evaluate(at, state, examples)
                    grad = torch.autograd.grad(losses.sum(), at)[0]
            except Exception as error:  # whatever a user's code or vmap raises
                require(bool(answers), f"{self.name}: its gradient fails ({_sentence(error)})")
                return f"vmap cannot take it ({_sentence(error)})"
            answers.append([losses.detach(), grad, *leaves(buffers)])
        close = all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(*answers))
        return "" if close else "in vmap it answers something else"

    def init(self, key: Tensor) -> Tensor:
        return self.layout.ravel(self._built(self.own(key), self.probe.trained))

    def init_state(self, params: Tensor, key: Tensor) -> ModuleState:
        own = self.own(key)
        apart = [*self.shared, *self.probe.trained, *self.probe.buffers]
        names = [*(name for name in tensors_of(self.module) if name not in apart), *self.probe.buffers]
        built = self._built(own, names) if names else {}
        return ModuleState(Cursor.start(own), built, {name: built.pop(name) for name in self.probe.buffers})

    def _fresh(self, key: Tensor) -> tuple[Tensor, ModuleState]:
        params = self.init(key)
        return params, self.init_state(params, key)

    def loss(self, params: Tensor, state: ModuleState) -> tuple[Tensor, ModuleState]:
        shape = params.shape[:-1]
        flat, own = map_leaves(lambda leaf: leaf.reshape(-1, *leaf.shape[len(shape) :]), (params, state))
        minibatches = self.minibatches(own.cursor)
        together = self.vectorized and not isinstance(minibatches, list)
        losses, buffers = (self._together if together else self._one_by_one)(flat, own, minibatches)
        buffers = {name: tensor.reshape(shape + tensor.shape[1:]) for name, tensor in buffers.items()}
        return losses.reshape(shape), ModuleState(state.cursor.next(), state.constants, buffers)

    def _together(self, params: Tensor, state: ModuleState, minibatches: State) -> tuple[Tensor, Tensors]:
        """Losses ``[copies]`` and the buffers after them, by vmap."""
        _ = self.shared  # read before vmap, which allows no draws
        answer: tuple[Tensor, Tensors] = vmap(self._one)(params, state[1:], minibatches)
        return answer

    def _one_by_one(self, params: Tensor, state: ModuleState, minibatches: State) -> tuple[Tensor, Tensors]:
        """The same, a copy after the other; what a forward draws is the copy's own."""
        drawn = keys.fold_in(keys.fold_in(state.cursor.key, state.cursor.step), FORWARD).tolist()
        answers = []
        for copy, seed in enumerate(drawn):
            many = (params, state[1:]) if isinstance(minibatches, list) else (params, state[1:], minibatches)
            flat, rest, *same = map_leaves(lambda leaf, copy=copy: leaf[copy], many)
            with seeded(seed):
                answers.append(self._one(flat, rest, *(same or [minibatches[copy]])))
        losses, buffers = zip(*answers)
        return torch.stack(losses), map_leaves(lambda *each: torch.stack(each), *buffers)

    def _one(self, flat: Tensor, rest: tuple[Tensors, Tensors], minibatch: State) -> tuple[Tensor, Tensors]:
        constants, buffers = rest
        changing = {name: tensor.clone() for name, tensor in buffers.items()}
        tensors = {**self.layout.unravel(flat), **self.shared, **constants, **changing}
        loss = self._loss(tensors, *minibatch)
        return loss, {name: tensors[name].detach() for name in buffers}

    def _loss(self, tensors: Tensors, inputs: Any, targets: Any) -> Tensor:
        """The loss of a module that holds ``tensors``, in which buffers that the forward changes are replaced.

        A tuple of inputs are the module's arguments, a dict its named ones.
        """
        args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
        with PlainNorms(), sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention are differentiated once
            outputs = functional_call(self.module, tensors, args, inputs if isinstance(inputs, dict) else {})
            loss: Tensor = self.loss_function(outputs, targets)
        return loss

    def evaluated(self) -> Self:
        return dataclasses.replace(self, evaluating=True)

    def remembering(self, state: ModuleState, training: ModuleState) -> ModuleState:
        return state._replace(constants=training.constants, buffers=training.buffers)

    def _built(self, key: Tensor, names: list[str]) -> Tensors:
        """Tensors ``[*batch, *shape]`` by name, of a module made anew for each key ``[*batch]``."""
        modules = [tensors_of(self.build(number)) for number in key.flatten().tolist()]
        stacked = {name: torch.stack([self.taken(module[name].detach()) for module in modules]) for name in names}
        return {name: tensor.reshape(key.shape + tensor.shape[1:]) for name, tensor in stacked.items()}

    def taken(self, tensor: Any) -> Tensor:
        """A tensor or an array on the task's device, in its dtype if that is floating."""
        taken = torch.as_tensor(tensor)
        return taken.to(self.device, self.torch_dtype if taken.is_floating_point() else None)


def tensors_of(module: nn.Module) -> Tensors:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _sentence(error: Exception) -> str:
    """The first line of what was raised."""
    return (str(error) or type(error).__name__).splitlines()[0]
