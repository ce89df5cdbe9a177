"""SASSNet: what is its own; the discriminator's part is tested with DAN."""

import pytest
import torch
from method_tester import MethodTester, batches

from monai_ssl.methods import ShapeAwareSegmentation
from monai_ssl.methods.adversarial import NAME
from monai_ssl.networks import Discriminator, DualTaskNetwork, DualTaskVNet, VNet


class TestShapeAwareSegmentation(MethodTester):
    bundle = "sassnet"
    supervised_terms = ("dice", "signed_distance")
    unsupervised_terms = ("adversarial",)

    def network(self, spatial_dims=2, n_classes=2):
        network = DualTaskVNet(spatial_dims, 1, n_classes, base_channels=2, dropout=0.0)
        network.spatial_dims = spatial_dims
        return network

    def wrap(self, backbone, spatial_dims, n_classes):
        network = DualTaskNetwork(backbone, n_classes, feature_channels=8)
        network.spatial_dims = spatial_dims
        return network

    def method(self, network, **options):
        discriminator = Discriminator(network.spatial_dims, network.n_classes - 1, base_channels=2)
        return ShapeAwareSegmentation(network, discriminator, **options)

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        discriminator = Discriminator(spatial_dims, 1, base_channels=2)
        return ShapeAwareSegmentation(DualTaskVNet(spatial_dims, **sizes), discriminator, max_iterations, **options)

    def test_the_discriminator_sees_distances(self):
        method, (labeled, unlabeled) = self.build(n_classes=3), batches(n_classes=3)
        shown = []
        method.adversaries[NAME].register_forward_hook(lambda m, x, y: shown.append((*x, m.training)))
        method.train()(labeled, unlabeled)
        method.adversary_terms(NAME, labeled, unlabeled)
        assert [training for *_, training in shown] == [False, True]
        assert [judged.shape for judged, *_ in shown] == [(2, 2, 32, 32), (4, 2, 32, 32)]
        assert torch.equal(shown[0][1], unlabeled["image"])
        for judged, *_ in shown:
            assert judged.abs().max() < 1
        assert shown[0][0].requires_grad
        assert not shown[1][0].requires_grad

    @pytest.mark.parametrize("foreground", [0, 1])
    def test_the_distance_of_a_patch_without_contour_is_zero(self, foreground):
        method, (labeled, _) = self.build(distance_weight=1.0), batches()
        labeled["label"].fill_(foreground)
        expected = method.network.tasks(labeled["image"])[1].tanh().square().mean().item()
        assert method(labeled, None)["signed_distance"].item() == pytest.approx(expected)

    def test_rejects_a_network_without_distances(self):
        with pytest.raises(TypeError, match=r"network must offer tasks\(image\) -> .* got VNet; wrap"):
            ShapeAwareSegmentation(VNet(2, base_channels=2), Discriminator(2, 1, base_channels=2))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"weight": -1}, "weight must be >= 0, got -1"),
            ({"distance_weight": -1}, "distance_weight must be >= 0, got -1"),
            ({"degenerate": "none"}, "degenerate must be one of .* got 'none'"),
        ],
    )
    def test_rejects_options(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.build(**options)
