"""What the contract promises beyond ``MethodTester``: ignored labels in unsupervised terms, bundles, adversaries."""

import pytest
import torch
from builders import names, testers, tiny
from method_tester import batches
from test_toy_adversary import ToyAdversarial

from monai_ssl.bundle.library import available_bundles, find_bundle
from monai_ssl.bundle.spec import read_spec
from monai_ssl.losses import IGNORE_LABEL
from monai_ssl.methods import SemiSupervisedMethod


def half_ignored(n_classes=2):
    """Batches whose labels are to be ignored in the lower half of every image; where that is."""
    labeled, unlabeled = batches(n_classes=n_classes)
    ignored = torch.zeros_like(labeled["label"], dtype=torch.bool)
    ignored[:, :, 16:] = True
    labeled["label"].masked_fill_(ignored, IGNORE_LABEL)
    return labeled, unlabeled, ignored


def test_every_bundle_has_a_tester_and_says_the_same_as_its_class():
    assert set(names()) - {"toy_adversary"} == set(available_bundles())
    for name in available_bundles():
        assert read_spec(find_bundle(name)).unlabeled == tiny(name).uses_unlabeled, name


def test_no_prototype_comes_from_ignored_voxels_and_none_attracts_them():
    labeled, _, ignored = half_ignored()
    features, predicted = torch.rand(4, 2, 32, 32), torch.ones(4, 1, 32, 32, dtype=torch.long)
    found = []
    for label in (
        labeled["label"],
        labeled["label"].masked_fill(ignored, 0),  # background, which is left out of everything
        labeled["label"].masked_fill(ignored, 1),
    ):
        method = tiny("ss_net", dropout=0.0)
        torch.manual_seed(0)
        found.append((method.separate(features, predicted, label), method.memory[1].clone()))
    assert found[0][0] == found[1][0]
    assert found[0][0] != found[2][0]
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][1], found[2][1])


def test_class_vectors_are_those_of_the_other_voxels():
    labeled, _, ignored = half_ignored(n_classes=3)
    tester = testers()["tac"]()
    method = tester.build(n_classes=3)
    logits = torch.randn(4, 3, 32, 32)
    maps = [torch.rand(4, 5, 32, 32).requires_grad_() for _ in range(2)]
    method.terms(logits, maps[:1], maps[1:], labeled)["contextual"].backward()
    assert not maps[0].grad[:2][ignored.expand(-1, 5, -1, -1)].any()
    assert maps[0].grad[:2][~ignored.expand(-1, 5, -1, -1)].any()


def test_the_memory_never_holds_ignored_voxels():
    labeled, unlabeled, ignored = half_ignored()
    method = testers()["caml"]().build(bank_capacity=None, prototypes_per_class=1)
    method(labeled, unlabeled)
    assert 0 < int(method.bank.counts.sum()) <= int((~ignored).sum())
    labeled["label"].fill_(IGNORE_LABEL)
    method(labeled, unlabeled)
    assert int(method.bank.counts.sum()) == 0


def test_distance_maps_of_the_loader_know_ignored_voxels():
    labeled, unlabeled, _ = half_ignored()
    for name in ("dtc", "ug_mcl"):
        method = testers()[name]().build(unsupervised_weight=0.0)
        [transform] = method.loader_transforms()
        maps = torch.stack([transform({"label": label})["signed_distance"] for label in labeled["label"]])
        here = method(labeled, unlabeled)
        there = testers()[name]().build(unsupervised_weight=0.0)({**labeled, "signed_distance": maps}, unlabeled)
        assert here["signed_distance"].item() == there["signed_distance"].item()
        assert torch.isfinite(here["signed_distance"])


def test_a_loss_of_others_makes_no_promise():
    tester = testers()["supervised"]()
    assert tester.build().honors_ignore_label
    assert not tester.build(loss=torch.nn.CrossEntropyLoss()).honors_ignore_label


def test_an_adversary_is_frozen_but_passes_gradients_on():
    method, (labeled, unlabeled) = ToyAdversarial(tiny("supervised").network), batches()
    method(labeled, unlabeled)["adversarial"].backward()
    assert all(p.grad is None for p in method.adversaries.parameters())
    assert any(p.grad is not None and p.grad.any() for p in method.network.parameters())


def test_an_adversary_must_say_how_it_learns():
    class Silent(SemiSupervisedMethod):
        def forward(self, labeled, unlabeled):
            return {}

    method = Silent(torch.nn.Identity())
    method.add_adversary("critic", torch.nn.Linear(1, 1))
    with pytest.raises(NotImplementedError, match="Silent has the adversary 'critic' and must define adversary_terms"):
        method.adversary_terms("critic", {}, None)


@pytest.mark.parametrize("include_background", [True, False])
def test_methods_with_the_same_matched_floor_train_the_same_network(include_background):
    """Bit for bit, dropout and batch statistics included: that is why a study trains it once."""
    groups = {}
    for name in names():
        method = testers()[name]()
        kind = type(tiny(name))
        options = {"include_background": include_background}
        if (floor := kind.matched_floor(options)) is None:
            continue
        assert kind.matched_floor({"include_background": not include_background}) != floor
        method = tiny(name, unsupervised_weight=0.0, **options).train()
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(method.network.parameters(), lr=0.1)
        for _ in range(3):
            labeled, unlabeled = batches()
            optimizer.zero_grad()
            sum(method(labeled, unlabeled).values()).backward()
            optimizer.step()
            method.after_step()
        groups.setdefault(str(floor), {})[name] = method.network.state_dict()
    for trained in groups.values():
        assert set(trained) == {"dan", "entropy_minimization", "mean_teacher", "tcse", "ua_mt"}
        first, *others = trained.values()
        for other in others:
            assert all(torch.equal(first[key], other[key]) for key in first)
    assert len(groups) == 1


def test_a_student_that_sees_moved_images_has_a_matched_floor_of_its_own():
    from monai_ssl.methods import TransformationConsistency

    assert TransformationConsistency.matched_floor({"transformed": "student"}) is None
    assert TransformationConsistency.matched_floor({"transformed": "teacher"}) is not None
