"""UG-MCL against numbers that its released code produced (``tests/golden/golden_ugmcl.npz``), and, under ``paper_``,
against numbers put together from its helpers after the paper's equations.

Values agree within 1e-6, gradients within rtol 1e-4, atol 1e-7. ``ELSEWHERE`` names the entries that other test files
check; no entry depends on a global random state.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from monai_ssl.engines import WindowInferer
from monai_ssl.losses import (
    DualTaskConsistencyLoss,
    ForegroundDiceLoss,
    MaskedMSELoss,
    SigmoidRampUp,
    SmoothHeaviside,
    UncertaintyThreshold,
    monte_carlo_probabilities,
    predictive_entropy,
)
from monai_ssl.methods import UncertaintyGuidedMutualConsistency
from monai_ssl.networks import DualTaskVNet, EMATeacher, UNet
from monai_ssl.transforms import SignedDistanceMap

TESTS = Path(__file__).parents[1]
ELSEWHERE = {
    r"net_.*": "networks/test_networks_golden.py",
    r"metric_.*|val_metric_.*": "metrics/test_cases.py",
}
HERE = r"step_.*|paper_.*|ramp_.*|thr_value|ema_.*|param_count_.*|sw_.*"


@pytest.fixture(scope="module")
def golden():
    with np.load(TESTS / "golden" / "golden_ugmcl.npz", allow_pickle=False) as file:
        return dict(file)


def check(actual, expected, rtol=0.0, atol=1e-6):
    actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
    assert actual.shape == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def test_golden_ugmcl_every_entry_is_accounted_for(golden):
    here = Path(__file__).read_text()
    for key in golden:
        elsewhere = [file for pattern, file in ELSEWHERE.items() if re.fullmatch(pattern, key)]
        assert len(elsewhere) + bool(re.fullmatch(HERE, key)) == 1, key
        text = (TESTS / elsewhere[0]).read_text() if elsewhere else here
        assert "def test_golden_ugmcl" in text
        name = re.sub(r"fs(4|16)", "fs{scale}", key)
        assert re.search(rf'"{re.escape(name)}"', text), f"{key} is not read"


class Recorded(nn.Module):
    """A teacher whose stochastic passes were recorded: returns the next ones, whatever the image."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.next = logits, 0

    def forward(self, image):
        copies = len(image) // self.logits.shape[1]
        self.next += copies
        return self.logits[self.next - copies : self.next].flatten(0, 1)


def released():
    network = UNet.literature_3d(channels=(2, 4))
    return UncertaintyGuidedMutualConsistency(network, max_iterations=30000, variant="released")


def step_inputs(golden):
    student = torch.from_numpy(golden["step_student_logits_in"]).requires_grad_()  # (4, 2, 10, 10, 10)
    teacher = torch.from_numpy(golden["step_teacher_logits_in"])
    label = torch.from_numpy(golden["step_label_in"][:2, None]).long()
    return student, teacher, {"label": label}


@pytest.fixture(scope="module")
def mean_probabilities(golden):
    passes = torch.from_numpy(golden["step_mc_logits_in"])  # (8, 4, 2, 10, 10, 10)
    return monte_carlo_probabilities(Recorded(passes), torch.zeros(4, 1, 10, 10, 10))


@pytest.mark.parametrize("passes_per_call", [1, 3, 8])
def test_golden_ugmcl_step_mean_probabilities(golden, passes_per_call):
    passes = torch.from_numpy(golden["step_mc_logits_in"])
    mean = monte_carlo_probabilities(Recorded(passes), torch.zeros(4, 1, 10, 10, 10), 8, passes_per_call)
    check(mean, golden["step_mc_mean_prob"])


def test_golden_ugmcl_step_uncertainty_and_mask(golden, mean_probabilities):
    entropy, threshold = predictive_entropy(mean_probabilities), UncertaintyThreshold(2, 30000)
    check(entropy, golden["step_uncertainty"])
    for iteration, expected in zip((0, 15000, 29999), golden["step_masks_0_15000_29999"], strict=True):
        np.testing.assert_array_equal((entropy < threshold(iteration)).numpy(), expected.astype(bool))
    check([threshold(int(i)) for i in golden["step_iters"]], golden["step_threshold"])
    sums = [(entropy < threshold(int(i))).sum().item() for i in golden["step_iters"]]
    np.testing.assert_array_equal(sums, golden["step_mask_sum"])


def test_golden_ugmcl_step_losses(golden, mean_probabilities):
    student, teacher, labeled = step_inputs(golden)
    p, distance = student.softmax(1), student.tanh()
    check(nn.functional.cross_entropy(student[:2], labeled["label"][:, 0]), golden["step_loss_ce"])
    check(ForegroundDiceLoss()(student[:2], labeled["label"]), golden["step_loss_dice"])
    mask = SmoothHeaviside(1500.0)(distance[:2])[:, 1:]
    check(ForegroundDiceLoss().of_probabilities(mask, labeled["label"]), golden["step_loss_dis_dice"])
    check(DualTaskConsistencyLoss(1500.0)(distance, p), golden["step_cross_task_dist"])
    threshold, entropy = UncertaintyThreshold(2, 30000), predictive_entropy(mean_probabilities)
    for iteration, expected in zip(golden["step_iters"], golden["step_cons_dist"], strict=True):
        loss = MaskedMSELoss()(p, teacher.softmax(1), entropy < threshold(int(iteration)))
        check(0.5 * loss, expected)


def test_golden_ugmcl_step_total(golden, mean_probabilities):
    student, teacher, labeled = step_inputs(golden)
    method = released()
    names = ("step_iters", "step_weight", "step_cons_loss", "step_cross_loss", "step_total")
    for iteration, weight, intra, cross, total in zip(*(golden[name] for name in names), strict=True):
        method.iteration = int(iteration)
        check(method.ramp_up(method.iteration), weight)
        terms = method.terms(student, student.tanh(), teacher, teacher.tanh(), mean_probabilities, labeled)
        check(terms["intra_task"], intra)
        check(terms["cross_task"], cross)
        check(sum(terms.values()), total)


@pytest.mark.parametrize(("row", "iteration"), [(0, 0), (1, 29999)])
def test_golden_ugmcl_step_gradients(golden, mean_probabilities, row, iteration):
    student, teacher, labeled = step_inputs(golden)
    method = released()
    method.iteration = iteration
    terms = method.terms(student, student.tanh(), teacher, teacher.tanh(), mean_probabilities, labeled)
    sum(terms.values()).backward()
    check(student.grad, golden["step_grad_logits_0_29999"][row], rtol=1e-4, atol=1e-7)


class Stub(nn.Module):
    """A network that returns what was recorded; its one parameter lets the EMA run."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.n_classes = 2

    def forward(self, image):
        return self.logits


def test_golden_ugmcl_whole_step(golden, monkeypatch):
    """Student, teacher, stochastic passes, losses, backward and EMA through ``forward`` and ``after_step``."""
    logits, teacher, labeled = step_inputs(golden)
    method = UncertaintyGuidedMutualConsistency(Stub(logits.detach()), max_iterations=30000, variant="released")
    recorded = torch.cat([teacher[None], torch.from_numpy(golden["step_mc_logits_in"])])
    replay = Recorded(recorded)
    monkeypatch.setattr(method.teacher.network, "forward", replay.forward)
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # the recorded passes know no other image
    images = torch.zeros(4, 1, 10, 10, 10)
    terms = method({**labeled, "image": images[:2]}, {"image": images[2:]})
    assert replay.next == 9  # one target and eight passes
    check(sum(terms.values()), golden["step_total"][0])
    sum(terms.values()).backward()
    check(method.network.logits.grad, golden["step_grad_logits_0_29999"][0], rtol=1e-4, atol=1e-7)
    torch.optim.SGD(method.network.parameters(), lr=0.01).step()
    method.after_step()
    expected = golden["step_student_logits_in"] - 0.01 * golden["step_grad_logits_0_29999"][0]
    check(method.network.logits, expected)
    check(method.teacher.network.logits, expected)  # the first update copies the student
    assert method.iteration == 1


def test_golden_ugmcl_paper_terms(golden, mean_probabilities):
    student, teacher, labeled = step_inputs(golden)
    distance, teacher_distance = (torch.from_numpy(golden[k]) for k in ("paper_dis_in", "paper_teacher_dis_in"))
    entropy = predictive_entropy(mean_probabilities)
    mask = entropy < UncertaintyThreshold(2, 30000)(15000)
    np.testing.assert_array_equal(mask.numpy(), golden["paper_mask_iter15000"].astype(bool))
    segmentation = MaskedMSELoss()(student.softmax(1), teacher.softmax(1), mask)
    check(segmentation, golden["paper_itc_seg"])
    check(MaskedMSELoss()(distance, teacher_distance, mask), golden["paper_itc_dis"])
    for label, expected in zip(labeled["label"], golden["paper_gt_sdf"], strict=True):
        check(SignedDistanceMap()(label), expected[None])

    network = DualTaskVNet(base_channels=2, binary="softmax")
    method = UncertaintyGuidedMutualConsistency(network, max_iterations=30000)
    method.iteration = 15000
    weight = 0.1 * np.exp(-5 * 0.25)
    for batch in (labeled, {**labeled, "signed_distance": torch.from_numpy(golden["paper_gt_sdf"][:, None])}):
        terms = method.terms(student, distance, teacher, teacher_distance, mean_probabilities, batch)
        check(terms["intra_task"] / weight, golden["paper_itc_beta075"])
        check(terms["cross_task"] / weight, golden["paper_ctc"])
        check(terms["signed_distance"], golden["paper_loss_dis"])
        check(terms["dice"], golden["step_loss_dice"])
        check(terms["cross_entropy"], golden["step_loss_ce"])


def test_golden_ugmcl_ramp_and_threshold(golden):
    for ramp in (SigmoidRampUp(30000, 0.1, granularity=150), released().ramp_up):
        check([ramp(int(i)) for i in golden["ramp_iters"]], golden["ramp_weight"])
    threshold = UncertaintyThreshold(2, 30000)
    check([threshold(int(i)) for i in golden["ramp_iters"]], golden["thr_value"])


def test_golden_ugmcl_ema(golden):
    student = nn.ParameterList([torch.from_numpy(golden["ema_teacher_init"])])
    draws = torch.from_numpy(np.random.RandomState(5).randn(201, 8).astype(np.float32))
    check(draws[0], golden["ema_teacher_init"])
    teacher = EMATeacher(student, decay=0.99)
    students, teachers = [], []
    for step, values in enumerate(draws[1:]):
        student[0].data.copy_(values)
        teacher.update(student, step)
        if step in (0, 1, 2, 3, 4, 199):
            students.append(student[0].data.clone())
            teachers.append(teacher.network[0].data.clone())
    check(torch.stack(students), golden["ema_student_steps_0to4_199"])
    check(torch.stack(teachers), golden["ema_teacher_after_steps_0to4_199"])
    check([teacher.decay_at(int(i)) for i in golden["ema_alpha_at"]], golden["ema_alpha_steps"])


def test_golden_ugmcl_parameter_counts(golden):
    counts = [sum(p.numel() for p in UNet.literature_3d(out_channels=c).parameters()) for c in (1, 2, 3, 4)]
    np.testing.assert_array_equal(counts, golden["param_count_nclasses_1_2_3_4"])


class ToyNetwork(nn.Module):
    """Logits (0, x + 0.1 i - 0.15 k) with the voxel's place (i, ., k) in the window."""

    def forward(self, x):
        i, k = torch.arange(x.shape[2]).reshape(-1, 1, 1), torch.arange(x.shape[4]).reshape(1, 1, -1)
        z = x + 0.1 * i - 0.15 * k
        return torch.cat([torch.zeros_like(z), z], 1)


def test_golden_ugmcl_sliding_window(golden):
    inferer = WindowInferer((12, 12, 8), stride=(8, 8, 8), mode="constant", amp="off")
    probabilities = inferer(torch.from_numpy(golden["sw_in"])[None, None], ToyNetwork())
    np.testing.assert_array_equal(probabilities[0].argmax(0), golden["sw_label"])
