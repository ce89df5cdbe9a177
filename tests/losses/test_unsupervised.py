"""Losses that need no label: masked consistency, uncertainty, virtual adversarial training."""

import math

import pytest
import torch
from torch import nn

from monai_ssl.losses import (
    ForegroundDiceLoss,
    MaskedMSELoss,
    PrototypeSeparationLoss,
    UncertaintyThreshold,
    VirtualAdversarialLoss,
    monte_carlo_probabilities,
    predictive_entropy,
)
from monai_ssl.losses.virtual_adversarial import kl_divergence, literature_epsilon, unit_norm
from monai_ssl.networks import VNet


@pytest.mark.parametrize("n_classes", [2, 5])
def test_entropy_reaches_the_threshold_of_the_end(n_classes):
    uniform = predictive_entropy(torch.full((1, n_classes, 3), 1 / n_classes))
    assert uniform.flatten().tolist() == pytest.approx([math.log(n_classes)] * 3, abs=1e-5)
    threshold = UncertaintyThreshold(n_classes, 100)
    assert threshold(100) == pytest.approx(math.log(n_classes))
    assert (uniform < threshold(100)).all()  # by the 1e-6 in the logarithm, as released: nothing is filtered at the end
    assert threshold(0) == pytest.approx((0.75 + 0.25 * math.exp(-5)) * math.log(n_classes))
    assert predictive_entropy(torch.eye(n_classes)[None]).abs().max() < 1e-5


def test_masked_consistency_refuses_other_shapes():
    p = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"same shape, got \(2, 3, 4\) and \(2, 2, 4\)"):
        MaskedMSELoss()(p, p[:, :2])
    with pytest.raises(ValueError, match=r"mask must have one channel .* got shape \(2, 3, 4\)"):
        MaskedMSELoss()(p, p, p > 0)
    assert MaskedMSELoss()(p, p + 1).item() == 1.0


def test_stochastic_passes_average_the_same_images():
    seen = []

    def network(x):
        seen.append(x)
        return torch.stack([x[:, 0], torch.zeros_like(x[:, 0])], 1)

    image = torch.tensor([[[1.0]], [[-2.0]]])
    mean = monte_carlo_probabilities(network, image, passes=5, passes_per_call=2, perturb=lambda x: x)
    assert [len(x) for x in seen] == [4, 4, 2]
    assert torch.allclose(mean[:, 0, 0], torch.tensor([1.0, -2.0]).sigmoid())
    with pytest.raises(ValueError, match=r"passes and passes_per_call must be >= 1, got 0 and 2"):
        monte_carlo_probabilities(network, image, passes=0)


def test_kl_divergence_is_the_voxel_mean():
    q, p = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5).softmax(1)
    expected = (p * (p.log() - q.softmax(1).log())).sum(1).mean()
    assert kl_divergence(q, p).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_virtual_adversarial_loss_around_any_network(norm):
    network = VNet(2, base_channels=2, stages=(1, 1), norm=norm, dropout=0.3).train()
    image = torch.rand(2, 1, 16, 16)
    before = {name: value.clone() for name, value in network.named_buffers()}
    with torch.no_grad():
        reference = network.eval()(image).softmax(1)
    network.train()
    loss = VirtualAdversarialLoss("classwise", power_iterations=2)(network, image, reference)
    for name, value in network.named_buffers():
        assert torch.equal(value, before[name]), name  # with a reference no pass counts
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())


def test_virtual_adversarial_guard_is_lifted_after_an_error():
    network = VNet(2, base_channels=2, stages=(1, 1))
    with pytest.raises(ValueError, match="multiple of 2"):
        VirtualAdversarialLoss()(network, torch.rand(2, 1, 16, 15), torch.rand(2, 2, 16, 15))
    assert all(m.track_running_stats for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def test_virtual_adversarial_loss_shows_nan():
    network = VNet(2, base_channels=2, stages=(1, 1))
    nn.init.constant_(network.heads[0].bias, float("nan"))
    assert VirtualAdversarialLoss()(network, torch.rand(2, 1, 16, 16)).isnan()


@pytest.mark.parametrize("include_background", [False, True])
def test_dice_of_probabilities(include_background):
    loss = ForegroundDiceLoss(include_background=include_background, smooth=1e-8)
    logits, label = torch.randn(2, 3, 6, 5), torch.randint(0, 3, (2, 1, 6, 5))
    p = logits.softmax(1) if include_background else logits.softmax(1)[:, 1:]
    assert loss.of_probabilities(p, label) == loss(logits, label)


# ------------------------------------------------------------------------------------------------- several channels


def test_epsilon_of_the_papers_grows_with_every_channel():
    one, four = (literature_epsilon(torch.zeros(2, c, 32, 32, 16)) for c in (1, 4))
    assert one == pytest.approx(10 * math.sqrt(32 * 32 * 16 / (112 * 112 * 80)))
    assert four == pytest.approx(2 * one)  # the change per value is the same
    assert literature_epsilon(torch.zeros(1, 3, 64, 32)) == pytest.approx(6 * math.sqrt(3 * 64 * 32 / 256**2))


class OneSequence(nn.Module):
    """Logits from the second channel alone."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        return self.layer(x[:, 1:2])


@pytest.mark.parametrize("distance", ["flat", "classwise", "kl"])
def test_an_attack_on_two_different_channels(distance):
    torch.manual_seed(0)
    image = torch.stack([torch.rand(2, 12, 10), 50 * torch.rand(2, 12, 10) ** 4], 1)
    loss, network = VirtualAdversarialLoss(distance), OneSequence()
    perturbed, reference = loss.attack(network, image)
    r = perturbed - image
    assert reference.shape == (2, 2, 12, 10)
    # what the network does not look at is left alone, and all of epsilon goes into the rest
    assert r[:, 0].abs().max() < 1e-6
    expected = 6 * math.sqrt(2 * 12 * 10 / 256**2)
    assert r[:, 1].flatten(1).norm(dim=1).tolist() == pytest.approx([expected] * 2, rel=1e-3)
    assert loss.compare(network, perturbed, reference) > loss.compare(network, image, reference)


def test_noise_of_one_norm_over_all_channels():
    d = unit_norm(torch.rand(3, 4, 5, 6) * torch.tensor([1.0, 10.0, 100.0, 0.0]).reshape(1, 4, 1, 1))
    assert d.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    assert d[:, 2].norm() > 5 * d[:, 1].norm() > 25 * d[:, 0].norm()  # one factor per image, not per channel


# ------------------------------------------------------------------------------------------------- separation


def test_prototypes_are_targets_without_a_gradient():
    generator = torch.Generator().manual_seed(0)
    features, prototypes = (torch.randn(n, 4, generator=generator).requires_grad_() for n in (7, 5))
    scores = torch.rand(5, generator=generator).add(0.1).requires_grad_()
    loss = PrototypeSeparationLoss()(features, prototypes, prototype_scores=scores)
    f, z, v = features.detach(), prototypes.detach(), scores.detach() / scores.detach().mean()
    cosine = nn.functional.normalize(f, dim=1) @ nn.functional.normalize(z, dim=1).T
    assert loss.item() == pytest.approx((v * (1 - cosine)).mean().item(), rel=1e-5)
    loss.backward()
    assert features.grad.abs().sum() > 0
    assert scores.grad.abs().sum() > 0
    assert prototypes.grad is None


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_dice_sums_over_classes_never_over_images(pooled, reduction):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 6, 5, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 4, (3, 1, 6, 5), generator=generator)
    p, y = logits.softmax(1), nn.functional.one_hot(label[:, 0], 4).movedim(-1, 1)
    per_class = []
    for c in (1, 2, 3):
        groups = [range(3)] if pooled else [[0], [1], [2]]
        losses = []
        for rows in groups:
            q, t = p[list(rows), c], y[list(rows), c]
            losses.append(1 - (2 * (q * t).sum() + 1e-5) / (q.square().sum() + t.sum() + 1e-5))
        per_class.append(sum(losses) / len(losses))
    expected = sum(per_class) / (3 if reduction == "mean" else 1)
    loss = ForegroundDiceLoss(pooled=pooled, reduction=reduction)(logits, label)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
