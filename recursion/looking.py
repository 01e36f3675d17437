"""Looking at a tower and its state: hyperparameters as numbers, a copy's module, a description in words."""

from typing import Any

from torch import Tensor, nn

from levels.base import Problem
from levels.config import require
from levels.hyper import HyperparamOptimizer
from levels.optimizers.wrap import Wrapper
from levels.tasks.network import NetworkTask


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


def module(tower: Any, state: Any, copy: int = 0) -> nn.Module:
    """The ``nn.Module`` of one copy at level 1, with its trained parameters, its constants and its buffers.

    ValueError for a task that is not over a module, or a copy that there is not.
    """
    task: Problem = tower.task
    if not isinstance(task, NetworkTask):
        raise ValueError(f"{task} is not over a module; ModuleTask and LoaderTask are")
    carry = tower.carries(state)[0]
    x, beside = carry.x.flatten(0, -2), carry.problem_state
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
