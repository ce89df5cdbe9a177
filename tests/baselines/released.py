"""What the golden numbers were made with: fill rule, batches, networks, and checks that many methods share.

Losses of given outputs agree within 1e-6 in float64, gradients within rtol 1e-4. Whole steps run in float64 as well, in
which the numbers were made, and agree within 1e-6. In float32 the released code itself moves its gradients by up to
a hundredth, and the number of threads decides on which side of 0 an activation falls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pytest
import torch
from golden_claims import Golden
from torch import Tensor, nn

from monai_ssl.engines import lr_schedule
from monai_ssl.networks import literature_network

Batch = dict[str, Tensor]


def rs(seed: int, shape: Sequence[int]) -> Tensor:
    """Normal numbers of a seed, float32."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32))


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Losses stay in the float64 of their inputs, in which the numbers were made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", lambda x: x)
        yield


@torch.no_grad()
def fill(network: nn.Module | Iterable[tuple[str, Tensor]], base: int) -> None:
    """Entry i of the state dict, or of given names and tensors, batch counters left out, has the seed ``base + i``."""
    state = network.state_dict().items() if isinstance(network, nn.Module) else network
    for i, (name, value) in enumerate((n, v) for n, v in state if v.is_floating_point()):
        r = np.random.RandomState(base + i).standard_normal(value.shape)
        if value.dim() > 1:
            r = r * np.sqrt(2 / np.prod(value.shape[1:]))
        elif name.endswith("running_var"):
            r = 0.5 + np.abs(r)
        else:
            r = 0.1 * r if name.endswith(("running_mean", "bias")) else 1 + 0.1 * r
        value.copy_(torch.from_numpy(r.astype(np.float32)))


def padded_shapes(network: nn.Module, columns: int) -> list[tuple[int, ...]]:
    """Of the parameters in order, with zeros behind, as ``*_shapes`` are stored."""
    return [(*p.shape, *[0] * (columns - p.dim())) for p in network.parameters()]


def step_network(dims: int) -> nn.Module:
    """V-Net of 2 filters and 2 classes in 3D, U-Net of 4 to 64 channels and 4 classes in 2D, without dropout."""
    return literature_network(dims, 1, 2 if dims == 3 else 4, base_channels=2 if dims == 3 else 4, dropout=0.0)


def step_batches(dims: int) -> tuple[Batch, Batch]:
    """Labeled and unlabeled: 2 + 2 volumes or 4 + 4 slices."""
    shape, seed, half = ((4, 1, 32, 32, 16), 1910, 2) if dims == 3 else ((8, 1, 32, 32), 1920, 4)
    image = rs(seed, shape)
    label = np.random.RandomState(seed + 1).randint(0, 2 if dims == 3 else 4, (shape[0], *shape[2:]))
    return {"image": image[:half], "label": torch.from_numpy(label)[:half, None]}, {"image": image[half:]}


def in_float64(batches: tuple[Batch, Batch]) -> tuple[Batch, Batch]:
    """Images and strong views of both; labels stay as they are."""
    labeled, unlabeled = (
        {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
        for batch in batches
    )
    return labeled, unlabeled


def given_outputs(golden: Golden, dims: str, output: int = 0) -> tuple[Tensor, Batch]:
    """Logits of four images, float64 with gradient, and the labels of the first two."""
    logits = golden.tensor(f"in{dims}_multi", torch.float64)[output].requires_grad_()
    return logits, {"label": golden.tensor(f"in{dims}_label", torch.int64)[:2, None]}


def poly(iterations: int, rate: float = 0.01) -> Callable[[int], float]:
    """Learning rate by iteration, as our schedule has it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    factor = lr_schedule(optimizer, "poly", iterations).lr_lambdas[0]
    return lambda t: rate * factor(t)


def norms(tensors: Iterable[Tensor]) -> list[float]:
    return [t.double().norm().item() for t in tensors]


def check_totals(
    golden: Golden,
    name: str,
    method: nn.Module,
    terms: Callable[[], dict[str, Tensor]],
    logits: Mapping[str, Tensor],
    unsupervised: Sequence[str] = ("consistency",),
) -> tuple[dict[str, Tensor], Tensor]:
    """Weight and total of every stored iteration; gradients at the first one.

    Args:
        name: prefix of the numbers.
        method: whose ``iteration`` is set and whose ``ramp_up`` is asked.
        terms: loss terms of the given outputs, asked for once per iteration.
        logits: ``_grad`` + suffix -> the tensor whose gradients they are; ``_grad_cons`` likewise, where stored.
        unsupervised: names of the weighted terms.

    Returns:
        the terms of the first iteration, and its unsupervised loss without the weight.
    """
    keys = golden.numbers.files
    first: dict[str, Tensor] = {}
    for t, weight, total in zip(*(golden[f"{name}_{key}"] for key in ("iters", "weights", "totals")), strict=True):
        method.iteration = int(t)
        assert method.ramp_up(int(t)) == pytest.approx(weight, rel=1e-12)
        found = terms()
        assert sum(found.values()).item() == pytest.approx(total, rel=1e-6)
        first = first or found
    unweighted = sum(first[key] for key in unsupervised) / float(golden[f"{name}_weights"][0])
    for suffix, z in logits.items():
        for kind, loss in (("grad", sum(first.values())), ("grad_cons", unweighted)):
            if (key := f"{name}_{kind}{suffix}") in keys:
                [gradient] = torch.autograd.grad(loss, z, retain_graph=True)
                np.testing.assert_allclose(gradient.numpy(), golden[key], rtol=1e-4, atol=1e-7)
    return first, unweighted


def check_supervised(
    golden: Golden,
    name: str,
    loss: nn.Module,
    logits: Tensor,
    label: Tensor,
    names: tuple[str, str, str] = ("supervised_loss", "loss_ce", "loss_dice"),
) -> None:
    """Half of cross-entropy and Dice, and both of them."""
    total, dice = loss(logits, label).item(), loss.dice(logits, label).item()
    for key, value in zip(names, (total, 2 * total - dice, dice), strict=True):
        assert value == pytest.approx(golden.number(f"{name}_{key}"), rel=1e-6), key


def check_steps(
    golden: Golden,
    step: str,
    method: nn.Module,
    batches: tuple[Batch, Batch],
    start: int,
    losses: Callable[[dict[str, Tensor]], Mapping[str, float]],
    networks: Mapping[str, nn.Module],
    averages: Mapping[str, nn.Module] | None = None,
    rate: Callable[[int], float] | None = None,
    gradients: Mapping[str, nn.Module] | None = None,
    rtol: float = 1e-6,
) -> None:
    """Two whole steps of the released loop: losses of both, gradient norms of the first, weights and buffers after.

    Args:
        step: the numbers are ``step_<step>_*``.
        method: filled as the sheet says.
        batches: labeled and unlabeled, the same in both steps.
        start: iteration of the first step.
        losses: from the terms of a step to the numbers that are stored of it; ``loss`` is their sum in any case.
        networks: released name -> module that is trained.
        averages: released name -> module that is not.
        rate: learning rate that the loop sets after iteration t; None: it stays.
        gradients: suffix of ``_grad_norms`` -> module; by default the only network, without suffix.
        rtol: of all numbers.
    """
    if gradients is None:
        gradients = {"": next(iter(networks.values()))}
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    method.double().train()
    method.iteration = start
    batches = in_float64(batches)
    for i in range(2):
        with float64():
            terms = method(*batches)
            found_losses = {"loss": sum(terms.values()).item(), **losses(terms)}
        for key, value in found_losses.items():
            assert value == pytest.approx(golden[f"step_{step}_{key}"][i], rel=rtol), (key, i)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        for suffix, module in gradients.items() if i == 0 else ():
            expected = golden[f"step_{step}_grad_norms{suffix}"]
            found = np.array([-1 if p.grad is None else p.grad.double().norm().item() for p in module.parameters()])
            large = expected > 1e-3 * expected.max()  # biases before a normalization have none but rounding
            np.testing.assert_allclose(found[large], expected[large], rtol=rtol)
        optimizer.step()
        if rate is not None:
            optimizer.param_groups[0]["lr"] = rate(method.iteration)
        method.after_step()
    for name, module in {**networks, **(averages or {})}.items():
        for kind, values in (("param", module.parameters()), ("buffer", module.buffers())):
            key = f"step_{step}_{kind}_norms_after_{name}"
            np.testing.assert_allclose(norms(values), golden[key], rtol=rtol, atol=1e-7, err_msg=key)


class Seen:
    """Remembers the logits of a network's last pass."""

    def __init__(self, network: nn.Module) -> None:
        self.logits = torch.empty(0)
        network.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.logits = output.detach()


def draws(patch: pytest.MonkeyPatch, base: int) -> list[Tensor]:
    """``torch.randn_like`` returns the numbers of the seeds ``base``, ``base + 1``, ...; the list of them grows."""
    drawn: list[Tensor] = []

    def normal(x: Tensor) -> Tensor:
        drawn.append(rs(base + len(drawn), x.shape))
        return drawn[-1].clone()

    patch.setattr(torch, "randn_like", normal)
    return drawn
