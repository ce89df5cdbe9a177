"""Every network against numbers that the released code of the methods produced, with weights from the same generator.

``golden_networks.npz`` holds the network outputs of CAML (auxiliary branch, whose attention is the identity in
evaluation mode; first sample); ``golden_dtc.npz``, ``golden_ugmcl.npz`` and ``golden_ssnet.npz`` hold those of these
methods.

The released code ran in float32, so its numbers carry the rounding of the machine that they come from. Ours are
computed in float64: what is left is that rounding alone, the same on every CPU, and ``KNOWN_TO`` says how large it is
(measured, then rounded up). Deep networks, and batch statistics over few voxels, round more. In float32 each machine
has an error of its own, so there the bound is that of float32.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from monai_ssl.networks import (
    CrossSampleAttention,
    DualTaskVNet,
    EMATeacher,
    UNet,
    VNet,
    literature_dual_task_network,
    literature_network,
)

GOLDEN = Path(__file__).parents[1] / "golden"


KNOWN_TO = {
    "dtc": 1e-5,  # 2e-6 (distance), 5e-6 (logits up to 8.8)
    "dtc, batch statistics": 1e-4,  # 5e-5: the coarsest normalization averages over few voxels
    "ugmcl": 2e-5,  # 1.4e-5 and 9e-6: instance normalization at every scale; no kernel reproduces it to 1e-6
    "ssnet": 1e-5,  # 8e-6 (features up to 11)
    "caml": 1e-5,  # 6e-6 (logits up to 9.4)
    "tac": 1e-5,
}


def load(name):
    with np.load(GOLDEN / f"golden_{name}.npz", allow_pickle=False) as file:
        return dict(file)


def float_state(network):
    """The state dict without batch counters."""
    return {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}


def fill_in_order(network, official_keys, our_keys):
    """Weights drawn in the order of the official keys ("name|shape") from one generator, loaded under our keys."""
    random = np.random.RandomState(0)
    state = {}
    for official, key in zip(official_keys, our_keys, strict=True):
        name, shape = official.split("|")
        shape = tuple(int(side) for side in shape.split("x"))
        if len(shape) > 1:
            value = random.randn(*shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(("running_var", "weight")):
            value = 0.5 + random.rand(*shape)
        else:
            value = 0.1 * random.randn(*shape)
        assert tuple(network.state_dict()[key].shape) == shape, f"{official} is not {key}"
        state[key] = torch.from_numpy(value.astype(np.float32))
    missing = network.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)


def fill_by_index(network, indices, base):
    """Weights from one generator per entry: entry i of the official state dict has the seed base + i."""
    state = {}
    for (key, value), index in zip(float_state(network).items(), indices, strict=True):
        shape = tuple(value.shape)
        r = np.random.RandomState(base + index).standard_normal(shape)
        if len(shape) > 1:
            r = r * np.sqrt(2 / np.prod(shape[1:]))
        elif key.endswith("running_var"):
            r = 0.5 + np.abs(r)
        elif key.endswith(("running_mean", "bias")):
            r = 0.1 * r
        else:
            r = 1 + 0.1 * r
        state[key] = torch.from_numpy(r.astype(np.float32))
    network.load_state_dict(state, strict=False)


def n_parameters(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


def check(actual, expected, known_to):
    """``actual`` is ours, in float64."""
    assert actual.dtype == torch.float64
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=known_to)


def in_both_formats(network, outputs, x):
    """``outputs(network, x)`` in float64, after a comparison with those in float32: the format that is trained in."""
    single = outputs(network, torch.from_numpy(x))
    double = outputs(network.double(), torch.from_numpy(x).double())
    for ours, exact in zip(single, double, strict=True):
        assert ours.dtype == torch.float32
        error = (ours.double() - exact).abs().max() / exact.abs().max()
        assert error < 1e-4, f"{error:.1e} of the largest value"
    return double


def dtc_network(golden, base_channels, dropout=0.5):
    network = DualTaskVNet(base_channels=base_channels, dropout=dropout)
    trunk = [key for key in float_state(network) if key.startswith("backbone.")]
    # the released state dict lists the distance head (out_conv) before the segmentation head (out_conv2)
    heads = [f"{head}_head.{kind}" for head in ("distance", "segmentation") for kind in ("weight", "bias")]
    fill_in_order(network, golden[f"net_nf{base_channels}_keys"], trunk + heads)
    return network


@pytest.mark.parametrize("base_channels", [16, 4])
@torch.no_grad()
def test_golden_dtc_network_evaluation(base_channels):
    golden = load("dtc")
    network = dtc_network(golden, base_channels).eval()
    logits, raw_distance = in_both_formats(network, lambda n, x: n.tasks(x), golden["net_x"])
    check(raw_distance.tanh(), golden[f"net_nf{base_channels}_eval_tanh"], KNOWN_TO["dtc"])
    check(logits[:, 1:] - logits[:, :1], golden[f"net_nf{base_channels}_eval_seg"], KNOWN_TO["dtc"])
    assert torch.equal(network(torch.from_numpy(golden["net_x"]).double()), logits)


@torch.no_grad()
def test_golden_dtc_network_batch_statistics():
    golden = load("dtc")
    network = dtc_network(golden, 4, dropout=0.0).train()
    logits, raw_distance = in_both_formats(network, lambda n, x: n.tasks(x), golden["net_x"])
    check(raw_distance.tanh(), golden["net_nf4_trainBN_nodrop_tanh"], KNOWN_TO["dtc, batch statistics"])
    check(logits[:, 1:] - logits[:, :1], golden["net_nf4_trainBN_nodrop_seg"], KNOWN_TO["dtc, batch statistics"])


def test_golden_dtc_parameter_counts():
    golden = load("dtc")
    assert n_parameters(DualTaskVNet(base_channels=4)) == golden["net_nf4_params"] == 592218
    trunk = n_parameters(VNet(out_channels=None))
    assert trunk == 9448832
    # the released code gives both heads the same number of channels
    for channels, expected in zip((1, 2, 3, 4), golden["param_count_nclasses_1_2_3_4"], strict=True):
        assert trunk + 2 * 17 * channels == expected
    for n_classes, binary, expected in (
        (2, "sigmoid", 9448866),
        (2, "softmax", 9448832 + 17 * 3),
        (3, "sigmoid", 9448832 + 17 * 5),
        (4, "softmax", 9448832 + 17 * 7),
    ):
        assert n_parameters(DualTaskVNet(n_classes=n_classes, binary=binary)) == expected


@pytest.mark.parametrize("scale", [4, 16])
@torch.no_grad()
def test_golden_ugmcl_network(scale):
    golden = load("ugmcl")
    network = UNet.literature_3d(channels=[64 * 2**i // scale for i in range(5)]).eval()
    fill_in_order(network, golden[f"net_fs{scale}_keys"], float_state(network))
    assert n_parameters(network) == golden[f"net_fs{scale}_params"]
    (logits,) = in_both_formats(network, lambda n, x: [n(x)[:, :, ::2, ::2, ::2]], golden["net_x"])
    check(logits, golden[f"net_fs{scale}_logits"], KNOWN_TO["ugmcl"])
    check(logits.tanh(), golden[f"net_fs{scale}_dis"], KNOWN_TO["ugmcl"])


@torch.no_grad()
def test_golden_ssnet_unet_2d():
    golden = load("ssnet")
    network = UNet.literature_2d().eval()
    state = float_state(network)
    compare_shapes(state, golden["unet_state_names"], golden["unet_state_shapes"])
    fill_by_index(network, range(len(state)), base=1000)
    features, logits = in_both_formats(network, features_and_logits, golden["unet_x"])
    check(features[:, :, ::2, ::2], golden["unet_eval_emb_s2"], KNOWN_TO["ssnet"])
    check(logits, golden["unet_eval_logits"], KNOWN_TO["ssnet"])
    assert n_parameters(network) == golden["nparams_unet2d_backbone"]
    assert n_parameters(network.stages) == golden["nparams_unet2d_encoder"]
    assert n_parameters(network.decoders, network.heads) == golden["nparams_unet2d_decoder"]


@torch.no_grad()
def test_golden_ssnet_vnet_3d():
    golden = load("ssnet")
    network = VNet().eval()
    state = float_state(network)
    compare_shapes(state, golden["vnet_state_names"], golden["vnet_state_shapes"])
    fill_by_index(network, range(len(state)), base=1000)
    features, logits = in_both_formats(network, features_and_logits, golden["vnet_x"])
    check(features[:, :, ::4, ::4, ::4], golden["vnet_eval_emb_s4"], KNOWN_TO["ssnet"])
    check(logits, golden["vnet_eval_logits"], KNOWN_TO["ssnet"])
    assert n_parameters(network) == golden["nparams_vnet3d_backbone"]
    assert n_parameters(network.stages) == golden["nparams_vnet3d_encoder"]
    assert n_parameters(network.decoders, network.heads) == golden["nparams_vnet3d_decoder"]


def features_and_logits(network, x):
    features = network.features(x)
    return features, network.heads[0](features)


def flat(logits, contextual, structural):
    return logits, *contextual, *structural


def compare_shapes(state, names, shapes):
    """The official network's entries, in order; its heads and selectors come after them."""
    trunk = [str(shape) for name, shape in zip(names, shapes, strict=True) if str(name).startswith(("encoder", "dec"))]
    assert [str(tuple(value.shape)) for value in state.values()] == trunk


@torch.no_grad()
def test_golden_caml_linear_decoder():
    golden = load("networks")
    network = VNet(decoders=("linear",)).eval()
    fill_by_index(network, golden["caml_auxiliary_state_index"], base=2000)
    features, logits = in_both_formats(network, features_and_logits, golden["caml_x"])
    check(features[:, :, ::4, ::4, ::4], golden["caml_auxiliary_eval_emb_s4"], KNOWN_TO["caml"])
    check(logits, golden["caml_auxiliary_eval_logits"], KNOWN_TO["caml"])


@pytest.mark.skipif(not (GOLDEN / "golden_tac.npz").exists(), reason="TAC's reference numbers are not here")
@torch.no_grad()
def test_golden_tac_gated_vnet():
    golden = load("tac")
    network = VNet(base_channels=2, gates=True).eval()
    official = {key[5:]: value for key, value in golden.items() if key.startswith("A/sd/")}
    # the gates stand elsewhere within a level, so gates and trunk are matched separately, both in order
    keys = [key for key in official if not key.endswith("num_batches_tracked")]
    groups = {kind: [key for key in keys if key.startswith("Att") == (kind == "gate")] for kind in ("gate", "trunk")}
    ours = {kind: [key for key in float_state(network) if (".gate." in key) == (kind == "gate")] for kind in groups}
    state = {
        key: torch.from_numpy(official[theirs])
        for kind in groups
        for key, theirs in zip(ours[kind], groups[kind], strict=True)
    }
    network.load_state_dict(state, strict=False)
    found = in_both_formats(network, lambda n, x: flat(*n.taps(x)), golden["A/image"][:1])
    names = ["out", *(f"x{scale}" for scale in (1, 2, 3, 4, 5)), *(f"x{scale}_att" for scale in (1, 2, 3, 4))]
    for name, x in zip(names, found, strict=True):
        check(x, golden[f"A/eval/{name}"][:1], KNOWN_TO["tac"])


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (lambda: VNet(), 9448866),
        (lambda: VNet(out_channels=1), 9448849),
        (lambda: VNet(norm=None), 9443266),
        (lambda: VNet(gates=True), 9472414),
        (lambda: VNet(gates=True, out_channels=3), 9472431),
        (lambda: VNet(gates=[32, 16, 32, 64]), 9472414),
        (lambda: VNet(spatial_dims=2, out_channels=None), 3271298 - 34),
        (lambda: DualTaskVNet(), 9448866),
        (lambda: DualTaskVNet(gates=True), 9472414),
        (lambda: UNet.literature_2d(gates=True), 1836376),
        (lambda: literature_dual_task_network(3, gates=True), 9472414),
        (lambda: literature_network(3, plan="u_net_3d"), 5884050),
        (lambda: literature_network(2, out_channels=4, plan="u_net"), 1813764),
        (lambda: literature_network(2, out_channels=None, plan="v_net"), 3271298 - 34),
        # one more channel for the distance, 17 parameters
        (lambda: literature_dual_task_network(3, plan="u_net_3d", binary="softmax"), 5884050 + 17),
        # the trunk of the U-Net, and 16 * 9 + 1 per channel of both heads
        (lambda: literature_dual_task_network(2, n_classes=4), 1813764 + 3 * 145),
        (lambda: literature_dual_task_network(2, n_classes=4, gates=True), 1836376 + 3 * 145),
        (lambda: UNet.literature_2d(), 1813764),
        (lambda: UNet.literature_2d(out_channels=2), 1813474),
        (lambda: UNet.literature_3d(), 5884050),
        (lambda: UNet.literature_3d(out_channels=4), 5884084),
        (lambda: UNet.literature_3d(spatial_dims=2), 1962320 + 17 * 2),
    ],
)
def test_parameter_counts(network, expected):
    assert n_parameters(network()) == expected


def test_parameter_counts_of_parts():
    network = VNet(decoders=("transpose", "linear"))
    assert n_parameters(network.stages) == 7376896
    assert n_parameters(network.decoders[0], network.heads[0]) == 2071970
    assert n_parameters(network.decoders[1], network.heads[1]) == 2898850
    unet = UNet.literature_2d()
    assert n_parameters(unet.stages) == 1180464
    assert not list(UNet.literature_3d().buffers())


def test_published_dropout():
    """Goldens are computed without dropout: the rates of the papers are pinned here."""
    for spatial_dims, kind in ((2, nn.Dropout2d), (3, nn.Dropout3d)):
        assert [m.p for m in VNet(spatial_dims).modules() if isinstance(m, kind)] == [0.5, 0.5]
        network = literature_network(spatial_dims)
        rates = {2: [0.05, 0.1, 0.2, 0.3, 0.5], 3: [0.5, 0.5]}[spatial_dims]
        assert [m.p for m in network.modules() if isinstance(m, nn.modules.dropout._DropoutNd)] == rates
        network = literature_dual_task_network(spatial_dims)
        assert [m.p for m in network.modules() if isinstance(m, nn.modules.dropout._DropoutNd)] == rates
    assert [m.p for m in DualTaskVNet().modules() if isinstance(m, nn.Dropout3d)] == [0.5, 0.5]
    assert [m.p for m in UNet.literature_2d().modules() if isinstance(m, nn.Dropout)] == [0.05, 0.1, 0.2, 0.3, 0.5]
    assert [m.p for m in UNet.literature_3d().modules() if isinstance(m, nn.Dropout)] == [0.3, 0.3]
    attention = CrossSampleAttention(8)
    assert {m.p for m in attention.modules() if isinstance(m, nn.Dropout)} == {0.5}
    assert {m.dropout for m in attention.modules() if isinstance(m, nn.MultiheadAttention)} == {0.5}
    assert EMATeacher(nn.Linear(1, 1)).decay == 0.99
