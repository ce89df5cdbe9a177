"""Heads for the voxels that matter, the prototype memory, and the mean teacher."""

import copy

import pytest
import torch
from torch import nn

from monai_ssl.networks import EMATeacher, PrototypeMemory, VNet, VoxelHeads


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(("training", "masked"), [(True, False), (True, True), (False, False)])
def test_voxel_heads_equal_both_heads_on_every_voxel(training, masked, layout, dtype, monkeypatch):
    monkeypatch.setattr("monai_ssl.networks.recompute.moments.CHUNK", 50)  # several blocks, the last one smaller
    torch.manual_seed(0)
    heads = VoxelHeads(6, 5).train(training)
    for norm in (heads.projection.norm, heads.prediction.norm):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    plain = copy.deepcopy(heads).double()  # the reference has no rounding of its own
    if dtype == torch.float64:
        heads.double()
    features = torch.rand(2, 6, 8, 5, 3).to(dtype).contiguous(memory_format=layout)
    selected, weights = torch.randperm(240)[:60], torch.randn(60, 5)
    ours, theirs = features.clone().requires_grad_(), features.double().requires_grad_()
    mask = torch.rand(240) > 0.3
    mask[selected] = True
    if not masked:
        mask[:] = True
    with torch.autocast("cpu", dtype=torch.bfloat16):  # without effect
        found = heads(ours, selected, mask.nonzero()[:, 0] if masked else None)
    rows, place = theirs.movedim(1, -1).reshape(-1, 6)[mask], mask.cumsum(0)[selected] - 1
    expected = plain.prediction(plain.projection(rows))[place]
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # of the largest value: two normalizations in a row leave float32 four digits
    tolerance = 1e-10 if dtype == torch.float64 else 1e-3
    agree(found, expected, tolerance)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    agree(ours.grad, theirs.grad, 0.02 if dtype == torch.bfloat16 else tolerance)
    for (name, actual), wanted in zip(heads.named_parameters(), plain.parameters(), strict=True):
        # a bias in front of a normalization has the gradient 0 up to rounding
        if not training or name == "prediction.second.bias" or not name.endswith(("first.bias", "second.bias")):
            agree(actual.grad, wanted.grad, tolerance, name)
    for (name, actual), wanted in zip(heads.named_buffers(), plain.buffers(), strict=True):
        agree(actual, wanted, tolerance, name)
    projected = heads.project(ours, selected)
    assert not projected.requires_grad
    rows = features.double().movedim(1, -1).reshape(-1, 6)[selected]
    agree(projected, plain.eval().projection(rows), tolerance)


def agree(actual, exact, tolerance, name=""):
    error = (actual.double() - exact.double()).abs().max() / exact.abs().max().clamp(min=1e-30)
    assert error <= tolerance, f"{name}: {error:.1e} of the largest value"


def test_voxel_heads_without_a_selected_voxel():
    heads, features = VoxelHeads(6, 5), torch.rand(2, 6, 8, 5).requires_grad_()
    found = heads(features, torch.zeros(0, dtype=torch.long))
    assert found.shape == (0, 5)
    assert heads.prediction.norm.num_batches_tracked == 1  # the statistics are those of all voxels, selected or not
    found.sum().backward()
    assert not features.grad.any()


@pytest.mark.parametrize(("rank", "kept"), [("lowest", [3.0, 1.0]), ("highest", [0.0, 2.0])])
def test_memory_keeps_by_rank(rank, kept):
    memory = PrototypeMemory(3, size=2, channels=1, rank=rank)
    assert memory.empty() == [1, 2]
    memory.replace(1, torch.arange(4.0)[:, None], torch.tensor([0.9, 0.2, 0.5, 0.1]))
    assert memory[1][:, 0].tolist() == kept
    assert memory.empty() == [2]
    memory.replace(1, torch.full((1, 1), 7.0))  # fewer than fit: the old ones go
    assert memory[1].tolist() == [[7.0]]
    memory.replace(1, torch.zeros(0, 1))
    assert memory[1].tolist() == [[7.0]]
    other = PrototypeMemory(3, size=2, channels=1, rank=rank)
    other.load_state_dict(memory.state_dict())
    assert other[1].tolist() == [[7.0]]


@pytest.mark.parametrize("buffers", ["own", "copy"])
def test_teacher_buffers(buffers):
    student = VNet(2, base_channels=2, stages=(1, 1))
    teacher = EMATeacher(student, buffers=buffers)
    student.train()(torch.rand(2, 1, 8, 8) + 3)
    teacher.update(student, 5)
    pairs = list(zip(teacher.network.buffers(), student.buffers(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs) == (buffers == "copy")


def test_averaged_buffers():
    student = VNet(2, base_channels=2, stages=(1, 1))
    teacher = EMATeacher(student, decay=0.75, buffers="average")
    before = [b.clone() for b in teacher.network.buffers()]
    student.train()(torch.rand(2, 1, 8, 8) + 3)
    teacher.update(student, 100)
    for old, ours, theirs in zip(before, teacher.network.buffers(), student.buffers(), strict=True):
        if ours.is_floating_point():
            assert not torch.equal(old, theirs)
            torch.testing.assert_close(ours, 0.75 * old + 0.25 * theirs)
        else:
            assert torch.equal(ours, theirs)  # a counter has no average
            assert theirs == 1
    for buffer in teacher.network.buffers():
        if buffer.is_floating_point():
            buffer.fill_(float("nan"))
    teacher.update(student, 0)
    pairs = zip(teacher.network.buffers(), student.buffers(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_first_update_copies_whatever_the_teacher_was():
    student = nn.Linear(2, 2)
    teacher = EMATeacher(student)
    teacher.network.weight.fill_(float("nan"))
    teacher.update(student, 0)
    assert torch.equal(teacher.network.weight, student.weight)


def test_teacher_rejects_options():
    with pytest.raises(ValueError, match=r"buffers must be one of \('own', 'copy', 'average'\), got 'mean'"):
        EMATeacher(nn.Linear(1, 1), buffers="mean")
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got -0.1"):
        EMATeacher(nn.Linear(1, 1), decay=-0.1)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0, 2.0, 3.0], [11.0], [1.0, 11.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [11.0, 12.0, 13.0], [1.0, 11.0, 2.0, 12.0]),
        ([], [11.0, 12.0], [11.0, 12.0]),
        ([], [], [7.0]),  # nobody has a candidate: the old one stays
    ],
)
def test_prototypes_of_a_process_group_are_taken_in_turn(ours, theirs, expected, monkeypatch):
    memory = PrototypeMemory(2, size=4, channels=1)
    memory.replace(1, torch.tensor([[7.0]]))
    padded = torch.tensor([theirs + [0.0] * (4 - len(theirs))]).T

    def gathered(x):
        return [x, torch.tensor(len(theirs)) if x.dim() == 0 else padded]

    monkeypatch.setattr("monai_ssl.networks.prototypes.in_group", lambda: True)
    monkeypatch.setattr("monai_ssl.networks.prototypes.gather", gathered)
    memory.replace(1, torch.tensor([ours]).T.reshape(-1, 1))
    assert memory[1][:, 0].tolist() == expected


def test_a_teacher_without_warm_up():
    student = nn.Linear(1, 1)
    teacher = EMATeacher(student, decay=0.75, warm_up=False)
    before = teacher.network.weight.item()
    student.weight.data.fill_(4.0)
    teacher.update(student, 0)
    assert teacher.network.weight.item() == pytest.approx(0.75 * before + 1.0)
