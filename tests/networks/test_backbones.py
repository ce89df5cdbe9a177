"""MONAI's networks as backbones: what docs/how_to/backbones.md says works, works."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai.networks import nets
from torch import nn

from monai_ssl.methods import (
    CorrelationAwareMutualLearning,
    DualTaskConsistency,
    MutualConsistency,
    SemiSupervisedMethod,
)
from monai_ssl.networks import DualTaskNetwork, FeatureNetwork, MultiHeadNetwork

CHANNELS = 8
# SwinUNETR halves five times and wants more than one voxel then
SIZE = {"SwinUNETR": (64, 32, 32)}
BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "SegResNet": lambda: nets.SegResNet(spatial_dims=3, init_filters=8, in_channels=1, out_channels=CHANNELS),
    "DynUNet": lambda: nets.DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=CHANNELS,
        kernel_size=[3, 3, 3],
        strides=[1, 2, 2],
        upsample_kernel_size=[2, 2],
        filters=[8, 16, 32],
    ),
    "SwinUNETR": lambda: nets.SwinUNETR(in_channels=1, out_channels=CHANNELS, feature_size=12, spatial_dims=3),
    "MedNeXt": lambda: nets.MedNeXt(
        spatial_dims=3,
        in_channels=1,
        out_channels=CHANNELS,
        init_filters=8,
        encoder_expansion_ratio=2,
        decoder_expansion_ratio=2,
        bottleneck_expansion_ratio=2,
        blocks_down=(1, 1, 1, 1),
        blocks_bottleneck=1,
        blocks_up=(1, 1, 1, 1),
        deep_supervision=False,
    ),
}


def dtc(backbone: Callable[[], nn.Module]) -> SemiSupervisedMethod:
    return DualTaskConsistency(DualTaskNetwork(backbone(), n_classes=2, feature_channels=CHANNELS))


def caml(backbone: Callable[[], nn.Module]) -> SemiSupervisedMethod:
    vanilla, auxiliary = (FeatureNetwork(backbone(), 2, feature_channels=CHANNELS) for _ in range(2))
    return CorrelationAwareMutualLearning(vanilla, auxiliary, rows_per_class=64, prototypes_per_class=8)


def mc_net(backbone: Callable[[], nn.Module]) -> SemiSupervisedMethod:
    return MutualConsistency(MultiHeadNetwork(backbone(), 2, feature_channels=CHANNELS, heads=2))


@pytest.mark.parametrize(
    ("build", "backbone"),
    [
        pytest.param(build, name, id=f"{build.__name__}-{name}",
                     marks=[pytest.mark.slow] if name == "SwinUNETR" and build is not dtc else [])
        for build in (dtc, caml, mc_net) for name in BACKBONES
    ],
)  # fmt: skip
def test_two_iterations(build, backbone):
    torch.manual_seed(0)
    if backbone == "SwinUNETR":
        pytest.importorskip("einops")
    method = build(BACKBONES[backbone])
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01)
    size = SIZE.get(backbone, (32, 32, 32))
    label = torch.zeros(1, 1, *size, dtype=torch.long)
    label[..., 8:20, 8:20, 8:20] = 1
    before = [p.detach().clone() for p in method.network.parameters()]
    for _ in range(2):
        labeled = {"image": torch.rand(label.shape) + label, "label": label, "index": torch.tensor([0])}
        terms = method(labeled, {"image": torch.rand(label.shape)})
        loss = torch.stack(list(terms.values())).sum()
        assert torch.isfinite(loss), terms
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step()
    assert method.iteration == 2
    changed = [not torch.equal(p, old) for p, old in zip(method.network.parameters(), before, strict=True)]
    assert sum(changed) > len(changed) / 2
    method.eval()
    with torch.no_grad():
        assert method.network(torch.rand(label.shape)).shape == (1, 2, *size)
