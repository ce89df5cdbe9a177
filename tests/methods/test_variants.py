"""``variant`` of the five published methods: sets of options, and the printed equations written out as loops."""

import inspect

import builders
import pytest
import torch
from builders import tiny
from method_tester import SIDES, batches, total
from torch.nn import functional

from monai_ssl.losses import RepresentationConsistencyLoss, SigmoidRampUp
from monai_ssl.losses.virtual_adversarial import DISTANCES, literature_epsilon
from monai_ssl.methods import (
    DualTaskConsistency,
    SmoothnessSeparation,
    correlation_aware_mutual_learning,
    dual_task_consistency,
    smoothness_separation,
    task_affinity_consistency,
    uncertainty_guided_mutual_consistency,
)
from monai_ssl.methods.variants import of_variant
from monai_ssl.networks import DualTaskVNet, VNet, literature_network

MODULES = {
    "dtc": dual_task_consistency,
    "ug_mcl": uncertainty_guided_mutual_consistency,
    "ss_net": smoothness_separation,
    "tac": task_affinity_consistency,
    "caml": correlation_aware_mutual_learning,
}
CASES = [(name, variant) for name, module in MODULES.items() for variant in module.COLUMNS]
# what a variant changes besides the options of its column
BESIDES = {
    ("dtc", "paper"): {"ramp_up": SigmoidRampUp(6000)},
    ("ug_mcl", "paper"): {"ramp_up": SigmoidRampUp(6000, 0.1, exponent=1.0)},
    ("ug_mcl", "released"): {"ramp_up": SigmoidRampUp(6000, 0.1, granularity=30)},
}
# small enough for a few voxels
SMALL = {"caml": {"prototypes_per_class": 4, "rows_per_class": 20, "embedding_channels": None}}


def terms_of(name, **options):
    method = builders.testers()[name]().build(**(SMALL.get(name, {}) | options))
    method.iteration = 5
    torch.manual_seed(1)
    return {key: value.item() for key, value in method(*batches()).items()}, method


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_variant_is_its_column_of_options(name, variant):
    column = MODULES[name].COLUMNS[variant]
    assert set(column) <= set(inspect.signature(type(terms_of(name)[1]).__init__).parameters)
    found, method = terms_of(name, variant=variant)
    expected, _ = terms_of(name, **column | BESIDES.get((name, variant), {}))
    assert found == expected
    assert all(value > 0 for value in found.values())
    table = type(method).__doc__
    assert all(f"``{option}``" in table for option in column), "every option is in the documented table"


@pytest.mark.parametrize("name", MODULES)
def test_variants_differ_and_options_win(name):
    by_variant = {variant: terms_of(name, variant=variant)[0] for variant in ("paper", "released")}
    assert by_variant["paper"] != by_variant["released"]
    released = MODULES[name].COLUMNS["released"]
    overridden = terms_of(name, variant="paper", **{k: v for k, v in released.items() if v is not None})[1]
    for option, value in released.items():
        if value is not None and hasattr(overridden, option):
            assert getattr(overridden, option) == value


@pytest.mark.parametrize("name", MODULES)
def test_unknown_variant(name):
    with pytest.raises(ValueError, match=r"variant must be one of \('\w+', '\w+'\)( or None)?, got 'official'"):
        tiny(name, variant="official")


def test_published_constants_that_no_golden_pins():
    assert literature_epsilon(torch.zeros(1, 1, 112, 112, 80)) == pytest.approx(10.0)
    assert literature_epsilon(torch.zeros(1, 1, 256, 256)) == pytest.approx(6.0)
    method = builders.testers()["ug_mcl"]().build()
    assert (method.teacher.decay, method.passes, method.beta) == (0.99, 8, 0.75)
    assert builders.testers()["dtc"]().build().consistency.heaviside.slope == 1500.0


def test_what_is_given_wins():
    columns = {None: {"a": 1, "b": False}, "paper": {"a": 2, "b": True}}
    assert of_variant("paper", columns, a=None, b=False) == {"a": 2, "b": False}
    assert of_variant(None, columns, a=0, b=None) == {"a": 0, "b": False}


# ------------------------------------------------------------------------------------------------------------- TAC


@pytest.mark.parametrize(("n_labeled", "n_unlabeled"), [(2, 2), (1, 3), (3, 2)])
def test_tac_equations_1_6_and_7(n_labeled, n_unlabeled):
    generator = torch.Generator().manual_seed(0)
    n, n_classes = n_labeled + n_unlabeled, 3
    features = torch.rand(n, 5, 8, 8, generator=generator, dtype=torch.float64)
    masks = torch.rand(n, n_classes, 8, 8, generator=generator, dtype=torch.float64)
    vectors = [
        [(features[i] * masks[i, c]).sum((1, 2)) / masks[i, c].sum() for c in range(n_classes)] for i in range(n)
    ]
    expected = sum(
        (vectors[i][c] - vectors[n_labeled + j][c]).square().sum() / n_classes
        for i in range(n_labeled)
        for j in range(n_unlabeled)
        for c in range(n_classes)
    )
    column = task_affinity_consistency.COLUMNS["paper"]
    options = {key: column[key] for key in ("pooling", "pairing", "empty", "reduction")}
    loss = RepresentationConsistencyLoss(**options)(features.float(), masks.float(), n_labeled)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    mean = RepresentationConsistencyLoss(**options | {"pairing": "all_pairs"})(features, masks, n_labeled)
    assert loss.item() == pytest.approx(n_labeled * n_unlabeled * mean.item(), rel=1e-5)


@pytest.mark.parametrize("empty", ["skip", "zero"])
def test_tac_sum_over_pairs_with_a_class_that_one_image_lacks(empty):
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(3, 2, 4, 4, generator=generator)
    masks = torch.rand(3, 2, 4, 4, generator=generator)
    masks[0, 1] = 0
    loss = RepresentationConsistencyLoss("image", "all_pairs_sum", empty, "norm")(features, masks, 2)
    v = [[(features[i] * masks[i, c]).sum((1, 2)) / (masks[i, c].sum() + 1e-6) for c in (0, 1)] for i in range(3)]
    d = [[(v[i][c] - v[2][c]).square().sum().item() for c in (0, 1)] for i in (0, 1)]
    first = d[0][0] if empty == "skip" else sum(d[0]) / 2
    assert loss.item() == pytest.approx(first + sum(d[1]) / 2, rel=1e-4)


def test_tac_separate_passes():
    labeled, unlabeled = batches()
    mixed, apart = (tiny("tac", dropout=0.0, separate_passes=value) for value in (False, True))
    reference = tiny("tac", dropout=0.0)
    logits = [reference.network(batch["image"]) for batch in (labeled, unlabeled)]
    found = apart._taps(labeled, unlabeled)
    torch.testing.assert_close(found[0], torch.cat(logits).float())
    assert not torch.allclose(found[0], mixed._taps(labeled, unlabeled)[0], atol=1e-3)
    assert [x.shape for x in found[1]] == [x.shape for x in mixed._taps(labeled, unlabeled)[1]]
    total(apart(labeled, unlabeled)).backward()
    assert all(p.grad is not None for p in apart.network.parameters())
    # without unlabeled images there is one pass, as ever
    assert torch.equal(apart._taps(labeled, None)[0], mixed._taps(labeled, None)[0])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_tac_gates_as_equation_2(spatial_dims):
    network = literature_network(spatial_dims, base_channels=2, gates=True, gate_norm=False)
    gates = {name: module for name, module in network.named_modules() if name.endswith(".gate")}
    assert len(gates) == 4
    gate = next(iter(gates.values())).train()
    generator = torch.Generator().manual_seed(0)
    channels = gate.W_g[0].conv.in_channels, gate.W_x[0].conv.in_channels
    g, x = (torch.randn(2, c, *SIDES[spatial_dims], generator=generator) for c in channels)
    parts = {k: getattr(gate, k)[0].conv for k in ("W_g", "W_x", "psi")}
    expected = x * torch.sigmoid(parts["psi"](torch.relu(parts["W_g"](g) + parts["W_x"](x))))
    torch.testing.assert_close(gate(g, x), expected)
    assert not any("running" in name for name, _ in gate.named_buffers())
    with_norm = literature_network(spatial_dims, base_channels=2, gates=True)
    assert set(network.state_dict()) < set(with_norm.state_dict())


# ---------------------------------------------------------------------------------------------------------- SS-Net


@pytest.mark.parametrize("n_classes", [2, 4])
def test_ss_net_equation_3(n_classes):
    generator = torch.Generator().manual_seed(n_classes)
    logits = torch.randn(2, n_classes, 6, 5, generator=generator)
    p = torch.randn(2, n_classes, 6, 5, generator=generator).softmax(1)
    q = logits.softmax(1).double()
    expected = sum(1 - 2 * (q[:, c] * p[:, c]).sum() / (q[:, c].sum() + p[:, c].sum()) for c in range(n_classes))
    found = {name: distance(logits, p).item() for name, distance in DISTANCES.items()}
    assert found["classwise_linear"] == pytest.approx(expected.item() / n_classes, rel=1e-5)
    assert len({round(value, 4) for value in found.values()}) == 4


def test_ss_net_equation_4():
    """One mean over the voxels of all images of a class and its prototypes, weighted by their scores."""
    torch.manual_seed(0)
    method = SmoothnessSeparation(VNet(2, base_channels=2, dropout=0.0), variant="paper")
    labeled, _ = batches()
    features = torch.randn(4, 2, *SIDES[2])
    predicted = (torch.rand(4, 1, *SIDES[2]) > 0.5).long()
    found = method.separate(features, predicted, labeled["label"])
    classes = torch.cat([labeled["label"], predicted[2:]]).flatten()
    f = method.voxel_heads(features, classes.nonzero()[:, 0]).detach()
    z = functional.normalize(method.memory[1], dim=1)
    weights = [
        score.flatten().sigmoid()
        for score in (method.selectors[0](f).detach(), method.prototype_selectors[0](z).detach())
    ]
    w, v = (a / a.mean() for a in weights)
    cosine = functional.normalize(f, dim=1) @ z.T
    expected = (w[:, None] * v[None] * (1 - cosine)).mean() / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    halves = SmoothnessSeparation(VNet(2, base_channels=2, dropout=0.0), variant="paper", separation_pooling="halves")
    halves.load_state_dict(method.state_dict())
    assert halves.separate(features, predicted, labeled["label"]).item() == pytest.approx(2 * found.item(), rel=0.2)


# ------------------------------------------------------------------------------------------------------------- DTC


class TestDistanceBranchAlone:
    """DTC, Table 1, "LSF"."""

    def method(self):
        torch.manual_seed(0)
        network = DualTaskVNet(2, base_channels=4, dropout=0.0, deployed="distance")
        return DualTaskConsistency(network, dice_weight=0.0, unsupervised_weight=0.0)

    def test_only_the_distance_is_supervised(self):
        method = self.method()
        terms = method(batches()[0])
        assert terms["dice"] == terms["consistency"] == 0 < terms["signed_distance"]
        total(terms).backward()
        gradients = {name: p.grad for name, p in method.network.named_parameters()}
        assert not gradients["segmentation_head.weight"].any()
        assert gradients["distance_head.weight"].any()
        assert all(g is not None for g in gradients.values())

    def test_what_is_deployed(self):
        method = self.method().eval()
        image = batches()[0]["image"]
        with torch.no_grad():
            logits, raw = method.network.tasks(image)
            torch.testing.assert_close(method.network(image).softmax(1)[:, 1:], torch.sigmoid(-1500 * torch.tanh(raw)))
            # the other opinion is then the segmentation head's
            torch.testing.assert_close(method.second_opinion(image), logits.softmax(1))

    def test_it_learns_a_segmentation(self):
        method, (labeled, _) = self.method(), batches()
        x, y = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
        labeled["label"][:] = ((x - 16) ** 2 + (y - 14) ** 2 < 64).long()
        labeled["image"] = labeled["label"] + 0.1 * labeled["image"]
        optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
        for _ in range(150):
            optimizer.zero_grad()
            total(method(labeled)).backward()
            optimizer.step()
        found = method.network(labeled["image"]).argmax(1, keepdim=True)
        overlap = 2 * (found * labeled["label"]).sum() / (found.sum() + labeled["label"].sum())
        assert overlap > 0.9

    def test_export(self):
        network = self.method().network.eval()
        x = batches()[0]["image"]
        with torch.no_grad():
            torch.testing.assert_close(torch.jit.script(network)(x), network(x))
        with pytest.raises(ValueError, match='deployed must be "segmentation" or "distance", got \'both\''):
            DualTaskVNet(2, base_channels=2, deployed="both")


def test_caml_supervised_weight():
    released, paper = (terms_of("caml", supervised_weight=weight)[0] for weight in (None, 1.0))
    assert paper["dice"] == pytest.approx(2 * released["dice"])
    assert {k: v for k, v in paper.items() if k != "dice"} == {k: v for k, v in released.items() if k != "dice"}


def test_printed_ramp_up_of_ug_mcl():
    ramp = SigmoidRampUp(6000, 0.1, exponent=1.0)
    assert ramp(2500) == pytest.approx(0.005411, rel=1e-3)
    assert SigmoidRampUp(6000, 0.1)(2500) == pytest.approx(0.018243, rel=1e-3)
    with pytest.raises(ValueError, match="exponent must be > 0, got 0"):
        SigmoidRampUp(6000, exponent=0)
