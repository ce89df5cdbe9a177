"""Commands in this process, and a network that draws something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from monai_ssl import cli
from monai_ssl.runs.predict import open_segmenter

# the bundle whose commands are tried in new interpreters, and whose configs stand for what all have in common
IN_FULL = "dtc"
TINY = ["--dataset", "phantom", "--max_iterations", "4", "--epoch_length", "2", "--val_interval", "2",
        "--num_workers", "0", "--amp", "off", "--device", "cpu", "--network_def#base_channels", "2"]  # fmt: skip


def run(*words: Any) -> int:
    """Exit status of a command, in this process."""
    try:
        cli.main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def fails(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """The last line with which a command must fail."""
    capsys.readouterr()
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1].removeprefix("monai-ssl: error: ")


def balance(folder: Path, weights: Path, image: Path, settings: dict[str, Any]) -> None:
    """Move the last bias until half of ``image`` is foreground: a constant mask would hide every mistake."""
    segmenter = open_segmenter(folder, {"device": "cpu", "amp": "off", **settings, "ckpt": str(weights)})
    x = segmenter.prepare(image)["image"].as_tensor()[None, :, :32, :32, :16]
    network = segmenter.network
    with torch.no_grad():
        network.train()
        for _ in range(30):
            network(x)  # settles the batch statistics
        network.eval()
        for bias in reversed([p for p in network.parameters() if p.dim() == 1 and p.numel() <= 2]):
            excess = (network(x)[:, 1] - network(x)[:, 0]).median()
            bias[-1] -= excess
            if abs((network(x)[:, 1] - network(x)[:, 0]).median()) < 1e-3:
                torch.save(network.state_dict(), weights)
                return
            bias[-1] += excess
    raise AssertionError("found no bias of the last layer")
