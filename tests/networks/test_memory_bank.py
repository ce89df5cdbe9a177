"""The memory bank: what it stores, what it draws, how small it is."""

import io

import pytest
import torch

from monai_ssl.networks import MemoryBank
from monai_ssl.networks.memory_bank import random_subset


def filled(capacity, counts, channels=2):
    """A bank whose vectors tell (case, number within the case and class); counts by case and class."""
    bank = MemoryBank(len(counts[0]), capacity)
    for case, of_case in enumerate(counts):
        parts = [
            torch.stack([torch.full((n,), float(case)), torch.arange(n).float()], 1)[bank.choose(n)] for n in of_case
        ]
        bank.update([case], [parts], [of_case])
    return bank


@pytest.mark.parametrize(("n", "size"), [(1000, 3), (1000, 249), (1000, 251), (10**12, 2000), (7, 7), (3, 9)])
def test_random_subset(n, size):
    torch.manual_seed(0)
    drawn = random_subset(n, size)
    assert len(drawn) == len(drawn.unique()) == min(n, size)
    assert drawn.min() >= 0
    assert drawn.max() < n


@pytest.mark.parametrize(("n", "size"), [(40, 4), (12, 4)])  # by rejection, by permutation
def test_random_subset_is_uniform(n, size):
    torch.manual_seed(0)
    times = 6000
    drawn = [random_subset(n, size) for _ in range(times)]
    expected = times * size / n
    assert torch.cat(drawn).bincount(minlength=n).float().sub(expected).abs().max() < 5 * expected**0.5
    first = torch.stack(drawn)[:, 0]  # and so is each place by itself
    assert first.bincount(minlength=n).float().sub(times / n).abs().max() < 5 * (times / n) ** 0.5


@pytest.mark.parametrize("capacity", [None, 16])
def test_every_vector_is_drawn_with_equal_probability(capacity):
    # a bounded bank is filled anew for every draw: its subset is random as well
    torch.manual_seed(0)
    times, counts = 800, [[60, 5], [20, 40], [0, 3]]
    seen = torch.zeros(3, 60)
    for _ in range(times):
        prototypes, classes = filled(capacity, counts).sample(16)
        assert classes.tolist() == [0] * 16 + [1] * 16
        drawn = prototypes[:16].long()
        assert len(drawn.unique(dim=0)) == 16  # without replacement
        seen[drawn[:, 0], drawn[:, 1]] += 1
    expected = times * 16 / 80
    assert (seen[0] - expected).abs().max() < 5 * expected**0.5
    assert (seen[1, :20] - expected).abs().max() < 5 * expected**0.5
    assert seen.sum() == seen[0].sum() + seen[1, :20].sum() == times * 16
    share = seen[0].sum() / seen.sum()
    assert share == pytest.approx(0.75, abs=0.02)


def test_a_class_with_too_few_vectors_is_left_out():
    bank = filled(64, [[60, 5], [20, 4]])
    assert bank.sample(9)[1].unique().tolist() == [0, 1]
    prototypes, classes = bank.sample(10)
    assert prototypes.shape == (10, 2)
    assert classes.unique().tolist() == [0]
    assert MemoryBank(2).sample(3)[0].numel() == 0


def test_update_overwrites_the_slot_alone():
    bank = filled(8, [[60, 5], [20, 40]])
    first, second = [torch.zeros(2, 2), torch.zeros(0, 2)], [torch.ones(3, 2), torch.ones(1, 2)]
    bank.update([1, 1], [first, second], [[2, 0], [3, 1]])
    assert bank.cases == [0, 1]
    assert bank.counts.tolist() == [[60, 5], [3, 1]]
    assert torch.equal(bank.features(1, 0), torch.ones(3, 2))  # the later of two crops of one case
    assert len(bank.features(0, 0)) == 8


def test_slots_follow_the_features_to_another_device():
    # a checkpoint read on the CPU, features on a GPU; "meta" stands for the GPU
    bank = filled(8, [[60, 5], [20, 40]])
    bank.update([1], [[torch.zeros(2, 2, device="meta"), torch.zeros(0, 2, device="meta")]], [[2, 0]])
    assert {bank.features(case, c).device.type for case in (0, 1) for c in (0, 1)} == {"meta"}
    assert bank.features(0, 1).shape == (5, 2)


def test_sixteen_left_atria_fit_in_little_memory():
    # crops of 112 x 112 x 80 voxels, 32 channels: everything would be 2 GB
    bank = MemoryBank(2)
    n = 112 * 112 * 80
    for case in range(16):
        counts = [n - n // 10, n // 10]
        bank.update([case], [[torch.zeros(len(bank.choose(k)), 32) for k in counts]], [counts])
    assert sum(bank.features(case, c).nbytes for case in range(16) for c in range(2)) < 20e6
    assert bank.sample(256)[0].shape == (512, 32)


def test_state_round_trip_draws_the_same():
    bank, other = filled(8, [[60, 5], [20, 40]]), MemoryBank(2, 8)
    file = io.BytesIO()
    torch.save(bank.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    drawn = []
    for each in (bank, other):
        torch.manual_seed(3)
        drawn.append(each.sample(4)[0])
    assert torch.equal(*drawn)
    assert other.counts.tolist() == bank.counts.tolist()
    bank.update([0], [[torch.zeros(1, 2), torch.zeros(1, 2)]], [[1, 1]])
    assert other.counts.tolist() == [[60, 5], [20, 40]]  # nothing is shared


def test_rejects():
    with pytest.raises(ValueError, match=r"n_classes must be >= 1, got 0"):
        MemoryBank(0)
    with pytest.raises(ValueError, match=r"capacity must be >= 1 or None, got 0"):
        MemoryBank(2, 0)
    with pytest.raises(ValueError, match=r"per_class must be from 1 to the capacity 8, got 9"):
        MemoryBank(2, 8).sample(9)
    with pytest.raises(ValueError, match=r"features of case 3 must hold \[2, 1\] vectors .* got \[2, 2\]"):
        MemoryBank(2).update([3], [[torch.zeros(2, 4), torch.zeros(2, 4)]], [[2, 1]])
