"""Two whole steps of a released adversarial loop: the network's, then the discriminator's."""

import numpy as np
import pytest
import torch
from released import float64, in_float64, norms
from torch import nn

from monai_ssl.methods.adversarial import NAME


class Stub(nn.Module):
    """A discriminator whose verdicts are given; remembers what it was shown, and in which mode it was."""

    def __init__(self, verdicts):
        super().__init__()
        self.verdicts, self.shown = verdicts, []
        self.unused = nn.Parameter(torch.zeros(1))  # something to optimize

    def forward(self, judged, image):
        self.shown.append((judged.detach(), image, self.training))
        return self.verdicts[len(image)]


def check_discriminator_loss(golden, name, loss, verdict, key):
    """The loss of D for given verdicts, and its gradient."""
    assert loss.item() == pytest.approx(golden.number(f"{name}_{key}"), rel=1e-6)
    [gradient] = torch.autograd.grad(loss, verdict)
    np.testing.assert_allclose(gradient.numpy(), golden[f"{name}_grad_d_all"], rtol=1e-4, atol=1e-7)


def check_adversarial_steps(golden, step, method, batches, losses, discriminator_loss, names, order=None, rate=None):
    """As :func:`released.check_steps`, with Adam for the discriminator.

    Args:
        losses: from terms to the stored numbers.
        discriminator_loss: name of D's loss.
        names: released names of network and discriminator.
        order: names of the parameters of either, in the released order, where it differs.
        rate: learning rate of the network that the loop sets after iteration t.
    """
    method.double()
    batches = in_float64(batches)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    adversary = method.adversary_optimizers()[NAME]
    modules = dict(zip(names, (method.network, method.adversaries[NAME]), strict=True))
    parameters = {
        name: [dict(module.named_parameters())[key] for key in (order or {}).get(name, dict(module.named_parameters()))]
        for name, module in modules.items()
    }
    method.iteration = 3000
    for i in range(2):
        method.train()
        with float64():
            terms = method(*batches)
            found = {"loss": sum(terms.values()).item(), **losses(terms)}
        optimizer.zero_grad()
        sum(terms.values()).backward()
        if i == 0:
            check_gradients(golden, step, names[0], parameters[names[0]])
        optimizer.step()
        method.adversaries.requires_grad_(True)
        with float64():
            [loss] = method.adversary_terms(NAME, *batches).values()
        adversary.zero_grad()
        loss.backward()
        if i == 0:
            check_gradients(golden, step, names[1], parameters[names[1]])
        adversary.step()
        method.adversaries.requires_grad_(False)
        adversary.zero_grad()
        found[discriminator_loss] = loss.item()
        for key, value in found.items():
            assert value == pytest.approx(golden[f"step_{step}_{key}"][i], rel=1e-6), (key, i)
        if rate is not None:
            optimizer.param_groups[0]["lr"] = rate(method.iteration)
        method.after_step()
    for name, found in parameters.items():
        expected = golden[f"step_{step}_param_norms_after_{name}"]
        np.testing.assert_allclose(norms(found), expected, rtol=1e-6, atol=1e-7)
    # evaluation mode in D's step: no batch counter but the network's own two passes
    buffers = norms(method.network.buffers())
    np.testing.assert_allclose(buffers, golden[f"step_{step}_buffer_norms_after_{names[0]}"], rtol=1e-6, atol=1e-7)


def check_gradients(golden, step, name, parameters):
    expected = golden[f"step_{step}_grad_norms_{name}"]
    found = np.array([-1.0 if p.grad is None else p.grad.double().norm().item() for p in parameters])
    large = expected > 1e-3 * expected.max()  # biases before a normalization have none but rounding
    np.testing.assert_allclose(found[large], expected[large], rtol=1e-6)
