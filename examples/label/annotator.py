"""Plays an annotator against a server of MONAI Label, to watch a model learn: labels are drawn from files.

    monai-ssl label-app --output app --dataset hippocampus
    monailabel start_server --app app --studies scans --host 127.0.0.1
    python examples/label/annotator.py --labels DIR --validation DIR_IMAGES --truth DIR_LABELS

``scans`` holds images without labels, ``--labels`` the masks with which this annotator answers (same names). Each round
asks for the next sample, uploads its label, trains, and scores the new model on scans that the server does not have.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import requests


def main(
    labels: str,
    validation: str,
    truth: str,
    server: str = "http://127.0.0.1:8000",
    model: str = "dtc",
    first: int = 3,
    rounds: int = 2,
    iterations: int = 100,
    strategy: str = "disagreement",
) -> None:
    """Annotate, train, score; one line per round.

    Args:
        labels: masks of the server's scans, named like them.
        validation: scans to score on.
        truth: their masks.
        server: its address.
        model: the bundle.
        first: scans annotated before the first training.
        rounds: trainings; before each but the first one more scan is annotated.
        iterations: of each training.
        strategy: which scan is annotated next.
    """
    print("labeled  unlabeled  mean Dice  annotated")
    for number in range(rounds):
        annotated = []
        for _ in range(first if number == 0 else 1):
            image = call("post", f"{server}/activelearning/{strategy}", json={"model": model}).json()["id"]
            path = Path(labels) / f"{image}.nii.gz"
            with open(path, "rb") as file:
                call("put", f"{server}/datastore/label?image={image}&tag=final", files={"label": (path.name, file)})
            annotated.append(image)
        settings = {"max_iterations": iterations, "val_split": 0, "device": "cpu", "pretrained": number > 0}
        call("post", f"{server}/train/{model}?run_sync=true", json=settings)
        store = call("get", f"{server}/info/").json()["datastore"]
        scans = sorted(Path(validation).glob("*.nii.gz"))
        score = np.mean([dice(server, model, image, Path(truth)) for image in scans])
        done, left = store["completed"], store["total"] - store["completed"]
        print(f"{done:8d}  {left:10d}  {score:9.3f}  {' '.join(annotated)}", flush=True)


def dice(server: str, model: str, image: Path, truth: Path) -> float:
    """Mean over the classes of one scan that the server segments but does not keep."""
    with open(image, "rb") as file:
        data = {"params": json.dumps({"result_extension": ".nii.gz", "device": "cpu"})}
        answer = call("post", f"{server}/infer/{model}?output=image", data=data, files={"file": (image.name, file)})
    with tempfile.NamedTemporaryFile(suffix=".nii.gz") as found:
        found.write(answer.content)
        found.flush()
        mask = np.asarray(nib.load(found.name).dataobj)
    label = np.asarray(nib.load(truth / image.name).dataobj)
    pairs = [(mask == c, label == c) for c in np.unique(label) if c]
    return float(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]))


def call(method: str, url: str, **kwargs: object) -> requests.Response:
    answer = requests.request(method, url, timeout=3600, **kwargs)  # type: ignore[arg-type]
    answer.raise_for_status()
    return answer


if __name__ == "__main__":
    fire.Fire(main)
