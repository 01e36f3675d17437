"""What one level of a tower is, and everything it can be made of."""

from levels import keys
from levels.asking import Asking
from levels.gradients.backward import Backward
from levels.gradients.bootstrapped import Bootstrapped
from levels.base import Estimator, LevelState
from levels.gradients.evolution import NRES, PES, Antithetic, ESSingle, Evolution, FullES, TruncatedES
from levels.gradients.exact import Exact
from levels.gradients.first_order import FirstOrder
from levels.gradients.forward import Forward
from levels.gradients.mixture import Mix
from levels.gradients.online import Online
from levels.hyper import Fixed, HyperparamOptimizer, Hyper, Linear, Log, Logit, hyper
from levels.bound_levels import Level
from levels.layout import Layout
from levels.level import Level
from levels.restart import NonFinite, NonFiniteError, Skip, Stop
from levels.objectives import Discounted, Last, MeanLog, Objective, Sum, TimeTo, Weighted
from levels.base import Optimizer
from levels.optimizers.adagrad import Adagrad
from levels.optimizers.adam import Adam
from levels.optimizers.adamw import AdamW
from levels.optimizers.partition import Partition
from levels.optimizers.cma import CMA
from levels.optimizers.ensemble import Ensemble
from levels.optimizers.ga import GA
from levels.optimizers.gated import Gated
from levels.optimizers.guarded import Guarded, Self
from levels.optimizers.lstm import LSTM
from levels.optimizers.mlp import MLPOptimizer
from levels.optimizers.module import ModuleOptimizer
from levels.optimizers.muon import Muon
from levels.optimizers.self_update import SelfUpdate
from levels.optimizers.random_search import RandomSearch
from levels.optimizers.switch import Switch
from levels.optimizers.rmsprop import RMSprop
from levels.optimizers.rnnprop import RNNProp
from levels.optimizers.safeguarded import Safeguarded
from levels.optimizers.scheduled import Scheduled
from levels.optimizers.search import Search
from levels.optimizers.sgd import SGD
from levels.optimizers.learned_init import LearnedInit
from levels.optimizers.torch_optim import TorchOptim
from levels.optimizers.wrap import Around, Wrapping
from levels.config import Config
from levels.base import Problem
from levels.schedules import Constant, Cosine, Exponential, LinearDecay, Schedule, Warmup
from levels.tasks.task import LossTask, Task
from levels.tasks.augmented import Augmented
from levels.tasks.convnet import ConvNet, DigitsConvNet, FashionConvNet, MnistConvNet
from levels.tasks.few import Few
from levels.tasks.held_out import HeldOut
from levels.tasks.loader import LoaderTask
from levels.tasks.logistic import Logistic
from levels.tasks.mixture import Mixture
from levels.tasks.mlp import MLP, DigitsMLP, FashionMLP, Mnist1dMLP, MnistMLP
from levels.tasks.module import ModuleTask
from levels.tasks.noisy_quadratic import NoisyQuadratic
from levels.tasks.photo import Photo
from levels.tasks.predicting import Predicting
from levels.tasks.quadratic import Quadratic
from levels.tasks.rosenbrock import Rosenbrock
from levels.tasks.text import Characters, CharGRU, CharTransformer
from levels.base import Carry, Window

__all__ = [
    "CMA", "GA", "LSTM", "MLP", "NRES", "PES", "SGD", "Adagrad", "Adam", "AdamW", "Antithetic", "Around", "Asking",
    "Augmented", "Backward", "Bootstrapped", "ByName", "Carry", "CharGRU", "CharTransformer", "Characters",
    "Constant", "ConvNet", "Cosine", "DigitsConvNet", "DigitsMLP", "Discounted", "ESSingle", "Ensemble",
    "Estimator", "Evolution", "Exact", "Exponential", "FashionConvNet", "FashionMLP", "Few", "FirstOrder", "Fixed",
    "Forward", "FullES", "Gated", "Guarded", "HandMade", "HeldOut", "Hyper", "Laid", "Last", "Layout", "Level",
    "LevelState", "Linear", "LinearDecay", "LoaderTask", "Log", "Logistic", "Logit", "LossTask", "MLPOptimizer",
    "MeanLog", "Mix", "Mixture", "Mnist1dMLP", "MnistConvNet", "MnistMLP", "ModuleOptimizer", "ModuleTask", "Muon",
    "NoisyQuadratic", "NonFinite", "NonFiniteError", "Objective", "Online", "Optimizer", "Own", "Part", "Photo",
    "Predicting", "Problem", "Quadratic", "RMSprop", "RNNProp", "RandomSearch", "Relay", "Rosenbrock", "Safe",
    "Schedule", "Scheduled", "Search", "Self", "Skip", "Start", "Stop", "Sum", "Task", "TimeTo", "TorchOptim",
    "TruncatedES", "Warmup", "Weighted", "Window", "Wrapping", "hyper", "keys",
]  # fmt: skip
