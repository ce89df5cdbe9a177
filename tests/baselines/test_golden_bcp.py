"""BCP's released codes for the left atrium, Pancreas-CT and ACDC: boxes, components, losses, and whole steps."""

import numpy as np
import pytest
import torch
from released import check_steps, fill, float64, norms, rs, step_network
from torch import nn

from monai_ssl.methods import BidirectionalCopyPaste
from monai_ssl.transforms import largest_component, largest_components


class Given(nn.Module):
    """A network whose outputs are given, one per pass; remembers what it was shown."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs, self.shown = list(outputs), []

    def forward(self, image):
        self.shown.append(image)
        return self.outputs[(len(self.shown) - 1) % len(self.outputs)]


@pytest.fixture
def corners(monkeypatch):
    """Corners of boxes are given; the bounds between which they were to be drawn."""

    def set_corners(*given):
        coming, asked = [c for corner in given for c in corner], []

        def draw(low, high, size):
            asked.append([low, high])
            return torch.full(size, coming[len(asked) - 1])

        monkeypatch.setattr(torch, "randint", draw)
        return asked

    return set_corners


@pytest.mark.claims("bcp_box_*", "bcp_sides", "bcp_la_*", "bcpp_randint_args")
def test_golden_bcp_boxes(golden, corners):
    method = BidirectionalCopyPaste(nn.Identity())
    for side, la, acdc in zip(golden["bcp_sides"], golden["bcp_box_la"], golden["bcp_box_acdc"], strict=True):
        corners([0])
        assert method.draw_box(torch.empty(1, 1, int(side))).sum() == la == acdc
    asked = corners(golden["bcp_la_corner"].tolist())
    inside = method.draw_box(torch.empty(1, 1, 112, 112, 80))[0, 0]
    assert asked == golden["bcp_la_randint_args"].tolist()
    assert (~inside).sum() == golden.number("bcp_la_mask_sum")
    found = [[int(i.min()), int(i.max()) + 1] for i in inside.nonzero(as_tuple=True)]
    assert found == golden["bcp_la_mask_bounds"].tolist()
    asked = corners([0, 0, 0])  # that released box was made smaller than its code has it
    BidirectionalCopyPaste(nn.Identity(), box=5.5 / 96).draw_box(torch.empty(1, 1, 96, 96, 96))
    assert asked == golden["bcpp_randint_args"].tolist()


@pytest.mark.claims("bcp_lcc*")
def test_golden_bcp_components(golden):
    for connectivity, name in ((1, "connect1"), (2, "pancreas"), (3, "la")):
        found = [largest_component(mask != 0, connectivity) for mask in golden["bcp_lcc3_in"]]
        np.testing.assert_array_equal(np.stack(found), golden[f"bcp_lcc3_{name}_out"], err_msg=name)
    label = golden.tensor("bcp_lcc2_in", torch.int64)[:, None]
    found = largest_components(label, 4, connectivity=2)
    np.testing.assert_array_equal(found[:, 0].numpy(), golden["bcp_lcc2_out"])


@pytest.mark.claims("bcp_tie_*")
def test_golden_bcp_ties(golden):
    method = BidirectionalCopyPaste(nn.Identity(), keep_largest=False)
    label = method.teacher_labels(golden.tensor("bcp_tie_logits"))
    np.testing.assert_array_equal(label[:, 0].numpy(), golden["bcp_tie_label"])


@pytest.mark.claims("sup_bcp*")
def test_golden_bcp_dice(golden):
    for dims, variant in (("3", "left_atrium"), ("2", "acdc")):
        dice = BidirectionalCopyPaste(nn.Identity(), variant=variant).dice
        logits = golden.tensor(f"in{dims}_multi", torch.float64)[0, :2].requires_grad_()
        label = golden.tensor(f"in{dims}_label", torch.int64)[:2, None]
        region = golden.tensor(f"sup_bcp_mask{dims}", torch.bool)[:, None]
        masked, inverse = label.masked_fill(~region, 255), label.masked_fill(region, 255)
        cases = {"dice": label, "dice_masked": masked, "dice_masked_inverse": inverse}
        if dims == "2":
            cases["dice_masked_no3"] = masked.masked_fill(masked == 3, 0)
        for key, target in cases.items():
            with float64():
                loss = dice(logits, target)
            assert loss.item() == pytest.approx(golden.number(f"sup_bcp{dims}_{key}"), rel=1e-6), key
            if f"sup_bcp{dims}_{key}_grad" in golden.numbers.files:
                [gradient] = torch.autograd.grad(loss, logits)
                np.testing.assert_allclose(gradient, golden[f"sup_bcp{dims}_{key}_grad"], rtol=1e-4, atol=1e-7)


def parts(method, logits, outside, inside, box, weights):
    """Dice and cross-entropy of a mixed image, each as the weighted sum over both regions."""
    found = torch.zeros(2, dtype=torch.float64)
    for label, region, weight in zip((outside, inside), (~box, box), weights, strict=True):
        dice = method.dice(logits, label.masked_fill(~region, 255))
        found += weight * torch.stack([dice, 2 * method.loss(logits, label, region) - dice]).detach()
    return found.tolist()


def case(golden, name, variant, box=None):
    """A method on given outputs, and its batches."""
    source = "bcp3" if name == "bcpp" else name
    student = golden.tensor(f"{source}_student", torch.float64)
    student = [student[:2].clone().requires_grad_(), student[2:].clone().requires_grad_()]
    teacher = golden.tensor(f"{source}_teacher", torch.float64)
    method = BidirectionalCopyPaste(Given(*student), variant=variant, pretrain=0)
    method.teacher.network = Given(teacher[:2], teacher[2:])
    image = golden.tensor(f"{source}_image")
    label = golden.tensor(f"{source}_label", torch.int64)[:, None]
    labeled, unlabeled = {"image": image[:4], "label": label[:4]}, {"image": image[4:]}
    return method, student, labeled, unlabeled, label


def check_gradients(golden, total, student, keys):
    for z, key in zip(student, keys, strict=True):
        [gradient] = torch.autograd.grad(total, z, retain_graph=True)
        np.testing.assert_allclose(gradient.numpy(), golden[key], rtol=1e-4, atol=1e-7)


def check_shown(golden, method, keys):
    """What the student saw."""
    for image, key in zip(method.network.shown, keys, strict=True):
        np.testing.assert_allclose(image.numpy(), golden[key], atol=1e-6)


@pytest.mark.claims("bcp3_[cgilmst]*", "bcp3_pla*", "bcp3_parts_l")
def test_golden_bcp_left_atrium(golden, corners):
    method, student, labeled, unlabeled, label = case(golden, "bcp3", "left_atrium")
    corners(golden["bcp3_corner"].tolist())
    with float64():
        terms = method(labeled, unlabeled)
        assert sum(terms.values()).item() == pytest.approx(golden.number("bcp3_loss"), rel=1e-6)
        check_gradients(golden, sum(terms.values()), student, ("bcp3_grad_l", "bcp3_grad_u"))
        check_shown(golden, method, ("bcp3_mixl_img", "bcp3_mixu_img"))
        box = ~golden.tensor("bcp3_img_mask", torch.bool)[None, None]
        pseudo = [method.teacher_labels(image) for image in unlabeled["image"].split(2)]
        for half, key in zip(pseudo, ("plab_a", "plab_b"), strict=True):
            np.testing.assert_array_equal(half[:, 0].numpy(), golden[f"bcp3_{key}"])
        for key, pair in {"l": (label[:2], pseudo[0]), "u": (pseudo[1], label[2:4])}.items():
            mixed = torch.where(box, pair[1], pair[0])
            np.testing.assert_array_equal(mixed[:, 0].numpy(), golden[f"bcp3_mix{key}_lab"])
            weights, logits = ((1, 0.5), student[0]) if key == "l" else ((0.5, 1), student[1])
            loss = 0.5 * sum(parts(method, logits, *pair, box, weights))
            assert loss == pytest.approx(golden.number(f"bcp3_loss_{key}"), rel=1e-6)
        outside = parts(method, student[0], label[:2], pseudo[0], box, (1, 0))
        inside = parts(method, student[0], label[:2], pseudo[0], box, (0, 1))
    found = [outside[0], inside[0], outside[1], inside[1]]
    np.testing.assert_allclose(found, golden["bcp3_parts_l"], rtol=1e-6)


@pytest.mark.claims("bcpp_[ilp]*")
def test_golden_bcp_pancreas(golden, monkeypatch):
    method, student, labeled, unlabeled, label = case(golden, "bcpp", "pancreas_ct")
    box = ~golden.tensor("bcpp_img_mask", torch.bool)[None, None]
    monkeypatch.setattr(method, "draw_box", lambda image: box)
    with float64():
        terms = method(labeled, unlabeled)
        pseudo = [method.teacher_labels(image) for image in unlabeled["image"].split(2)]
        first = 0.5 * sum(parts(method, student[0], pseudo[0], label[2:4], box, (0.5, 1)))
        second = 0.5 * sum(parts(method, student[1], label[:2], pseudo[1], box, (1, 0.5)))
    assert sum(terms.values()).item() == pytest.approx(golden.number("bcpp_loss"), rel=1e-6)
    assert first == pytest.approx(golden.number("bcpp_loss_1"), rel=1e-6)
    assert second == pytest.approx(golden.number("bcpp_loss_2"), rel=1e-6)
    np.testing.assert_allclose(method.network.shown[0].numpy(), golden["bcpp_input_1"], atol=1e-6)
    for half, key in zip(pseudo, ("plab_a", "plab_b"), strict=True):
        np.testing.assert_array_equal(half[:, 0].numpy(), golden[f"bcpp_{key}"])


@pytest.mark.claims("bcp2_[cgilmrstu]*", "bcp2_pla*")
def test_golden_bcp_acdc(golden, corners):
    method, student, labeled, unlabeled, label = case(golden, "bcp2", "acdc")
    asked = corners(golden["bcp2_corner"].tolist())
    with float64():
        terms = method(labeled, unlabeled)
        assert asked == golden["bcp2_randint_args"].tolist()
        assert sum(terms.values()).item() == pytest.approx(golden.number("bcp2_loss"), rel=1e-6)
        check_gradients(golden, sum(terms.values()), student, ("bcp2_grad_unl", "bcp2_grad_l"))
        check_shown(golden, method, ("bcp2_input_unl", "bcp2_input_l"))
        box = ~golden.tensor("bcp2_img_mask", torch.bool)[None, None]
        pseudo = [method.teacher_labels(image) for image in unlabeled["image"].split(2)]
        for half, key in zip(pseudo, ("plab_a", "plab_b"), strict=True):
            np.testing.assert_array_equal(half[:, 0].numpy(), golden[f"bcp2_{key}"])
        mixes = {
            "unl": (student[0], pseudo[0], label[:2], (0.5, 1)),
            "l": (student[1], label[2:4], pseudo[1], (1, 0.5)),
        }
        for key, (logits, outside, inside, weights) in mixes.items():
            dice, cross_entropy = parts(method, logits, outside, inside, box, weights)
            assert dice == pytest.approx(golden.number(f"bcp2_{key}_dice"), rel=1e-6)
            assert cross_entropy == pytest.approx(golden.number(f"bcp2_{key}_ce"), rel=1e-6)


@pytest.mark.parametrize(
    ("dims", "variant"),
    [
        pytest.param("3", "left_atrium", marks=pytest.mark.claims("bcp3_pre_*")),
        pytest.param("2", "acdc", marks=pytest.mark.claims("bcp2_pre_*")),
    ],
)
def test_golden_bcp_first_stage(golden, corners, dims, variant):
    name = f"bcp{dims}"
    logits = golden.tensor(f"{name}_student", torch.float64)[:2].clone().requires_grad_()
    method = BidirectionalCopyPaste(Given(logits), variant=variant)
    image, label = golden.tensor(f"{name}_image"), golden.tensor(f"{name}_label", torch.int64)[:, None]
    corner = golden[f"{name}_corner"].tolist()
    corners(corner, corner)
    with float64():
        [loss] = method({"image": image[:4], "label": label[:4]}).values()
        box = method.draw_box(image)
        mixed = torch.where(box, label[2:4], label[:2])
        if dims == "3":
            np.testing.assert_array_equal(mixed[:, 0].numpy(), golden["bcp3_pre_label"])
            dice = method.dice(logits, mixed).item()
            found = [dice, 2 * loss.item() - dice]
        else:
            found = parts(method, logits, label[:2], label[2:4], box, (1, 1))
    np.testing.assert_allclose(found, [golden.number(f"{name}_pre_loss_{k}") for k in ("dice", "ce")], rtol=1e-6)
    assert loss.item() == pytest.approx(golden.number(f"{name}_pre_loss"), rel=1e-6)
    check_gradients(golden, loss, [logits], [f"{name}_pre_grad"])
    check_shown(golden, method, [f"{name}_pre_input"])


@pytest.mark.parametrize(
    ("dims", "variant", "given", "keys"),
    [
        pytest.param(3, "left_atrium", ((2, 5, 1), (0, 10, 4)), ("loss_l", "loss_u"),
                     marks=pytest.mark.claims("step_bcp3_*")),
        pytest.param(2, "acdc", ((2, 5), (0, 10)), ("unl", "l"), marks=pytest.mark.claims("step_bcp2_*")),
    ],
)  # fmt: skip
def test_golden_bcp_whole_steps(golden, corners, dims, variant, given, keys):
    method = BidirectionalCopyPaste(step_network(dims), variant=variant, pretrain=0)
    fill(method.network, 1000)
    fill(method.teacher.network, 2000)
    shape = (8, 1, 32, 32, 16) if dims == 3 else (8, 1, 32, 32)
    image = rs(1910 if dims == 3 else 1920, shape)
    random = np.random.RandomState(1911 if dims == 3 else 1921)
    label = torch.from_numpy(random.randint(0, 2 if dims == 3 else 4, (8, *shape[2:])))[:, None]
    corners(*given)
    calls = []
    original = method.loss

    def loss(logits, label, region):  # two regions of the first mixed image, two of the second
        found = original(logits, label, region)
        dice = method.dice(logits, label.masked_fill(~region, 255)).item()
        calls.append((found.item(), dice, 2 * found.item() - dice))
        return found

    method.loss = loss
    weights = {"left_atrium": ((1, 0.5), (0.5, 1)), "acdc": ((0.5, 1), (1, 0.5))}[variant]

    def losses(terms):
        found = {}
        for i, key in enumerate(keys):
            half = np.array(calls[-4:][2 * i : 2 * i + 2]).T @ np.array(weights[i])
            found |= {key: half[0]} if dims == 3 else {f"{key}_dice": half[1], f"{key}_ce": half[2]}
        return found

    averages = {} if dims == 2 else {"ema_model": method.teacher.network}
    batches = {"image": image[:4], "label": label[:4]}, {"image": image[4:]}
    check_steps(golden, f"bcp{dims}", method, batches, 3000, losses, {"model": method.network}, averages)
    if dims == 2:
        teacher = method.teacher.network
        np.testing.assert_allclose(
            norms(teacher.parameters()), golden["step_bcp2_param_norms_after_ema_model"], rtol=1e-6
        )
        # the released code averages the batch counters as well, which mean nothing then
        counted = [not name.endswith("tracked") for name, _ in teacher.named_buffers()]
        expected = golden["step_bcp2_buffer_norms_after_ema_model"]
        np.testing.assert_allclose(np.array(norms(teacher.buffers()))[counted], expected[counted], rtol=1e-6)
