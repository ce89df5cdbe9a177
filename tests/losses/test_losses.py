"""Every loss against its formula written in float64, against numbers worked out by hand, and in its limits."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from monai_ssl.losses import (
    CrossPseudoLabelLoss,
    DualTaskConsistencyLoss,
    ForegroundDiceLoss,
    HalfDiceCELoss,
    OmniCorrelationLoss,
    SharpenedConsistencyLoss,
    SigmoidRampUp,
    SmoothHeaviside,
    class_representations,
    masked_sums,
    most_confident,
    sharpen,
)

SHAPES = [(2, 2, 8, 6), (2, 4, 8, 6), (3, 2, 6, 5, 4), (2, 3, 6, 5, 4), (1, 2, 7)]


def random_batch(shape, seed=0):
    """Logits (B, C, *spatial) and labels (B, 1, *spatial) in which every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, shape[1], (shape[0], 1, *shape[2:]), generator=generator)
    return torch.randn(shape, generator=generator) * 2, label


def reference_dice(logits, label, squared, pooled, first=1):
    """Dice loss with loops over images and classes, in float64."""
    z = logits.double().numpy()
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    y = label.numpy()[:, 0]
    n, classes = p.shape[:2]
    groups = [list(range(n))] if pooled else [[i] for i in range(n)]
    losses = []
    for rows in groups:
        for c in range(first, classes):
            pc, yc = p[rows, c], (y[rows] == c).astype(float)
            size = (pc**2).sum() + (yc**2).sum() if squared else pc.sum() + yc.sum()
            losses.append(1 - (2 * (pc * yc).sum() + 1e-5) / (size + 1e-5))
    return float(np.mean(losses))


# ------------------------------------------------------------------------------------------------- Dice


@pytest.mark.parametrize("include_background", [False, True])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_dice_equals_the_formula(shape, squared, pooled, include_background):
    logits, label = random_batch(shape)
    loss = ForegroundDiceLoss(squared, pooled, include_background)(logits, label)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    expected = reference_dice(logits, label, squared, pooled, first=1 - include_background)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_dice_by_hand():
    # two voxels; p = (3/4, 1/4), y = (1, 0)
    z = math.log(3.0)
    logits = torch.tensor([[[0.0, 0.0], [z, -z]]])  # (1, 2, 2)
    label = torch.tensor([[[1, 0]]])
    assert ForegroundDiceLoss()(logits, label).item() == pytest.approx(1 - 1.5 / (10 / 16 + 1), abs=1e-5)
    assert ForegroundDiceLoss(squared=False)(logits, label).item() == pytest.approx(1 - 1.5 / 2, abs=1e-5)


def test_dice_stays_accurate_on_large_patches():
    # float32 vector norms are off by 1e-4 and more at the sizes that are trained on
    logits, label = random_batch((2, 3, 80, 80, 64))
    assert ForegroundDiceLoss()(logits, label).item() == pytest.approx(
        reference_dice(logits, label, True, True), abs=1e-6
    )


@pytest.mark.parametrize("empty", [False, True])
def test_dice_without_and_with_nothing_but_foreground(empty):
    label = torch.full((1, 1, 4, 4), 0 if empty else 1)
    right = torch.zeros(1, 2, 4, 4)
    right[:, 0 if empty else 1] = 40.0
    assert ForegroundDiceLoss()(right, label).item() == pytest.approx(0.0, abs=1e-6)
    assert ForegroundDiceLoss()(right.flip(1), label).item() == pytest.approx(1.0, abs=1e-5)


def test_dice_of_half_precision_is_computed_in_float32():
    logits, label = random_batch((2, 2, 8, 6))
    assert ForegroundDiceLoss()(logits.bfloat16(), label) == ForegroundDiceLoss()(logits.bfloat16().float(), label)


@pytest.mark.parametrize("loss", [ForegroundDiceLoss(), ForegroundDiceLoss(False, False), HalfDiceCELoss()])
def test_supervised_gradients_equal_finite_differences(loss):
    logits, label = random_batch((2, 3, 4, 3))
    logits.requires_grad_()
    loss(logits, label).backward()
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    step = 1e-2 / direction.norm()
    with torch.no_grad():
        difference = (loss(logits + step * direction, label) - loss(logits - step * direction, label)) / (2 * step)
    assert (logits.grad * direction).sum().item() == pytest.approx(difference.item(), rel=5e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_half_dice_ce_equals_the_formula(shape):
    logits, label = random_batch(shape)
    log_p = logits.double() - logits.double().logsumexp(1, keepdim=True)
    cross_entropy = -log_p.gather(1, label).mean().item()
    for background in (False, True):
        dice = reference_dice(logits, label, True, True, first=1 - background)
        loss = HalfDiceCELoss(include_background=background)(logits, label)
        assert loss.item() == pytest.approx(0.5 * (cross_entropy + dice), abs=1e-6)


def test_half_dice_ce_takes_labels_of_any_integer_type():
    logits, label = random_batch((2, 2, 8, 6))
    assert HalfDiceCELoss()(logits, label.to(torch.uint8)) == HalfDiceCELoss()(logits, label)


# ------------------------------------------------------------------------------------------------- dual task


def test_smooth_heaviside_values_and_sign():
    d = torch.tensor([-1.0, -1e-3, 0.0, 1e-3, 1.0])
    expected = [1.0, 1 / (1 + math.exp(-1.5)), 0.5, 1 / (1 + math.exp(1.5)), 0.0]
    assert SmoothHeaviside()(d).tolist() == pytest.approx(expected, abs=1e-6)
    assert SmoothHeaviside(2.0)(torch.tensor([0.5])).item() == pytest.approx(1 / (1 + math.e), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_smooth_heaviside_works_in_float32(dtype):
    d = torch.linspace(-0.01, 0.01, 101).to(dtype)
    mask = SmoothHeaviside()(d)
    assert mask.dtype == torch.float32
    assert torch.equal(mask, SmoothHeaviside()(d.float()))


def test_smooth_heaviside_gradient_at_the_contour_and_away_from_it():
    d = torch.tensor([0.0, 0.02, -0.2], requires_grad=True)
    SmoothHeaviside()(d).sum().backward()
    assert d.grad[0].item() == pytest.approx(-375.0, rel=1e-5)  # -1500 / 4
    assert d.grad[1].abs() < 1e-8
    assert d.grad[2] == 0


@pytest.mark.parametrize("slope", [0, -1500.0, float("nan")])
def test_smooth_heaviside_rejects_slope(slope):
    with pytest.raises(ValueError, match=r"slope must be > 0, got "):
        SmoothHeaviside(slope)


@pytest.mark.parametrize("shape", [(2, 1, 8, 6), (2, 3, 6, 5, 4)])
def test_consistency_equals_the_formula_and_reaches_both_sides(shape):
    generator = torch.Generator().manual_seed(0)
    d = (torch.rand(shape, generator=generator) * 0.01 - 0.005).requires_grad_()
    p = torch.rand(shape, generator=generator).requires_grad_()
    loss = DualTaskConsistencyLoss(slope=700.0)(d, p)
    expected = np.mean((1 / (1 + np.exp(700 * d.detach().double().numpy())) - p.detach().double().numpy()) ** 2)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert d.grad.abs().sum() > 0
    assert p.grad.abs().sum() > 0
    # each side is pulled toward the other
    better = DualTaskConsistencyLoss(700.0)(d - 1e-6 * d.grad, p)
    assert better < loss
    assert DualTaskConsistencyLoss(700.0)(d, p - p.grad) < loss


def test_consistency_is_computed_in_float32():
    d, p = torch.full((1, 1, 4), 0.001, dtype=torch.bfloat16), torch.full((1, 1, 4), 0.3, dtype=torch.bfloat16)
    loss = DualTaskConsistencyLoss()(d, p)
    assert loss.dtype == torch.float32
    assert loss == functional.mse_loss(torch.sigmoid(-1500 * d.float()), p.float())


def test_consistency_rejects_different_shapes():
    with pytest.raises(ValueError, match=r"same shape .* got \(1, 1, 4, 4\) and \(1, 2, 4, 4\)"):
        DualTaskConsistencyLoss()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4))


# ------------------------------------------------------------------------------------------------- ramp-up


def test_ramp_up_continuous_values():
    ramp = SigmoidRampUp(length=40, maximum=0.1)
    for t, level in ((-3, 0.0), (0, 0.0), (10, 0.25), (20, 0.5), (30, 0.75), (40, 1.0), (1000, 1.0)):
        assert ramp(t) == pytest.approx(0.1 * math.exp(-5 * (1 - level) ** 2), abs=1e-12)


def test_ramp_up_staircase():
    ramp = SigmoidRampUp(length=600, maximum=1.0, granularity=150)
    levels = [math.exp(-5 * (1 - k / 4) ** 2) for k in range(5)]
    values = [ramp(i) for i in range(700)]
    assert values[:150] == pytest.approx([levels[0]] * 150)
    assert values[150:300] == pytest.approx([levels[1]] * 150)
    assert values[450:600] == pytest.approx([levels[3]] * 150)
    assert values[600:] == [1.0] * 100


def test_ramp_up_is_monotonic_and_bounded():
    for ramp in (SigmoidRampUp(97, 0.7), SigmoidRampUp(97, 0.7, 10)):
        values = [ramp(i) for i in range(120)]
        assert all(a <= b for a, b in itertools.pairwise(values))
        assert max(values) == pytest.approx(0.7)
        assert min(values) == pytest.approx(0.7 * math.exp(-5))


def test_ramp_up_of_length_zero_is_at_the_maximum():
    assert SigmoidRampUp(0, 0.3)(0) == 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1,), "length must be >= 0 iterations, got -1"),
        ((float("nan"),), "length must be >= 0 iterations, got nan"),
        ((10, -0.1), "maximum must be >= 0, got -0.1"),
        ((10, 1.0, 0), "granularity must be >= 1 iteration, got 0"),
    ],
)
def test_ramp_up_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        SigmoidRampUp(*arguments)


def test_ramp_up_shows_its_numbers():
    assert repr(SigmoidRampUp(10, 2, 5)) == "SigmoidRampUp(length=10, maximum=2, granularity=5)"


# ------------------------------------------------------------------------------------------------- TAC, CAML and kin


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_masked_sums(dtype, layout):
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, 5, 4, 6, 2, generator=generator).to(dtype).contiguous(memory_format=layout)
    masks = torch.rand(2, 3, 4, 6, 2, generator=generator)
    weights = torch.rand(2, 3, 5, generator=generator)
    found = []
    for function in (masked_sums, lambda f, m: torch.einsum("bfxyz,bcxyz->bcf", f.float(), m)):
        f, m = features.clone().requires_grad_(), masks.clone().requires_grad_()
        sums = function(f, m)
        assert sums.dtype == torch.float32
        found.append((sums.detach(), *torch.autograd.grad((sums * weights).sum(), [f, m])))
    assert found[0][1].stride() == features.stride()
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-2 if actual.dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_class_representations_of_a_constant():
    # the trap of the released denominator: a share, not an average
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, 0, :6], masks[1, 0, :2] = 1, 1  # 48 and 16 voxels
    features = torch.ones(2, 3, 8, 8)
    averages, mass = class_representations(features, masks)
    torch.testing.assert_close(averages, torch.ones(2, 1, 3))
    assert mass[:, 0].tolist() == [48, 16]
    shares, _ = class_representations(features, masks, "batch")
    torch.testing.assert_close(shares[:, 0, 0], torch.tensor([0.75, 0.25]))
    alone, _ = class_representations(features, masks, "batch", sizes=[1, 1])
    torch.testing.assert_close(alone, averages)
    # subsampled as interpolate "nearest" does: a voxel at an odd place vanishes
    masks.zero_()[0, 0, 5, 5] = 1
    assert class_representations(features[..., ::2, ::2], masks)[1].sum() == 0


def test_masks_must_fit():
    with pytest.raises(ValueError, match=r"features and masks must agree .* got \(2, 3, 4, 4\) and \(1, 3, 4, 4\)"):
        masked_sums(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"pooling must be one of"):
        class_representations(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), "max")


@pytest.mark.parametrize("n_members", [2, 3])
def test_cross_pseudo_supervision(n_members):
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(2, 3, 4, 5, generator=generator).requires_grad_() for _ in range(n_members)]
    p = [member.softmax(1) for member in z]
    pairs = [(i, j) for i in range(n_members) for j in range(n_members) if i != j]
    s = [member**4 / (member**4 + (1 - member) ** 4) for member in p]
    loss = SharpenedConsistencyLoss(0.25)(*p)
    expected = sum((p[i] - s[j]).square().mean() for i, j in pairs)
    torch.testing.assert_close(loss, expected)
    hard = CrossPseudoLabelLoss()(*z)
    expected = sum(functional.cross_entropy(z[i], z[j].argmax(1)) for i, j in pairs)
    torch.testing.assert_close(hard, expected)
    assert SharpenedConsistencyLoss(1.0)(p[0], p[1]).item() == pytest.approx(2 * (p[0] - p[1]).square().mean().item())


def test_sharpening_at_the_lowest_temperature():
    assert sharpen(torch.tensor([0.0, 0.5, 1.0]), 0.01).tolist() == [0.0, 0.5, 1.0]


def test_sharpening_survives_zeros_and_ones():
    p = torch.tensor([0.0, 1e-30, 0.5, 1.0], dtype=torch.bfloat16).requires_grad_()
    s = sharpen(p)
    s.sum().backward()
    assert s.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert p.grad.isfinite().all()


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("detach", [False, True])
def test_omni_correlation_gradients(similarity, detach):
    generator = torch.Generator().manual_seed(0)
    rows = [0.3 * torch.randn(1500, 4, generator=generator) for _ in range(2)]  # more than one piece
    prototypes = torch.randn(9, 4, generator=generator)
    loss = OmniCorrelationLoss(similarity, temperature=0.3, detach_target=detach)
    found = []
    for plain in (False, True):
        z = [x.clone().requires_grad_() for x in rows]
        if plain:
            c_v, c_a = (loss.correlation(x, prototypes) for x in z)
            value = -((c_a.detach() if detach else c_a) * (c_v + 1e-8).log()).sum(1).mean()
        else:
            value = loss(*z, prototypes)
        found.append((value.detach(), *torch.autograd.grad(value, z, allow_unused=True)))
    assert (found[0][2] is None) == detach
    for actual, expected in zip(*found, strict=True):
        if actual is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-8)


def test_most_confident_rows():
    confidence = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.8, 0.3])
    classes = torch.tensor([0, 1, 0, 1, 1, 2])
    assert most_confident(confidence, classes, 3, 2).tolist() == [2, 0, 1, 4]  # class 2 has one row only
    assert most_confident(confidence, classes, 3, 9).tolist() == [2, 0, 1, 4, 3]
    assert most_confident(confidence[:0], classes[:0], 3, 9).tolist() == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SharpenedConsistencyLoss(0.0), r"temperature must be in \[0.01, 1\], got 0.0"),
        (lambda: SharpenedConsistencyLoss()(torch.zeros(1, 2, 3)), r"two or more tensors .* got \[\(1, 2, 3\)\]"),
        (lambda: OmniCorrelationLoss("euclid"), r"similarity must be one of .* got 'euclid'"),
        (
            lambda: OmniCorrelationLoss()(torch.zeros(3, 2), torch.zeros(2, 2), torch.zeros(4, 2)),
            r"must have equal numbers .* got \(3, 2\), \(2, 2\), \(4, 2\)",
        ),
        (lambda: ForegroundDiceLoss(activation="x"), r'activation must be "softmax" or "sigmoid", got \'x\''),
        (lambda: ForegroundDiceLoss(reduction="x"), r'reduction must be "mean" or "sum", got \'x\''),
        (lambda: ForegroundDiceLoss(smooth=0), r"smooth must be > 0, got 0"),
    ],
)
def test_rejects_options_and_shapes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
