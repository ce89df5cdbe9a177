"""The real server of MONAI Label on the loopback interface, with real scans: annotate, train on the pool, ask again.

Needs MONAI Label's own environment (`make test-label`) and MONAI_SSL_DATA; skipped elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel")
import requests

from monai_ssl import cli

pytestmark = [pytest.mark.label, pytest.mark.data]
STOCK = Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle"
SECONDS = 900
# MONAI Label imports torchvision, which may not fit a CPU build of PyTorch; our own app mends that by itself
SHIM = """
import torch
try:
    import torchvision
except RuntimeError:
    import sys
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


class Server:
    """`monailabel start_server`, and a client of its REST interface."""

    def __init__(self, app: Path, studies: Path, log: Path, *conf: str, path: Path | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", log
        words = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", str(studies),
                 "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
        for pair in conf:
            words += ["--conf", *pair.split("=")]
        python = os.pathsep.join([*([str(path)] if path else []), str(Path(cli.__file__).parents[1])])
        environment = {**os.environ, "PYTHONPATH": python, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
                       "MONAI_LABEL_AUTO_UPDATE_SCORING": "false"}  # fmt: skip
        with open(log, "w") as out:
            self.process = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env=environment)
        end = time.time() + SECONDS
        while time.time() < end:
            assert self.process.poll() is None, self.text[-3000:]
            try:
                requests.get(f"{self.url}/info/", timeout=SECONDS).raise_for_status()
                return
            except requests.ConnectionError:
                time.sleep(1)
        raise AssertionError(self.text[-3000:])

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def call(self, method: str, path: str, status: int = 200, **kwargs: Any) -> requests.Response:
        answer = requests.request(method, f"{self.url}{path}", timeout=SECONDS, **kwargs)
        assert answer.status_code == status, f"{path}: {answer.status_code} {answer.text}\n{self.text[-3000:]}"
        return answer

    def info(self) -> dict[str, Any]:
        return self.call("get", "/info/").json()

    def mask(self, model: str, image: str, file: Path) -> np.ndarray:
        data = {"params": json.dumps({"result_extension": ".nii.gz", "device": "cpu"})}
        answer = self.call("post", f"/infer/{model}?image={image}&output=image", data=data)
        file.write_bytes(answer.content)
        return np.asarray(nib.load(file).dataobj)

    def train(self, model: str, status: int = 200, **params: Any) -> Any:
        params = {"device": "cpu", "val_split": 0, "multi_gpu": False, **params}
        return self.call("post", f"/train/{model}?run_sync=true", status, json=params).json()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def hippocampus(real_data: Path) -> Path:
    folder = real_data / "hippocampus"
    if not folder.is_dir():
        pytest.skip("no hippocampus in MONAI_SSL_DATA")
    return folder


@pytest.fixture(scope="module")
def cases(hippocampus: Path) -> list[str]:
    lists = json.loads((hippocampus / "hippocampus_dev_10_180_val20.json").read_text())
    return [Path(entry["image"]).name.split(".")[0] for entry in lists["training"] + lists["unlabeled"]][:6]


@pytest.fixture(scope="module")
def packaged(hippocampus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a training that is just long enough to draw something."""
    folder = tmp_path_factory.mktemp("package")
    tiny = ["--network_def#base_channels", "4", "--max_iterations", "40", "--num_workers", "0",
            "--device", "cpu", "--check", "False", "--amp", "off"]  # fmt: skip
    cli.main(["train", "dtc", str(hippocampus), "--datalist", "hippocampus_10_200.json", "--dataset", "hippocampus",
              "--output", str(folder / "run"), *tiny])  # fmt: skip
    cli.main(["package", str(folder / "run"), "--output", str(folder / "hippocampus_segmentation")])
    return folder / "hippocampus_segmentation"


def studies(folder: Path, hippocampus: Path, cases: list[str]) -> Path:
    folder.mkdir()
    for case in cases:
        shutil.copy(hippocampus / "imagesTr" / f"{case}.nii.gz", folder)
    return folder


def upload(server: Server, hippocampus: Path, case: str, file: Path | None = None, **params: Any) -> None:
    with open(file or hippocampus / "labelsTr" / f"{case}.nii.gz", "rb") as label:
        server.call("put", f"/datastore/label?image={case}&tag=final", files={"label": (f"{case}.nii.gz", label)},
                    data={"params": json.dumps(params)})  # fmt: skip


class TestOurApp:
    @pytest.fixture(scope="class")
    def app(self, packaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("ours") / "app"
        words = [
            "--bundles",
            f"{packaged},dtc,self_training",
            "--dataset",
            "hippocampus",
            "--network_def#base_channels",
            "4",
        ]
        cli.main(["label-app", "--output", str(folder), *words])
        return folder

    @pytest.fixture(scope="class")
    def server(self, app: Path, hippocampus: Path, cases: list[str]) -> Iterator[Server]:
        started = Server(app, studies(app.parent / "scans", hippocampus, cases), app.parent / "server.log")
        yield started
        started.close()

    def test_annotate_train_on_the_pool_and_ask_again(self, server, app, packaged, hippocampus, cases, tmp_path):
        model = packaged.name
        info = server.info()
        assert info["models"][model]["labels"] == {"anterior hippocampus": 1, "posterior hippocampus": 2}
        assert set(info["models"]) == {model}, "dtc has not been trained"
        assert set(info["trainers"]) == {model, "dtc", "self_training"}
        assert {"disagreement", "random", "first"} <= set(info["strategies"])

        # infer, both forms: the mask of `predict`, on the grid of the scan
        before = server.mask(model, cases[5], tmp_path / "before.nii.gz")
        assert before.dtype == np.uint8
        assert 0 < (before > 0).mean() < 0.9
        cli.main(["predict", str(packaged), str(hippocampus / "imagesTr" / f"{cases[5]}.nii.gz"), "--output",
                  str(tmp_path / "predict"), "--device", "cpu"])  # fmt: skip
        expected = nib.load(tmp_path / "predict" / f"{cases[5]}_seg.nii.gz")
        np.testing.assert_array_equal(before, np.asarray(expected.dataobj))
        np.testing.assert_allclose(nib.load(tmp_path / "before.nii.gz").affine, expected.affine, atol=1e-5)
        answer = server.call("post", f"/infer/{model}?image={cases[5]}&output=json", data={"params": "{}"}).json()
        assert answer["label_names"] == {"anterior hippocampus": 1, "posterior hippocampus": 2}

        # three labels come in; three scans stay without one and are trained on
        for case in cases[:3]:
            upload(server, hippocampus, case)
        assert server.info()["datastore"]["completed"] == 3
        server.train(model, max_iterations=6, run_id="")
        assert "3 labeled and 3 unlabeled images go into the training" in server.text
        assert "3 labeled and 3 unlabeled cases, 6 iterations" in server.text, "the trainer itself says so"
        after = server.mask(model, cases[5], tmp_path / "after.nii.gz")
        assert (after != before).any(), "the new model is in use"

        # the same labels again: trains on
        server.train(model, max_iterations=2)
        assert "3 labeled and 3 unlabeled cases, 2 iterations" in server.text
        assert not list((app / "model" / model / "models").glob("checkpoint*")), "it would be offered as a model"

        # the answer comes at once, before anything is scored; scores are made in the background
        begin = time.time()
        assert server.call("post", "/activelearning/disagreement", json={"model": model}).json()["id"] == cases[3]
        assert time.time() - begin < 3
        server.call("post", f"/scoring/{model}?run_sync=true", json={})
        sample = server.call("post", "/activelearning/disagreement", json={"model": model}).json()
        scores = {}
        for case in cases[3:]:
            noted = server.call("get", f"/datastore/image/info?image={case}").json()["disagreement"][model]
            scores[case] = noted["score"]
        assert sample["id"] == max(sorted(scores), key=scores.__getitem__)
        assert all(0 <= score <= 1 for score in scores.values())
        assert len(set(scores.values())) == 3

    @pytest.mark.parametrize(
        ("key", "status"),
        [("tracking", 200), ("tracking_uri", 200), ("tracking_run_name", 200), ("run_id", 200), ("device", 400),
         ("gpus", 400), ("max_epochs", 400), ("model_filename", 400)],
    )  # fmt: skip
    def test_a_request_runs_nothing(self, server, packaged, hippocampus, cases, tmp_path, key, status):
        if not server.info()["datastore"]["completed"]:
            upload(server, hippocampus, cases[0])
        mark = tmp_path / "mark"
        code = f"$__import__('pathlib').Path({str(mark)!r}).write_text('x')"
        answer = server.train(packaged.name, status, max_iterations=1, **{"tracking": "mlflow", key: code})
        assert not mark.exists()
        if status == 400:
            assert answer["detail"].startswith(f"monai_ssl: {key}: must be")
            assert "pathlib" not in answer["detail"]

    def test_the_public_client_learns_the_reason(self, server, packaged):
        """A training in the background, as clients start it: nothing runs, and the last line says why."""
        from monailabel.client import MONAILabelClient

        client = MONAILabelClient(server.url)
        assert packaged.name in client.info()["models"]
        client.train_start(packaged.name, {"model_filename": "../../x.pt", "device": "cpu"})
        end = time.time() + SECONDS
        while client.train_status()["status"] not in ("ERROR", "DONE") and time.time() < end:
            time.sleep(1)
        status = client.train_status()
        assert status["status"] == "ERROR"
        last = [line for line in status["details"] if line.strip() and "Return code" not in line][-1]
        assert "model_filename: must be the name of a .pt file" in last

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("post", "/infer/nothing?image={case}"),
            ("post", "/infer/{model}?image=nothing"),
            ("post", "/infer/{model}?image=/etc/hostname"),
            ("post", "/train/nothing"),
            ("post", "/train/nothing?run_sync=true"),
            ("post", "/activelearning/nothing"),
            ("post", "/scoring/nothing?run_sync=true"),
            ("put", "/datastore/label?image=nothing&tag=final"),
        ],
    )
    def test_what_there_is_not_is_404(self, server, packaged, cases, hippocampus, method, path):
        words = {"json": {}} if method == "post" else {}
        if path.startswith("/infer"):
            words = {"data": {"params": "{}"}}
        if method == "put":
            label = (hippocampus / "labelsTr" / f"{cases[0]}.nii.gz").read_bytes()
            words = {"files": {"label": ("a.nii.gz", label)}}
        answer = server.call(method, path.format(model=packaged.name, case=cases[0]), 404, **words)
        assert answer.json()["detail"]

    @pytest.mark.parametrize("name", ["../../outside", "a/../../outside", "..%2F..%2Foutside"])
    @pytest.mark.parametrize("what", ["tag", "image"])
    def test_names_do_not_lead_out_of_the_datastore(self, server, app, cases, hippocampus, name, what):
        label = (hippocampus / "labelsTr" / f"{cases[0]}.nii.gz").read_bytes()
        query = f"image={cases[0]}&tag={name}" if what == "tag" else f"image={name}&tag=final"
        server.call("put", f"/datastore/label?{query}", 400, files={"label": ("a.nii.gz", label)})
        if what == "image":
            server.call("put", f"/datastore/image?image={name}", 400, files={"file": ("a.nii.gz", label)})
        assert not list(app.parent.rglob("*outside*"))

    def test_labels_are_taken_by_name_and_bad_ones_set_aside(self, server, packaged, hippocampus, cases, tmp_path):
        first = nib.load(hippocampus / "labelsTr" / f"{cases[0]}.nii.gz")
        array = np.asarray(first.dataobj)
        swapped = nib.Nifti1Image(np.array([0, 2, 1], dtype=np.uint8)[array.astype(int)], first.affine)
        nib.save(swapped, tmp_path / "swapped.nii.gz")
        nib.save(nib.Nifti1Image(array[:-3], first.affine), tmp_path / "shape.nii.gz")
        names = [{"name": "posterior hippocampus", "idx": 0}, {"name": "anterior hippocampus", "idx": 1}]
        upload(server, hippocampus, cases[0], tmp_path / "swapped.nii.gz", label_info=names)
        upload(server, hippocampus, cases[1], tmp_path / "shape.nii.gz")
        upload(server, hippocampus, cases[2], label_info=[{"name": "aorta", "idx": 0}])
        answer = server.train(packaged.name, max_iterations=1)
        assert answer["labeled"] >= 1
        assert set(answer["not_used"]) == {cases[1], cases[2]}
        assert "'aorta' is no class of the model" in answer["not_used"][cases[2]]
        # a mask that the model itself has drawn and saved is nobody's label
        request = {"params": json.dumps({"save_label": True, "label_tag": "final", "device": "cpu"})}
        server.call("post", f"/infer/{packaged.name}?image={cases[3]}&output=json", data=request)
        again = server.train(packaged.name, max_iterations=1)
        assert again["labeled"] == answer["labeled"]
        assert "were drawn by a model" in server.text

    def test_a_first_training_makes_a_bundle_usable(self, server, cases, hippocampus, tmp_path):
        upload(server, hippocampus, cases[0])
        server.train("dtc", max_iterations=2, pretrained=False)
        assert "dtc" in server.info()["models"]
        assert server.mask("dtc", cases[4], tmp_path / "mask.nii.gz").ndim == 3

    def test_self_training_learns_what_its_last_model_draws(self, server, app, cases, hippocampus):
        """Every training is a round: the first learns from labels alone, the next from the labels of its model, too."""
        for case in cases[:2]:
            upload(server, hippocampus, case)
        folder = app / "model" / "self_training" / "models"
        server.train("self_training", max_iterations=30, pretrained=False)
        assert not (folder / "pseudo_labels").exists()
        # a pool without labels would only disturb the network: images of it are not even loaded
        assert "there are no pseudo-labels" not in server.text
        server.train("self_training", max_iterations=3, pretrained=True)
        drawn = {path.name.removesuffix("_seg.nii.gz") for path in (folder / "pseudo_labels").glob("*_seg.nii.gz")}
        assert drawn
        assert drawn <= set(cases[2:])  # never a scan that somebody has labeled
        header = (folder / "training" / "training.csv").read_text().splitlines()[0]
        assert "pseudo" in header.split(",")
        assert "has labeled" in server.text


class TestStockApp:
    """The bundle dropped into MONAI Label's own app: info, training, active learning; its inference breaks on NIfTI."""

    @pytest.fixture(scope="class")
    def server(self, packaged: Path, hippocampus: Path, cases: list[str], tmp_path_factory: Any) -> Iterator[Server]:
        if not STOCK.is_dir():
            pytest.skip(f"no stock app in {STOCK}")
        folder = tmp_path_factory.mktemp("stock")
        shutil.copytree(STOCK, folder / "app")
        shutil.copytree(packaged, folder / "app" / "model" / packaged.name)
        (folder / "shim").mkdir()
        (folder / "shim" / "sitecustomize.py").write_text(SHIM)
        scans = studies(folder / "scans", hippocampus, cases[:4])
        conf = [f"models={packaged.name}", "zoo_source=local", "sam2=false"]
        started = Server(folder / "app", scans, folder / "server.log", *conf, path=folder / "shim")
        yield started
        started.close()

    def test_info_training_and_active_learning(self, server, packaged, hippocampus, cases):
        info = server.info()
        assert packaged.name in info["models"]
        assert packaged.name in info["trainers"]
        upload(server, hippocampus, cases[0])
        upload(server, hippocampus, cases[1])
        server.train(packaged.name, max_epochs=1, pretrained=True, run_id="run")
        assert "2 labeled and 0 unlabeled cases" in server.text, "the stock app keeps its unlabeled images to itself"
        assert server.call("post", "/activelearning/first", json={}).json()["id"] in cases[2:4]
