"""The contract of a method, and that every public method is tested against it."""

import inspect

import builders
import pytest
import torch
from method_tester import MethodTester, batches
from torch import nn

from monai_ssl import methods
from monai_ssl.methods import SemiSupervisedMethod, joint_images
from monai_ssl.networks import VNet


def has_option(name, option):
    return option in inspect.signature(type(builders.testers()[name]().build()).__init__).parameters


@pytest.mark.parametrize("name", builders.names())
def test_a_ramp_up_that_the_shell_has_eaten(name):
    if not has_option(name, "ramp_up"):
        pytest.skip("takes no ramp-up")
    with pytest.raises(TypeError, match=r"ramp_up must be a function .* got '.losses.SigmoidRampUp'; .* quotes"):
        builders.testers()[name]().build(ramp_up=".losses.SigmoidRampUp")


def test_joint_images_puts_labeled_rows_first():
    labeled, unlabeled = batches(n_labeled=1, n_unlabeled=2)
    images = joint_images(labeled, unlabeled)
    assert torch.equal(images[:1], labeled["image"])
    assert torch.equal(images[1:], unlabeled["image"])
    assert joint_images(labeled, None) is labeled["image"]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (methods.CrossPseudoSupervision, {}),
        (methods.BidirectionalCopyPaste, {"pretrain": 0.0}),
        (methods.AlternateDiverseTeaching, {"threshold": 0.0}),
        (methods.WeakToStrong, {"burn_in": 0.0, "threshold": 0.0}),
    ],
)
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_methods_that_draw_labels_say_which(method, options, weight):
    """What :class:`monai_ssl.handlers.Alarms` looks at."""
    torch.manual_seed(0)
    learner = method(VNet(spatial_dims=2, base_channels=2), **options, unsupervised_weight=weight)
    labeled = {"image": torch.rand(2, 1, 32, 32), "label": torch.zeros(2, 1, 32, 32, dtype=torch.long)}
    learner(labeled, {"image": torch.rand(2, 1, 32, 32)})
    counts = learner.take_pseudo_labels()
    if weight:
        assert sum(counts) == 2 * 32 * 32
        assert counts[-1] == 0  # none is left open
    else:
        assert counts is None


def test_the_contract_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        SemiSupervisedMethod(nn.Identity())


def test_every_method_has_a_tester():
    builders.names()  # imports all testers
    public = {getattr(methods, name) for name in methods.__all__}
    own = {m for m in public if isinstance(m, type) and issubclass(m, SemiSupervisedMethod)} - {SemiSupervisedMethod}
    tested = {t.__name__.removeprefix("Test") for t in MethodTester.__subclasses__()}
    assert {m.__name__ for m in own} <= tested
