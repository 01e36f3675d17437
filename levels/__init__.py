"""What one level of a tower is, and everything it can be made of."""

from levels import keys
from levels.base import (
    Answer,
    Carry,
    Estimator,
    EstimatorTraits,
    LevelState,
    Objective,
    Optimizer,
    OptimizerTraits,
    Problem,
    ProblemTraits,
    Step,
    Window,
)
from levels.config import Config
from levels.faults import NonFinite, NonFiniteError, Skip, Stop
from levels.gradients.accumulated import Accumulated
from levels.gradients.bootstrapped import Bootstrapped
from levels.gradients.evolution import NRES, PES, Antithetic, ESSingle, Evolution, FullES, TruncatedES
from levels.gradients.exact import Exact
from levels.gradients.first_order import Backpropagation, FirstOrder
from levels.gradients.forward import Forward
from levels.gradients.mixture import Mix
from levels.gradients.online import Online
from levels.hyper import Fixed, Hyper, HyperparamOptimizer, Linear, Log, Logit, hyper
from levels.layout import Layout
from levels.level import Level
from levels.objectives import Discounted, Last, MeanLog, Sum, TimeTo
from levels.optimizers.adagrad import Adagrad
from levels.optimizers.adam import Adam
from levels.optimizers.adamw import AdamW
from levels.optimizers.cma import CMA
from levels.optimizers.ensemble import Ensemble
from levels.optimizers.ga import GA
from levels.optimizers.gated import Gated
from levels.optimizers.guarded import Guard, Guarded, Self
from levels.optimizers.learned_init import LearnedInit
from levels.optimizers.lstm import LSTM
from levels.optimizers.mlp import MLPOptimizer
from levels.optimizers.module import ModuleOptimizer
from levels.optimizers.muon import Muon
from levels.optimizers.partition import Partition
from levels.optimizers.random_search import RandomSearch
from levels.optimizers.rmsprop import RMSprop
from levels.optimizers.rnnprop import RNNProp
from levels.optimizers.safeguarded import Safeguarded
from levels.optimizers.scheduled import Scheduled
from levels.optimizers.search import Search
from levels.optimizers.self_update import SelfUpdate
from levels.optimizers.sgd import SGD
from levels.optimizers.switch import Switch
from levels.optimizers.torch_optim import TorchOptim
from levels.optimizers.wrap import Wrapper
from levels.own_loop import meta_loss, started_at, unrolled
from levels.schedules import Constant, Cosine, Exponential, LinearDecay, Schedule, Warmup
from levels.tasks.augmented import Augmented
from levels.tasks.convnet import ConvNet, DigitsConvNet, FashionConvNet, MnistConvNet
from levels.tasks.few import Few
from levels.tasks.held_out import HeldOut
from levels.tasks.loader import LoaderTask
from levels.tasks.logistic import Logistic
from levels.tasks.mixture import Mixture
from levels.tasks.mlp import MLP, DigitsMLP, FashionMLP, Mnist1dMLP, MnistMLP
from levels.tasks.module import ModuleTask
from levels.tasks.nets import Network
from levels.tasks.network import NetworkTask
from levels.tasks.noisy_quadratic import NoisyQuadratic
from levels.tasks.photo import Photo
from levels.tasks.predicting import Classifying, Predicting
from levels.tasks.quadratic import Quadratic
from levels.tasks.rosenbrock import Rosenbrock
from levels.tasks.task import LossTask, Task
from levels.tasks.text import Characters, CharGRU, CharTransformer
from levels.tasks.wrapping import TaskWrapper

__all__ = [
    "CMA", "GA", "LSTM", "MLP", "NRES", "PES", "SGD", "Accumulated", "Adagrad", "Adam", "AdamW", "Answer",
    "Antithetic", "Augmented", "Backpropagation", "Bootstrapped", "Carry", "CharGRU", "CharTransformer", "Characters",
    "Classifying", "Config", "Constant", "ConvNet", "Cosine", "DigitsConvNet", "DigitsMLP", "Discounted",
    "ESSingle", "Ensemble", "Estimator", "EstimatorTraits", "Evolution", "Exact", "Exponential", "FashionConvNet",
    "FashionMLP", "Few", "FirstOrder", "Fixed", "Forward", "FullES", "Gated", "Guard", "Guarded", "HeldOut",
    "Hyper", "HyperparamOptimizer", "Last", "Layout", "LearnedInit", "Level", "LevelState", "Linear", "LinearDecay",
    "LoaderTask", "Log", "Logistic", "Logit", "LossTask", "MLPOptimizer", "MeanLog", "Mix", "Mixture", "Mnist1dMLP",
    "MnistConvNet", "MnistMLP", "ModuleOptimizer", "ModuleTask", "Muon", "Network", "NetworkTask", "NoisyQuadratic",
    "NonFinite", "NonFiniteError", "Objective", "Online", "Optimizer", "OptimizerTraits", "Partition", "Photo",
    "Predicting", "Problem", "ProblemTraits", "Quadratic", "RMSprop", "RNNProp", "RandomSearch", "Rosenbrock",
    "Safeguarded", "Schedule", "Scheduled", "Search", "Self", "SelfUpdate", "Skip", "Step", "Stop", "Sum", "Switch",
    "Task", "TaskWrapper", "TimeTo", "TorchOptim", "TruncatedES", "Warmup", "Window", "Wrapper",
    "hyper", "keys", "meta_loss", "started_at", "unrolled",
]  # fmt: skip
