"""Learning-rate schedules against their formulas."""

import math

import pytest
import torch

from monai_ssl.engines import lr_schedule


def rates(schedule, n=100, used=None, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = lr_schedule(optimizer, schedule, n, **options)
    out = []
    for _ in range(used or n):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


def test_step():
    out = rates("step", 60)
    assert out == pytest.approx([0.5] * 25 + [0.05] * 25 + [0.005] * 10)
    assert rates("step", 10, milestones=[0.5]) == pytest.approx([0.5] * 5 + [0.05] * 5)


def test_poly():
    assert rates("poly") == pytest.approx([0.5 * (1 - i / 100) ** 0.9 for i in range(100)])
    assert rates("poly", power=2.0) == pytest.approx([0.5 * (1 - i / 100) ** 2 for i in range(100)])


def test_cosine():
    assert rates("cosine") == pytest.approx([0.25 * (1 + math.cos(math.pi * i / 100)) for i in range(100)])


def test_constant():
    assert rates("constant") == [0.5] * 100


def test_never_negative_or_complex_beyond_the_end():
    for schedule in ("poly", "cosine"):
        assert all(0 <= rate < 1e-6 for rate in rates(schedule, 10, used=15)[11:])


@pytest.mark.parametrize("schedule", ["constant", "poly"])
def test_warmup(schedule):
    plain, warm = rates(schedule), rates(schedule, warmup=0.1)
    assert warm[:10] == pytest.approx([r * (i + 1) / 10 for i, r in enumerate(plain[:10])])
    assert warm[10:] == pytest.approx(plain[10:])
    assert warm[0] > 0


def test_several_parameter_groups_keep_their_ratio():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.01)]
    optimizer = torch.optim.SGD(groups)
    scheduler = lr_schedule(optimizer, "poly", 10)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    first, second = (group["lr"] for group in optimizer.param_groups)
    assert first == pytest.approx(0.1 * 0.7**0.9)
    assert second == pytest.approx(0.01 * 0.7**0.9)


def test_rejects():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    with pytest.raises(
        ValueError, match=r"schedule must be one of \('step', 'poly', 'cosine', 'constant'\), got 'exp'"
    ):
        lr_schedule(optimizer, "exp", 10)
    with pytest.raises(ValueError, match="max_iterations must be >= 1, got 0"):
        lr_schedule(optimizer, "step", 0)
