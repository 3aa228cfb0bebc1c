import itertools

import pytest
import torch

from genrl import seeds
from genrl.kernels.noise import words


def test_a_sample_has_its_own_noise():
    together = seeds.normal((7, seeds.ROLLOUT, 3), [0, 1, 2, 3], (4, 2))
    apart = torch.cat([seeds.normal((7, seeds.ROLLOUT, 3), [i], (4, 2)) for i in range(4)])
    assert torch.equal(together, apart)
    backwards = seeds.normal((7, seeds.ROLLOUT, 3), [3, 2, 1, 0], (4, 2))
    assert torch.equal(together, backwards.flip(0))


def test_keys_differ():
    draws = [seeds.normal(key, [0], (64,)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, -1)]]
    for i, one in enumerate(draws):
        assert all(not torch.equal(one, other) for other in draws[i + 1 :])


def test_noise_is_standard_normal():
    noise = seeds.normal((5,), range(200), (100,))
    assert abs(noise.mean().item()) < 0.03 and abs(noise.std().item() - 1) < 0.03
    # neighbouring samples are independent
    assert abs((noise[1:] * noise[:-1]).mean().item()) < 0.03


def test_noise_has_the_moments_of_a_normal_law_and_no_period():
    noise = seeds.normal((6,), range(64), (1001,)).double()
    assert (noise**4).mean().item() == pytest.approx(3, abs=0.1) and abs((noise**3).mean().item()) < 0.05
    assert 4 < noise.abs().max() < 6 and len(noise.flatten().unique()) > 0.99 * noise.numel()
    for lag in (1, 2, 250, 251, 500):  # words of one counter are a quarter of the sample apart
        assert abs((noise[:, lag:] * noise[:, :-lag]).mean().item()) < 0.02, lag


def test_the_words_are_philox():
    """numpy has Philox of 64-bit words only: known answers of Random123 for ten rounds instead, and seven are their prefix."""
    zero, one = torch.zeros(1, dtype=torch.int64), torch.full((1,), -1, dtype=torch.int64)
    assert [hex(int(w[0, 0])) for w in words(zero, 1, rounds=10)] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]
    assert not torch.equal(torch.stack(words(zero, 1)), torch.stack(words(one, 1)))


def test_uniform_and_permutation():
    numbers = seeds.uniform((3,), range(2000))
    assert numbers.min() >= 0 and numbers.max() < 1 and abs(numbers.mean().item() - 0.5) < 0.03
    assert seeds.permutation((1, 2), 10).sort().values.tolist() == list(range(10))


def test_a_permutation_by_group_keeps_groups_in_one_piece():
    group = torch.tensor([5, 2, 5, 9, 2, 5, 9, 2])
    orders = {tuple(seeds.permutation_by_group((1, i), group).tolist()) for i in range(40)}
    assert len(orders) > 30, "groups and their members come in random order"
    for order in orders:
        assert sorted(order) == list(range(8))
        drawn = group[list(order)].tolist()
        assert sum(a != b for a, b in itertools.pairwise(drawn)) == 2, drawn
