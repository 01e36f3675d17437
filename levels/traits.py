"""Traits: what levels must know of a problem, an optimizer or an estimator before they run it.

Evals are task gradients for each copy of the task; a mean, as a fraction, where they vary.
"""

from fractions import Fraction
from typing import Literal, NamedTuple

Evals = int | Fraction
Locality = Literal["elementwise", "per_tensor", "global"]


class ProblemTraits(NamedTuple):
    """What levels must know of a problem."""

    differentiable: bool = True  # whether an exact level above can differentiate the gradient
    copies: int = 1  # default number of copies of a level with an unroll
    evals: Evals = 1  # of `value_and_grad`
    init_evals: Evals = 0  # of `init_state`
    outer_evals: Evals = 0  # of `outer_value_and_grad`
    scratch_evals: Evals = 1  # of `evaluate_from_scratch`
    product_evals: Evals = 1  # of a product with the Jacobian of its gradient, with the evaluation in it
    again_evals: Evals = 0  # of differentiating such a product once more, beside that


class OptimizerTraits(NamedTuple):
    """What levels must know of an optimizer."""

    differentiable: bool = True  # whether a level above can train it by backpropagation
    reads_loss: bool = False  # whether `update` reads ``f``; if not, it may be given anything
    reads_grad: bool = True  # whether `update` reads ``g``; if not, it is given zeros
    learns_init: bool = False  # whether `init_x` or `init_state` depends on theta
    locality: Locality = "global"  # what an update of one coordinate reads: that coordinate, its tensor, everything
    evals: Evals = 0  # task gradients that an `update` asks for itself, for each copy of the task


class EstimatorTraits(NamedTuple):
    """What levels must know of an estimator."""

    differentiable: bool = False  # whether an exact level above can differentiate its answer
    chooses_lookahead: bool = False  # whether it says itself how far a window runs, in place of ``lookahead``
