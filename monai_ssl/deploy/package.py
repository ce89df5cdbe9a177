"""From a trained run to a self-contained bundle: weights, exported networks, configs, model card."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import re
import shlex
import shutil
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor, nn

import monai_ssl
from monai_ssl.bundle.edit import set_values
from monai_ssl.bundle.library import TRAINING_IMAGES, copy_files, read_json
from monai_ssl.data import Preset, load_datalist, load_preset
from monai_ssl.data.cases import image_files
from monai_ssl.errors import PROGRAM, DataError
from monai_ssl.files import atomic_path, cell, text_of_cell
from monai_ssl.reports.model_card import model_card, times

if TYPE_CHECKING:
    from monai_ssl.runs.ensemble import Members

console = logging.getLogger("monai_ssl.console")

TOLERANCE = 1e-4
CONFIGS = ("train.yaml", "inference.yaml")
_FORMER_HEAD = r"\A# (Written by `monai-ssl|A copy of the bundle|Rendered by `).*\n"
HEAD = "Written by `monai-ssl {command}`: the bundle `{bundle}` with the data set's preset merged in."


def merge_preset(folder: Path, preset: Preset, overrides: Mapping[str, Any], head: str) -> None:
    """Write the preset, and the settings of a training, into the configs of a bundle's copy.

    The id ``dataset`` then holds the preset's content instead of a name, so the bundle needs no other file and
    ``--dataset`` still replaces it.

    Args:
        folder: the copy; ``configs/train.yaml`` and ``configs/inference.yaml`` are rewritten.
        preset: the data set.
        overrides: ids -> values; those that a config does not know are left out of it.
        head: first line of the new files; everything else, comments included, stays.

    Raises:
        DataError: when a text of the preset would be code in a config (``$``, ``@`` or ``%`` in front).
    """
    content = preset.model_dump(mode="json")
    for text in _texts(content):
        if text.strip().startswith(("$", "@", "%")):
            raise DataError(f"preset: texts must not begin with $, @ or %, which are code in a bundle, got {text!r}")
    for name in CONFIGS:
        path = folder / "configs" / name
        text = set_values(path.read_text(encoding="utf-8"), {**overrides, "dataset": content, "flavor": None})
        path.write_text(f"# {head}\n" + re.sub(_FORMER_HEAD, "", text), encoding="utf-8")


def _texts(content: Any) -> list[str]:
    if isinstance(content, Mapping):
        return [text for pair in content.items() for part in pair for text in _texts(part)]
    if isinstance(content, (list, tuple)):
        return [text for part in content for text in _texts(part)]
    return [content] if isinstance(content, str) else []


# ------------------------------------------------------------------------------------------------------- exported files


def export(folder: Path, onnx: bool = False) -> dict[str, float]:
    """Write ``models/model.ts`` (and ``model.onnx``) of a bundle with weights, and compare their outputs.

    Args:
        folder: the bundle.
        onnx: also write ONNX (needs the extra ``export``).

    Returns:
        file name -> largest absolute difference of its logits from those of ``model.pt``, on a random patch.

    Raises:
        DataError: when ONNX is asked for and not installed, or when an output differs by more than 1e-4.
    """
    from monai.bundle import ConfigParser, ckpt_export, onnx_export

    from monai_ssl.weights import load_network

    models, configs = folder / "models", folder / "configs"
    if onnx:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            _require(package, "export")
    parser = ConfigParser()
    parser.read_config(str(configs / "inference.yaml"))
    parser["bundle_root"] = str(folder)
    preset: Preset = parser.get_parsed_content("preset")
    network: nn.Module = load_network(parser.get_parsed_content("network_def"), models / "model.pt").eval()
    shape = (1, preset.in_channels, *preset.patch_size)
    settings: dict[str, Any] = {
        "net_id": "network_def",
        "ckpt_file": str(models / "model.pt"),
        "bundle_root": str(folder),
        "meta_file": str(configs / "metadata.json"),
        "config_file": str(configs / "inference.yaml"),
    }
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # deprecations of torch's own exporters
        warnings.simplefilter("ignore")
        ckpt_export(filepath=str(models / "model.ts"), **settings)
        _strip_torchscript(models / "model.ts")
        if onnx:
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # "torchvision is not installed"
            onnx_export(filepath=str(models / "model.onnx"), input_shape=list(shape), **settings)
            _strip_onnx(models / "model.onnx")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(x)
        results: dict[str, Tensor] = {"model.ts": torch.jit.load(models / "model.ts").eval()(x)}
    if onnx:
        import onnxruntime

        session = onnxruntime.InferenceSession(models / "model.onnx", providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        results["model.onnx"] = torch.from_numpy(found)
    differences = {name: float((result - logits).abs().max()) for name, result in results.items()}
    for name, difference in differences.items():
        if not difference <= TOLERANCE:  # also NaN
            raise DataError(f"{name}: logits differ from model.pt's by {difference:g}, allowed are {TOLERANCE:g}")
    return differences


def _strip_torchscript(path: Path) -> None:
    """Take out the tables of source lines: they hold folders of this machine."""
    with zipfile.ZipFile(path) as archive:
        members = [(member, archive.read(member)) for member in archive.infolist()]
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for member, content in members:
            if not member.filename.endswith(".debug_pkl"):
                archive.writestr(zipfile.ZipInfo(member.filename), content)


def _strip_onnx(path: Path) -> None:
    """Take out the stack traces that the exporter notes at every node: they hold folders of this machine."""
    import onnx

    model = onnx.load(path)
    for graph in [model.graph, *model.functions]:
        for node in graph.node:
            del node.metadata_props[:]
    onnx.save(model, path)


def _require(package: str, extra: str) -> None:
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise DataError(f"{package} is not installed; pip install 'monai_ssl[{extra}]'")


# ------------------------------------------------------------------------------------------------- app of MONAI Label

MAIN = '''"""An app of MONAI Label, written by `monai-ssl label-app`: every bundle in model/ is offered."""

from monai_ssl.deploy.label import SemiSupervisedApp  # noqa: F401
'''


def write_label_app(
    output: str | Path,
    bundles: Sequence[str],
    dataset: str | None,
    flavor: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Write the folder of an app of MONAI Label.

    Args:
        output: new folder.
        bundles: names of shipped bundles, or folders of packaged ones, which keep their weights.
        dataset: preset for the shipped bundles; None leaves a packaged bundle its own.
        flavor: of the preset; None: ``practical``, where there is one.
        overrides: ids of the bundles' configs -> values.

    Returns:
        the folder.

    Raises:
        DataError: when the folder is not empty, or a bundle or preset is unknown.
    """
    from monai_ssl.bundle.library import check_ids, find_bundle, is_shipped, own_dataset

    target = Path(output).expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"output: {target} exists and is not an empty folder; give a new one")
    sources = [find_bundle(name) for name in bundles]
    presets = []
    for source in sources:
        check_ids(source, ["train.yaml"], overrides or {})
        chosen = dataset if dataset is not None else own_dataset(source)
        try:
            presets.append(load_preset(chosen, flavor or "practical"))
        except DataError:
            if flavor is not None:
                raise
            presets.append(load_preset(chosen))
    for source, preset in zip(sources, presets, strict=True):
        folder = target / "model" / source.name
        head = HEAD.format(command="label-app", bundle=source.name)
        copy_files(source, folder, head, weights=not is_shipped(source))
        merge_preset(folder, preset, overrides or {}, head)
        meta = read_json(folder / "configs" / "metadata.json")
        _describe_data(meta, preset)
        _write_json(folder / "configs" / "metadata.json", meta)
    (target / "main.py").write_text(MAIN, encoding="utf-8")
    return target


# ---------------------------------------------------------------------------------------------------------- the package


def package_run(
    bundle: Path,
    run: Path,
    record: Mapping[str, Any],
    overrides: Mapping[str, Any],
    ckpt: Path,
    output: str | Path,
    name: str | None = None,
    onnx: bool = False,
) -> Path:
    """Write a self-contained bundle of a trained run.

    Nothing that names a patient, a file or a folder of the training machine goes into it: cases are numbered.

    Args:
        bundle: folder of the bundle that was trained.
        run: the run's folder, with ``preset.yaml`` and, if it was evaluated, ``evaluation-*``. Scores of other weights
            than ``ckpt``, as a run has that was trained on, stay out of the card.
        record: content of its ``run.json``.
        overrides: ids of the bundle's configs that the training had changed.
        ckpt: the weights.
        output: new folder; its last part is the bundle's name in MONAI Label.
        name: title in metadata and model card; default: method and data set.
        onnx: also write ``models/model.onnx``.

    Returns:
        the folder.

    Raises:
        DataError: when the folder is not empty, the weights do not fit, or an exported network computes other values.
    """
    from monai_ssl.runs.folder import CHECKPOINT, MODEL
    from monai_ssl.weights import content_digest, load

    _check_names(output, name)
    state = load(ckpt)
    if ckpt.resolve() == (run / MODEL).resolve() and (run / CHECKPOINT).is_file():
        # an unfinished run asked for more iterations than it made
        done = load(run / CHECKPOINT).get("iteration")
        record = {**record, "iteration": record.get("max_iterations") if done is None else done}
    again = ["evaluate", str(run), *([] if ckpt.resolve() == (run / MODEL).resolve() else ["--ckpt", str(ckpt)])]
    scores = Scores(run, again, content_digest(state), ckpt.name)
    return _write_package(bundle, run / "preset.yaml", scores, record, overrides, state, output, name, onnx)


def package_ensemble(members: Members, output: str | Path, name: str | None = None, onnx: bool = False) -> Path:
    """Write a self-contained bundle of several runs, which segments by the mean of their class probabilities.

    ``configs/inference.yaml`` builds an :class:`~monai_ssl.networks.Ensemble`, and ``models/model.pt`` holds the
    weights of all members. ``configs/train.yaml`` is that of the first one: a training trains one network.

    Args:
        members: the runs; scores of theirs, as an ensemble, go into the card where they are in ``members.folder``.
        output: new folder; its last part is the bundle's name in MONAI Label.
        name: title in metadata and model card; default: method and data set.
        onnx: also write ``models/model.onnx``.

    Returns:
        the folder.

    Raises:
        DataError: as :func:`package_run`, and for members of your own bundles that are not all of one.
    """
    from monai_ssl.bundle.library import find_bundle, is_shipped

    _check_names(output, name)
    folders = {find_bundle(run.record.bundle) for run in members.runs}
    if len(folders) > 1 and (own := sorted(str(folder) for folder in folders if not is_shipped(folder))):
        raise DataError(f"run: a package holds the code of one bundle of your own, got {', '.join(own)} and others")
    first = members.runs[0]
    bundle, settings = first.settings(["train.yaml", "inference.yaml"], {})
    del settings["dataset"]  # the package carries its own
    facts = members.facts()
    record = first.record.model_dump() | {"iteration": facts[0]["iteration"], "members": facts}
    again = ["evaluate", *(str(run.folder) for run in members.runs)]
    scores = Scores(members.folder, again, members=members.contents())
    return _write_package(
        bundle, first.preset, scores, record, settings, members.weights(), output, name, onnx,
        network_def=members.network_def(),
    )  # fmt: skip


def _check_names(output: str | Path, name: str | None) -> None:
    """
    Raises:
        DataError: when the folder is not empty, or a name cannot be one.
    """
    target = Path(output).expanduser().resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"output: {target} exists and is not an empty folder; give a new one")
    if not re.fullmatch(r"\w[\w.-]*", target.name):
        raise DataError(f"output: the folder's name must be made of letters, digits, - and _, got {target.name!r}")
    if name is not None and name.strip().startswith(("$", "@", "%")):
        raise DataError(f"name: must not begin with $, @ or %, got {name!r}")


def _write_package(
    bundle: Path,
    preset_file: Path,
    scores: Scores,
    record: Mapping[str, Any],
    overrides: Mapping[str, Any],
    state: Mapping[str, Tensor],
    output: str | Path,
    name: str | None,
    onnx: bool,
    network_def: Mapping[str, Any] | None = None,
) -> Path:
    """The package, whole or not at all.

    Args:
        bundle: that was trained.
        preset_file: of the data.
        scores: what was evaluated.
        record: of the run; ``members`` where there are several.
        overrides: ids of the bundle's configs that the training had changed.
        state: the weights.
        output, name, onnx: as in :func:`package_run`.
        network_def: the network that segments, where it is not the one that is trained.
    """
    from monai_ssl.weights import save

    target = Path(output).expanduser().resolve()
    preset = _with_codes(load_preset(preset_file))
    partial = target.with_name(f".{os.getpid()}-{target.name}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        head = HEAD.format(command="package", bundle=bundle.name)
        copy_files(bundle, partial, head)
        save({key: value.detach().cpu().contiguous() for key, value in state.items()}, partial / "models" / "model.pt")
        merge_preset(partial, preset, overrides, head)
        if network_def is not None:
            _set_network(partial / "configs", network_def)
        results = _copy_results(scores, partial / "docs" / "results")
        data = _data_statistics(record, preset)
        metadata = _metadata(bundle, preset, record, results, data, name)
        _write_json(partial / "configs" / "metadata.json", metadata)
        if ranges := _ranges(data):
            _write_json(partial / TRAINING_IMAGES, ranges)
        differences = export(partial, onnx)
        card = model_card(metadata, preset, record, results, data, differences)
        (partial / "docs" / "README.md").write_text(card, encoding="utf-8")
        if target.exists():
            target.rmdir()
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _set_network(configs: Path, network_def: Mapping[str, Any]) -> None:
    """Make inference and evaluation use another network than the one that ``train.yaml`` trains."""
    path = configs / "inference.yaml"
    path.write_text(set_values(path.read_text(encoding="utf-8"), {"network_def": network_def}), encoding="utf-8")
    path = configs / "evaluate.yaml"
    block = yaml.safe_dump({"network_def": dict(network_def)}, sort_keys=False, width=110)
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text.rstrip()}\n# not the one that train.yaml trains\n{block}", encoding="utf-8")


def _with_codes(preset: Preset) -> Preset:
    """Runs of earlier versions hold no codes: take those of the shipped preset with the same classes."""
    from monai_ssl.data import available_presets

    if preset.codes or preset.name not in available_presets():
        return preset
    shipped = load_preset(preset.name)
    return preset.model_copy(update={"codes": shipped.codes}) if shipped.labels == preset.labels else preset


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Scores:
    """Where the evaluations of a model are, and how to tell that they are of this one.

    Attributes:
        folder: with ``evaluation-*``.
        again: words of the command that scores the model.
        content: of its weights, :func:`~monai_ssl.weights.content_digest`.
        file: name of the file that holds them.
        members: of an ensemble, the same of every member.
    """

    folder: Path
    again: Sequence[str]
    content: str = ""
    file: str = ""
    members: Sequence[str] = ()

    def belong(self, meta: Mapping[str, Any]) -> bool:
        """Whether results are of these weights.

        Args:
            meta: of the results; of former versions, it names the file of the weights and not their content.
        """
        ensemble = meta.get("ensemble") or {}
        if self.members or ensemble:
            return bool(self.members) and ensemble.get("weights") == list(self.members)
        if meta.get("predictions"):  # of any program
            return False
        if meta.get("weights"):
            return bool(meta["weights"] == self.content)
        return Path(str(meta.get("ckpt") or self.file)).name == self.file


def _copy_results(scores: Scores, target: Path) -> dict[str, dict[str, Any]]:
    """Scores per evaluated list, with numbered cases and patients, without paths; also written to ``target``.

    Args:
        scores: what was evaluated; what is of other weights is left out, and named.
        target: new folder.
    """
    found: dict[str, dict[str, Any]] = {}
    for folder in sorted(scores.folder.glob("evaluation-*")):
        if not (folder / "summary.json").is_file():
            continue
        content = read_json(folder / "summary.json")
        section = str(content["meta"]["section"])
        if not scores.belong(content["meta"]):
            words = [*scores.again, *([] if section == "testing" else ["--section", section])]
            console.warning("note: %s holds scores of other weights than these: they stay out of the model card; to "
                            "have some there, score these, then package again: %s %s", folder, PROGRAM,
                            shlex.join(words))  # fmt: skip
            continue
        if section in found:  # of the same weights, so the same scores
            continue
        with open(folder / "per_case.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        numbers = {case: f"case-{k:03d}" for k, case in enumerate(dict.fromkeys(row["case"] for row in rows), 1)}
        named = dict.fromkeys(patient for row in rows if (patient := row.get("patient")))
        patients = {patient: f"patient-{k:03d}" for k, patient in enumerate(named, 1)}
        for row in rows:
            row["case"] = numbers[row["case"]]
            if row.get("patient"):
                row["patient"] = patients[row["patient"]]
        _number_cases(content["summary"], numbers)
        meta = {key: content["meta"].get(key) for key in ("date", "versions", "dataset", "flavor", "section", "seed")}
        found[section] = {"meta": meta, "summary": content["summary"]}
        (target / section).mkdir(parents=True)
        _write_json(target / section / "summary.json", found[section])
        with open(target / section / "per_case.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            # tables of former versions hold cells that a spreadsheet would take for formulas
            for line in (list(rows[0]), *(row.values() for row in rows)):
                writer.writerow([cell(text_of_cell(str(value))) for value in line])
    return found


def _number_cases(content: Any, numbers: Mapping[str, str]) -> None:
    """Replace the value of every key ``case``, at any depth."""
    if isinstance(content, list):
        for item in content:
            _number_cases(item, numbers)
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "case":
                content[key] = numbers.get(value, "case")
            else:
                _number_cases(value, numbers)


def _data_statistics(record: Mapping[str, Any], preset: Preset) -> dict[str, Any]:
    """Numbers of cases per list, spacing and shape of the training images; as far as the data are still there."""
    import nibabel as nib
    import numpy as np

    try:
        cases = load_datalist(record["datalist"], record["dataset_dir"])
    except DataError:
        return {}
    spacings, shapes = [], []
    for entry in cases.training + cases.unlabeled:
        try:
            header: Any = nib.load(image_files(entry)[0]).header  # type: ignore[attr-defined]
        except (OSError, nib.filebasedimages.ImageFileError):
            continue
        spacings.append(header.get_zooms()[: preset.spatial_dims])
        shapes.append(header.get_data_shape()[: preset.spatial_dims])
    data: dict[str, Any] = {"counts": cases.counts()}
    for key, values in (("spacing", spacings), ("shape", shapes)):
        if values:
            table = np.asarray(values, dtype=float)
            data[key] = [[round(float(v), 4) for v in f(table, axis=0)] for f in (np.min, np.median, np.max)]
    return data


def _ranges(data: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Of the training images, per axis; prediction compares a series with them."""
    return {key: dict(zip(("min", "median", "max"), data[key], strict=True)) for key in ("spacing", "shape")
            if key in data}  # fmt: skip


def _describe_data(meta: dict[str, Any], preset: Preset) -> None:
    """Channels, classes and patch of the data set in a bundle's metadata."""
    image = meta["network_data_format"]["inputs"]["image"]
    pred = meta["network_data_format"]["outputs"]["pred"]
    sides = list(preset.patch_size)
    image |= {"modality": preset.modality, "num_channels": preset.in_channels, "spatial_shape": sides,
              "channel_def": {str(k): channel for k, channel in enumerate(preset.channels)}}  # fmt: skip
    pred |= {"num_channels": preset.n_classes, "spatial_shape": sides,
             "channel_def": {str(value): label for value, label in preset.labels.items()}}  # fmt: skip


def _metadata(
    bundle: Path,
    preset: Preset,
    record: Mapping[str, Any],
    results: Mapping[str, Any],
    data: Mapping[str, Any],
    name: str | None,
) -> dict[str, Any]:
    meta = read_json(bundle / "configs" / "metadata.json")
    versions = record.get("versions", {})
    spacing = f"resampled to {times(preset.spacing)} mm" if preset.spacing else "as stored"
    if "spacing" in data:
        spacing += f", median of the training images {times(data['spacing'][1])} mm"
    classes = ", ".join(f"{value} {label}" for value, label in preset.labels.items())
    means = {section: block["summary"]["mean"]["dice"]["mean"] for section, block in results.items()}
    scores = {f"mean_dice_{section}": round(mean, 6) for section, mean in means.items() if mean is not None}
    _describe_data(meta, preset)
    trained = f"trained {record.get('iteration', record.get('max_iterations'))} iterations with {bundle.name}"
    description, method = f"{preset.description or preset.name}. {meta['description']}", meta["name"]
    if members := record.get("members"):
        names = " and ".join(dict.fromkeys(facts["bundle"] for facts in members))
        trained = f"mean of {len(members)} networks trained with {names}"
        method = f"{method}, ensemble of {len(members)}"
        description += f" An ensemble: the mean of the class probabilities of {len(members)} networks ({names})."
    return meta | {
        "version": "1.0.0",
        "changelog": {"1.0.0": trained},
        "monai_version": str(versions.get("monai") or meta["monai_version"]),
        "pytorch_version": str(versions.get("torch") or meta["pytorch_version"]).partition("+")[0],
        "numpy_version": str(versions.get("numpy") or meta["numpy_version"]),
        "required_packages_version": meta["required_packages_version"] | {"monai_ssl": monai_ssl.__version__},
        "name": name or f"{preset.description or preset.name} ({method})",
        "description": description,
        "data_source": f"{preset.description or preset.name}; not included",
        "image_classes": f"{', '.join(preset.channels)}; axes {preset.orientation or 'as stored'}; spacing {spacing}",
        "label_classes": classes,
        "pred_classes": classes,
        "eval_metrics": scores,
    }
