"""What a tower's training produced for level 1, ready to be saved and used outside of it (`recursion.exported`)."""

from levels.fields import require
from recursion.evaluation.afresh import is_optimizer
from recursion.evaluation.deploy import learned
from recursion.exported import Exported
from recursion.tower import Tower, TowerState


def export(
    tower: Tower,
    state: TowerState,
    *,
    seed: int | None = None,
    copy: int = 1,
    windows: int | None = None,
    deploy_seed: int = 0,
) -> Exported:
    """The optimizer at level 1 with what it learned, see `recursion.evaluation.deploy.learned`.

    ``seed``: that the tower was trained with, for the record. ``copy``: which of the optimizers that it trained side by
    side, from 1. ``windows``, ``deploy_seed``: of the runs that get it out of a tower of depth 3 or more. Raises
    ValueError if there is no such copy, and for a tower that is itself the optimizer and learns nothing to keep.
    """
    keeps = f"{tower}: it is itself the optimizer, tunes itself on each problem and learns nothing to keep"
    require(not is_optimizer(tower), f"{keeps}; give level 1 an unroll above 1 to learn something, as in lstm@20")
    answer = learned(tower, state, windows=windows, seed=deploy_seed)
    copies = len(answer.params)
    require(1 <= copy <= copies, f"copy must be from 1 to {copies}, the optimizers that the tower trained, got {copy}")
    source = {"tower": str(tower), "step": int(state.step), "seed": seed, "copy": copy, "base_steps": answer.base_steps}
    return Exported.of(tower.levels[0].optimizer, answer.params[copy - 1], layout=tower.task.layout, source=source)
