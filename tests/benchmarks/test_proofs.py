"""All sides of W1, W2 and W3 that are installed compute the same numbers, on fewer copies and lower towers."""

import importlib

import pytest

from benchmarks import peers_sides, peers_work, w2
from benchmarks.harness import Row, check_proofs
from benchmarks.peers_towers import Gdtuo, Ours, TorchOptim
from benchmarks.peers_work import Work

NEEDS = {"higher": "higher", "torchopt": "torchopt", "JAX scan": "jax", "JAX scan, checkpoint": "jax"}


def agree(proofs, tolerance):
    rows = {side: Row() for side in proofs}
    check_proofs(rows, proofs, tolerance)
    return {side: row.why for side, row in rows.items() if row.why}


WORKS = [Work("quadratic", 3), pytest.param(Work("perceptron", 1), marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=WORKS, ids=lambda work: work.task)
def work(request):
    return request.param


@pytest.fixture(scope="module")
def proof(work):
    return peers_sides.sides(work)["ours"]().prove()


@pytest.mark.parametrize("side", ["torch", "higher"])
def test_peers_compute_what_we_do(work, proof, side):
    pytest.importorskip(NEEDS.get(side, "torch"))
    assert agree({"ours": proof, side: peers_sides.sides(work)[side]().prove()}, peers_work.TOLERANCE) == {}
    assert len(proof) == 12
    assert proof["float64 weights 1"] != proof["float64 weights 2"]
    assert max(map(abs, proof["float64 meta-gradient 2"])) > 1e-3


def test_a_peer_with_another_step_size_is_found_out(work, proof, monkeypatch):
    torch_side = importlib.import_module("benchmarks.peers_torch")
    monkeypatch.setattr(torch_side, "LR", 1.0001e-3)
    wrong = peers_sides.sides(work)["torch"]().prove()
    assert "weights" in agree({"ours": proof, "torch": wrong}, peers_work.TOLERANCE)["torch"]


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True:UserWarning")
@pytest.mark.parametrize("kind", ["sgd / sgd", "adam / sgd", "adam / adam"])
@pytest.mark.parametrize("height", [1, 3])
def test_towers_are_gdtuo(kind, height):
    pytest.importorskip("gradient_descent_the_ultimate_optimizer")
    proofs = {"ours": Ours(kind, height).prove(), "gdtuo": Gdtuo(kind, height).prove()}
    if height == 1:
        proofs["torch.optim"] = TorchOptim(kind, 1, fused=False).prove()
    assert agree(proofs, w2.TOLERANCE) == {}
    losses = proofs["ours"]["losses"]
    assert losses[-1] < losses[0], "it learns"


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True:UserWarning")
def test_gdtuo_begins_again_where_it_began():
    pytest.importorskip("gradient_descent_the_ultimate_optimizer")
    side = Gdtuo("adam / adam", 3)
    once = [side.stepped() for _ in range(4)]
    side.begin_again()
    assert [side.stepped() for _ in range(4)] == once
    assert len(set(once)) == 4


def test_slopes():
    rows = {n: {"sides": {"ours": {"seconds": [1], "cpu": [(2 + 0.5 * n) / 1e3] * 3}}} for n in (1, 2, 10, 50)}
    variants = {str(n): row | {"settings": {"kind": "sgd / sgd", "height": n}} for n, row in rows.items()}
    assert w2.slopes({"variants": variants}, "sgd / sgd") == {"ours": pytest.approx(0.5)}
