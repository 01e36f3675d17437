"""What happens when levels are stacked: towers, their notation, training, evaluation, and the command line."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recursion.analysis.probe import probe as probe
    from recursion.checkpoint import load as load
    from recursion.checkpoint import save as save
    from recursion.evaluation.exporting import export as export
    from recursion.evaluation.scenarios import evaluate as evaluate
    from recursion.exported import Exported as Exported
    from recursion.notation import parse as parse
    from recursion.reports import Report as Report
    from recursion.torch_optimizer import LearnedTorchOptimizer as LearnedTorchOptimizer
    from recursion.tower import Tower as Tower
    from recursion.tower import TowerState as TowerState
    from recursion.training import train as train

HOME = {
    "Exported": "recursion.exported",
    "LearnedTorchOptimizer": "recursion.torch_optimizer",
    "Report": "recursion.reports",
    "Tower": "recursion.tower",
    "TowerState": "recursion.tower",
    "evaluate": "recursion.evaluation.scenarios",
    "export": "recursion.evaluation.exporting",
    "load": "recursion.checkpoint",
    "parse": "recursion.notation",
    "probe": "recursion.analysis.probe",
    "save": "recursion.checkpoint",
    "train": "recursion.training",
}

__all__ = sorted(HOME)


def __getattr__(name: str) -> Any:
    """Import on first use: the command line answers --help without loading torch."""
    if name not in HOME:
        raise AttributeError(f"module 'recursion' has no attribute {name!r}")
    return getattr(import_module(HOME[name]), name)
