"""A learned optimizer outside of its tower: an ordinary model of a million parameters in an ordinary loop.

An LSTM is trained on a small sigmoid network (1,510 parameters, 150 steps of the tower), written to a file and read
back as a `torch.optim.Optimizer`. It then trains a ReLU network 600 times as large for 40 steps, with gradient
clipping and a schedule, beside torch's Adam in the same loop. On one thread you should see

    993,930 parameters, 40 steps
    learned lstm, lr 1.0 : training loss 0.7424, held-out loss 1.853, errors 22.8 %
    learned lstm, lr 0.1 : training loss 0.0627, held-out loss 0.123, errors 1.9 %
    torch Adam, lr 0.001 : training loss 0.1009, held-out loss 0.104, errors 2.2 %
    torch Adam, lr 0.003 : training loss 0.0461, held-out loss 0.075, errors 2.5 %

after about 90 seconds of one core, half of them for training the LSTM. At its own step size it fails on a network so
unlike the one that it was trained on; the tenth was picked from four tried on these very images, Adam's rates were not
searched, and even so Adam at 0.003 has the lower losses. A step of it costs some 100 times one of Adam. What this
shows is that an exported optimizer is an ordinary one, not that this one is good.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from levels import LSTM, Adam, DigitsMLP, Level
from levels.tasks.data.scikit import digits
from recursion import Exported, Tower, export

UPDATES, STEPS, MINIBATCH = 150, 40, 128
Make = Callable[..., torch.optim.Optimizer]


def trained_lstm(path: Path) -> None:
    """Train ``digits-mlp: lstm@20[clip=1] / adam(lr=3e-3)`` and export what it learned."""
    tower = Tower(DigitsMLP(), Level(optimizer=LSTM(), unroll=20, clip=1.0), Level(optimizer=Adam(lr=3e-3)))
    state = tower.init(seed=0)
    for _ in range(UPDATES):
        state, _report = tower.step(state)
    export(tower, state, seed=0).save(path)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 896), nn.ReLU(), nn.Linear(896, 10))


def held_out(model: nn.Module) -> tuple[float, float]:
    """Loss and share of errors on images that no optimizer saw."""
    images, labels, _classes = digits("test", torch.float32)
    with torch.no_grad():
        out = model(images)
    return float(nn.functional.cross_entropy(out, labels)), float((out.argmax(-1) != labels).float().mean())


def train(make: Make) -> tuple[float, float, float]:
    """Training loss over the last 10 steps, then loss and errors on held-out images."""
    model = network()
    optimizer = make(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    images, labels, _classes = digits("train", torch.float32)
    rows = torch.randint(len(labels), (STEPS, MINIBATCH), generator=torch.Generator().manual_seed(1))
    losses = []
    for batch in rows:
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10, *held_out(model)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lstm.safetensors"
        trained_lstm(file)
        learned = Exported.load(file)
    print(f"{sum(p.numel() for p in network().parameters()):,} parameters, {STEPS} steps")
    subjects: list[tuple[str, Make]] = [(f"learned lstm, lr {lr}", partial(learned, lr=lr)) for lr in (1.0, 0.1)]
    subjects += [(f"torch Adam, lr {lr}", partial(torch.optim.Adam, lr=lr)) for lr in (1e-3, 3e-3)]
    for name, make in subjects:
        last, loss, errors = train(make)
        print(f"{name:21}: training loss {last:.4f}, held-out loss {loss:.3f}, errors {100 * errors:.1f} %")
