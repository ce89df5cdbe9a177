"""SASSNet: signed distances, losses of given outputs, who is in which mode, and two whole steps."""

import numpy as np
import pytest
import torch
from adversarial_steps import Stub, check_adversarial_steps, check_discriminator_loss
from released import check_totals, fill, float64, rs
from test_golden_discriminators import ORDER

from monai_ssl.losses import supervised_cross_entropy
from monai_ssl.methods import ShapeAwareSegmentation
from monai_ssl.methods.adversarial import NAME
from monai_ssl.networks import Discriminator, DualTaskVNet
from monai_ssl.transforms import SignedDistanceMap


@pytest.mark.claims("sass_sdf_*")
def test_golden_sassnet_signed_distances(golden):
    masks, expected = golden.tensor("sass_sdf_in"), golden["sass_sdf_out"]
    for degenerate in ("zero", "official"):
        found = torch.stack([SignedDistanceMap(2, degenerate)(mask[None])[0] for mask in masks])
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert not expected[2].any()  # the empty one


class Given(torch.nn.Module):
    """A dual-task network whose outputs are given; remembers in which mode it was asked."""

    n_classes = 2

    def __init__(self, z, raw):
        super().__init__()
        self.z, self.raw, self.modes = z, raw, []

    def tasks(self, image):
        self.modes.append(self.training)
        return torch.cat([torch.zeros_like(self.z), self.z], 1), self.raw


@pytest.mark.claims("sass_[dgilmtw]*", "sass_supervised_loss", "sass_D_loss")
def test_golden_sassnet_losses(golden):
    z, raw = (golden.tensor(f"sass_{k}", torch.float64).requires_grad_() for k in ("logits", "tanh_raw"))
    label = golden.tensor("sass_sdf_in", torch.int64)[:2, None]
    verdicts = {rows: golden.tensor(f"sass_{key}", torch.float64) for rows, key in ((2, "d_unlabelled"), (4, "d_all"))}
    verdicts[4].requires_grad_()
    network, discriminator = Given(z, raw), Stub(verdicts)
    method = ShapeAwareSegmentation(network, discriminator).train()
    image = torch.rand(4, 1, *label.shape[2:])
    batches = {"label": label, "image": image[:2]}, {"image": image[2:]}
    with float64():
        terms, adversarial = check_totals(
            golden, "sass", method, lambda: method(*batches), {}, unsupervised=["adversarial"]
        )
        [loss] = method.adversary_terms(NAME, *batches).values()
        cross_entropy = supervised_cross_entropy(network.tasks(image)[0][:2], label)
    supervised = terms["dice"] + terms["signed_distance"]
    for suffix, leaf in (("z", z), ("raw", raw)):  # verdicts are given: no gradient through D
        for kind, total in (("grad", sum(terms.values())), ("grad_cons", supervised)):
            [gradient] = torch.autograd.grad(total, leaf, retain_graph=True)
            np.testing.assert_allclose(gradient.numpy(), golden[f"sass_{kind}_{suffix}"], rtol=1e-4, atol=1e-7)
    for key, value in {
        "supervised_loss": supervised,
        "loss_seg_dice": terms["dice"],
        "loss_sdf": terms["signed_distance"] / 0.3,
        "loss_adv": adversarial,
        "loss_seg": cross_entropy,  # which the released code only logs
    }.items():
        assert value.item() == pytest.approx(golden.number(f"sass_{key}"), rel=1e-6), key
    judged, shown, evaluated = discriminator.shown[0]
    assert (judged - raw.detach()[2:].tanh()).abs().max().item() == golden.number("sass_d_map_is_tanh_of_unlabelled")
    assert torch.equal(shown, image[2:])
    modes = [network.modes[0], evaluated, network.modes[-2], discriminator.shown[-1][2]]
    assert modes == golden["sass_modes"].tolist()
    check_discriminator_loss(golden, "sass", loss, verdicts[4], "D_loss")


def balls():
    """Labels of the whole steps."""
    grid = np.stack(np.meshgrid(*(np.arange(side) for side in (32, 32, 16)), indexing="ij"))
    of = [((15, 14, 8), 7), ((20, 9, 6), 5), ((8, 8, 8), 4), ((16, 16, 8), 6)]
    masks = [((grid - np.reshape(center, (3, 1, 1, 1))) ** 2).sum(0) <= radius**2 for center, radius in of]
    return torch.from_numpy(np.stack(masks).astype(np.int64))[:, None]


@pytest.mark.claims("step_sass3_*")
def test_golden_sassnet_whole_steps(golden):
    discriminator = Discriminator(3, 1, base_channels=4, dropout=0.0)
    method = ShapeAwareSegmentation(DualTaskVNet(3, base_channels=2, dropout=0.0), discriminator)
    state, names = method.network.state_dict(), list(method.network.state_dict())
    heads = [f"{head}_head.{kind}" for head in ("distance", "segmentation") for kind in ("weight", "bias")]
    order = [name for name in names if name not in heads and not name.endswith("tracked")] + heads
    fill([(key, state[key]) for key in order], 1000)
    critic = discriminator.state_dict()
    fill([(key, critic[key]) for key in ORDER], 4000)
    image, label = rs(1910, (4, 1, 32, 32, 16)), balls()
    trained = [key for key in order if not key.endswith(("running_mean", "running_var"))]

    def losses(terms):
        weight = method.ramp_up(method.iteration)
        return {"loss_adv": terms["adversarial"].item() / weight, "loss_seg_dice": terms["dice"].item(),
                "loss_sdf": terms["signed_distance"].item() / 0.3}  # fmt: skip

    batches = {"image": image[:2], "label": label[:2]}, {"image": image[2:]}
    orders = {"model": trained, "D": ORDER}
    check_adversarial_steps(golden, "sass3", method, batches, losses, "D_loss", ("model", "D"), orders)
