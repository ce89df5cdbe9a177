"""What the golden whole steps of the comparison methods have in common: weights, data and norms, as their sheet says."""

import numpy as np
import torch


def rs(seed, shape):
    """Standard normal float32, as all random inputs of the goldens."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def filled(value, name, random):
    """One entry of a state dict from its own generator."""
    r = random.standard_normal(value.shape)
    if value.dim() > 1:
        r = r * np.sqrt(2 / np.prod(value.shape[1:]))
    elif name.endswith("running_var"):
        r = 0.5 + np.abs(r)
    else:
        r = 0.1 * r if name.endswith(("running_mean", "bias")) else 1 + 0.1 * r
    return torch.from_numpy(r.astype(np.float32))


def fill(network, base, shapes=None, order=None):
    """Entry i of the state dict, batch counters left out, has the seed ``base + i``.

    Args:
        network: filled in place.
        base: seed of the first entry.
        shapes: of the released parameters, zero-padded, for comparison.
        order: names in the released order, where it differs.
    """
    state = network.state_dict()
    names = [name for name in order or state if not name.endswith("tracked")]
    if shapes is not None:
        wanted = [name for name in names if not name.endswith(("running_mean", "running_var"))]
        found = [(*state[name].shape, *[0] * (shapes.shape[1] - state[name].dim())) for name in wanted]
        np.testing.assert_array_equal(found, shapes)
    for i, name in enumerate(names):
        state[name].copy_(filled(state[name], name, np.random.RandomState(base + i)))


def images(dims, rows):
    """Images of the whole steps ``(rows, 1, *spatial)``."""
    return rs(1910, (rows, 1, 32, 32, 16)) if dims == 3 else rs(1920, (rows, 1, 32, 32))


def labels(dims, rows):
    """Their labels ``(rows, 1, *spatial)`` int64."""
    if dims == 3:
        drawn = np.random.RandomState(1911).randint(0, 2, (rows, 32, 32, 16))
    else:
        drawn = np.random.RandomState(1921).randint(0, 4, (rows, 32, 32))
    return torch.from_numpy(drawn.astype(np.int64))[:, None]


def norms(tensors):
    """L2 norm of each tensor; -1 for none."""
    return np.array([-1.0 if t is None else t.double().norm().item() for t in tensors])


def check_norms(found, expected, rtol, atol=1e-7):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


def check_gradients(parameters, expected, rtol):
    """Gradient norms; biases before a normalization have none but rounding, and are left out."""
    large = expected > 1e-3 * expected.max()
    np.testing.assert_allclose(norms([p.grad for p in parameters])[large], expected[large], rtol=rtol)


def as_float64(monkeypatch):
    """Losses of given outputs are compared in float64, in which the numbers were made."""
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)
