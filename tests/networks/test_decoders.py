"""Networks with several outputs: decoders on one encoder, heads on one backbone, levels of one decoder."""

import pytest
import torch
from torch import nn

from monai_ssl.networks import MultiHeadNetwork, UNet, VNet, literature_network
from monai_ssl.networks.encoder_decoder import normalization


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("decoders", [1, 3])
def test_outputs_are_those_of_the_decoders(spatial_dims, decoders):
    torch.manual_seed(0)
    network = literature_network(spatial_dims, 1, 3, 2, dropout=0.0, decoders=decoders, mixed_upsampling=True).eval()
    image = torch.randn(2, 1, *(32, 16, 16)[:spatial_dims])
    with torch.no_grad():
        outputs, encoded = network.outputs(image), network.encode(image)
        assert len(outputs) == decoders
        for k, output in enumerate(outputs):
            assert torch.equal(output, network.logits(network.decode(encoded, k)[-1], k))
        torch.testing.assert_close(outputs[0], network(image))


def test_upsampling_of_the_decoders():
    def kinds(dims, **options):
        network = literature_network(dims, base_channels=2, **options)
        ups = [decoder.levels[0].up for decoder in network.decoders]
        return [next((m.mode for m in up.modules() if isinstance(m, nn.Upsample)), "transpose") for up in ups]

    assert kinds(3) == ["transpose"]
    assert kinds(2) == ["bilinear"]
    assert kinds(3, alternative=True) == ["trilinear"]
    assert kinds(2, alternative=True) == ["transpose"]
    assert kinds(3, decoders=3, mixed_upsampling=True) == ["transpose", "trilinear", "nearest"]
    assert kinds(2, decoders=3, mixed_upsampling=True) == ["bilinear", "transpose", "nearest"]
    assert kinds(3, decoders=4) == ["transpose"] * 4
    assert kinds(2, decoders=4) == ["bilinear"] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoders": 0}, "decoders must be >= 1, with mixed_upsampling up to 3, got 0"),
        ({"decoders": 4, "mixed_upsampling": True}, "decoders must be >= 1, with mixed_upsampling up to 3, got 4"),
        ({"average_decoders": True, "out_channels": None}, "average_decoders needs heads: .* got None"),
    ],
)
def test_rejects_decoders(options, message):
    with pytest.raises(ValueError, match=message):
        literature_network(3, base_channels=2, **options)


def test_dropout_after_the_levels():
    torch.manual_seed(0)
    network = UNet(2, 1, 2, channels=(4, 8, 16), level_dropout=(0.5, 0.25))
    assert [level.dropout.p for level in network.decoders[0].levels] == [0.5, 0.25]
    assert network.state_dict().keys() == UNet(2, 1, 2, channels=(4, 8, 16)).state_dict().keys()
    image = torch.randn(4, 1, 16, 16)
    coarse = network.decode(network.encode(image))[0]
    dropped = (coarse == 0).flatten(2).all(2)
    assert 0 < dropped.sum() < dropped.numel()  # whole channels
    network.eval()
    with torch.no_grad():
        assert torch.equal(network(image), network(image))
    with pytest.raises(ValueError, match="level_dropout must be empty or 2 numbers, got"):
        UNet(2, 1, 2, channels=(4, 8, 16), level_dropout=(0.5,))


@pytest.mark.parametrize("affine", [False, True])
def test_instance_normalization_of_any_size(affine):
    reference = nn.InstanceNorm3d(3, affine=affine)
    ours = normalization(nn.InstanceNorm3d(3, affine=affine))
    assert ours.state_dict().keys() == reference.state_dict().keys()
    x = torch.randn(2, 3, 4, 4, 4)
    assert torch.equal(ours(x), reference(x))
    assert ours(torch.randn(2, 3, 1, 1, 1)).abs().max() < 1e-3
    batch = nn.BatchNorm3d(3)
    assert normalization(batch) is batch


def test_heads_on_any_backbone():
    torch.manual_seed(0)
    network = MultiHeadNetwork(nn.Conv2d(1, 6, 3, padding=1), out_channels=3, feature_channels=6, heads=3)
    image = torch.randn(2, 1, 8, 8)
    outputs = network.outputs(image)
    assert [tuple(z.shape) for z in outputs] == [(2, 3, 8, 8)] * 3
    torch.testing.assert_close(network(image), outputs[0])
    assert not torch.equal(outputs[0], outputs[1])
    with pytest.raises(ValueError, match="heads must be >= 1, got 0"):
        MultiHeadNetwork(nn.Conv2d(1, 6, 1), 3, 6, heads=0)
    with pytest.raises(ValueError, match="spatial_dims must be given"):
        MultiHeadNetwork(nn.Identity(), 3, 6)


def test_a_v_net_averages_its_decoders_in_training_too():
    torch.manual_seed(0)
    network = VNet(2, 1, 2, base_channels=2, dropout=0.0, decoders=("transpose", "nearest"), average_decoders=True)
    image = torch.randn(2, 1, 16, 16)
    network(image).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
