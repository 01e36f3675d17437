"""Keys: SplitMix64 written again in Python integers, and the statistics of what is drawn."""

import math

import pytest
import torch

from levels import keys

MASK = 2**64 - 1


class SplitMix64:
    """Steele, Lea and Flood 2014, figure 16: the generator as its authors give it, in unsigned integers."""

    def __init__(self, state):
        self.state = state & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        return mix(self.state)


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def unsigned(tensor):
    return [number & MASK for number in tensor.flatten().tolist()]


def test_known_answers():
    """The first outputs of SplitMix64 seeded with 1234567, as Rosetta Code lists them."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert unsigned(keys.bits(torch.tensor(1234567), (5,))) == known


@pytest.mark.parametrize("number", [0, 1, -1, 1234567, 2**63 - 1, -(2**63)])
def test_bits_seed_and_fold_equal_integers(number):
    generator = SplitMix64(number)
    expected = [generator.next() for _ in range(7)]
    assert unsigned(keys.bits(torch.tensor(number), (7,))) == expected
    assert unsigned(keys.seed(number)) == expected[:1]
    for datum in (0, 1, 5, -3):
        inner = mix((datum * 0x9E3779B97F4A7C15 + 0x94D049BB133111EB) & MASK)
        assert unsigned(keys.fold_in(torch.tensor(number), datum)) == [mix((number & MASK) ^ inner)]


def test_draws_are_the_top_bits():
    key, generator = keys.seed(3), SplitMix64(int(keys.seed(3)))
    words = [generator.next() for _ in range(4)]
    assert keys.uniform(key, (4,), torch.float64).tolist() == [(word >> 11) * 2.0**-53 for word in words]
    assert keys.uniform(key, (4,), torch.float32).tolist() == [(word >> 40) * 2.0**-24 for word in words]
    assert keys.integers(key, (4,), 1797).tolist() == [(word >> 1) % 1797 for word in words]
    u = [(word >> 11) * 2.0**-53 for word in words]
    expected = [math.sqrt(-2 * math.log1p(-u[i])) * math.cos(2 * math.pi * u[i + 2]) for i in (0, 1)]
    assert keys.normal(key, (2,), torch.float64).tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments(dtype):
    count = 200_000
    uniform = keys.uniform(keys.seed(0), (count,), dtype)
    assert uniform.dtype == dtype
    assert 0 <= float(uniform.min()) < float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 5 / math.sqrt(12 * count)
    assert abs(float(uniform.var()) - 1 / 12) < 5 * math.sqrt(1 / 180 / count)
    normal = keys.normal(keys.seed(0), (count,), dtype)
    assert normal.dtype == dtype
    assert torch.isfinite(normal).all()
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
    assert len(keys.bits(root, (100_000,)).unique()) == 100_000
    assert len(keys.bits(keys.split(root, 1000), (100,)).unique()) == 100_000


def test_integers_are_even():
    counts = keys.integers(keys.seed(0), (100_000,), 10).bincount(minlength=10)
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 27.9  # chi squared with 9 degrees, 1 in 1000


def test_a_key_draws_the_same_alone_and_in_a_batch():
    batch = keys.split(keys.split(keys.seed(7), 2), 3)
    for draw in (
        lambda key: keys.bits(key, (2, 2)),
        lambda key: keys.uniform(key, (4,), torch.float32),
        lambda key: keys.normal(key, (2, 3), torch.float64),
        lambda key: keys.integers(key, (5,), 7),
        lambda key: keys.split(key, 4),
        lambda key: keys.fold_in(key, 4),
    ):
        together = draw(batch)
        for i in range(2):
            for j in range(3):
                assert torch.equal(together[i, j], draw(batch[i, j]))


def test_shapes_broadcasting_and_dtype():
    key = keys.split(keys.seed(0), 3)
    assert keys.seed(0).shape == ()
    assert keys.seed(0).dtype == key.dtype == torch.int64
    assert keys.bits(key, ()).shape == (3,)
    assert keys.normal(key, (2, 5), torch.float32).shape == (3, 2, 5)
    assert torch.equal(keys.fold_in(key, torch.tensor([1, 2, 3]))[1], keys.fold_in(key[1], 2))
    assert keys.fold_in(key[:, None], torch.arange(4)).shape == (3, 4)
    with pytest.raises((ValueError, RuntimeError)):
        keys.seed(2**64)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = keys.normal(keys.seed(0), (3,), torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(keys.normal(keys.seed(0), (3,), torch.float32), first)
