"""W1 and W3 with `higher`: the LSTM registered as a differentiable optimizer, a window in an inner loop's context."""

from typing import Any

import higher
import torch
from torch import Tensor, nn

from benchmarks.peers_torch import Plain, State, lstm_update
from benchmarks.peers_work import HIDDEN, UNROLL, LearnedInit

NAMES = ("h0", "c0", "h1", "c1")


class LSTMOptimizer(torch.optim.Optimizer):
    """What `higher` takes the state and the weights from; it makes no step itself."""

    def __init__(self, params: Any, weights: list[Tensor]) -> None:
        super().__init__(params, {})
        self.weights = weights


class DifferentiableLSTM(higher.optim.DifferentiableOptimizer):  # type: ignore[misc]
    """Its differentiable version."""

    def __init__(self, other: LSTMOptimizer, *args: Any, **kwargs: Any) -> None:
        super().__init__(other, *args, **kwargs)
        self.weights = other.weights

    def _update(self, grouped_grads: Any, **kwargs: Any) -> None:
        state, (g,) = self.state[0][0], grouped_grads[0]
        old: State = (state["h0"], state["c0"], state["h1"], state["c1"])
        change, new = lstm_update(self.weights, g.flatten(), old)
        state.update(zip(NAMES, new))
        self.param_groups[0]["params"][0] = self.param_groups[0]["params"][0] + change.reshape(g.shape)


higher.register_optim(LSTMOptimizer, DifferentiableLSTM)


class Model(nn.Module):
    """The copies' parameters, and their losses."""

    def __init__(self, x: Tensor, loss: nn.Module) -> None:
        super().__init__()
        self.x, self.loss = nn.Parameter(x), loss

    def forward(self) -> Tensor:
        losses: Tensor = self.loss(self.x)
        return losses


class Higher(Plain):
    """See the top."""

    def begin(self, start: LearnedInit) -> None:
        self.model = Model(torch.tensor(start.x), self.loss)
        self.inner = LSTMOptimizer(self.model.parameters(), self.weights)
        zeros = self.model.x.new_zeros(self.model.x.numel(), HIDDEN)
        self.inner.state[self.model.x] = dict.fromkeys(NAMES, zeros)

    def window(self) -> Tensor:
        losses = []
        with higher.innerloop_ctx(self.model, self.inner) as (model, inner):
            loss = model()
            for _ in range(UNROLL):
                inner.step(loss.sum(), grad_callback=lambda grads: [g.detach() for g in grads])
                loss = model()
                losses.append(loss)
            with torch.no_grad():
                self.model.x.copy_(model.fast_params[0])
            state = inner.state[0][0]
            self.inner.state[self.model.x] = {name: state[name].detach() for name in NAMES}
        return torch.stack(losses).sum(0).mean()

    def twin(self, dtype: str) -> Plain:
        return Higher(self.work, dtype=dtype)
