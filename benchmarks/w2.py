"""W2: towers whose levels all move at every step (unroll 1), against gdtuo and, at height 1, torch.optim.

The network is that of gdtuo's README: 784-128-10 with tanh on the hidden and on the output units, log-softmax, negative
log-likelihood. One minibatch of 256 images is the same at each step, so no side pays for drawing. A unit is one step of
training: forward, backward, every level's update, and the loss as a Python number. Not included: building, data.

``sgd / sgd``: SGD at each level; ``adam / sgd``: Adam below, SGD at each level above; ``adam / adam``: Adam at each.
A height counts the optimizers. Ours learns lr, beta1 and beta2 of each Adam and lr of each SGD; gdtuo also hands each
SGD a momentum of 0, which has no gradient and never moves.

The proof, in float64: losses of `PROOF` evaluations and where all hyperparameters end. A tower of height h is laid over
a problem that has been evaluated, so it starts h - 1 evaluations later than gdtuo, up to where gdtuo's levels have no
gradient yet (tests/laws/test_hyperoptimizer.py says why). Three conventions of gdtuo's Adam are taken over for the
proof, by a start-up written out here: v starts at eps, levels above the first count the steps before their first
gradient, and beta is (tanh z + 1) / 2. Timed is the library's own Adam, whose beta is sigmoid(u): the same work.
At height 1 there is nothing to learn, and ours starts as torch.optim does; gdtuo is proven by its own v = eps, so there
it is compared to `GDTUO_TOLERANCE` only.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import Numbers, Side, Unsupported, ours as is_ours
from levels import SGD, Adam, Fixed, Hyper, Laid, Level, LevelState, Linear, LossTask, Optimizer, keys
from levels.layout import Layout
from levels.level import Carry
from levels.optimizers.adam import AdamState
from levels.tasks.data import mnist
from levels.tasks.nets import dense, dense_shapes, fresh
from recursion import Tower
from recursion.tower import TowerState
