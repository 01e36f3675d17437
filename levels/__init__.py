"""What one level of a tower is, and everything it can be made of."""

from levels import keys
from levels.gradients.estimator import Estimator, LevelState
from levels.gradients.first_order import FirstOrder
from levels.hyper import Fixed, HandMade, Hyper, Linear, Log, Logit, hyper
from levels.layout import Layout
from levels.level import Carry, Laid, Level, Window
from levels.nonfinite import NonFinite, NonFiniteError, Skip, Stop
from levels.objectives import Discounted, Last, MeanLog, Objective, Sum
from levels.optimizer import Optimizer
from levels.optimizers.adam import Adam
from levels.optimizers.lstm import LSTM
from levels.optimizers.rmsprop import RMSprop
from levels.optimizers.sgd import SGD
from levels.part import Part
from levels.problem import Problem
from levels.task import LossTask, Task
from levels.tasks.mlp import MLP, DigitsMLP
from levels.tasks.module import ModuleTask
from levels.tasks.quadratic import Quadratic

__all__ = [
    "LSTM", "MLP", "SGD", "Adam", "Carry", "DigitsMLP", "Discounted", "Estimator", "FirstOrder", "Fixed", "HandMade",
    "Hyper", "Laid", "Last", "Layout", "Level", "LevelState", "Linear", "Log", "Logit", "LossTask", "MeanLog",
    "ModuleTask", "NonFinite", "NonFiniteError", "Objective", "Optimizer", "Part", "Problem", "Quadratic", "RMSprop",
    "Skip", "Stop", "Sum", "Task", "Window", "hyper", "keys",
]  # fmt: skip
