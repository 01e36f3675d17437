"""The sides of W1 and W3; each imports its peer when it is built."""

from collections.abc import Callable
from functools import partial

from benchmarks.harness import Side
from benchmarks.peers_work import Ours, Work

IMPORTS = {  # torch.optim imports torch._dynamo when the first optimizer is made
    "torch, compiled update": ["torch._dynamo", "torch._inductor.compile_fx"],
    "torch": ["torch._dynamo"],
    "higher": ["higher", "torch._dynamo"],
    "torchopt": ["torchopt", "torch._dynamo"],
    "JAX scan": ["jax.numpy"],
    "JAX scan, checkpoint": ["jax.numpy"],
}


def sides(work: Work) -> dict[str, Callable[[], Side]]:
    """Every side that there is, by name."""
    return {
        "ours": partial(Ours, work),
        "ours, accelerated": partial(Ours, work, fast=True),
        "torch": partial(plain, work, compiled=False),
        "torch, compiled update": partial(plain, work, compiled=True),
        "higher": partial(higher, work),
        "torchopt": partial(torchopt, work),
        "JAX scan": partial(scan, work, checkpoint=False),
        "JAX scan, checkpoint": partial(scan, work, checkpoint=True),
    }


def plain(work: Work, *, compiled: bool) -> Side:
    from benchmarks.peers_torch import Plain

    return Plain(work, compiled=compiled)


def higher(work: Work) -> Side:
    from benchmarks.peers_higher import Higher

    return Higher(work)


def torchopt(work: Work) -> Side:
    from benchmarks.peers_torch import TorchOpt

    return TorchOpt(work)


def scan(work: Work, *, checkpoint: bool) -> Side:
    from benchmarks.peers_jax import Jax

    return Jax(work, checkpoint=checkpoint)
