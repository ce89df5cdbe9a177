"""What every network must do: one tester that each of them inherits."""

import io

import numpy as np
import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import nn

from monai_ssl.networks import (
    CrossSampleAttention,
    CrossSampleNetwork,
    DualTaskNetwork,
    DualTaskVNet,
    FeatureNetwork,
    TappedNetwork,
    UNet,
    VNet,
    literature_dual_task_network,
    literature_network,
)

SIDES = {2: (32, 48), 3: (16, 32, 16)}
# (spatial_dims, in_channels, n_classes)
CASES = [(2, 1, 2), (2, 3, 4), (3, 1, 4), (3, 3, 2)]


def image(spatial_dims, in_channels, batch=2):
    return torch.randn(batch, in_channels, *SIDES[spatial_dims], generator=torch.Generator().manual_seed(0))


class NetworkTester:
    """Inherit it and override :meth:`build`: a small network with sides divisible by 16."""

    def build(self, spatial_dims=2, in_channels=1, n_classes=2, **options):
        raise NotImplementedError

    @pytest.mark.parametrize(("spatial_dims", "in_channels", "n_classes"), CASES)
    def test_forward_and_backward(self, spatial_dims, in_channels, n_classes):
        network = self.build(spatial_dims, in_channels, n_classes)
        x = image(spatial_dims, in_channels)
        logits = network(x)
        assert logits.shape == (2, n_classes, *SIDES[spatial_dims])
        assert logits.dtype == torch.float32
        logits.square().mean().backward()
        without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        # only what the deployed output does not use may stay without a gradient
        assert all(name.startswith(("distance_head", "decoders.1", "heads.1")) for name in without), without

    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_evaluation_is_deterministic_for_one_image(self, spatial_dims):
        network = self.build(spatial_dims).eval()
        x = image(spatial_dims, 1, batch=1)
        with torch.no_grad():
            assert torch.equal(network(x), network(x))
            assert network(x).shape == (1, 2, *SIDES[spatial_dims])

    def test_dropout_is_honored(self):
        x = image(2, 1)
        with torch.no_grad():
            with_dropout = self.build(dropout=0.5).train()
            assert not torch.equal(with_dropout(x), with_dropout(x))
            without = self.build(dropout=0.0).train()
            assert torch.equal(without(x), without(x))
        assert list(with_dropout.state_dict()) == list(without.state_dict())

    def test_bad_dropout_is_refused(self):
        with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.5"):
            self.build(dropout=1.5)

    def test_state_dict_round_trip(self):
        network, other = self.build().eval(), self.build().eval()
        x = image(2, 1)
        buffer = io.BytesIO()
        torch.save(network.state_dict(), buffer)
        buffer.seek(0)
        other.load_state_dict(torch.load(buffer, weights_only=True))
        with torch.no_grad():
            assert torch.equal(network(x), other(x))

    def test_gradient_reaches_the_image(self):
        x = image(2, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(self.build()(x).square().mean(), x)
        assert gradient.abs().sum() > 0

    @pytest.mark.parametrize("shape", [(1, 1, 32, 40), (1, 1, 33, 32)])
    def test_bad_side_is_refused(self, shape):
        with pytest.raises(ValueError, match=r"every spatial side .* multiple of 16, got shape .*DivisiblePad"):
            self.build()(torch.zeros(shape))

    def test_bad_number_of_dimensions_is_refused(self):
        with pytest.raises(ValueError, match="must have 4 dimensions"):
            self.build(2)(torch.zeros(1, 1, 16, 16, 16))

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_torchscript(self, spatial_dims):
        network = self.build(spatial_dims).eval()
        x = image(spatial_dims, 1)
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(network), buffer)
        buffer.seek(0)
        with torch.no_grad():
            torch.testing.assert_close(torch.jit.load(buffer)(x), network(x))

    def test_channels_last(self):
        network = self.build().eval().double()  # float32 rounds differently in the other order
        x = image(2, 1).double()
        with torch.no_grad():
            expected = network(x)
            actual = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_onnx(self, spatial_dims, tmp_path):
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
        network = self.build(spatial_dims).eval()
        x = image(spatial_dims, 1)
        path = tmp_path / "network.onnx"
        torch.onnx.export(network, (x,), path, input_names=["image"], dynamo=True, verbose=False)
        (actual,) = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(actual, network(x).numpy(), rtol=1e-3, atol=1e-4)


class EncoderDecoderTester(NetworkTester):
    """The interface that methods use: :meth:`build` returns an ``EncoderDecoder``."""

    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_features(self, spatial_dims):
        network = self.build(spatial_dims).eval()
        x = image(spatial_dims, 1)
        sides = SIDES[spatial_dims]
        encoded = network.encode(x)
        decoded, gated = network.decode(encoded, return_gated=True)
        assert [f.shape[2:] for f in encoded] == [tuple(s >> i for s in sides) for i in range(5)]
        assert [f.shape for f in decoded] == [f.shape for f in encoded[-2::-1]]
        assert [f.shape for f in gated] == [f.shape for f in decoded]
        assert network.features(x).shape == (2, network.feature_channels, *sides)
        assert torch.equal(network.features(x), decoded[-1])
        assert torch.equal(network.heads[0](decoded[-1]), network(x))

    def test_features_carry_the_dropout(self):
        network = self.build(dropout=0.5).train()
        torch.manual_seed(0)
        features = network.features(image(2, 1))
        torch.manual_seed(0)
        assert torch.equal(network.heads[0](features), network(image(2, 1)))

    def test_without_gates_the_skips_are_the_encoder_features(self):
        network = self.build().eval()
        encoded = network.encode(image(2, 1))
        _, skips = network.decode(encoded, return_gated=True)
        assert all(torch.equal(a, b) for a, b in zip(skips, encoded[-2::-1], strict=True))

    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_gates(self, spatial_dims):
        network = self.build(spatial_dims, gates=True).eval()
        encoded = network.encode(image(spatial_dims, 1))
        _, gated = network.decode(encoded, return_gated=True)
        for skip, x in zip(gated, encoded[-2::-1], strict=True):
            assert (skip.abs() <= x.abs()).all()
            assert not torch.equal(skip, x)
        network(image(spatial_dims, 1)).sum().backward()
        assert all(p.grad is not None for p in network.parameters())

    @pytest.mark.parametrize("spatial_dims", [2, 3])
    @pytest.mark.parametrize("gates", [False, True])
    def test_taps(self, spatial_dims, gates):
        network, x = self.build(spatial_dims, gates=gates).eval(), image(spatial_dims, 1)
        logits, contextual, structural = network.taps(x)
        torch.testing.assert_close(logits, network(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network.logits(network.features(x)), logits)
        encoded = network.encode(x)
        _, gated = network.decode(encoded, return_gated=True)
        assert all(torch.equal(a, b) for a, b in zip(contextual, encoded, strict=True))
        assert len(structural) == (4 if gates else 0)
        assert all(torch.equal(a, b) for a, b in zip(structural, gated[::-1], strict=bool(structural)))

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_gates_in_torchscript(self):
        network = self.build(gates=[3, 4, 5, 6]).eval()
        x = image(2, 1)
        torch.testing.assert_close(torch.jit.script(network)(x), network(x))

    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_every_decoder(self, spatial_dims):
        network = self.build(spatial_dims, decoders=("linear", "transpose", "nearest"))
        encoded = network.encode(image(spatial_dims, 1))
        assert len(network.heads) == 3
        logits = [head(network.decode(encoded, i)[-1]) for i, head in enumerate(network.heads)]
        assert all(z.shape == (2, 2, *SIDES[spatial_dims]) for z in logits)
        sum(z.square().mean() for z in logits).backward()
        assert all(p.grad is not None for p in network.parameters())

    def test_without_head(self):
        network = self.build(n_classes=None)
        assert network.out_channels is None
        assert network(image(2, 1)).shape == (2, network.feature_channels, *SIDES[2])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
            ({"decoders": ("cubic",)}, "decoders must be a non-empty sequence of"),
            ({"decoders": ()}, "decoders must be a non-empty sequence of"),
            ({"decoders": "linear"}, "decoders must be a non-empty sequence of"),
            ({"gates": (8, 8)}, "gates must be a bool or 4 numbers"),
        ],
    )
    def test_bad_option_is_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)

    @pytest.mark.parametrize("norm", ["instance", ("group", {"num_groups": 2}), ["instance", {"affine": True}], None])
    def test_norm(self, norm):
        network = self.build(norm=norm)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        assert network(image(2, 1)).shape == (2, 2, *SIDES[2])


class TestVNet(EncoderDecoderTester):
    def build(self, spatial_dims=2, in_channels=1, n_classes=2, **options):
        return VNet(spatial_dims, in_channels, n_classes, base_channels=4, **options)

    def test_dropout_drops_whole_channels(self):
        features = self.build(dropout=0.5).train().features(image(2, 1, batch=8)).flatten(2)
        dropped = (features == 0).all(-1)
        assert 0 < dropped.sum() < dropped.numel()

    def test_stages_set_the_depth(self):
        network = VNet(2, 1, 2, base_channels=4, stages=(1, 2))
        assert network.divisor == 2
        assert network(torch.zeros(1, 1, 6, 10)).shape == (1, 2, 6, 10)
        with pytest.raises(ValueError, match="multiple of 2,"):
            network(torch.zeros(1, 1, 6, 11))
        with pytest.raises(ValueError, match="stages must be positive"):
            VNet(stages=(1, 0, 2))
        with pytest.raises(ValueError, match="channels must be positive at two scales"):
            VNet(stages=(1,))

    def test_encoder_can_be_extended(self):
        class Extended(VNet):
            def encode(self, x):
                encoded = []
                for i, stage in enumerate(self.stages):
                    x = stage(x) if i != 3 else stage(x) * 0
                    encoded.append(x)
                encoded[-1] = self.bottleneck_dropout(encoded[-1])
                return encoded

        assert Extended(2, base_channels=4).encode(image(2, 1))[3].abs().sum() == 0


class TestUNet(EncoderDecoderTester):
    def build(self, spatial_dims=2, in_channels=1, n_classes=2, **options):
        return UNet(spatial_dims, in_channels, n_classes, channels=(4, 8, 16, 16, 16), **options)

    def test_options(self):
        with pytest.raises(ValueError, match="head_kernel_size must be 1 or 3, got 2"):
            self.build(head_kernel_size=2)
        with pytest.raises(ValueError, match="dropout must be a number or 5 of them"):
            self.build(dropout=(0.1, 0.2))
        with pytest.raises(ValueError, match="channels must be positive at two scales"):
            UNet(2, 1, 2, channels=(8,))

    def test_dropout_positions_keep_the_names(self):
        inside = self.build(dropout=(0.1, 0.2, 0.3, 0.4, 0.5))
        assert list(inside.state_dict()) == list(self.build(dropout=0.3).state_dict())
        assert [m.p for m in inside.modules() if isinstance(m, nn.Dropout)] == [0.1, 0.2, 0.3, 0.4, 0.5]

    def test_kaiming_changes_the_draw(self):
        torch.manual_seed(0)
        weight = UNet(2, 1, 2, channels=(4, 256), kaiming=True).stages[1].block.unit2.conv.weight
        assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)


class TestUNetLiterature2d(EncoderDecoderTester):
    def build(self, spatial_dims=2, in_channels=1, n_classes=2, **options):
        return UNet.literature_2d(in_channels, n_classes, spatial_dims, channels=(4, 8, 16, 16, 16), **options)


class TestUNetLiterature3d(EncoderDecoderTester):
    def build(self, spatial_dims=2, in_channels=1, n_classes=2, **options):
        return UNet.literature_3d(in_channels, n_classes, spatial_dims, channels=(4, 8, 16, 16, 16), **options)

    @pytest.mark.parametrize(("spatial_dims", "in_channels", "n_classes"), CASES)
    def test_forward_and_backward(self, spatial_dims, in_channels, n_classes, monkeypatch):
        # instance normalization refuses to train on a coarsest scale of one element
        monkeypatch.setitem(SIDES, 3, (32, 32, 16))
        super().test_forward_and_backward(spatial_dims, in_channels, n_classes)


class DualTaskTester(NetworkTester):
    @pytest.mark.parametrize(("spatial_dims", "in_channels", "n_classes"), CASES)
    def test_tasks(self, spatial_dims, in_channels, n_classes):
        network = self.build(spatial_dims, in_channels, n_classes)
        logits, raw_distance = network.tasks(image(spatial_dims, in_channels))
        assert logits.shape == (2, n_classes, *SIDES[spatial_dims])
        assert raw_distance.shape == (2, n_classes - 1, *SIDES[spatial_dims])
        (logits.square().mean() + raw_distance.square().mean()).backward()
        assert all(p.grad is not None for p in network.parameters())

    def test_two_classes_from_one_channel(self):
        network = self.build().eval()
        assert network.segmentation_head.out_channels == 1
        logits = network(image(2, 1))
        assert logits[:, 0].abs().max() == 0
        z = network.segmentation_head(network.backbone(image(2, 1)))
        torch.testing.assert_close(logits.softmax(1)[:, 1:], z.sigmoid())

    def test_both_tasks_see_one_draw_of_dropout(self):
        # in float64: both heads as one product round otherwise than one by one, another draw changes all
        network, x = self.build(dropout=0.5).train().double(), image(2, 1).double()
        torch.manual_seed(0)
        logits, raw_distance = network.tasks(x)
        torch.manual_seed(0)
        features = network.backbone(x)
        torch.testing.assert_close(logits, network.logits(features))
        torch.testing.assert_close(raw_distance, network.raw_distance(features))
        assert not torch.allclose(logits, network.logits(network.backbone(x)))

    def test_distance_is_float32_under_autocast(self):
        network = self.build().eval()
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            features = network.backbone(image(2, 1))
            logits, raw_distance = network.logits(features), network.raw_distance(features)
            deployed = network(image(2, 1))
        assert features.dtype == torch.bfloat16
        assert logits.dtype == raw_distance.dtype == deployed.dtype == torch.float32
        assert torch.equal(raw_distance, network.distance_head(features.float()))


class TestDualTaskVNet(DualTaskTester):
    def build(self, spatial_dims=2, in_channels=1, n_classes=2, **options):
        return DualTaskVNet(spatial_dims, in_channels, n_classes, base_channels=4, **options)

    def test_softmax(self):
        network = self.build(binary="softmax")
        assert network.segmentation_head.out_channels == 2
        logits, raw_distance = network.tasks(image(2, 1))
        assert logits.shape[1] == 2
        assert raw_distance.shape[1] == 1


class TestDualTaskNetworkOnUNet(DualTaskTester):
    def build(self, spatial_dims=2, in_channels=1, n_classes=2, **options):
        return DualTaskNetwork(UNet(spatial_dims, in_channels, None, channels=(4, 8, 8, 8, 8), **options), n_classes)


class TestLiteratureDualTaskNetwork(DualTaskTester):
    def build(self, spatial_dims=2, in_channels=1, n_classes=2, dropout=None, **options):
        return literature_dual_task_network(spatial_dims, in_channels, n_classes, 4, dropout, gates=True, **options)

    def test_in_2d_the_segmentation_is_that_of_the_unet(self):
        ours, plain = self.build(2, 1, 4), literature_network(2, 1, 4, base_channels=4, gates=True)
        state = ours.state_dict()
        plain.load_state_dict(
            {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
            | {f"heads.0.{k}": state[f"segmentation_head.{k}"] for k in ("weight", "bias")}
        )
        x = image(2, 1)
        with torch.no_grad():
            torch.testing.assert_close(ours.eval()(x), plain.eval()(x))


class TestDualTaskNetworkOnMonai(DualTaskTester):
    def build(self, spatial_dims=2, in_channels=1, n_classes=2, **options):
        backbone = BasicUNet(spatial_dims, in_channels, out_channels=6, features=(8, 8, 8, 8, 8, 8), **options)
        return DualTaskNetwork(backbone, n_classes, feature_channels=6)

    # the wrapper leaves the checks of sides and dropout to the backbone
    test_bad_side_is_refused = None
    test_bad_number_of_dimensions_is_refused = None
    test_bad_dropout_is_refused = None


def test_dual_task_options_are_checked():
    backbone = UNet(2, 1, None, channels=(4, 8))
    with pytest.raises(ValueError, match=r"n_classes must be at least 2 .*got 1"):
        DualTaskNetwork(backbone, n_classes=1)
    with pytest.raises(ValueError, match='binary must be "sigmoid" or "softmax", got \'tanh\''):
        DualTaskNetwork(backbone, n_classes=2, binary="tanh")
    with pytest.raises(ValueError, match="feature_channels must be given"):
        DualTaskNetwork(nn.Conv2d(1, 4, 1), n_classes=2)
    with pytest.raises(ValueError, match="feature_channels must be given"):
        DualTaskNetwork(UNet(2, 1, 2, channels=(4, 8)), n_classes=2)
    with pytest.raises(ValueError, match="spatial_dims must be given: Identity"):
        DualTaskNetwork(nn.Identity(), n_classes=2, feature_channels=1)
    with pytest.raises(ValueError, match="head_kernel_size must be 1 or 3, got 2"):
        DualTaskNetwork(backbone, n_classes=2, head_kernel_size=2)
    with pytest.raises(ValueError, match="spatial_dims must be 2 or 3, got 4"):
        DualTaskNetwork(nn.Identity(), n_classes=2, feature_channels=1, spatial_dims=4)
    assert DualTaskNetwork(nn.Identity(), 2, 1, spatial_dims=2)(torch.zeros(1, 1, 4, 4)).shape == (1, 2, 4, 4)


# ------------------------------------------------------------------------------------------------- adapters, attention


def test_adapters_of_other_networks():
    backbone = BasicUNet(2, 1, out_channels=8, features=(4, 4, 4, 4, 4, 4)).eval()
    x = image(2, 1)
    network = FeatureNetwork(backbone, 3, feature_channels=8).eval()
    torch.testing.assert_close(network.logits(network.features(x)), network(x))
    tapped = TappedNetwork(backbone, ["down_2", "conv_0"], ["upcat_1"])
    logits, contextual, structural = tapped.taps(x)
    assert torch.equal(logits, tapped(x))
    assert [f.shape[2] for f in contextual] == [8, 32]  # in the order of the names
    assert structural[0].shape[2] == 32
    assert not any(module._forward_hooks for module in backbone.modules())


@pytest.mark.parametrize("alternative", [False, True])
@pytest.mark.parametrize(("spatial_dims", "kind"), [(2, UNet), (3, VNet)])
def test_literature_network(spatial_dims, kind, alternative):
    network = literature_network(spatial_dims, 1, 3, base_channels=4, alternative=alternative)
    assert type(network) is kind
    other = literature_network(spatial_dims, 1, 3, base_channels=4, alternative=not alternative)
    shapes = [[tuple(p.shape) for p in each.decoders.parameters()] for each in (network, other)]
    assert shapes[0] != shapes[1]
    dropout = [m.p for m in literature_network(spatial_dims, dropout=0.2).modules() if "Dropout" in type(m).__name__]
    assert set(dropout) == {0.2}
    with pytest.raises(ValueError, match=r"plan must be one of .*'u_net_3d'\) or None, got 'unet'"):
        literature_network(spatial_dims, plan="unet")
    for plan in ("v_net", "u_net", "u_net_3d"):
        for norm in ("instance", ["instance", {"affine": True}]):
            modules = list(literature_network(spatial_dims, base_channels=2, plan=plan, norm=norm).modules())
            found = [m for m in modules if isinstance(m, nn.modules.instancenorm._InstanceNorm)]
            assert found
            assert all(m.affine == (norm != "instance") for m in found)
            assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules)
    gated = literature_network(spatial_dims, gates=True)
    assert sum("psi" in name and name.endswith("conv.weight") for name in gated.state_dict()) == 4


@pytest.mark.parametrize(("spatial_dims", "channels"), [(2, 32), (3, 32)])
def test_cross_sample_network(spatial_dims, channels):
    network = CrossSampleNetwork(literature_network(spatial_dims, base_channels=4, dropout=0.0), dropout=0.0)
    assert network.attention.intra.self_attn.embed_dim == channels  # the second coarsest of five stages
    x = image(spatial_dims, 1)
    with torch.no_grad():
        alone, joint = network(x[:1]), network(x)
        assert not torch.allclose(alone, joint[:1])
        network.eval()
        torch.testing.assert_close(network(x[:1]), network(x)[:1])
        torch.testing.assert_close(network(x), network.network(x), rtol=1e-4, atol=1e-5)  # no attention in evaluation
    network.train()
    network(x).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert not list(CrossSampleNetwork(network.network, attention=False).attention.parameters())


def test_cross_sample_attention_options():
    with pytest.raises(ValueError, match=r"heads must divide the 6 channels, got 4"):
        CrossSampleAttention(6)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        CrossSampleAttention(8, dropout=1.0)
