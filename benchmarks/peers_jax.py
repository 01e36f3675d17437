"""W1 and W3 in JAX: a window is a `jax.lax.scan`, a whole unit with Adam one jitted function whose inputs are donated.

With ``checkpoint``, the body of the scan is under `jax.checkpoint`: the backward sweep computes each step again from
what it began with, as ours does.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Numbers
from benchmarks.peers_work import BETA1, BETA2, EPS, HIDDEN, LR, SCALE, UNROLL, P, Window, Work, as_numbers

Array = Any


def log_and_sign(g: Array) -> Array:
    large = jnp.abs(g) >= math.exp(-P)
    size = jnp.where(large, jnp.log(jnp.maximum(jnp.abs(g), math.exp(-P))) / P, -1.0)
    return jnp.stack((size, jnp.where(large, jnp.sign(g), g * math.exp(P))), 1)


def cell(weight: Array, bias: Array, z: Array, c: Array) -> tuple[Array, Array]:
    i, f, new, o = jnp.split(z @ weight + bias, 4, 1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(new)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def lstm_update(weights: dict[str, Array], g: Array, state: Any) -> tuple[Array, Any]:
    h0, c0, h1, c1 = state
    first = jnp.concatenate((log_and_sign(g.reshape(-1)), h0), 1)
    h0, c0 = cell(weights["layer0.weight"], weights["layer0.bias"], first, c0)
    h1, c1 = cell(weights["layer1.weight"], weights["layer1.bias"], jnp.concatenate((h0, h1), 1), c1)
    return SCALE * (h1 @ weights["out.weight"] + weights["out.bias"]).reshape(g.shape), (h0, c0, h1, c1)


def quadratic(x: Array, data: dict[str, Array]) -> Array:
    """Losses ``[copies]``."""
    return jnp.square(jnp.einsum("cij,cj->ci", data["w"], x) - data["y"]).sum(-1)


def perceptron(x: Array, data: dict[str, Array]) -> Array:
    """Losses ``[copies]``."""
    w0, b0, w1, b1 = jnp.split(x, [64 * 32, 64 * 32 + 32, 64 * 32 + 32 + 320], 1)
    hidden = jnp.tanh(jnp.einsum("bi,cih->cbh", data["images"], w0.reshape(-1, 64, 32)) + b0[:, None])
    logs = jax.nn.log_softmax(jnp.einsum("cbh,cho->cbo", hidden, w1.reshape(-1, 32, 10)) + b1[:, None])
    return -jnp.take_along_axis(logs, data["labels"][None, :, None], 2).mean((1, 2))


class Jax:
    """One side; the unit is compiled at its first call."""

    def __init__(self, work: Work, *, checkpoint: bool, dtype: str = "float32") -> None:
        self.work, self.checkpoint = work, checkpoint
        self.loss = quadratic if work.task == "quadratic" else perceptron
        start = work.start(dtype)
        self.names = list(start.weights)
        self.data = {name: jnp.asarray(array) for name, array in start.data.items()}
        weights = {name: jnp.asarray(array) for name, array in start.weights.items()}
        moments = [jax.tree.map(jnp.zeros_like, weights) for _ in range(2)]
        zeros = [jnp.zeros((start.x.size, HIDDEN), start.x.dtype) for _ in range(4)]
        carry = (jnp.asarray(start.x), jnp.asarray(start.g), tuple(zeros))
        self.held = (weights, *moments, jnp.zeros((), jnp.int32), carry)
        self.unit = jax.jit(self.made_unit, donate_argnums=0)

    def made_unit(self, held: Any, data: dict[str, Array]) -> tuple[Any, Any]:
        """A window, its gradient and Adam's step."""
        weights, m, v, t, carry = held
        (loss, carry), slopes = jax.value_and_grad(self.window, has_aux=True)(weights, carry, data)
        t = t + 1
        m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, m, slopes)
        v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, v, slopes)
        c1, c2 = 1 - BETA1**t, 1 - BETA2**t
        weights = jax.tree.map(lambda w, m, v: w - LR * (m / c1) / (jnp.sqrt(v / c2) + EPS), weights, m, v)
        return (weights, m, v, t, carry), (loss, slopes)

    def window(self, weights: Any, carry: Any, data: dict[str, Array]) -> tuple[Array, Any]:
        def body(carry: Any, _: None) -> tuple[Any, Array]:
            x, g, state = carry
            change, state = lstm_update(weights, g, state)
            x = x + change
            losses, pull = jax.vjp(lambda x: self.loss(x, data), x)
            g = jax.lax.stop_gradient(pull(jnp.ones_like(losses))[0])
            return (x, g, state), losses

        carry, losses = jax.lax.scan(jax.checkpoint(body) if self.checkpoint else body, carry, None, UNROLL)
        return losses.sum(0).mean(), jax.lax.stop_gradient(carry)

    def step(self) -> None:
        self.held, (loss, _) = self.unit(self.held, self.data)
        jax.block_until_ready((self.held, loss))

    def prove(self) -> Numbers:
        single = self._proof("float32")
        jax.config.update("jax_enable_x64", True)
        return single | self._proof("float64")

    def _proof(self, dtype: str) -> Numbers:
        side, windows = Jax(self.work, checkpoint=self.checkpoint, dtype=dtype), []
        for _ in range(2):
            side.held, (loss, slopes) = side.unit(side.held, side.data)
            windows.append(Window(float(loss), ravel(side, slopes), ravel(side, side.held[0])))
        return as_numbers(dtype, windows)


def ravel(side: Jax, weights: dict[str, Array]) -> np.ndarray:
    """``[m]``, in our order of names; JAX sorts those of a dict."""
    return np.concatenate([np.asarray(weights[name]).ravel() for name in side.names])
