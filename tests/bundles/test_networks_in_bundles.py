"""Floor, method and ceiling are one network: V-Net in 3D, the literature's U-Net in 2D, with gates where asked for."""

import pytest
import torch
from monai.bundle import ConfigParser

from monai_ssl.bundle.library import available_bundles, find_bundle

# (data set, gates) -> parameters of the network with one head, as papers and released code count them
PUBLISHED = {
    ("left_atrium", False): 9448866,
    ("left_atrium", True): 9472414,
    ("acdc", False): 1813764,
    ("acdc", True): 1836376,
}
# what the distance head adds: in 3D two classes from one channel save as much as it takes
DISTANCE = {("dtc", "left_atrium"): 0, ("ug_mcl", "left_atrium"): 17, ("dtc", "acdc"): 435, ("ug_mcl", "acdc"): 435}
BUNDLES = ("supervised", "dtc", "ug_mcl", "ss_net", "tac", "caml", "self_training", "weak_to_strong", "mean_teacher")


def config(bundle, dataset, flavor="literature", file="train.yaml", **overrides):
    parser = ConfigParser()
    parser.read_config(str(find_bundle(bundle) / "configs" / file))
    parser.update({"bundle_root": "nowhere", "dataset": dataset, "flavor": flavor, "device": "cpu", **overrides})
    return parser


@pytest.mark.parametrize(("dataset", "gates"), PUBLISHED)
@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_bundle_has_the_published_network(bundle, dataset, gates):
    for file in ("train.yaml", "inference.yaml"):
        network = config(bundle, dataset, file=file, **{"network_def#gates": gates}).get_parsed_content("network_def")
        assert sum(p.numel() for p in network.parameters()) == PUBLISHED[dataset, gates] + DISTANCE.get(
            (bundle, dataset), 0
        )


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("bundle", available_bundles())
def test_every_bundle_takes_gates(bundle, spatial_dims):
    dataset = "left_atrium" if spatial_dims == 3 else "acdc"
    options = {"network_def#gates": True, "network_def#base_channels": 2}
    network = config(bundle, dataset, **options).get_parsed_content("network_def")
    assert any(".gate." in name for name in network.state_dict())


@pytest.mark.parametrize("bundle", ["supervised", "dtc", "ug_mcl", "ss_net", "tac", "caml"])
@pytest.mark.parametrize("dataset", ["left_atrium", "acdc"])
def test_a_step_with_gates(bundle, dataset):
    """TAC, Table VIII: gates in other methods."""
    parser = config(bundle, dataset, **{"network_def#gates": True, "network_def#base_channels": 2})
    if bundle == "caml":
        parser.update(
            {"method#ramp_levels": 20, "method#prototypes_per_class": 4}
        )  # the levels count a datalist's cases
        names = dict(parser.get_parsed_content("method").auxiliary.named_modules())
        assert sum(name.endswith(".gate") for name in names) == 4
    method = parser.get_parsed_content("method")
    sides = (32, 32, 16) if dataset == "left_atrium" else (32, 32)
    n_classes = 2 if dataset == "left_atrium" else 4
    labeled = {
        "image": torch.randn(2, 1, *sides),
        "label": torch.randint(0, n_classes, (2, 1, *sides)),
        "index": torch.arange(2),
    }
    terms = method(labeled, {"image": torch.randn(2, 1, *sides)})
    torch.stack(list(terms.values())).sum().backward()
    gates = [p for name, p in method.network.named_parameters() if ".gate." in name]
    assert gates
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in gates)
