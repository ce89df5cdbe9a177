"""Reading and writing files of weights: whole or absent, and never code."""

import errno
import os
import pickle
import resource
import signal
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from monai_ssl.data import DataError
from monai_ssl.files import atomic_path, write_text
from monai_ssl.networks import DualTaskVNet, VNet
from monai_ssl.weights import load, load_network, save


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return (Path.touch, (self.victim,))


# ------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("form", ["torch", "legacy", "pickle", "nested"])
@pytest.mark.parametrize("reader", ["load", "load_network"])
def test_code_in_a_file_is_never_executed(tmp_path, form, reader):
    victim, path = tmp_path / "executed", tmp_path / "model.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Malicious(victim)))
    else:
        content = (
            {"model": {"weight": torch.zeros(1), "x": Malicious(victim)}} if form == "nested" else Malicious(victim)
        )
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(DataError, match=r"model\.pt: not a readable file of weights"):
        load(path) if reader == "load" else load_network(VNet(2, base_channels=2), path)
    assert not victim.exists()
    # the file is what it is meant to be: a careless reader executes it
    if form == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert victim.exists()


def test_whole_networks_are_refused(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"model\.pt: not a readable file of weights"):
        load(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty: copy or save it again"),
        (b"text", r"PyTorch has not written it: name a file of torch\.save"),
        (b"\x1f\x8b image", "PyTorch has not written it"),
        (b"PK\x03\x04 no zip", "it is cut off: copy or save it again"),
        (b"\x80\x02 no pickle", "."),
    ],
)
def test_damaged_files_are_named(tmp_path, content, reason):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"model\.pt: not a readable file of weights \({reason}"):
        load(path)


def test_truncated_file_is_named(tmp_path):
    path = tmp_path / "model.pt"
    save({"a": torch.randn(1000)}, path)
    os.truncate(path, os.path.getsize(path) // 2)
    with pytest.raises(DataError, match=r"model\.pt: not a readable file"):
        load(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.pt: no such file"):
        load(tmp_path / "none.pt")
    with pytest.raises(DataError, match=r"ckpt: .*none\.pt does not exist; no weights are shipped: train first"):
        load_network(VNet(2, base_channels=2), tmp_path / "none.pt")


def test_network_round_trip(tmp_path):
    torch.manual_seed(0)
    first, second, third = (DualTaskVNet(2, base_channels=2) for _ in range(3))
    save(first.state_dict(), tmp_path / "model.pt")
    save({"model": first.state_dict(), "epoch": 3}, tmp_path / "wrapped.pt")
    assert load_network(second, tmp_path / "model.pt") is second
    load_network(third, tmp_path / "wrapped.pt")
    for key, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], value)
        assert torch.equal(third.state_dict()[key], value)


@pytest.mark.parametrize(
    "other",
    [lambda: DualTaskVNet(2, base_channels=4).state_dict(), lambda: VNet(2, base_channels=2).state_dict(),
     dict, lambda: [torch.zeros(1)], lambda: torch.zeros(1)],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(tmp_path, other):
    save(other(), tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"model\.pt: does not fit the network of this bundle and dataset"):
        load_network(DualTaskVNet(2, base_channels=2), tmp_path / "model.pt")


# ------------------------------------------------------------------------------------------------- writing


def test_atomic_path_replaces_at_the_end(tmp_path):
    target = tmp_path / "new" / "image.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("first")
        assert not target.exists()
    assert target.read_text() == "first"
    with atomic_path(target) as temporary:
        temporary.write_text("second")
        assert target.read_text() == "first"
    assert target.read_text() == "second"
    assert list(target.parent.iterdir()) == [target]


def write_half(target, error):
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyboardInterrupt(), OSError("no number"), OSError(28, "No space left")]
)
def test_atomic_path_leaves_the_former_file_when_the_body_fails(tmp_path, error):
    target = tmp_path / "file.txt"
    write_text(target, "former")
    with pytest.raises(type(error)):
        write_half(target, error)
    assert target.read_text() == "former"
    assert list(tmp_path.iterdir()) == [target]


def test_atomic_path_names_the_target(tmp_path):
    message = r"cannot write \(No space left.*\); the previous file.*intact.*file\.txt"
    with pytest.raises(OSError, match=message) as caught:
        write_half(tmp_path / "file.txt", OSError(28, "No space left on device"))
    assert caught.value.errno == 28


def test_write_text(tmp_path):
    write_text(tmp_path / "a.txt", "ä\r\n")
    assert (tmp_path / "a.txt").read_bytes() == "ä\r\n".encode()


@pytest.fixture
def small_disk():
    """No file may exceed 20,000 bytes: stands for a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)
    signal.signal(signal.SIGXFSZ, signal_handler)


def test_a_full_disk_leaves_the_former_checkpoint(tmp_path, small_disk):
    path = tmp_path / "checkpoint.pt"
    save({"step": 1, "weight": torch.zeros(10)}, path)
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"checkpoint\.pt"):
        save({"step": 2, "weight": torch.randn(100_000)}, path)
    assert path.read_bytes() == before
    assert load(path)["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        save({}, tmp_path / "file" / "checkpoint.pt")


def test_what_is_saved_is_a_zip_of_tensors(tmp_path):
    save({"a": torch.arange(3)}, tmp_path / "model.pt")
    assert zipfile.is_zipfile(tmp_path / "model.pt")
    assert torch.equal(load(tmp_path / "model.pt")["a"], torch.arange(3))


# ------------------------------------------------------------------------------------------------- bits


def test_a_changed_bit_is_found_before_anything_is_loaded(tmp_path):
    """A file either says that it is damaged, or holds what it held: never other numbers."""
    torch.manual_seed(0)
    path, expected = tmp_path / "model.pt", DualTaskVNet(2, base_channels=2).state_dict()
    save(expected, path)
    sound = path.read_bytes()
    positions = torch.randint(8 * len(sound), (300,), generator=torch.Generator().manual_seed(1)).tolist()
    refused = 0
    for position in positions:
        damaged = bytearray(sound)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            found = load(path)
        except DataError as error:
            refused += 1
            assert str(error).startswith(f"{path}: not a readable file of weights (")  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            continue
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert refused > 200  # the rest is padding, dates, and what is written twice


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_called_a_full_disk(tmp_path, number):
    with pytest.raises(
        OSError, match=r"cannot write \(.*: the disk is full, or your quota .* free some space"
    ) as caught:
        write_half(tmp_path / "file.txt", OSError(number, os.strerror(number)))
    assert caught.value.errno == number
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_pytorch_meets_a_full_disk(tmp_path, monkeypatch):
    original = torch.save

    def onto_a_full_disk(content, path):
        Path(path).symlink_to("/dev/full")
        original(content, path)

    write_text(tmp_path / "model.pt", "former")
    monkeypatch.setattr(torch, "save", onto_a_full_disk)
    with pytest.raises(OSError, match=r"the disk is full, or your quota .*model\.pt") as caught:
        save({"a": torch.zeros(1000)}, tmp_path / "model.pt")
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "model.pt").read_text() == "former"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
