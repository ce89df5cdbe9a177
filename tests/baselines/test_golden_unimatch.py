"""UniMatch and UniMatch V2 on given outputs: labels, confidences, boxes and losses by the parts of ``WeakToStrong``.

The factors between the losses, and that V1 has a second pool batch, are UniMatch's; what is no part of ours stands in
``UNCLAIMED``.
"""

import numpy as np
import pytest
import torch
from released import float64
from torch import nn

from monai_ssl.losses import ForegroundDiceLoss, HalfDiceCELoss, supervised_cross_entropy
from monai_ssl.methods import WeakToStrong
from monai_ssl.methods.weak_to_strong import _drop_complementarily
from monai_ssl.networks import VNet
from monai_ssl.transforms.batched import paste

THRESHOLD = 0.95


def says(logits):
    """What a teacher with these logits says: labels and confidences, and which of these count."""
    method = WeakToStrong(nn.Identity(), threshold=THRESHOLD)
    label, counts = method.targets(logits)
    method.threshold = None
    assert torch.equal(label, method.targets(logits)[0])
    return label, method.targets(logits)[1], counts


def check_pasted(golden, prefix, view, n, tensors, partner, names):
    """Own rows first, then those of the partner, if it is another batch."""
    inside = golden.tensor(f"{prefix}_box{view}", torch.bool)[:, None]
    missing = len(tensors[0]) - n
    pasted = paste(tensors, torch.cat([inside, torch.zeros(missing, *inside.shape[1:], dtype=torch.bool)]), partner)
    for tensor, name in zip(pasted, names, strict=True):
        if name is None:
            continue
        expected = golden[f"{prefix}_{name}"].reshape(tensor[:n].shape)
        np.testing.assert_allclose(tensor[:n], expected, rtol=1e-6, err_msg=name)
    return [tensor[:n] for tensor in pasted]


@pytest.mark.claims(
    "um1_box?", "um1_pred*", "um1_conf_*", "um1_mask_*", "um1_mixed_*", "um1_img_u_s*", "um1_kept", "um1_label",
    "um1_loss*", "um1_grad_*",
)  # fmt: skip
def test_golden_unimatch(golden):
    preds, fp, strong = (
        golden.tensor(f"um1_{key}", torch.float64).requires_grad_() for key in ("preds", "preds_fp", "pred_strong")
    )
    label = golden.tensor("um1_label", torch.int64)[:, None]
    dice, factors = (
        ForegroundDiceLoss(include_background=True),
        {"x": 0.5, "u_s1": 0.125, "u_s2": 0.125, "u_w_fp": 0.25},
    )
    with float64():
        own, confidence, counts = says(preds[2:].detach())
        theirs, their_confidence, _ = says(golden.tensor("um1_pred_mix", torch.float64))
        np.testing.assert_array_equal(own[:, 0], golden["um1_mask_u_w"])
        np.testing.assert_array_equal(theirs[:, 0], golden["um1_mask_u_w_mix"])
        np.testing.assert_allclose(confidence[:, 0], golden["um1_conf_u_w"], rtol=1e-6)
        losses, kept = {"x": HalfDiceCELoss(include_background=True)(preds[:2], label)}, []
        for view in (1, 2):
            images = [golden.tensor(f"um1_img_u_s{view}{mix}") for mix in ("", "_mix")]
            pooled = [torch.cat(pair) for pair in (images, (own, theirs), (confidence, their_confidence))]
            names = (f"mixed_img_u_s{view}", f"mask_u_w_cutmixed{view}", f"conf_u_w_cutmixed{view}")
            _, target, sure = check_pasted(golden, "um1", view, 2, pooled, torch.tensor([2, 3, 0, 1]), names)
            kept.append(int((sure >= THRESHOLD).sum()))
            losses[f"u_s{view}"] = dice(strong[2 * view - 2 : 2 * view], target.masked_fill(sure < THRESHOLD, 255))
        losses["u_w_fp"] = dice(fp[2:], own.masked_fill(counts == 0, 255))
        assert [int(counts.sum()), *kept] == golden["um1_kept"].tolist()
        for name, loss in losses.items():
            assert loss.item() == pytest.approx(golden.number(f"um1_loss_{name}"), rel=1e-6), name
        total = sum(factors[name] * loss for name, loss in losses.items())
        assert total.item() == pytest.approx(golden.number("um1_loss"), rel=1e-6)
        gradients = torch.autograd.grad(total, [preds, fp, strong])
    for name, found in zip(("preds", "fp", "strong"), gradients, strict=True):
        np.testing.assert_allclose(found, golden[f"um1_grad_{name}"], rtol=1e-4, atol=1e-7)


@pytest.mark.claims(
    "um2_box?", "um2_conf_*", "um2_mask_*", "um2_ignore*", "um2_mixed_*", "um2_img_u_s*", "um2_kept", "um2_label",
    "um2_loss*", "um2_grad_*", "um2_pred_*", "um2_teacher",
)  # fmt: skip
def test_golden_unimatch_v2(golden):
    x, strong = (golden.tensor(f"um2_pred_{key}", torch.float64).requires_grad_() for key in ("x", "strong"))
    ignored = golden.tensor("um2_ignore", torch.int64)[:, None]
    method = WeakToStrong(nn.Identity(), threshold=THRESHOLD)
    with float64():
        label, confidence, _ = says(golden.tensor("um2_teacher", torch.float64))
        np.testing.assert_array_equal(label[:, 0], golden["um2_mask_u_w"])
        np.testing.assert_allclose(confidence[:, 0], golden["um2_conf_u_w"], rtol=1e-6)
        of_labels = supervised_cross_entropy(x, golden.tensor("um2_label", torch.int64)[:, None])
        assert of_labels.item() == pytest.approx(golden.number("um2_loss_x"), rel=1e-6)
        kept, losses = [], []
        for view in (1, 2):
            tensors = [golden.tensor(f"um2_img_u_s{view}"), label, confidence, ignored]
            names = [f"{name}{view}" for name in ("mixed_img_u_s", "mask_u_w_cutmixed", "conf_u_w_cutmixed")]
            if view == 2:
                names[2] = None  # not stored
            names.append(f"ignore_mask_cutmixed{view}")
            _, target, sure, padding = check_pasted(golden, "um2", view, 3, tensors, torch.tensor([2, 1, 0]), names)
            valid = padding != 255
            weight = ((sure >= THRESHOLD) & valid).double()
            kept.append([int(weight.sum()), int(valid.sum())])
            # ours is the mean over all voxels, theirs over those that are no padding; our patches know none
            share = valid.numel() / valid.sum()
            losses.append(share * method.pseudo_loss(strong[3 * view - 3 : 3 * view], target, weight))
            assert losses[-1].item() == pytest.approx(golden.number(f"um2_loss_u_s{view}"), rel=1e-6)
        assert kept[0] == golden["um2_kept"].tolist()
        of_pool = sum(losses) / 2
        assert of_pool.item() == pytest.approx(golden.number("um2_loss_u_s"), rel=1e-6)
        total = 0.5 * (of_labels + of_pool)
        assert total.item() == pytest.approx(golden.number("um2_loss"), rel=1e-6)
        gradients = torch.autograd.grad(total, [x, strong])
    for name, found in zip(("x", "strong"), gradients, strict=True):
        np.testing.assert_allclose(found, golden[f"um2_grad_{name}"], rtol=1e-4, atol=1e-7)


@pytest.mark.claims("um2_modes_student_student_teacher")
def test_golden_unimatch_v2_modes(golden):
    method = WeakToStrong(VNet(spatial_dims=2, base_channels=2)).eval().train()
    modes = [method.student.training, method.student.training, method.teacher.training]
    assert modes == golden["um2_modes_student_student_teacher"].astype(bool).tolist()


@pytest.mark.parametrize("batch", [pytest.param(n, marks=pytest.mark.claims(f"um2_drop_b{n}_*")) for n in (6, 8)])
def test_golden_unimatch_v2_complementary_dropout(golden, batch, monkeypatch):
    drawn = golden.tensor(f"um2_drop_b{batch}_bernoulli", torch.float64)[..., None, None]
    # theirs leaves the first entries of a permutation undropped, ours the rows whose number in one is small
    numbers = golden.tensor(f"um2_drop_b{batch}_perm").argsort()
    monkeypatch.setattr(torch, "randperm", lambda n, **options: numbers)
    monkeypatch.setattr(torch, "randint", lambda low, high, shape, **options: drawn.reshape(shape))
    labeled = 2
    features = torch.ones(labeled + batch, 10, 3, 3, dtype=torch.float64)
    [dropped] = _drop_complementarily([features], labeled)
    assert torch.equal(dropped[:labeled], features[:labeled])
    expected = golden.tensor(f"um2_drop_b{batch}_masks")[..., None, None].expand_as(dropped[labeled:])
    assert torch.equal(dropped[labeled:], expected)
