"""The workloads on depth and on exact gradients: their sides do the same work, and the counts are the exact ones."""

import pytest
import torch
from torch.testing import assert_close

from benchmarks import exact, w4, w5
from benchmarks.harness import Unsupported
from levels import DigitsMLP

KINDS = {"ours": w5.Ours, "naive": w5.Naive, "higher": w5.Higher}


def small(unroll: int, rule: str = "sgd") -> w5.LearnedInit:
    return w5.start(DigitsMLP(hidden=(3,), minibatch=4, dtype="float64"), unroll, rule)


# W4.


@pytest.mark.parametrize("rule", w4.RULES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_floor_makes_the_calls_that_the_tower_makes(rule, depth):
    proofs = [side(rule, depth).prove() for side in (w4.Ours, w4.Floor)]
    steps = [[1], [20, 1], [100, 5, 1]][depth - 1]
    assert proofs[1] == {"task gradients": [steps[0]], "updates": steps}
    assert {what: proofs[0][what] for what in w4.COUNTED} == proofs[1]


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_the_accelerated_tower_reports_the_losses_of_the_plain_one(rule):
    proof, again = w4.Ours(rule, 2).prove(), w4.Accelerated(rule, 2).prove()
    assert again["task gradients"] == proof["task gradients"] == [20]
    assert len(again["losses"]) == 2 * w4.PROVED
    assert_close(again["losses"], proof["losses"], rtol=1e-6, atol=0)
    timed = w4.Ours(rule, 2)
    timed.step()
    timed.step()
    assert int(timed.state.step) == 2, "a tower that is timed goes on"


def test_the_floor_calls_on_the_shapes_that_the_tower_does():
    """Each update's result can be read by the next one; cotangents are those of what the update read."""
    gradient, *trained, top = w4.Floor("sgd", 3).calls
    sizes = []
    for call in trained:
        _, (theta, at, *_), dx = call.inputs
        x, (dtheta, dx_old) = call.function(*call.inputs)
        assert x.shape == dx.shape == dx_old.shape == at.shape
        assert dtheta.shape == theta.shape
        sizes.append(x.shape[-1])
    assert sizes == [10, 1]
    assert top.function(*top.inputs)[0].shape == top.inputs[1].shape == (1, 1)
    assert gradient.inputs[0].shape == (1, 1, w4.COPIES, 10)


def test_the_floor_runs_every_call_as_often_as_it_proves():
    floor, seen = w4.Floor("adam", 3), []
    floor.calls = [call._replace(function=lambda *_, whats=call.whats: seen.extend(whats)) for call in floor.calls]
    floor.step()
    assert {what: seen.count(what) for what in w4.COUNTED} == {k: sum(v) for k, v in floor.prove().items()}


# W5.


def test_all_sides_compute_one_meta_gradient():
    """Nested autograd, `higher` and ours agree to rounding in float64, and with a central difference."""
    proofs = {name: kind(small(6)).prove() for name, kind in KINDS.items()}
    begun = small(6)
    v = torch.linspace(-1, 1, len(begun.params), dtype=torch.float64)
    sides = [w5.Naive(begun._replace(params=begun.params + h * v)).meta_gradient()[0] for h in (1e-4, -1e-4)]
    slope = (sides[0] - sides[1]) / 2e-4
    for proof in proofs.values():
        assert_close(proof, proofs["naive"], rtol=1e-11, atol=1e-13)
        assert_close((torch.tensor(proof["meta-gradient"], dtype=torch.float64) * v).sum(), slope, rtol=1e-6, atol=0)


def test_naive_autograd_trains_a_learned_rule_too():
    proofs = [kind(small(3, "lstm")).prove() for kind in (w5.Ours, w5.Naive)]
    assert_close(proofs[0], proofs[1], rtol=1e-10, atol=1e-13)
    with pytest.raises(Unsupported, match="no learned optimizers"):
        w5.Higher(small(3, "lstm"))


def test_every_variant_is_of_a_side_that_can_be_built():
    for settings in w5.VARIANTS.values():
        assert w5.SIDES["naive autograd"](**settings).start.unroll == settings["unroll"]


def test_exact_mode_costs_carries_whatever_the_minibatch():
    """Each step more leaves an update behind, whatever the minibatch; the naive graph grows with the model's."""
    tasks = [DigitsMLP(hidden=(8,), minibatch=minibatch) for minibatch in (4, 64)]
    ours = [exact.growth({t: exact.peak(w5.Ours, task, t) for t in (10, 20)}) for task in tasks]
    assert ours[0] == pytest.approx(ours[1], rel=0.15)
    assert ours[0] < 4 * exact.carry(tasks[0])
    small, large = (exact.growth({t: exact.peak(w5.Naive, task, t) for t in (10, 20)}) for task in tasks)
    assert large > 4 * small
