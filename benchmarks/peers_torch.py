"""W1 and W3 in plain torch, with `higher` and with torchopt, each as a careful user of it would write them.

The LSTM is six leaf tensors; its update is two fused cells of plain matrix products. The task's gradient is data, the
sum of the losses is differentiated through the window by autograd. `higher` asks for the task's gradient itself, before
each update, from a graph that it keeps; so it evaluates the loss once more a window than the others, which carry the
last gradient over. torchopt's Adam rounds its bias corrections in torch's default type, which the proof sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Numbers
from benchmarks.peers_work import BETA1, BETA2, EPS, HIDDEN, LR, SCALE, UNROLL, LearnedInit, P, Window, Work, as_numbers

State = tuple[Tensor, Tensor, Tensor, Tensor]
"""h and c of both layers, ``[rows, hidden]``."""

Update = Callable[[list[Tensor], Tensor, State], tuple[Tensor, State]]


def lstm_update(weights: list[Tensor], g: Tensor, state: State) -> tuple[Tensor, State]:
    """Steps ``[rows]`` for gradients ``[rows]``."""
    w0, b0, w1, b1, w_out, b_out = weights
    h0, c0 = cell(w0, b0, torch.cat((log_and_sign(g), state[0]), 1), state[1])
    h1, c1 = cell(w1, b1, torch.cat((h0, state[2]), 1), state[3])
    return SCALE * torch.addmm(b_out, h1, w_out).squeeze(1), (h0, c0, h1, c1)


def cell(weight: Tensor, bias: Tensor, z: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, new, o = torch.addmm(bias, z, weight).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * new.tanh()
    return o.sigmoid() * c.tanh(), c


def log_and_sign(g: Tensor) -> Tensor:
    """``[rows]`` to ``[rows, 2]``."""
    large = g.abs() >= math.exp(-P)
    size = torch.where(large, g.abs().clamp_min(math.exp(-P)).log() / P, -1.0)
    return torch.stack((size, torch.where(large, g.sign(), g * math.exp(P))), 1)


class QuadraticLoss(nn.Module):
    """|W x - y|^2 of each copy; the gradient has a closed form."""

    def __init__(self, data: dict[str, Tensor]) -> None:
        super().__init__()
        self.w, self.y = data["w"], data["y"]

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x).square().sum(-1)

    def residual(self, x: Tensor) -> Tensor:
        return torch.bmm(self.w, x[..., None]).squeeze(-1) - self.y

    def with_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        residual = self.residual(x)
        grad = 2 * torch.bmm(residual.detach()[:, None], self.w).squeeze(1)
        return residual.square().sum(-1), grad


class PerceptronLoss(nn.Module):
    """Cross entropy of each copy; the gradient is autograd's."""

    def __init__(self, data: dict[str, Tensor]) -> None:
        super().__init__()
        self.images, self.labels = data["images"], data["labels"]

    def forward(self, x: Tensor) -> Tensor:
        w0, b0, w1, b1 = x.split([64 * 32, 32, 320, 10], 1)
        hidden = torch.tanh(torch.matmul(self.images, w0.reshape(-1, 64, 32)) + b0[:, None])
        logits = torch.baddbmm(b1[:, None], hidden, w1.reshape(-1, 32, 10))
        rows = nn.functional.cross_entropy(logits.flatten(0, 1), self.labels.repeat(len(x)), reduction="none")
        return rows.reshape(len(x), -1).mean(1)

    def with_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loss = self(x)
        (grad,) = torch.autograd.grad(loss.sum(), x, retain_graph=True)
        return loss, grad


class Plain:
    """torch alone; ``compiled`` puts the LSTM's update through torch.compile."""

    def __init__(self, work: Work, *, compiled: bool = False, dtype: str = "float32") -> None:
        self.work, self.compiled = work, compiled
        start = work.start(dtype)
        data = {name: torch.tensor(array) for name, array in start.data.items()}
        self.loss = (QuadraticLoss if work.task == "quadratic" else PerceptronLoss)(data)
        self.weights = [torch.tensor(array, requires_grad=True) for array in start.weights.values()]
        self.update: Update = torch.compile(lstm_update, dynamic=False) if compiled else lstm_update
        self.adam = self.made_adam()
        self.begin(start)

    def made_adam(self) -> Any:
        return torch.optim.Adam(self.weights, lr=LR, betas=(BETA1, BETA2), eps=EPS)

    def begin(self, start: LearnedInit) -> None:
        self.x, self.g = torch.tensor(start.x), torch.tensor(start.g)
        zeros = self.x.new_zeros(self.x.numel(), HIDDEN)
        self.state: State = (zeros, zeros, zeros, zeros)

    def window(self) -> Tensor:
        """The meta-loss, with its graph; what is carried over is detached."""
        x, g, state, losses = self.x, self.g, self.state, []
        for _ in range(UNROLL):
            change, state = self.changed(x, g, state)
            x = x + change
            loss, g = self.loss.with_grad(x)
            losses.append(loss)
        self.x, self.g = x.detach(), g
        h0, c0, h1, c1 = state
        self.state = (h0.detach(), c0.detach(), h1.detach(), c1.detach())
        return torch.stack(losses).sum(0).mean()

    def changed(self, x: Tensor, g: Tensor, state: State) -> tuple[Tensor, State]:
        change, state = self.update(self.weights, g.flatten(), state)
        return change.reshape(x.shape), state

    def step(self) -> None:
        self.stepped()

    def stepped(self) -> Tensor:
        self.adam.zero_grad()
        loss = self.window()
        loss.backward()
        self.adam.step()
        return loss

    def prove(self) -> Numbers:
        return self._proof("float32") | self._proof("float64")

    def twin(self, dtype: str) -> Plain:
        return Plain(self.work, compiled=self.compiled, dtype=dtype)

    def _proof(self, dtype: str) -> Numbers:
        side, windows = self.twin(dtype), []
        for _ in range(2):
            loss = float(side.stepped().detach())
            gradient = torch.cat([weight.grad.flatten() for weight in side.weights])  # type: ignore[union-attr]
            weights = torch.cat([weight.detach().flatten() for weight in side.weights])
            windows.append(Window(loss, gradient.numpy(), weights.numpy()))
        return as_numbers(dtype, windows)


class TorchOpt(Plain):
    """The LSTM is a gradient transformation of torchopt, Adam is torchopt's."""

    def made_adam(self) -> Any:
        import torchopt

        def update(updates: Any, state: Any, *, params: Any, inplace: bool) -> Any:
            assert not inplace
            (g,) = updates
            change, state = self.update(self.weights, g.flatten(), state)
            return [change.reshape(params[0].shape)], state

        self.transformation = torchopt.base.GradientTransformation(lambda _: self.state, update)
        self.apply = torchopt.apply_updates
        return torchopt.Adam(self.weights, lr=LR, betas=(BETA1, BETA2), eps=EPS)

    def window(self) -> Tensor:
        params, grads, losses = [self.x], [self.g], []
        state = self.transformation.init(params)
        for _ in range(UNROLL):
            updates, state = self.transformation.update(grads, state, params=params, inplace=False)
            params = self.apply(params, updates, inplace=False)
            loss, g = self.loss.with_grad(params[0])
            grads = [g]
            losses.append(loss)
        self.x, self.g = params[0].detach(), g
        h0, c0, h1, c1 = state
        self.state = (h0.detach(), c0.detach(), h1.detach(), c1.detach())
        return torch.stack(losses).sum(0).mean()

    def twin(self, dtype: str) -> Plain:
        torch.set_default_dtype(getattr(torch, dtype))  # torchopt's Adam takes its bias corrections in this
        return TorchOpt(self.work, dtype=dtype)
