"""SS-Net against numbers that its released code produced (``tests/golden/golden_ssnet.npz``).

Losses agree within rtol 1e-5, full networks within rtol 1e-4, gradient norms of the whole step within rtol 2e-3 where
they exceed 1e-4 (the number of threads alone moves them by 6e-4). ``ELSEWHERE`` names the entries that other test
files check; no entry depends on a global random state: the noise of the released code is recorded.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from monai_ssl.engines import lr_schedule
from monai_ssl.losses import PrototypeSeparationLoss, SigmoidRampUp, VirtualAdversarialLoss
from monai_ssl.losses.virtual_adversarial import classwise_dice, flat_dice, unit_norm
from monai_ssl.methods import SmoothnessSeparation
from monai_ssl.networks import PointwiseHead, PrototypeMemory, UNet, VNet

TESTS = Path(__file__).parents[1]
ELSEWHERE = {r"vnet_.*|unet_.*|nparams_(vnet3d|unet2d)_(backbone|encoder|decoder)": "networks/test_networks_golden.py"}
HERE = r"bdice_.*|sdice4_.*|dice4_.*|l2n_.*|vat[23]d_.*|cl_.*|mem_.*|ramp[23]d_.*|lr3d_.*|step_.*|nparams_.*"


@pytest.fixture(scope="module")
def golden():
    with np.load(TESTS / "golden" / "golden_ssnet.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def check(actual, expected, rtol=1e-5, atol=1e-7):
    actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
    assert actual.shape == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def tensor(golden, *keys):
    found = [torch.from_numpy(golden[key]) for key in keys]
    return found[0] if len(found) == 1 else found


def test_golden_ssnet_every_entry_is_accounted_for(golden):
    here = Path(__file__).read_text()
    for key in golden:
        elsewhere = [file for pattern, file in ELSEWHERE.items() if re.fullmatch(pattern, key)]
        text = (TESTS / elsewhere[0]).read_text() if elsewhere else here
        assert bool(elsewhere) or re.fullmatch(HERE, key), key
        assert "def test_golden_ssnet" in text
        # entries of a family are read under a name with a place holder
        names = {re.sub(pattern, holder, key) for pattern, holder in HOLDERS} | {key}
        assert any(f'"{name}"' in text for name in names), f"{key} is not read"


HOLDERS = [
    (r"vat(2|3)d_w_.*", "vat{dims}d_w_{name}"),
    (r"vat(2|3)d_(x|rand01)", r"vat{dims}d_\2"),
    (r"vat(2|3)d_(train|eval)_", "vat{dims}d_{mode}_"),
    (r"cl_w_contrastive_class_selector_\d\..*", "cl_w_contrastive_class_selector_{c}.{name}"),
    (r"cl_w_contrastive_class_selector_memory\d\..*", "cl_w_contrastive_class_selector_memory{c}.{name}"),
    (r"cl_grad_selector_memory\d_w0", "cl_grad_selector_memory{c}_w0"),
    (r"cl_grad_selector_\d_w0", "cl_grad_selector_{c}_w0"),
    (r"cl_selector_\d_running_mean_after", "cl_selector_{c}_running_mean_after"),
    (r"l2n_(3d|2d|2d_c2)_(in|out)", r"l2n_{name}_\2"),
    (r"nparams_(vnet3d|unet2d)_", "nparams_{name}_"),
    (r"cl_mem\d", "cl_mem{c}"),
]


# ------------------------------------------------------------------------------------------------- Dice


def from_probabilities(p):
    return p.clamp(min=1e-30).log()


def test_golden_ssnet_flat_dice(golden):
    p, q = tensor(golden, "bdice_p", "bdice_q")  # (2, 2, 5, 4, 3)
    check(flat_dice(from_probabilities(q), p), golden["bdice_pq"])
    check(flat_dice(from_probabilities(p), p), golden["bdice_pp"])


def test_golden_ssnet_supervision_3d(golden):
    p, label = tensor(golden, "bdice_p", "bdice_label")
    dice = SmoothnessSeparation(VNet(base_channels=2)).dice
    check(dice(from_probabilities(p), label[:, None]), golden["bdice_fg_label"])
    empty = dice.of_probabilities(torch.zeros(2, 1, 5, 4, 3), torch.zeros(2, 1, 5, 4, 3, dtype=torch.long))
    check(empty, golden["bdice_empty"])


def test_golden_ssnet_dice_2d(golden):
    p, q, label, label_no3 = tensor(golden, "sdice4_p", "sdice4_q", "sdice4_label", "sdice4_label_no3")  # (3, 4, 6, 5)
    check(classwise_dice(from_probabilities(q), p), golden["sdice4_pq"])
    check(classwise_dice(from_probabilities(p), p), golden["sdice4_pp"], atol=1e-6)
    dice = SmoothnessSeparation(UNet(2, 1, 4, channels=(2, 4))).dice
    check(dice(from_probabilities(p), label[:, None]), golden["dice4_label"])
    check(dice(from_probabilities(p), label_no3[:, None]), golden["dice4_label_no3"])


# ------------------------------------------------------------------------------------------------- smoothness


@pytest.mark.parametrize("name", ["3d", "2d", "2d_c2"])
def test_golden_ssnet_unit_norm(golden, name):
    check(unit_norm(tensor(golden, f"l2n_{name}_in")), golden[f"l2n_{name}_out"], atol=1e-8)


class TinyNetwork(nn.Module):
    def __init__(self, dims, n_classes):
        super().__init__()
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        self.c1, self.c2 = conv(1, 4, 3, padding=1), conv(4, n_classes, 1)
        self.bn = (nn.BatchNorm3d if dims == 3 else nn.BatchNorm2d)(4)
        self.seen = []

    def forward(self, x):
        logits = self.c2(self.bn(self.c1(x)).relu())
        self.seen.append((x.detach(), logits.detach().softmax(1)))
        return logits


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("dims", [3, 2])
def test_golden_ssnet_virtual_adversarial(golden, dims, mode):
    network = TinyNetwork(dims, 2 if dims == 3 else 4).train(mode == "train")
    for name, value in network.state_dict().items():
        if name != "bn.num_batches_tracked":
            value.copy_(torch.from_numpy(golden[f"vat{dims}d_w_{name}"]))
    image, uniform = (torch.from_numpy(golden[f"vat{dims}d_x"]), torch.from_numpy(golden[f"vat{dims}d_rand01"]))
    distance = "flat" if dims == 3 else "classwise"
    vat = VirtualAdversarialLoss(distance, epsilon=10.0 if dims == 3 else 6.0)
    loss = vat(network, image, noise=uniform - 0.5)
    loss.backward()
    (_, clean), (probed, probed_p), (adversarial, adversarial_p) = network.seen
    check(clean, golden[f"vat{dims}d_{mode}_pred"], atol=1e-6)
    check(probed, golden[f"vat{dims}d_{mode}_x_xi"], atol=1e-6)
    first = (flat_dice if dims == 3 else classwise_dice)(from_probabilities(probed_p), clean)
    check(first, golden[f"vat{dims}d_{mode}_dist1"])
    check(adversarial - image, golden[f"vat{dims}d_{mode}_r_adv"], atol=2e-6)
    check(adversarial, golden[f"vat{dims}d_{mode}_x_adv"], atol=2e-6)
    check(adversarial_p, golden[f"vat{dims}d_{mode}_pred_adv"], atol=1e-6)
    check(loss, golden[f"vat{dims}d_{mode}_lds"])
    check(network.c1.weight.grad, golden[f"vat{dims}d_{mode}_lds_grad_c1w"], rtol=1e-4, atol=1e-6)
    check(network.c2.weight.grad, golden[f"vat{dims}d_{mode}_lds_grad_c2w"], rtol=1e-4, atol=1e-6)
    check(network.bn.running_mean, golden[f"vat{dims}d_{mode}_bn_running_mean"])
    check(network.bn.running_var, golden[f"vat{dims}d_{mode}_bn_running_var"])
    assert network.bn.num_batches_tracked == golden[f"vat{dims}d_{mode}_bn_nbt"]


# ------------------------------------------------------------------------------------------------- separation

PLACES = {
    "0.weight": "first.weight",
    "0.bias": "first.bias",
    "1.weight": "norm.weight",
    "1.bias": "norm.bias",
    "1.running_mean": "norm.running_mean",
    "1.running_var": "norm.running_var",
    "3.weight": "second.weight",
    "3.bias": "second.bias",
}


@pytest.fixture
def separation(golden):
    """The method with 3 classes, whose selectors and prototype selectors have the golden weights, for features of 8."""
    method = SmoothnessSeparation(UNet(2, 1, 3, channels=(2, 4)), memory_weights=True, prototypes=16)
    method.memory = PrototypeMemory(3, 16, channels=8)
    for c in (0, 1, 2):
        for kind, modules in (("_", method.selectors), ("_memory", method.prototype_selectors)):
            head = PointwiseHead(8, 8, 1, negative_slope=0.2)
            for name, place in PLACES.items():
                key = f"cl_w_contrastive_class_selector_{c}.{name}"
                if kind == "_memory":
                    key = f"cl_w_contrastive_class_selector_memory{c}.{name}"
                head.state_dict()[place].copy_(torch.from_numpy(golden[key]))
            if c:  # the background has a selector in the released code, which nothing uses
                modules[c - 1] = head
    method.memory_weights = False
    return method


def set_memory(method, golden, classes):
    for c in classes:
        method.memory.replace(c, torch.from_numpy(golden[f"cl_mem{c}"]))


def separate(method, features, labels):
    """Sum over the classes with a memory, divided by the number of all classes."""
    found = [c for c in (1, 2) if len(method.memory[c])]
    return sum(method.class_separation(c, features[labels == c], method.memory[c]) for c in found) / 3


def test_golden_ssnet_class_separation(golden, separation):
    features, labels = tensor(golden, "cl_features", "cl_labels")  # (60, 8)
    features.requires_grad_()
    set_memory(separation, golden, (1, 2))
    loss = separate(separation, features, labels)
    check(loss, golden["cl_loss"])
    loss.backward()
    check(features.grad, golden["cl_grad_features"], rtol=1e-4, atol=1e-7)
    for c in (1, 2):
        selector = separation.selectors[c - 1]
        check(selector.first.weight.grad, golden[f"cl_grad_selector_{c}_w0"], rtol=1e-4, atol=1e-7)
        check(selector.norm.running_mean, golden[f"cl_selector_{c}_running_mean_after"])
        # here exactly nothing reaches the prototype selectors unless memory_weights is set
        assert separation.prototype_selectors[c - 1].first.weight.grad is None
        assert np.abs(golden[f"cl_grad_selector_memory{c}_w0"]).max() < 1e-6


def test_golden_ssnet_class_separation_evaluation(golden, separation):
    features, labels = tensor(golden, "cl_features", "cl_labels")
    set_memory(separation, golden, (1, 2))
    check(separate(separation.eval(), features, labels), golden["cl_loss_eval"])


@pytest.mark.parametrize(("classes", "key"), [((1,), "cl_loss_only1"), ((), "cl_loss_nomem")])
def test_golden_ssnet_class_separation_with_an_empty_memory(golden, separation, classes, key):
    features, labels = tensor(golden, "cl_features", "cl_labels")
    set_memory(separation, golden, classes)
    check(separate(separation, features, labels), golden[key])


def test_golden_ssnet_memory(golden, separation):
    memory, selectors = separation.memory, separation.selectors
    separation.voxel_heads.project = lambda features, places: features[places]  # the candidates as they are
    features, labels = tensor(golden, "mem_f1", "mem_l1")
    scores = selectors[0](features[labels == 1]).sigmoid()[:, 0]
    check(scores, golden["mem_rank_c1"])
    for f, y in ((features, labels), tensor(golden, "mem_f2", "mem_l2")):
        separation.renew(f, torch.ones_like(y, dtype=torch.bool), y)
        if y is labels:
            check(memory[1], golden["mem_after1_c1"])
            check(memory[2], golden["mem_after1_c2"])
            assert golden["mem_after1_c0_is_none"]
            assert len(memory[0]) == 0
    check(memory[1], golden["mem_after2_c1"])
    check(memory[2], golden["mem_after2_c2"])


def test_golden_ssnet_separation_of_one_class_is_the_plain_double_sum(golden, separation):
    features, labels = tensor(golden, "cl_features", "cl_labels")
    f, z = features[labels == 1], torch.from_numpy(golden["cl_mem1"])
    a, b = torch.rand(len(f)), torch.rand(len(z))
    cosine = nn.functional.cosine_similarity(f[:, None], z[None], dim=2)
    expected = ((a / a.mean())[:, None] * (b / b.mean()) * (1 - cosine)).mean()
    check(PrototypeSeparationLoss()(f, z, a, b), expected.numpy())


# ------------------------------------------------------------------------------------------------- schedules, sizes


def test_golden_ssnet_ramps(golden):
    three = SmoothnessSeparation(VNet(base_channels=2), max_iterations=6000).ramp_up
    for ramp in (three, SigmoidRampUp(6000, 1.0, granularity=150)):
        check([ramp(int(i)) for i in golden["ramp3d_iter"]], golden["ramp3d_weight"])
    two = SmoothnessSeparation(UNet(2, 1, 4, channels=(2, 4)), max_iterations=30000).ramp_up
    for ramp in (two, SigmoidRampUp(30000, 0.1, granularity=150)):
        check([ramp(int(i)) for i in golden["ramp2d_iter_zero_based"]], golden["ramp2d_weight"])


def test_golden_ssnet_learning_rate(golden):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = lr_schedule(optimizer, "step", 15000, milestones=[2500 * k / 15000 for k in range(1, 6)])
    rates = [0.01 * schedule.lr_lambdas[0](int(i)) for i in golden["lr3d_completed_iters"]]
    check(rates, golden["lr3d_value_after"])


@pytest.mark.parametrize("name", ["vnet3d", "unet2d"])
def test_golden_ssnet_parameter_counts(golden, name):
    def count(*modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    network = VNet() if name == "vnet3d" else UNet.literature_2d()
    method = SmoothnessSeparation(network)
    heads = method.voxel_heads
    assert count(heads.projection) == golden[f"nparams_{name}_projhead"]
    assert count(heads.prediction) == golden[f"nparams_{name}_predhead"]
    assert count(method.selectors[0]) == golden[f"nparams_{name}_selector_one"]
    # the released code has two selectors for each class, background included
    total = count(network, heads) + 2 * network.out_channels * count(method.selectors[0])
    assert total == golden[f"nparams_{name}_total"]
    options = SmoothnessSeparation(network, memory_weights=True)
    assert count(options) == total - 2 * count(method.selectors[0])


# ------------------------------------------------------------------------------------------------- one whole step


def fill(state, base):
    """Entry i of the released state dict has the seed base + i; ``state``: our tensors in its order."""
    for i, (name, value) in enumerate(state):
        shape = tuple(value.shape)
        r = np.random.RandomState(base + i).standard_normal(shape)
        if len(shape) > 1:
            r = r * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith("running_var"):
            r = 0.5 + np.abs(r)
        else:
            r = 0.1 * r if name.endswith(("running_mean", "bias")) else 1 + 0.1 * r
        value.copy_(torch.from_numpy(r.astype(np.float32)))


# In float64: float32 moves the gradients of the first layers by 4e-3 from one kernel or layout to another. The released
# numbers are up to 3.3e-3 from float64 there.
@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, pytest.param(torch.channels_last_3d, marks=pytest.mark.slow)]
)
def test_golden_ssnet_whole_step(golden, monkeypatch, layout):
    rtol = 5e-3
    method = SmoothnessSeparation(VNet(dropout=0.0), max_iterations=6000, epsilon=10.0).train().double()
    unused = [PointwiseHead(32, 32, 1, negative_slope=0.2) for _ in range(3)]
    modules = {
        "network": method.network,
        "projection": method.voxel_heads.projection,
        "prediction": method.voxel_heads.prediction,
        "selector_0": unused[0],
        "selector_1": method.selectors[0],
        "memory_0": unused[1],
        "memory_1": unused[2],
    }
    with torch.no_grad():
        state = [(n, v) for m in modules.values() for n, v in m.state_dict().items() if not n.endswith("tracked")]
        assert len(state) == len(golden["vnet_state_names"])
        fill(state, base=1000)
    method.network.to(memory_format=layout)
    image = np.random.RandomState(int(golden["step_x_seed"])).standard_normal((4, 1, 32, 32, 16)).astype(np.float32)
    image = torch.from_numpy(image).double().contiguous(memory_format=layout)
    label = torch.from_numpy(np.random.RandomState(23).randint(0, 2, (4, 32, 32, 16)))[:2, None]
    noise = torch.from_numpy(np.random.RandomState(24).rand(4, 1, 32, 32, 16).astype(np.float32))
    monkeypatch.setattr(torch, "rand_like", lambda x: noise.to(x.dtype))
    outputs, correct = [], []
    method.network.heads[0].register_forward_hook(lambda m, x, y: outputs.append(y.detach()))
    renew = method.renew
    method.renew = lambda f, c, y: (correct.append(c.sum().item()), renew(f, c, y))
    method.iteration = 2999  # the step with number 3000 follows
    terms = method({"image": image[:2], "label": label}, {"image": image[2:]})

    weight = method.ramp_up(3000)
    assert weight == pytest.approx(golden["step_weight"], rel=1e-6)
    check(terms["dice"], golden["step_dice"], rtol=1e-4)
    check(nn.functional.cross_entropy(outputs[0][:2], label[:, 0]), golden["step_ce_logged_only"], rtol=1e-4)
    check(terms["smoothness"] / weight, golden["step_lds"], rtol=1e-4)
    check(terms["separation"] / (0.1 * weight), golden["step_cl_l"] + golden["step_cl_u"], rtol=1e-4)
    check(sum(terms.values()), golden["step_total"], rtol=1e-4)
    assert correct == [golden["step_n_correct_fg"]]
    # 1e-4 as for networks; in float64 entries near 0 of these vectors of length 5 are 1.4e-5 from the released ones
    check(method.memory[1], golden["step_memory_c1"], rtol=1e-4, atol=2e-5)
    assert golden["step_memory_c0_is_none"]
    assert len(method.memory[0]) == 0

    sum(terms.values()).backward()
    parameters = [p for m in modules.values() for p in m.parameters()]
    named = zip(golden["step_param_names"], parameters, golden["step_grad_norms"], strict=True)
    for name, parameter, expected in named:
        if expected == -1:
            assert parameter.grad is None, name
        elif parameter.grad is None:  # the selector of prototypes, which an option brings in
            assert "selector_memory1" in name
            assert expected < 1e-6
        elif expected > 1e-4:
            assert parameter.grad.norm().item() == pytest.approx(expected, rel=rtol), name
    norm = method.network.stages[0][0].norm
    check(norm.running_mean, golden["step_bn1_running_mean"], rtol=1e-4)
    assert norm.num_batches_tracked == golden["step_bn1_nbt"]
    assert method.voxel_heads.projection.norm.num_batches_tracked == golden["step_proj_bn_nbt"]
    assert method.selectors[0].norm.num_batches_tracked == golden["step_sel1_bn_nbt"]
