"""Looking at a tower and its state: hyperparameters, norms of meta-gradients, a copy's module, a description."""

from html import escape
from typing import Any

import torch
from torch import Tensor, nn

from levels.fields import require
from levels.hyper import HyperparamOptimizer
from levels.optimizers.wrap import Wrapper
from levels.tasks.network import ModuleState, NetworkTask
from levels.tasks.wrapping import TaskWrapper


def hypers(tower: Any, state: Any) -> list[dict[str, Tensor]]:
    """The hyperparameters of each level, level 1 first, as the update rule reads them: a learning rate, not its log.

    Values are ``[copies, 1 or n]``, copies of the level above, or ``[1 or n]`` at the top; a learned one has none.
    """
    thetas = [carry.x for carry in tower.carries(state)[1:]] + [state.theta]
    return [_hypers(level.optimizer, theta) for level, theta in zip(tower.bound, thetas)]


def _hypers(optimizer: Any, theta: Tensor) -> dict[str, Tensor]:
    if isinstance(optimizer, HyperparamOptimizer):
        return {name: value.squeeze(-2).detach() for name, value in optimizer.read(theta).items()}
    if not isinstance(optimizer, Wrapper):
        return {}
    parts = zip(optimizer.wrapped.items(), optimizer.split_theta(theta)[1:])
    return {f"{word}.{name}": value for (word, inner), part in parts for name, value in _hypers(inner, part).items()}


def numbers(tower: Any, state: Any) -> dict[str, float]:
    """What the last step is described by beside its losses, by name, as ``level 1 lr``; means over copies.

    Hyperparameters of each level. Of each level that is trained by its gradient, the norm of that before it is clipped,
    and, if the level clips, the share of copies in which it was longer. Waits for the device once.
    """
    named = {f"level {number} {name}": value.double().mean()
             for number, values in enumerate(hypers(tower, state), 1) for name, value in values.items()}  # fmt: skip
    for number, (level, above, carry) in enumerate(zip(tower.bound, tower.bound[1:], tower.carries(state)[1:]), 1):
        if not above.optimizer.traits.reads_grad:
            continue
        norm = carry.problem_state.norm if level.clip else torch.linalg.vector_norm(carry.g, dim=-1)
        named[f"level {number} gradient norm"] = norm.double().mean()
        if level.clip:
            named[f"level {number} clip rate"] = (norm > level.clip).double().mean()
    return dict(zip(named, torch.stack(list(named.values())).tolist())) if named else {}


def module(tower: Any, state: Any, copy: int = 0) -> nn.Module:
    """The ``nn.Module`` of one copy at level 1, with its trained parameters, its constants and its buffers.

    ValueError for a task that is not over a module, or a copy that there is not.
    """
    task, carry = tower.task, tower.carries(state)[0]
    beside = carry.problem_state
    while isinstance(task, TaskWrapper):
        task, beside = task.inner, getattr(beside, "training", beside)
    if not (isinstance(task, NetworkTask) and isinstance(beside, ModuleState)):
        raise ValueError(f"{task} is not over a module; ModuleTask and LoaderTask are")
    x = carry.x.flatten(0, -2)
    require(0 <= copy < len(x), f"copy must be from 0 to {len(x) - 1}, got {copy}")
    dims = carry.key.dim()
    tensors = {**task.shared, **task.layout.unravel(x[copy])}
    for group in (beside.constants, beside.buffers):
        tensors |= {name: tensor.flatten(0, dims - 1)[copy] for name, tensor in group.items()}
    built = task.build(0).to(task.device, task.torch_dtype)
    built.load_state_dict({name: tensor.detach().clone() for name, tensor in tensors.items()}, strict=False)
    return built


def describe(tower: Any) -> str:
    """What each level is and trains, in a line each, bottom first."""
    lines = [f"task: {tower.task}, {tower.task.layout.size:,} parameters"]
    for number, (level, cost) in enumerate(zip(tower.bound, tower.costs), 1):
        what = "the task" if number == 1 else f"the {level.problem.layout.size:,} parameters of level {number - 1}"
        much = f"{level.copies} cop{'y' if level.copies == 1 else 'ies'}, {level.unroll} update"
        how = "fixed" if number == len(tower.bound) else f"trained by {level.gradient}"
        size = f"{level.layout.size:,} parameters, {how}"
        lines.append(f"level {number}: {level.optimizer} on {what}; {much}{'s' * (level.unroll > 1)} a window, "
                     f"{cost:,} task gradients; {size}")  # fmt: skip
    return "\n".join(lines)


def html(tower: Any) -> str:
    """The tower as a table for a notebook, topmost level first."""
    heads = ("level", "optimizer", "updates a window", "copies", "task gradients a window", "parameters", "gradient")
    rows = [
        (number, level.optimizer, level.unroll, level.copies, f"{cost:,}", f"{level.layout.size:,}",
         "fixed" if level is tower.top else level.gradient)
        for number, (level, cost) in enumerate(zip(tower.bound, tower.costs), 1)
    ]  # fmt: skip
    task = (0, tower.task, "", "", "", f"{tower.task.layout.size:,}", "")
    cells = ["".join(f"<td>{escape(str(value))}</td>" for value in row) for row in [*rows[::-1], task]]
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
