"""What every method must fulfil. A test class inherits it and says how its method is built: a file per method."""

import copy
import io

import pytest
import torch
from monai.networks.nets import BasicUNet

from monai_ssl.losses import IGNORE_LABEL

SIDES = {2: (32, 32), 3: (32, 32, 16)}


def batches(spatial_dims=2, n_classes=2, n_labeled=2, n_unlabeled=2, seed=0):
    """A labeled and an unlabeled batch as ``TwoStreamLoader`` gives them; None for no unlabeled images."""
    generator = torch.Generator().manual_seed(seed)
    sides = SIDES[spatial_dims]
    labeled = {
        "image": torch.randn(n_labeled, 1, *sides, generator=generator),
        "label": torch.randint(0, n_classes, (n_labeled, 1, *sides), generator=generator),
        "index": torch.arange(n_labeled),
        "name": [f"case {i}" for i in range(n_labeled)],
    }
    if n_unlabeled == 0:
        return labeled, None
    image = torch.randn(n_unlabeled, 1, *sides, generator=generator)
    names = [f"unlabeled case {i}" for i in range(n_unlabeled)]
    return labeled, {"image": image, "index": torch.arange(n_unlabeled), "name": names}


def total(terms):
    return torch.stack([term.float() for term in terms.values()]).sum()


class Pointwise(torch.nn.Module):
    """A backbone of 8 channels without neighborhood; its modules are named as those of ``BasicUNet``."""

    def __init__(self, spatial_dims):
        super().__init__()
        conv = torch.nn.Conv2d if spatial_dims == 2 else torch.nn.Conv3d
        self.conv_0, self.down_1, self.upcat_1 = conv(1, 8, 1), conv(8, 8, 1), conv(8, 8, 1)

    def forward(self, x):
        return self.upcat_1(self.down_1(self.conv_0(x).tanh()).tanh())


class MethodTester:
    """Inherit, define :meth:`network` and :meth:`method` and the two lists of names."""

    bundle: str = ""  # name of the method's bundle; with it, ``builders.py`` finds :meth:`tiny`
    supervised_terms: tuple[str, ...] = ()
    unsupervised_terms: tuple[str, ...] = ()
    every_voxel_counts = True  # False: a method shows the network parts of the labeled images only

    def network(self, spatial_dims=2, n_classes=2):
        """A tiny network of the kind that the method's bundle uses, without dropout."""
        raise NotImplementedError

    def wrap(self, backbone, spatial_dims, n_classes):
        """The same from a MONAI network whose output has 8 channels."""
        raise NotImplementedError

    def method(self, network, **options):
        raise NotImplementedError

    def tiny(self, spatial_dims, sizes, max_iterations, **options):
        """The smallest method that trains, two classes; ``sizes`` are options of ``VNet``. See ``builders.py``."""
        raise NotImplementedError

    def build(self, spatial_dims=2, n_classes=2, seed=0, **options):
        torch.manual_seed(seed)
        return self.method(self.network(spatial_dims, n_classes), **options)

    def check_terms(self, terms, unlabeled=True):
        """Unsupervised terms may be absent where there is nothing unlabeled."""
        needed = {*self.supervised_terms, *(self.unsupervised_terms if unlabeled else ())}
        assert needed <= set(terms) <= {*self.supervised_terms, *self.unsupervised_terms}
        for name, term in terms.items():
            assert term.shape == (), name
            assert term.dtype == torch.float32, name
            assert torch.isfinite(term), name

    def check_training(self, method):
        """The sum of the terms reaches every parameter of the deployed network with a finite gradient."""
        total_gradient = 0.0
        for name, parameter in method.network.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            total_gradient += parameter.grad.abs().sum()
        assert total_gradient > 0

    @pytest.mark.parametrize("n_classes", [2, 4])
    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_forward_and_backward(self, spatial_dims, n_classes):
        method = self.build(spatial_dims, n_classes)
        terms = method(*batches(spatial_dims, n_classes))
        self.check_terms(terms)
        total(terms).backward()
        self.check_training(method)

    @pytest.mark.parametrize(("n_labeled", "n_unlabeled"), [(2, 0), (1, 0), (1, 3), (3, 1)])
    def test_any_mixture_of_images(self, n_labeled, n_unlabeled):
        method = self.build()
        terms = method(*batches(n_labeled=n_labeled, n_unlabeled=n_unlabeled))
        self.check_terms(terms, unlabeled=n_unlabeled > 0)
        total(terms).backward()
        self.check_training(method)

    @pytest.mark.parametrize("foreground", [0, 1])
    def test_patches_without_and_with_nothing_but_foreground(self, foreground):
        method = self.build()
        labeled, unlabeled = batches()
        labeled["label"].fill_(foreground)
        terms = method(labeled, unlabeled)
        self.check_terms(terms)
        total(terms).backward()
        self.check_training(method)

    def test_learns(self):
        method = self.build()
        labeled, unlabeled = batches()
        labeled["label"] = (labeled["image"] > 0).long()
        optimizer = torch.optim.Adam(method.parameters(), lr=0.02)  # adversaries are frozen: skipped
        losses = []
        for _ in range(15):
            terms = method(labeled, unlabeled)
            optimizer.zero_grad()
            total(terms).backward()
            optimizer.step()
            method.after_step()
            losses.append(sum(terms[name].item() for name in self.supervised_terms))
        assert losses[-1] < 0.8 * losses[0]

    def test_needs_no_label_of_an_unlabeled_image(self):
        method, other, (labeled, unlabeled) = self.build(), self.build(), batches()
        assert "label" not in unlabeled
        torch.manual_seed(0)
        first = method(labeled, unlabeled)
        torch.manual_seed(0)
        second = other(labeled, {**unlabeled, "label": torch.full_like(labeled["label"], 77)})
        assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in second.items()}

    def test_batches_are_not_changed(self):
        given = batches()
        before = copy.deepcopy(given)
        total(self.build()(*given)).backward()
        for batch, former in zip(given, before, strict=True):
            assert batch.keys() == former.keys()
            for key, value in former.items():
                assert torch.equal(batch[key], value) if isinstance(value, torch.Tensor) else batch[key] == value

    def test_weight_zero_is_the_matched_floor(self):
        states, gradient = {}, {}
        for weight in (0.0, 1.0):
            method = self.build(unsupervised_weight=weight)
            method.iteration = 10**6  # beyond every ramp-up
            for module in method.modules():  # dropout draws another mask where fewer passes are made
                if isinstance(module, torch.nn.modules.dropout._DropoutNd):
                    module.p = 0.0
            torch.manual_seed(1)
            terms = method(*batches())
            self.check_terms(terms, unlabeled=weight > 0)
            states[weight] = dict(method.network.named_buffers())
            for name in self.unsupervised_terms:
                assert (terms.get(name, 0.0) == 0) == (weight == 0), name
            # the unsupervised terms alone
            wanted = [p for p in method.parameters() if p.requires_grad]
            alone = [terms[name] for name in self.unsupervised_terms if name in terms]
            if alone:
                g = torch.autograd.grad(sum(alone), wanted, retain_graph=True, allow_unused=True)
                size = sum(x.abs().sum().item() for x in g if x is not None)
                assert size == 0 if weight == 0 else size > 0
            supervised = sum(terms[name] for name in self.supervised_terms)
            expected = torch.autograd.grad(supervised, wanted, retain_graph=True, allow_unused=True)
            total(terms).backward()
            gradient[weight] = [p.grad for p in wanted]
            if weight == 0:
                for actual, g in zip(gradient[weight], expected, strict=True):
                    torch.testing.assert_close(actual, torch.zeros_like(actual) if g is None else g)
        # the deployed network has seen the same images: its batch statistics are the same
        assert states[0.0].keys() == states[1.0].keys()
        for key, value in states[0.0].items():
            assert torch.equal(value, states[1.0][key]), key
        if self.unsupervised_terms:
            assert any(not torch.equal(a, b) for a, b in zip(gradient[0.0], gradient[1.0], strict=True))

    def test_state_round_trip(self):
        method = self.build()
        optimizer = torch.optim.SGD(method.parameters(), lr=0.05)
        for seed in range(3):
            optimizer.zero_grad()
            total(method(*batches(seed=seed))).backward()
            optimizer.step()
            method.after_step()
        assert method.iteration == 3
        file = io.BytesIO()
        torch.save(method.state_dict(), file)
        file.seek(0)
        other = self.build(seed=1)
        result = other.load_state_dict(torch.load(file, weights_only=True))
        assert not result.missing_keys
        assert not result.unexpected_keys
        assert other.iteration == 3
        given = batches(seed=9)
        torch.manual_seed(2)
        expected = method(*given)
        torch.manual_seed(2)
        actual = other(*given)
        assert {k: v.item() for k, v in actual.items()} == {k: v.item() for k, v in expected.items()}

    def test_iteration_starts_at_zero_and_counts_steps(self):
        method = self.build()
        assert method.iteration == 0
        method(*batches())
        assert method.iteration == 0  # a forward pass is no step
        method.after_step()
        method.after_step()
        assert method.iteration == 2

    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_bfloat16_autocast(self, spatial_dims):
        method = self.build(spatial_dims)
        given = batches(spatial_dims)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = method(*given)
        self.check_terms(terms)
        total(terms).backward()
        # gradients are checked where the trainer shields them: 3D convolutions over a depth of 2 may be wrong here
        exact = self.build(spatial_dims)(*given)
        for name in self.supervised_terms:
            assert terms[name].item() == pytest.approx(exact[name].item(), abs=0.03), name

    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_any_monai_backbone(self, spatial_dims):
        torch.manual_seed(0)
        backbone = BasicUNet(spatial_dims, 1, out_channels=8, features=(4, 4, 4, 4, 4, 4))
        method = self.method(self.wrap(backbone, spatial_dims, n_classes=3))
        terms = method(*batches(spatial_dims, n_classes=3))
        self.check_terms(terms)
        total(terms).backward()
        self.check_training(method)

    @pytest.mark.parametrize("n_classes", [2, 4])
    def test_deployed_network(self, n_classes):
        network = self.build(n_classes=n_classes).network.eval()
        image = torch.randn(1, 1, *SIDES[2])
        with torch.no_grad():
            logits = network(image)
        assert logits.shape == (1, n_classes, *SIDES[2])
        keys = set(network.state_dict())
        fresh = self.network(2, n_classes)
        assert keys == set(fresh.state_dict())  # the method adds nothing to the deployed network

    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_second_opinion_is_class_probabilities(self, n_classes):
        method = self.build(n_classes=n_classes).eval()
        image = batches()[1]["image"]
        with torch.no_grad():
            opinion = method.second_opinion(image)
            shape = method.network(image).shape
        if opinion is not None:  # methods with one network and one task have none
            assert opinion.shape == shape
            torch.testing.assert_close(opinion.sum(1), torch.ones_like(opinion[:, 0]))
            assert opinion.min() >= 0

    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_ignored_voxels_change_no_supervised_term(self, n_classes):
        torch.manual_seed(0)
        backbone = Pointwise(2)  # what it says of a voxel depends on the image at this voxel alone
        method = self.method(self.wrap(backbone, 2, n_classes), unsupervised_weight=0.0)
        if not method.honors_ignore_label:
            pytest.skip("the trainer refuses such labels")
        labeled, unlabeled = batches(n_classes=n_classes)
        ignored = torch.rand(labeled["label"].shape, generator=torch.Generator().manual_seed(3)) < 0.4
        labeled["label"].masked_fill_(ignored, IGNORE_LABEL)
        found = []
        for other in (0.0, 5.0):
            image = (labeled["image"] + other * ignored).requires_grad_()
            terms = method({**labeled, "image": image}, unlabeled)
            method.zero_grad()
            sum(terms[name] for name in self.supervised_terms).backward()
            assert not image.grad[ignored].any()
            assert image.grad[~ignored].all() if self.every_voxel_counts else image.grad[~ignored].any()
            found.append({n: p.grad for n, p in method.named_parameters() if p.grad is not None})
            found[-1] |= {f"term {name}": terms[name].detach() for name in self.supervised_terms}
        assert found[0].keys() == found[1].keys()
        for name, value in found[0].items():
            assert torch.equal(found[1][name], value), name

    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_an_ignored_half_is_as_if_images_ended_there(self, n_classes):
        torch.manual_seed(0)
        method = self.method(self.wrap(Pointwise(2), 2, n_classes), unsupervised_weight=0.0).double()
        if not method.honors_ignore_label:
            pytest.skip("the trainer refuses such labels")
        labeled, unlabeled = batches(n_classes=n_classes)
        labeled["image"], unlabeled["image"] = labeled["image"].double(), unlabeled["image"].double()
        side = labeled["label"].shape[2] // 2
        ignored = labeled["label"].clone()
        ignored[:, :, side:] = IGNORE_LABEL
        ended = {**labeled, "image": labeled["image"][:, :, :side], "label": labeled["label"][:, :, :side]}
        shorter = {**unlabeled, "image": unlabeled["image"][:, :, :side]}
        found = []
        for batch, other in (({**labeled, "label": ignored}, unlabeled), (ended, shorter)):
            terms = method(batch, other)
            method.zero_grad()
            sum(terms[name] for name in self.supervised_terms).backward()
            found.append({n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None})
            found[-1] |= {f"term {name}": terms[name].detach() for name in self.supervised_terms}
        assert found[0].keys() == found[1].keys()
        for name, value in found[0].items():
            torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")

    @pytest.mark.parametrize("share", [0.3, 1.0])
    def test_ignored_voxels_in_a_whole_step(self, share):
        method = self.build(n_classes=3)
        if not method.honors_ignore_label:
            pytest.skip("the trainer refuses such labels")
        labeled, unlabeled = batches(n_classes=3)
        ignored = torch.rand(labeled["label"].shape, generator=torch.Generator().manual_seed(3)) < share
        labeled["label"].masked_fill_(ignored, IGNORE_LABEL)
        terms = method(labeled, unlabeled)
        self.check_terms(terms)
        if share == 1.0:
            assert all(terms[name] == 0 for name in self.supervised_terms)
        total(terms).backward()
        for name, parameter in method.named_parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name

    def test_adversaries_learn_their_own_parameters_only(self):
        method, given = self.build(), batches()
        optimizers = method.adversary_optimizers()
        assert set(optimizers) == set(method.adversaries)
        total(method(*given)).backward()
        for name, adversary in method.adversaries.items():
            assert not any(p.requires_grad or p.grad is not None for p in adversary.parameters()), name
            terms = method.train().adversary_terms(name, *given)
            assert all(term.shape == () and torch.isfinite(term) for term in terms.values()), name

    def test_loader_transforms_add_to_a_labeled_item(self):
        labeled, unlabeled = batches()
        method, other = self.build(), self.build()
        items = [
            {"image": image, "label": label} for image, label in zip(labeled["image"], labeled["label"], strict=True)
        ]
        for transform in method.loader_transforms():
            items = [transform(item) for item in items]
        added = {key: torch.stack([item[key] for item in items]) for key in items[0].keys() - {"image", "label"}}
        torch.manual_seed(0)
        here = method(labeled, unlabeled)
        torch.manual_seed(0)
        from_the_loader = other(labeled | added, unlabeled)
        assert {k: v.item() for k, v in here.items()} == {k: v.item() for k, v in from_the_loader.items()}

    def test_second_opinion_needs_the_state_that_it_says(self):
        method, image = self.build().eval(), batches()[1]["image"]
        with torch.no_grad():
            before = method.second_opinion(image)
            for name, parameter in method.named_parameters():
                if not name.startswith("network."):
                    parameter.add_(torch.randn_like(parameter))
            after = method.second_opinion(image)
        if before is not None:
            assert method.second_opinion_needs_state != torch.equal(before, after)

    def test_every_parameter_that_trains_is_in_the_state(self):
        method = self.build()
        keys = set(method.state_dict())
        assert {name for name, _ in method.named_parameters()} <= keys
        assert {f"network.{key}" for key in method.network.state_dict()} <= keys

    @pytest.mark.parametrize("weight", [-0.1, float("nan")])
    def test_rejects_unsupervised_weight(self, weight):
        with pytest.raises(ValueError, match=r"unsupervised_weight must be >= 0, got "):
            self.build(unsupervised_weight=weight)
