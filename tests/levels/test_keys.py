"""Keys: SplitMix64 written again in Python integers, and the statistics of what is drawn."""

import math

import numpy as np
import pytest
import torch

from levels import keys

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def words(state, count):
    """Steele, Lea and Flood 2014, figure 16: the generator as its authors give it, in unsigned integers."""
    return [mix((state + i * GAMMA) & MASK) for i in range(1, count + 1)]


def unsigned(tensor):
    return [number & MASK for number in tensor.flatten().tolist()]


def test_known_answers():
    """The first outputs of SplitMix64 seeded with 1234567, as Rosetta Code lists them."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert unsigned(keys.bits(torch.tensor(1234567), (5,))) == known


@pytest.mark.parametrize("number", [0, 1, -1, 1234567, 2**63 - 1, -(2**63)])
def test_bits_seed_and_fold_equal_integers(number):
    assert unsigned(keys.bits(torch.tensor(number), (7,))) == words(number, 7)
    assert unsigned(keys.seed(number)) == words(number, 1)
    for datum in (0, 1, 5, -3):
        folded = keys.fold_in(torch.tensor(number), datum)
        assert unsigned(folded) == [mix((number & MASK) ^ mix((datum * GAMMA + 0x94D049BB133111EB) & MASK))]
        assert torch.equal(keys.fold_in(torch.tensor(number), torch.tensor(datum)), folded)
        assert int(keys.unfold_in(folded, datum)) == number


def test_draws_are_the_top_bits():
    key = keys.seed(3)
    drawn = words(int(key), 4)
    assert keys.uniform(key, (4,), torch.float64).tolist() == [(word >> 11) * 2.0**-53 for word in drawn]
    assert keys.uniform(key, (4,), torch.float32).tolist() == [(word >> 40) * 2.0**-24 for word in drawn]
    assert keys.integers(key, (4,), 1797).tolist() == [(word >> 1) % 1797 for word in drawn]
    u = [(word >> 11) * 2.0**-53 for word in drawn]
    expected = [math.sqrt(-2 * math.log1p(-u[i])) * math.cos(2 * math.pi * u[i + 2]) for i in (0, 1)]
    assert keys.normal(key, (2,), torch.float64).tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments(dtype):
    count = 200_000
    uniform, normal = (draw(keys.seed(0), (count,), dtype) for draw in (keys.uniform, keys.normal))
    assert uniform.dtype == normal.dtype == dtype
    assert 0 <= float(uniform.min()) < float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 5 / math.sqrt(12 * count)
    assert abs(float(uniform.var()) - 1 / 12) < 5 * math.sqrt(1 / 180 / count)
    for power, moment, deviation in ((1, 0, 1), (2, 1, math.sqrt(2)), (3, 0, math.sqrt(15)), (4, 3, math.sqrt(96))):
        assert abs(float((normal**power).mean()) - moment) < 5 * deviation / math.sqrt(count), power


def test_neighbouring_draws_and_keys_are_uncorrelated():
    count = 100_000
    along = keys.normal(keys.seed(0), (count,), torch.float64)
    keyed = keys.normal(keys.split(keys.seed(0), count), (2,), torch.float64)
    counted = keys.normal(torch.arange(count), (1,), torch.float64)[:, 0]
    for series in (along, keyed[:, 0], counted):
        assert abs(float((series[1:] * series[:-1]).mean())) < 5 / math.sqrt(count)
    assert abs(float((keyed[:, 0] * keyed[:, 1]).mean())) < 5 / math.sqrt(count)


def test_nothing_repeats():
    root = keys.seed(0)
    family = torch.cat([
        root[None],
        keys.split(root, 50_000),
        keys.split(keys.fold_in(root, 1), 50_000),
        keys.split(keys.seed(1), 50_000),
        keys.fold_in(keys.fold_in(root, torch.arange(2, 50_002)), 1),
    ])  # fmt: skip
    assert len(family.unique()) == len(family)
    assert len(keys.bits(keys.split(root, 1000), (100,)).unique()) == 100_000


def test_integers_are_even():
    counts = keys.integers(keys.seed(0), (100_000,), 10).bincount(minlength=10)
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 27.9  # chi squared with 9 degrees, 1 in 1000


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: keys.bits(key, (2, 2)),
        lambda key: keys.uniform(key, (4,), torch.float32),
        lambda key: keys.normal(key, (2, 3), torch.float64),
        lambda key: keys.integers(key, (), 7),
        lambda key: keys.split(key, 4),
        lambda key: keys.fold_in(key, 4),
    ],
)
def test_a_key_draws_the_same_alone_and_in_a_batch(draw):
    batch = keys.split(keys.split(keys.seed(7), 2), 3)
    before, together = torch.get_rng_state(), draw(batch)
    assert all(torch.equal(together[at], draw(batch[at])) for at in np.ndindex(2, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_have_64_bits():
    with pytest.raises((ValueError, RuntimeError)):
        keys.seed(2**64)
