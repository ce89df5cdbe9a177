"""Every bundle through every command of MONAI Bundle, on a tiny phantom: a new folder in ``bundles/`` is tested as is.

Commands run in a copy of the bundle, so that defaults such as ``models/`` and ``eval/`` are tested and the source tree
stays clean. ``COMMANDS`` holds them as the bundles' READMEs print them.

All are rendered from one template (``tests/bundle/test_render.py``): what depends on nothing else, marked
``shared_config``, is tried on one bundle.
"""

from __future__ import annotations

import csv
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from commands import IN_FULL
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.transforms import Compose, SaveImage, SaveImaged
from monai.utils import set_determinism

import monai_ssl
from monai_ssl.curation.phantom.dataset import write_phantom
from monai_ssl.data import load_preset

HERE = Path(__file__).parent
BUNDLES = sorted(folder for folder in (HERE.parents[1] / "bundles").iterdir() if folder.is_dir())
SCHEMA = HERE / "metadata_schema.json"

TRAIN = 'python -m monai.bundle run --config_file configs/train.yaml --dataset_dir "$DATA"'
EVALUATE = (
    "python -m monai.bundle run --config_file \"['configs/train.yaml', 'configs/evaluate.yaml']\" "
    '--dataset_dir "$DATA"'
)
INFERENCE = 'python -m monai.bundle run --config_file configs/inference.yaml --dataset_dir "$IMAGES"'
MULTI_GPU = (
    "python -m torch.distributed.run --standalone --nnodes=1 --nproc_per_node=2 -m monai.bundle run --config_file "
    "\"['configs/train.yaml', 'configs/multi_gpu_train.yaml']\" --dataset_dir \"$DATA\""
)
TRACKING = TRAIN + " --tracking mlflow"
CHECK = (
    "python -m monai.bundle verify_net_in_out --net_id network_def --meta_file configs/metadata.json --config_file "
    "configs/inference.yaml"
)
EXPORT = (
    "python -m monai.bundle ckpt_export --net_id network_def --filepath models/model.ts --ckpt_file models/model.pt "
    "--meta_file configs/metadata.json --config_file configs/inference.yaml"
)
ONNX = EXPORT.replace("ckpt_export", "onnx_export").replace("model.ts", "model.onnx")
COMMANDS = [TRAIN, EVALUATE, INFERENCE, MULTI_GPU, TRACKING, CHECK, EXPORT, ONNX]


def load_yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@dataclass
class Result:
    status: int
    text: str

    def ok(self) -> Result:
        assert self.status == 0, self.text[-3000:]
        return self


class BundleServer:
    """Client of ``bundle_server.py``."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "bundle_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, arguments: list[str], folder: Path, log: Path, processes: int = 1, seconds: int = 300) -> Result:
        assert self.process.stdin is not None
        assert self.process.stdout is not None

        def late(*_: Any) -> None:
            raise TimeoutError(f"no answer after {seconds} s: {arguments}\n{log.read_text()[-3000:]}")

        former = signal.signal(signal.SIGALRM, late)
        signal.alarm(seconds)
        try:
            request = {
                "arguments": arguments,
                "folder": str(folder),
                "log": str(log),
                "environments": ranks(processes) if processes > 1 else [{}],
            }
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            status = int(self.process.stdout.readline())
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, former)
        return Result(status, log.read_text(encoding="utf-8", errors="replace"))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def ranks(n: int) -> list[dict[str, str]]:
    """What ``torchrun`` sets for its ``n`` processes on one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n)]


@dataclass
class Bundle:
    """A copy of a bundle to work in."""

    source: Path
    root: Path
    data: Path
    server: BundleServer
    environment: dict[str, str]
    logs: list[Path] = field(default_factory=list)

    @property
    def tiny(self) -> list[str]:
        """Overrides: the phantom's preset and a network of a few thousand parameters."""
        definition = load_yaml(self.source / "configs" / "inference.yaml")["network_def"]
        module, _, name = definition["_target_"].rpartition(".")
        signature = inspect.signature(getattr(sys.modules.get(module) or __import__(module, fromlist=[name]), name))
        width = ["--network_def#base_channels", "2"] if "base_channels" in signature.parameters else []
        return ["--dataset", "phantom", *width]

    def run(self, command: str, *extra: str, folder: Path | None = None, real: bool = False, **names: Path) -> Result:
        """Run one of ``COMMANDS``; ``names`` fill its variables, ``real`` starts a new interpreter.

        Without ``real``, what ``torch.distributed.run`` would start is forked.
        """
        for name, value in names.items():
            command = command.replace(f'"${name}"', shlex.quote(str(value)))
        words = [*shlex.split(command), *extra]
        assert words[:2] == ["python", "-m"]
        if real:
            done = subprocess.run(
                [sys.executable, *words[1:]],
                cwd=folder or self.root,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=300,
            )
            return Result(done.returncode, done.stdout)
        log = self.root.parent / f"{self.root.name}-{len(self.logs)}.log"
        self.logs.append(log)
        start = words.index("monai.bundle") + 1
        return self.server(words[start:], folder or self.root, log, processes=2 if "--nproc_per_node=2" in words else 1)


def tiny_training(output_dir: Path | None = None) -> list[str]:
    """Overrides of a run of one epoch with two iterations (of a schedule of four) and one validation."""
    settings = ["--epochs", "1", "--epoch_length", "2", "--max_iterations", "4", "--val_interval", "1"]
    return settings + (["--output_dir", str(output_dir)] if output_dir else [])


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    # CPU everywhere: the comparisons below are exact
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="session")
def server(environment: dict[str, str]) -> Iterator[BundleServer]:
    started = BundleServer(environment)
    yield started
    started.close()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "my data"  # with a space, as users have it
    write_phantom(folder, n_labeled=2, n_unlabeled=2, n_validation=1, n_testing=1, spacing=2.5, progress=False)
    return folder


@pytest.fixture(scope="session")
def scans(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images as they come from a clinic: turned axes, oblique and anisotropic, equal names in two folders."""
    folder = tmp_path_factory.mktemp("scans")
    image = nib.load(data / "images" / "testing_0000.nii.gz")
    values = np.asanyarray(image.dataobj)
    nib.save(image, folder / "straight.nii.gz")
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nib.save(turned, folder / "turned.nii.gz")
    angle = np.radians(20)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.array([[0, -1.25, 0], [0, 0, 2.0], [-4.0, 0, 0]])
    affine[:3, 3] = (-31.0, 12.5, 7.0)
    nib.save(nib.Nifti1Image(values, affine), folder / "oblique.nii.gz")
    (folder / "other").mkdir()
    shutil.copy(data / "images" / "validation_0000.nii.gz", folder / "other" / "straight.nii.gz")
    return folder


@pytest.fixture(autouse=True)
def _reset_determinism() -> Iterator[None]:
    yield
    set_determinism(None)


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda folder: folder.name)
def bundle(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    data: Path,
    server: BundleServer,
    environment: dict[str, str],
) -> Bundle:
    root = tmp_path_factory.mktemp("bundles") / request.param.name
    shutil.copytree(request.param, root, ignore=shutil.ignore_patterns("*.pt", "*.ts", "*.onnx", "eval", "data"))
    return Bundle(request.param, root, data, server, environment)


@pytest.fixture(scope="module")
def trained(bundle: Bundle) -> Bundle:
    """The bundle after one epoch, one of them by the command in a new interpreter: ``models/model.pt`` exists."""
    real = bundle.source.name == IN_FULL
    bundle.run(TRAIN, *bundle.tiny, *tiny_training(), real=real, DATA=bundle.data).ok()
    models = bundle.root / "models"
    shutil.copy(models / "model.pt", models / "as_trained.pt")
    torch.save(balanced(bundle), models / "model.pt")
    return bundle


def balanced(bundle: Bundle) -> dict[str, torch.Tensor]:
    """The weights with a bias that makes half of a scan foreground.

    Two iterations often end in a network that says the same everywhere: masks of it are equal whatever goes wrong.
    """
    parser = parsed(bundle, "inference.yaml")
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle.root / "models" / "model.pt", weights_only=True))
    item = parser.get_parsed_content("preprocessing")({"image": str(bundle.data / "images" / "testing_0000.nii.gz")})
    x = item["image"].as_tensor()[None, :, :32, :32, :16]
    with torch.no_grad():
        network.train()
        for _ in range(30):
            network(x)  # settles the batch statistics
        network.eval()
        for bias in reversed([p for p in network.parameters() if p.dim() == 1 and p.numel() <= 2]):
            excess = (network(x)[:, 1] - network(x)[:, 0]).median()
            bias[-1] -= excess
            if abs((network(x)[:, 1] - network(x)[:, 0]).median()) < 1e-3:
                return network.state_dict()
            bias[-1] += excess
    raise AssertionError("found no bias of the last layer")


@pytest.fixture(scope="module")
def evaluated(trained: Bundle) -> Path:
    """Results folder of the evaluation overlay on the list ``testing``."""
    trained.run(EVALUATE, *trained.tiny, DATA=trained.data).ok()
    return trained.root / "eval"


@pytest.fixture(scope="module")
def segmented(trained: Bundle, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Segmentations of the clinic's folder, with probabilities, started from another working directory."""
    output, elsewhere = tmp_path_factory.mktemp("segmented"), tmp_path_factory.mktemp("elsewhere")
    command = INFERENCE.replace("configs/", f"{trained.root}/configs/")
    extra = ["--bundle_root", str(trained.root), "--output_dir", str(output), "--probabilities", "True"]
    trained.run(command, *extra, *trained.tiny, folder=elsewhere, IMAGES=scans).ok()
    assert not list(elsewhere.iterdir())
    return output


@pytest.fixture(scope="module")
def torchscript(trained: Bundle) -> torch.jit.ScriptModule:
    trained.run(EXPORT, *trained.tiny).ok()
    return torch.jit.load(trained.root / "models" / "model.ts").eval()


def parsed(bundle: Bundle, name: str, **overrides: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(bundle.root / "configs" / name))
    parser.read_meta(str(bundle.root / "configs" / "metadata.json"))
    tiny = dict(zip([key[2:] for key in bundle.tiny[::2]], bundle.tiny[1::2], strict=True))
    tiny = {key: int(value) if value.isdigit() else value for key, value in tiny.items()}
    parser.update({"bundle_root": str(bundle.root), "device": "$torch.device('cpu')", **tiny, **overrides})
    return parser


def workflow(bundle: Bundle, kind: str, **overrides: Any) -> ConfigWorkflow:
    file = {"train": "train.yaml", "infer": "inference.yaml"}[kind]
    return ConfigWorkflow(
        config_file=str(bundle.root / "configs" / file),
        meta_file=str(bundle.root / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(bundle.root),
        **overrides,
    )


# ------------------------------------------------------------------------------------------------ what lies in a bundle


class TestFiles:
    @pytest.fixture(params=BUNDLES, ids=lambda folder: folder.name)
    def folder(self, request: pytest.FixtureRequest) -> Path:
        return request.param

    def test_has_the_files_of_the_specification(self, folder: Path) -> None:
        overlays = ["multi_gpu_train.yaml", "evaluate.yaml"]
        configs = ["train.yaml", *overlays, "inference.yaml", "metadata.json", "logging.conf"]
        wanted = [*(f"configs/{name}" for name in configs), "LICENSE", "docs/README.md", "models/.gitkeep"]
        assert [name for name in wanted if not (folder / name).is_file()] == []
        assert re.fullmatch("[a-z][a-z0-9_]*", folder.name)

    def test_network_is_the_same_in_training_and_inference(self, folder: Path) -> None:
        train, inference = (load_yaml(folder / "configs" / name) for name in ("train.yaml", "inference.yaml"))
        assert train["network_def"] == inference["network_def"]
        assert "method" not in inference
        assert "unsupervised_weight" in train["method"]

    def test_metadata(self, folder: Path) -> None:
        jsonschema = pytest.importorskip("jsonschema")
        meta = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
        jsonschema.validate(meta, json.loads(SCHEMA.read_text()))
        assert meta["version"] in meta["changelog"]
        assert meta["required_packages_version"]["monai_ssl"] == monai_ssl.__version__
        config = load_yaml(folder / "configs" / "inference.yaml")
        preset = load_preset(config["dataset"])
        image, pred = meta["network_data_format"]["inputs"]["image"], meta["network_data_format"]["outputs"]["pred"]
        assert pred["channel_def"] == {str(value): name for value, name in preset.labels.items()}
        assert (image["num_channels"], pred["num_channels"]) == (preset.in_channels, preset.n_classes)
        assert len(image["spatial_shape"]) == len(pred["spatial_shape"]) == preset.spatial_dims
        assert image["modality"] == preset.modality

    def test_readme_says_what_it_must(self, folder: Path) -> None:
        text = (folder / "docs" / "README.md").read_text(encoding="utf-8")
        headings = ["How it works", "Data", "Commands", "Knobs", "Results", "When it fails", "Security", "License",
                    "Intended use", "Citation"]  # fmt: skip
        assert [name for name in headings if f"\n## {name}" not in text] == []
        assert "```mermaid" in text
        for block in re.findall(r"`--([a-z_#]+)", text):
            assert block.split("#")[0] in _known_ids(folder), f"README names --{block}, which no config has"
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            inside = (folder / "docs" / target).resolve()
            # result pages are written by the benchmark scripts
            assert inside.exists() or "docs/results/" in inside.as_posix(), f"dead link: {target}"


@pytest.mark.parametrize("key", ["version", "monai_version", "required_packages_version", "network_data_format"])
def test_stand_in_schema_is_strict(key: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    meta = json.loads((BUNDLES[0] / "configs" / "metadata.json").read_text(encoding="utf-8"))
    schema = json.loads(SCHEMA.read_text())
    for broken in ({k: v for k, v in meta.items() if k != key}, {**meta, key: 7}, {**meta, "unknown": ""}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_readme_prints_the_tested_commands() -> None:
    text = " ".join((BUNDLES[0] / "docs" / "README.md").read_text(encoding="utf-8").replace("\\\n", " ").split())
    missing = [command for command in COMMANDS if " ".join(command.split()) not in text]
    assert missing == []


@lru_cache(maxsize=1)
def _known_ids(folder: Path) -> set[str]:
    configs = [load_yaml(path) for path in (folder / "configs").glob("*.yaml")]
    # the last ones belong to the commands of MONAI itself
    own = {"config_file", "meta_file", "filepath", "net_id", "ckpt_file", "tracking", "bundle_root", "n", "input_shape"}
    return {key.split("#")[0] for config in configs for key in config} | own


# ----------------------------------------------------------------------------------------------------------- training


class TestTraining:
    def test_writes_weights_logs_and_preview(self, trained: Bundle) -> None:
        models = trained.root / "models"
        with open(models / "training.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert [row["iteration"] for row in rows] == ["1", "2"]
        assert all(np.isfinite(float(row["loss"])) for row in rows)
        assert (models / "previews" / "iteration-000002.png").is_file()
        assert (models / "checkpoint.pt").is_file()

    def test_weights_are_a_flat_safe_state_dict_of_the_deployed_network(self, trained: Bundle) -> None:
        state = torch.load(trained.root / "models" / "as_trained.pt", weights_only=True)
        assert all(isinstance(value, torch.Tensor) for value in state.values())
        network = parsed(trained, "inference.yaml").get_parsed_content("network_def")
        assert list(state) == list(network.state_dict())
        network.load_state_dict(state, strict=True)

    @pytest.mark.shared_config
    def test_tracking_with_mlflow(self, bundle: Bundle, tmp_path: Path) -> None:
        pytest.importorskip("mlflow")
        bundle.run(TRACKING, *bundle.tiny, *tiny_training(tmp_path), DATA=bundle.data).ok()
        with sqlite3.connect(tmp_path / "mlruns.db") as database:
            logged = dict(database.execute("select key, count(*) from metrics group by key").fetchall())
        assert logged["train_loss"] == 2
        assert logged["val_mean_dice"] == 1

    def test_two_processes(self, bundle: Bundle, tmp_path: Path) -> None:
        real = bundle.source.name == IN_FULL
        text = bundle.run(MULTI_GPU, *bundle.tiny, *tiny_training(tmp_path), real=real, DATA=bundle.data).ok().text
        assert "2 labeled and" in text
        state = torch.load(tmp_path / "model.pt", weights_only=True)
        parsed(bundle, "inference.yaml").get_parsed_content("network_def").load_state_dict(state, strict=True)
        with open(tmp_path / "training.csv", newline="", encoding="utf-8") as file:
            assert [row["iteration"] for row in csv.DictReader(file)] == ["1", "2"]

    @pytest.mark.parametrize("n_unlabeled", [2, 0])
    def test_overrides_of_monai_label(self, trained: Bundle, tmp_path: Path, n_unlabeled: int) -> None:
        """What MONAI Label's train task overrides, with an unlabeled pool and without."""
        images, labels = trained.data / "images", trained.data / "labels"
        names = [f"labeled_000{i}.nii.gz" for i in (0, 1)]
        pairs = [{"image": str(images / name), "label": str(labels / name)} for name in names]
        pool = [{"image": str(images / f"unlabeled_000{i}.nii.gz")} for i in range(n_unlabeled)]
        parser = parsed(trained, "train.yaml")
        assert "network" in parser
        loader = {
            "_target_": "CheckpointLoader",
            "load_path": str(trained.root / "models" / "model.pt"),
            "load_dict": {"model": "$@network"},
        }
        run = workflow(
            trained,
            "train",
            **{
                "dataset": "phantom",
                "output_dir": str(tmp_path),
                "epoch_length": 1,
                "num_workers": 0,
                "device": "cpu",  # a string, as it gives it
                "train#trainer#max_epochs": 1,
                "train#dataset#data": pairs,
                "train#handlers": [loader, *deepcopy(parser.get("train#handlers"))],
                "validate#dataset#data": pairs[:1],
                "unlabeled_datalist": pool,
                **({"network_def#base_channels": 2} if "--network_def#base_channels" in trained.tiny else {}),
            },
        )
        run.initialize()
        assert run.check_properties() == []
        run.run()
        run.finalize()
        assert run.parser.get_parsed_content("train#dataloader").n_unlabeled == (
            n_unlabeled if run.parser.get_parsed_content("method").uses_unlabeled else 0
        )
        assert (tmp_path / "model.pt").is_file()
        with open(tmp_path / "training.csv", newline="", encoding="utf-8") as file:
            assert len(list(csv.DictReader(file))) == 1


class TestProperties:
    @pytest.mark.parametrize("kind", ["train", "infer"])
    @pytest.mark.parametrize("where", ["phantom", "empty folder", "no folder", "default"])
    def test_all_are_there(self, bundle: Bundle, tmp_path: Path, kind: str, where: str) -> None:
        folder = {"phantom": bundle.data, "empty folder": tmp_path, "no folder": tmp_path / "absent"}.get(where)
        overrides = {"dataset_dir": str(folder), "dataset": "phantom"} if folder else {}
        checked = workflow(bundle, kind, output_dir=str(tmp_path / "out"), **overrides)
        checked.initialize()
        assert checked.check_properties() == []

    def test_network_takes_dropout(self, bundle: Bundle) -> None:
        # MONAI Label writes it for its epistemic scoring
        network = parsed(bundle, "inference.yaml", **{"network_def#dropout": 0.25}).get_parsed_content("network_def")
        kinds = (torch.nn.Dropout, torch.nn.Dropout2d, torch.nn.Dropout3d)
        rates = {module.p for module in network.modules() if isinstance(module, kinds)}
        assert rates == {0.25}

    @pytest.mark.parametrize("dataset", ["left_atrium", "hippocampus", "acdc", "phantom"])
    def test_shipped_presets_fit(self, bundle: Bundle, dataset: str) -> None:
        parser = parsed(bundle, "inference.yaml", dataset=dataset)
        preset, network = parser.get_parsed_content("preset"), parser.get_parsed_content("network_def").eval()
        side = [32] * preset.spatial_dims
        with torch.no_grad():
            logits = network(torch.zeros(1, preset.in_channels, *side))
        assert logits.shape == (1, preset.n_classes, *side)

    def test_verify_net_in_out(self, bundle: Bundle) -> None:
        bundle.run(CHECK).ok()

    @pytest.mark.shared_config
    def test_verify_metadata(self, bundle: Bundle) -> None:
        schema = bundle.root / "eval" / "schema.json"
        schema.parent.mkdir(exist_ok=True)
        shutil.copy(SCHEMA, schema)
        command = "python -m monai.bundle verify_metadata --meta_file configs/metadata.json --filepath eval/schema.json"
        text = bundle.run(command).ok().text
        assert "metadata is verified with no error" in text


# ----------------------------------------------------------------------------- evaluation, inference, exported networks


def values(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


class TestPredictions:
    def test_inference_equals_evaluation_to_the_voxel(self, trained: Bundle, evaluated: Path, tmp_path: Path) -> None:
        extra = ["--datalist", "datalist.json", "--output_dir", str(tmp_path)]
        trained.run(INFERENCE, *trained.tiny, *extra, IMAGES=trained.data).ok()
        name = Path("images", "testing_0000_seg.nii.gz")
        ours, theirs = tmp_path / name, evaluated / "predictions" / name
        assert 0.05 < values(ours).mean() < 0.95, "a constant prediction would prove nothing"
        np.testing.assert_array_equal(values(ours), values(theirs))
        assert nib.load(ours).header == nib.load(theirs).header
        assert len(list(tmp_path.rglob("*.nii.gz"))) == 1

    def test_evaluation_equals_validation_of_the_training(self, trained: Bundle, tmp_path: Path) -> None:
        ckpt = trained.root / "models" / "as_trained.pt"
        extra = ["--section", "validation", "--output_dir", str(tmp_path), "--ckpt", str(ckpt)]
        trained.run(EVALUATE, *trained.tiny, *extra, DATA=trained.data).ok()
        with open(tmp_path / "per_case.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        with open(trained.root / "models" / "validation.csv", newline="", encoding="utf-8") as file:
            validation = list(csv.DictReader(file))[-1]
        assert [row["case"] for row in rows] == ["validation_0000"]
        assert float(rows[0]["dice"]) == pytest.approx(float(validation["val_mean_dice"]), abs=1e-6)

    @pytest.mark.shared_config
    def test_evaluation_of_images_elsewhere_writes_only_below_output_dir(self, trained: Bundle, tmp_path: Path) -> None:
        """A datalist with absolute paths, images outside ``dataset_dir``: nothing is written beside the images."""
        lists = json.loads((trained.data / "datalist.json").read_text(encoding="utf-8"))
        for key in ("training", "validation", "testing"):
            lists[key] = [{name: str(trained.data / path) for name, path in entry.items()} for entry in lists[key]]
        lists["unlabeled"] = []
        (tmp_path / "lists").mkdir()
        (tmp_path / "lists" / "datalist.json").write_text(json.dumps(lists), encoding="utf-8")
        before = sorted(trained.data.rglob("*"))
        output = tmp_path / "deep" / "er" / "out"
        trained.run(EVALUATE, *trained.tiny, "--output_dir", str(output), DATA=tmp_path / "lists").ok()
        assert len(list(output.rglob("testing_0000_seg.nii.gz"))) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "lists"]
        assert sorted(trained.data.rglob("*")) == before

    @pytest.mark.shared_config
    def test_evaluation_says_where_its_numbers_come_from(self, trained: Bundle, evaluated: Path) -> None:
        summary = json.loads((evaluated / "summary.json").read_text(encoding="utf-8"))
        text = json.dumps(summary)
        for word in ("phantom", "testing", str(trained.data / "datalist.json")):
            assert word in text

    @pytest.mark.shared_config
    def test_results_lie_on_the_grid_of_the_images(self, segmented: Path, scans: Path) -> None:
        images = sorted(scans.rglob("*.nii.gz"))
        results = sorted(segmented.rglob("*_seg.nii.gz"))
        assert len(results) == len(images) == 4
        for path in images:
            image = nib.load(path)
            stem = segmented / path.relative_to(scans).parent / path.name.removesuffix(".nii.gz")
            segmentation, probability = (nib.load(f"{stem}_{what}.nii.gz") for what in ("seg", "prob"))
            assert segmentation.shape == image.shape
            assert segmentation.get_data_dtype() == np.uint8
            assert probability.shape[:3] == image.shape
            for result in (segmentation, probability):
                np.testing.assert_allclose(result.affine, image.affine, atol=1e-5)
            p = np.asanyarray(probability.dataobj).reshape(*image.shape, -1)
            assert p.shape[-1] == 2
            np.testing.assert_allclose(p.sum(-1), 1.0, atol=1e-5)
            np.testing.assert_array_equal(p.argmax(-1), np.asanyarray(segmentation.dataobj))

    @pytest.mark.shared_config
    def test_turned_axes_do_not_change_the_result(self, segmented: Path) -> None:
        straight, turned = (
            np.asanyarray(nib.as_closest_canonical(nib.load(segmented / f"{name}_seg.nii.gz")).dataobj)
            for name in ("straight", "turned")
        )
        assert straight.shape == turned.shape
        # the sum behind the normalization runs in another order: a voxel on the very edge may flip
        assert (straight != turned).sum() <= 2

    @pytest.mark.shared_config
    def test_resampling_preset_keeps_the_original_grid(self, trained: Bundle, scans: Path, tmp_path: Path) -> None:
        preset = load_yaml(Path(monai_ssl.__file__).parent / "data" / "presets" / "phantom.yaml")
        preset = {**preset, "spacing": [3.0, 2.0, 2.5]}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(preset), encoding="utf-8")
        tiny = ["--dataset", str(tmp_path / "mine.yaml"), *trained.tiny[2:]]
        extra = ["--output_dir", str(tmp_path / "out"), "--probabilities", "True"]
        trained.run(INFERENCE, *tiny, *extra, IMAGES=scans / "oblique.nii.gz").ok()
        image = nib.load(scans / "oblique.nii.gz")
        segmentation, probability = (nib.load(tmp_path / "out" / f"oblique_{what}.nii.gz") for what in ("seg", "prob"))
        assert segmentation.shape == image.shape
        np.testing.assert_allclose(segmentation.affine, image.affine, atol=1e-5)
        p = np.asanyarray(probability.dataobj).reshape(*image.shape, -1)
        np.testing.assert_allclose(p.sum(-1), 1.0, atol=1e-4)

    @pytest.mark.shared_config
    def test_parts_for_monai_label_give_the_same_mask(self, trained: Bundle, segmented: Path, scans: Path) -> None:
        """Pre-processing, inferer and post-processing one by one, without the step that writes files."""
        parser = parsed(trained, "inference.yaml")
        network = parser.get_parsed_content("network_def")
        network.load_state_dict(torch.load(trained.root / "models" / "model.pt", weights_only=True))
        item = parser.get_parsed_content("preprocessing")({"image": str(scans / "oblique.nii.gz")})
        with torch.no_grad():
            item["pred"] = parser.get_parsed_content("inferer")(item["image"][None], network.eval())[0]
        steps = parser.get_parsed_content("postprocessing").transforms
        kept = [step for step in steps if not isinstance(step, (SaveImage, SaveImaged))]
        assert len(kept) == len(steps) - 1
        mask = Compose(kept)(item)["pred"][0]
        assert (mask.numpy() != values(segmented / "oblique_seg.nii.gz")).sum() <= 2

    def test_torchscript_gives_the_same_logits(self, trained: Bundle, torchscript: torch.jit.ScriptModule) -> None:
        x, logits = example(trained)
        with torch.no_grad():
            torch.testing.assert_close(torchscript(x), logits, atol=1e-4, rtol=1e-4)

    def test_onnx_gives_the_same_logits(self, trained: Bundle) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        trained.run(ONNX, *trained.tiny).ok()
        file = trained.root / "models" / "model.onnx"
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        side = session.get_inputs()[0].shape[2:]
        x, logits = example(trained, [s if isinstance(s, int) else 32 for s in side])
        (result,) = session.run(None, {name: x.numpy()})
        np.testing.assert_allclose(result, logits.numpy(), atol=1e-4, rtol=1e-4)

    @pytest.mark.shared_config
    @pytest.mark.parametrize("command", [EVALUATE, INFERENCE, EXPORT])
    def test_missing_weights_are_named(self, bundle: Bundle, command: str, tmp_path: Path) -> None:
        option, absent = "--ckpt_file" if command == EXPORT else "--ckpt", tmp_path / "model.pt"
        words = command.replace(" --ckpt_file models/model.pt", "")
        result = bundle.run(words, *bundle.tiny, option, str(absent), DATA=bundle.data, IMAGES=bundle.data / "images")
        assert result.status != 0
        assert str(absent) in result.text
        if command != EXPORT:  # MONAI's own command says it in its own words
            assert "no weights are shipped: train first" in result.text


def example(bundle: Bundle, side: list[int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    parser = parsed(bundle, "inference.yaml")
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle.root / "models" / "model.pt", weights_only=True))
    preset = parser.get_parsed_content("preset")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, preset.in_channels, *(side or preset.patch_size), generator=generator)
    with torch.no_grad():
        return x, network(x)
