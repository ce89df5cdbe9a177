"""Trainings on a GPU: the terms of the CPU, every number format, resume, one process of NCCL. Skipped without a GPU."""

import os
import shutil

import pytest
import torch
from builders import names
from ignite.engine import Events
from tiny_training import build, rows
from torch.nn.parallel import DistributedDataParallel

from monai_ssl.engines import WindowInferer
from monai_ssl.losses import SigmoidRampUp
from monai_ssl.runs import load

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# drawn anew in every step, from the generator of the device: the noise of a teacher and of an attack
DRAWN = {"intra_task", "smoothness"}
# no random transform, no dropout, instance norm
PLAIN = {"deterministic": True, "network": {"dropout": 0.0, "norm": "instance"}}


@pytest.fixture(autouse=True)
def exact():
    """No TF32, the same algorithm every time."""
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = flags


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("method", names())
def test_first_step_is_that_of_the_cpu(method, dims):
    terms = {}
    for device in ("cpu", "cuda"):
        network = PLAIN["network"] | ({"bank_capacity": None} if method == "caml" else {})  # stores all, draws nothing
        trainer = build(device=device, method=method, dims=dims, max_iterations=1, deterministic=True, network=network)
        trainer.run()
        terms[device] = trainer.state.output[0]["terms"]
        assert trainer.state.output[0]["image"].device.type == device
        assert {p.device.type for p in trainer.plain_method.parameters()} == {device}
    assert terms["cpu"].keys() == terms["cuda"].keys()
    for name in terms["cpu"].keys() - DRAWN:
        assert terms["cuda"][name] == pytest.approx(terms["cpu"][name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("method", names())
def test_trains_in_every_number_format(tmp_path, method, amp, dims, workers):
    # float16 may leave out some first steps while the gradient scaler settles
    options = {"method": method, "amp": amp, "dims": dims, "device": "cuda", "max_iterations": 20}
    trainer = build(tmp_path, **options, validate=True, num_workers=workers, pin_memory=True)
    before = {name: p.detach().clone() for name, p in trainer.plain_method.network.named_parameters()}
    trainer.run()
    assert trainer.plain_method.iteration == 20
    assert len(rows(tmp_path)) == 20
    for name, p in trainer.plain_method.network.named_parameters():
        assert torch.isfinite(p).all(), name
    assert any(not torch.equal(before[name], p) for name, p in trainer.plain_method.network.named_parameters())
    network, image = trainer.plain_method.network.eval(), torch.randn(1, 1, *(20,) * dims)
    with torch.no_grad():
        whole = WindowInferer((16,) * dims, amp=amp)(image.cuda(), network)
        slabs = torch.cat([p for _, p in WindowInferer((16,) * dims, amp=amp).sweep(image, network, "cuda")], dim=1)
    torch.testing.assert_close(slabs, whole[0].cpu(), rtol=0, atol=0.02)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("method", names())
def test_resumed_run_goes_on_as_if_nothing_had_happened(tmp_path, method, amp):
    options = {"method": method, "amp": amp, "device": "cuda", "max_iterations": 8}
    build(tmp_path / "whole", **options).run()
    stopped = build(tmp_path / "parts", **options)
    stopped.add_event_handler(Events.ITERATION_COMPLETED(once=4), stopped.terminate)
    stopped.run()
    assert len(rows(tmp_path / "parts")) == 4
    trainer = build(tmp_path / "parts", **options)
    trainer.run()
    assert trainer.plain_method.iteration == 8
    expected, found = (rows(tmp_path / name) for name in ("whole", "parts"))
    assert [row["iteration"] for row in found] == [str(i) for i in range(1, 9)]
    # CAML's linear upsampling adds up its gradients in any order on a GPU; the other methods repeat bit for bit
    for a, b in zip(found, expected, strict=True):
        if method == "caml":
            assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=2e-2, abs=1e-3)
        else:
            assert a == b


def test_gradient_scaler_is_part_of_the_checkpoint(tmp_path):
    build(tmp_path, method="dtc", amp="fp16", device="cuda", max_iterations=4).run()
    state = load(tmp_path / "checkpoint.pt")["grad_scaler"]
    assert state["scale"] > 0
    trainer = build(tmp_path, method="dtc", amp="fp16", device="cuda", max_iterations=4)
    trainer.grad_scaler.load_state_dict(state)
    assert trainer.grad_scaler.get_scale() == state["scale"]


def test_checkpoint_of_a_gpu_goes_on_on_the_cpu_and_back(tmp_path):
    options = {"method": "caml", "schedule": "constant", "network": {"ramp_up": SigmoidRampUp(5)}}
    for n, device in ((3, "cuda"), (5, "cpu"), (7, "cuda")):
        trainer = build(tmp_path, device=device, max_iterations=n, **options)
        trainer.run()
        assert trainer.plain_method.iteration == n
    assert len(rows(tmp_path)) == 7


def test_weights_read_on_the_cpu_train_on_the_gpu(tmp_path):
    build(tmp_path, method="caml", device="cuda", max_iterations=3).run()
    trainer = build(method="caml", device="cuda", max_iterations=3)
    trainer.plain_method.load_state_dict(load(tmp_path / "checkpoint.pt")["method"])
    trainer.run()
    assert trainer.plain_method.bank.sample(4)[0].is_cuda


@pytest.fixture
def nccl(tmp_path):
    if not torch.distributed.is_nccl_available():
        pytest.skip("needs NCCL")
    os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("nccl", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("method", names())
def test_distributed_on_one_gpu(tmp_path, nccl, method, amp):
    def wrap(method):
        return DistributedDataParallel(method.cuda(), device_ids=[0])

    options = {"method": method, "amp": amp, "device": "cuda", "schedule": "constant", "wrap": wrap}
    build(tmp_path / "run", max_iterations=3, **options).run()
    trainer = build(tmp_path / "run", max_iterations=5, **options)
    trainer.run()
    assert trainer.plain_method.iteration == 5
    assert len(rows(tmp_path / "run")) == 5
