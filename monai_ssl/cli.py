"""The command line: ``monai-ssl ...`` and ``python -m monai_ssl ...``."""

from __future__ import annotations

import difflib
import errno
import inspect
import json
import logging
import os
import re
import shlex
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import monai_ssl
from monai_ssl.errors import DataError, UsageError

PROGRAM = "monai-ssl"
RUN, PRESET = "run.json", "preset.yaml"
WARNINGS_SHOWN = 5


class Commands:
    """Semi-supervised medical image segmentation.

    Train on a few annotated scans and many that are not, with published methods, as MONAI bundles.
    """

    def demo(self, output: str = "demo", seeds: int = 1, seed: int = 0, iterations: int | None = None) -> None:
        """Write a synthetic data set, train with and without unlabeled images, compare, write a report.

        Args:
            output: folder for data, runs and report.
            seeds: number of repetitions (each takes minutes).
            seed: first seed.
            iterations: iterations per training; default: what the demo's settings say.
        """
        from monai_ssl.runs.demo import run_demo

        run_demo(Path(output), seeds=seeds, first_seed=seed, iterations=iterations)

    def split(
        self,
        source: str | None = None,
        output: str | None = None,
        images: str | None = None,
        labels: str | None = None,
        n_labeled: int | None = None,
        n_validation: int | None = None,
        n_testing: int = 0,
        seed: int = 0,
        patient_pattern: str | None = None,
        patients: str | None = None,
        label_names: dict[int, str] | None = None,
        preset: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Choose which cases of a folder are labeled, unlabeled, for validation and testing; propose a preset.

        Images and labels are paired by their names; images without label are unlabeled. The preset is a start: it
        says why each value was chosen.

        Args:
            source: folder with images and labels, or a Decathlon dataset.json.
            output: the datalist to write; default: datalist.json in the folder of the data.
            images: folder of the images, instead of SOURCE.
            labels: folder of the labels, where it is not found by its name.
            n_labeled: labeled training cases; the other labeled cases become unlabeled.
            n_validation: validation cases; default: a fifth of the labeled ones.
            n_testing: test cases.
            seed: the same seed gives the same split on every machine.
            patient_pattern: regular expression that finds the patient in a case's name, so that no patient is on two
                sides; the numbers then count patients.
            patients: instead of a pattern, a CSV file with the columns case and patient.
            label_names: names of the classes: "{1: left atrium}"; default: as in dataset.json, else from the labels.
            preset: the preset to write; default: preset.yaml beside the datalist. One that exists is kept.
            overwrite: replace an existing datalist (and a preset that is named with --preset).
        """
        from monai_ssl.curation.propose import propose_preset, write_preset
        from monai_ssl.curation.split import make_split
        from monai_ssl.data import load_datalist

        if (source is None) == (images is None):
            raise UsageError("split: give either SOURCE or --images DIR")
        target = None if preset is None else Path(preset).expanduser()
        if target is not None and target.suffix.lower() not in {".yaml", ".yml"}:
            raise DataError(f"preset: must be a .yaml file, got {preset!r}")
        if target is not None and target.exists() and not overwrite:
            raise DataError(f"preset: {target} exists already; choose another name or pass --overwrite")
        path = make_split(
            str(source or images),
            labels=labels,
            output=output,
            n_labeled=n_labeled,
            n_validation=n_validation,
            n_testing=n_testing,
            seed=seed,
            patient_pattern=patient_pattern,
            patients=patients,
            label_names=label_names,
            overwrite=overwrite,
        )
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        counts = {key: len(content.get(key, [])) for key in ("training", "unlabeled", "validation", "testing")}
        print(f"{path}: {_counts(counts)}")
        cases = load_datalist(path)
        print("classes:", ", ".join(f"{value} {name}" for value, name in cases.labels.items()))
        proposed = target or path.parent / "preset.yaml"
        if target is None and proposed.exists():
            print(f"{proposed}: exists already and is kept; --preset FILE proposes a new one")
            return
        try:
            proposal = propose_preset(cases.training + cases.unlabeled, cases.labels)
        except DataError as error:
            print(f"no preset is proposed: {error}", file=sys.stderr)
            return
        write_preset(proposed, proposal)
        print(f"{proposed}: a proposal, from the data:")
        for reason in proposal.reasons:
            print(f"  - {reason}")
        print(f"next: {PROGRAM} check {shlex.quote(str(path.parent))} --datalist {shlex.quote(path.name)} --dataset "
              f"{shlex.quote(str(proposed))}")  # fmt: skip

    def prepare(
        self,
        dataset: str,
        source: str,
        output: str,
        n_labeled: int | None = None,
        n_validation: int | None = None,
        n_testing: int | None = None,
        split: str | None = None,
        seed: int | None = None,
        workers: int | None = None,
        check: bool = True,
        download: bool = False,
        **options: Any,
    ) -> None:
        """From the official download of a public data set to a checked datalist with the published split.

        Type it again to go on after an interruption: what is done is kept. docs/datasets.md has a section per data set.

        Args:
            dataset: left_atrium, pancreas_ct, brats2019, acdc, mscmrseg2019, hippocampus, or msd for any task of the
                Decathlon.
            source: folder of the download, searched with its subfolders.
            output: new folder for images, labels, datalist.json and manifest.json.
            n_labeled: labeled patients, the first of the training list; default: as published.
            n_validation: validation patients, the last of the training list, where the published split has none.
            n_testing: test patients, where no list is published.
            split: name of another shipped list, or path of your own .yaml.
            seed: draw the split anew, with the published sizes.
            workers: processes; default: one per core, up to 8.
            check: read all written files again with the rules of `monai-ssl check`; --check False skips it.
            download: fetch hippocampus or an msd task into SOURCE first.
            **options: of the data set: --crop literature, label_free or none (left_atrium; pancreas_ct without
                label_free), --spacing (pancreas_ct), --target whole_tumor or multi_class (brats2019), --task (msd).
        """
        from monai_ssl.curation.prepare import RECIPES, build_recipe
        from monai_ssl.curation.prepare import prepare as run_recipe

        if dataset not in RECIPES:
            near = difflib.get_close_matches(dataset, RECIPES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(RECIPES)}"
            raise DataError(
                f"dataset: {dataset!r} is none that can be prepared, {hint}; your own data: {PROGRAM} split"
            )
        recipe = build_recipe(RECIPES[dataset], options)
        done = run_recipe(recipe, source, output, n_labeled, n_validation, n_testing, split, seed, workers, check,
                          download)  # fmt: skip
        for remark in done.remarks:
            print(f"note: {remark}")
        for name, reason in done.skipped.items():
            print(f"skipped: {name}: {reason}")
        for problem in done.problems:
            print(problem)
        errors = sum(problem.severity == "error" for problem in done.problems)
        print(f"{done.datalist}: {_counts(done.counts)}; {done.converted} converted, {done.reused} from before, "
              f"{len(done.skipped)} skipped; {_plural(errors, 'error')}")  # fmt: skip
        if options.get("crop", "literature") == "literature" and "crop" in recipe.options():
            print("ATTENTION: images are cropped around their LABELS, as in the literature. The crop tells where the "
                  "organ is, also in unlabeled and test cases: results do not carry over to whole scans.")  # fmt: skip
        flavor = f" --flavor {done.flavor}" if done.flavor else ""
        print(f"next: {PROGRAM} train dtc {shlex.quote(str(done.datalist.parent))} --dataset {done.preset}{flavor}")
        if errors:
            raise SystemExit(1)

    def preset(self, name: str, output: str, flavor: str | None = None) -> None:
        """Write a dataset preset to a YAML file, to adapt it to your data.

        Args:
            name: left_atrium, hippocampus, ... (`monai-ssl list`): the one whose data are most like yours.
            output: new YAML file; give it to check and train as --dataset FILE.
            flavor: literature (as published) or practical (for your own scans).
        """
        import yaml

        from monai_ssl.data import dump_preset, load_preset
        from monai_ssl.files import write_text

        chosen = load_preset(name, flavor)
        target = Path(output).expanduser()
        if target.suffix.lower() not in {".yaml", ".yml"}:
            raise DataError(f"output: must be a .yaml file, got {output!r}")
        if target.exists():
            raise DataError(f"output: {target} exists already; choose another name")
        content = yaml.safe_load(dump_preset(chosen))
        del content["name"]  # the file's own name counts
        content["labels"] = {int(value): label for value, label in content["labels"].items()}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)
        write_text(target, f"# A copy of {chosen.name} ({chosen.flavor}); see docs/datasets.md for the keys.\n{text}")
        print(f"{target}: edit channels, labels, patch_size, spacing; then: {PROGRAM} check DIR --dataset {output}")

    def check(
        self,
        dataset_dir: str,
        datalist: str | None = None,
        dataset: str = "left_atrium",
        flavor: str | None = None,
    ) -> None:
        """Verify datalist and files before a long run: one line per problem, exit status 1 when there is an error.

        Args:
            dataset_dir: folder of the data.
            datalist: JSON inside it or path; default: the datalist found there.
            dataset: preset that says what the data must be: a name, or the path of your own YAML.
            flavor: of the preset: literature or practical.
        """
        from monai_ssl.curation.verify import verify
        from monai_ssl.data import load_datalist, load_preset

        preset = load_preset(dataset, flavor)
        cases = load_datalist(datalist, dataset_dir)
        problems = verify(cases, preset)
        for problem in problems:
            print(problem)
        errors = sum(problem.severity == "error" for problem in problems)
        print(f"{cases.path}: {_counts(cases.counts())}; {_plural(errors, 'error')}, "
              f"{_plural(len(problems) - errors, 'warning')}")  # fmt: skip
        if errors:
            raise SystemExit(1)

    def describe(
        self, source: str, datalist: str | None = None, output: str | None = None, title: str | None = None
    ) -> None:
        """Write an HTML page that shows the data: sizes, spacings, intensities, class volumes, pictures with labels.

        Args:
            source: a datalist, or the folder of the data.
            datalist: JSON inside the folder; default: the datalist found there.
            output: the page; default: NAME-OF-THE-DATALIST.html beside the datalist.
            title: heading; default: name of the folder.
        """
        from monai_ssl.data import load_datalist
        from monai_ssl.reports.dataset import describe

        cases = load_datalist(source) if source.lower().endswith(".json") else load_datalist(datalist, source)
        assert cases.path is not None  # strict
        print(describe(cases, output or cases.path.with_suffix(".html"), title))

    def train(
        self,
        bundle: str,
        dataset_dir: str,
        datalist: str = "datalist.json",
        dataset: str | None = None,
        output: str | None = None,
        check: bool = True,
        **overrides: Any,
    ) -> None:
        """Train a bundle; a thin face of `python -m monai.bundle run`. Type it again to resume an interrupted run.

        Args:
            bundle: dtc, supervised, ... (`monai-ssl list`), or the folder of your own bundle.
            dataset_dir: folder of the data.
            datalist: JSON inside it (or a path); `monai-ssl split` writes one.
            dataset: preset: left_atrium, hippocampus, phantom, ..., or the path of your own YAML; default: what the
                bundle names (left_atrium), or carries in it (a packaged one).
            output: folder of the run; default: runs/BUNDLE-DATASET-seedSEED.
            check: read all scans first and stop at bad data (seconds); --check False skips it.
            **overrides: any id of the bundle's configs/train.yaml, for example --flavor practical --seed 1
                --max_iterations 3000 --labeled_batch_size 4 --amp off --device cpu --method#unsupervised_weight 0
        """
        from monai_ssl.bundle import library as bundles
        from monai_ssl.data import dump_preset, load_datalist, load_preset
        from monai_ssl.files import write_text
        from monai_ssl.metrics import environment
        from monai_ssl.runs.folder import pending, promote

        folder = bundles.find_bundle(bundle)
        bundles.check_ids(folder, ["train.yaml"], overrides)
        source = dataset if dataset is not None else bundles.own_dataset(folder)
        preset = load_preset(source, overrides.get("flavor"))
        cases = load_datalist(datalist, dataset_dir)
        cases.require("training")
        name = f"{folder.name}-{preset.name}-seed{overrides.get('seed', 0)}"
        run = Path(output or Path("runs") / name).expanduser().resolve()
        settings = {
            "dataset": str(Path(source).resolve()) if str(source).endswith((".yaml", ".yml")) else source,
            "dataset_dir": str(Path(dataset_dir).expanduser().resolve()),
            "datalist": str(cases.path),
            "output_dir": str(run),
        }
        for key in settings.keys() & overrides.keys():
            raise DataError(f"--{key}: give it as --output" if key == "output_dir" else f"--{key}: given twice")
        _check_run_folder(run, Path(settings["dataset_dir"]))
        shown = f"{folder.name}: {preset.name} ({preset.flavor}), {_counts(cases.counts())}, output {run}"
        print(shown, flush=True)
        if check:
            _check_data(cases, preset)
        record = {"bundle": folder.name if bundles.is_shipped(folder) else str(folder), "overrides": overrides,
                  "dataset": preset.name, "flavor": preset.flavor, "dataset_dir": settings["dataset_dir"],
                  "datalist": settings["datalist"], "max_iterations": _iterations(folder, settings | overrides),
                  "status": "started", "command": shlex.join(sys.argv), **environment()}  # fmt: skip
        run.mkdir(parents=True, exist_ok=True)
        with _only_writer(run):
            # in waiting: a former run in this folder is set aside, with ITS record, when the training starts
            write_text(pending(run / PRESET), dump_preset(preset))
            write_text(pending(run / RUN), json.dumps(record, indent=2, default=str) + "\n")
            try:
                bundles.run_bundle(folder, ["train.yaml"], settings | overrides)
            finally:
                if (run / "checkpoint.pt").exists() or not (run / RUN).exists():
                    promote(run)
            write_text(run / RUN, json.dumps({**record, "status": "complete"}, indent=2, default=str) + "\n")
        section = "testing" if not cases.validation else "validation"
        print(f"weights: {run / 'model.pt'}\nnext: {PROGRAM} evaluate {run} --section {section}")

    def evaluate(
        self,
        run: str | None = None,
        section: str = "testing",
        output: str | None = None,
        dataset_dir: str | None = None,
        datalist: str | None = None,
        predictions: str | None = None,
        dataset: str | None = None,
        against: str | None = None,
        ckpt: str | None = None,
        **overrides: Any,
    ) -> None:
        """Score a trained run, or a folder of segmentations, on the original grid of the labels.

        Writes per_case.csv, summary.json and report.html; with --against also interval and paired Wilcoxon test.

        Args:
            run: folder that `monai-ssl train` wrote (or give --predictions).
            section: list of the datalist that is scored: testing or validation.
            output: folder for results; default: RUN/evaluation-SECTION.
            dataset_dir: folder of the data; default: the training's.
            datalist: default: the training's.
            predictions: score these files (named CASE_seg.nii.gz or like the images) instead of running a network.
            dataset: preset that names the classes, with --predictions; default: left_atrium.
            against: results folder of another run on the same cases.
            ckpt: other weights than RUN/model.pt.
            **overrides: ids of the bundle's configs, with RUN, for example --device cpu --amp off
        """
        from monai_ssl.metrics import read_results
        from monai_ssl.runs.evaluate import evaluate_predictions, evaluate_run, print_summary, report_evaluation

        if (run is None) == (predictions is None):
            raise UsageError("evaluate: give either RUN or --predictions DIR")
        if section not in ("testing", "validation", "training"):
            raise UsageError(f"section: must be testing, validation or training, got {section!r}")
        if against is not None:
            read_results(Path(against).expanduser())  # before the work, not after it
        if predictions is not None:
            if overrides:
                raise UsageError(f"evaluate: unknown option --{next(iter(overrides))} (with --predictions)")
            results = evaluate_predictions(
                predictions, dataset or "left_atrium", dataset_dir, datalist, section, output
            )
        else:
            folder, settings, record = self._of_run(run, ckpt, ["train.yaml", "evaluate.yaml"], overrides)
            settings |= {
                "dataset_dir": str(Path(dataset_dir or record["dataset_dir"]).expanduser().resolve()),
                "datalist": str(datalist or record["datalist"]),
                "section": section,
            }
            results = evaluate_run(folder, Path(str(run)), settings, Path(output) if output else None, record)
        page = report_evaluation(results, against)
        print_summary(results, against)
        print(f"report: {page}")

    def predict(
        self,
        run: str | None = None,
        images: str | None = None,
        output: str = "segmentations",
        bundle: str | None = None,
        dicom: str | None = None,
        ckpt: str | None = None,
        probabilities: bool = False,
        uncertainty: bool = False,
        tta: bool = False,
        measurements: bool = False,
        jobs: int = 2,
        memory_gb: int = 8,
        overwrite: bool = False,
        **overrides: Any,
    ) -> None:
        """Segment the images of a folder, or a DICOM series; results lie on the grid of the images.

        Started again, it goes on with the images that are missing.

        Args:
            run: folder that `monai-ssl train` or `monai-ssl package` wrote.
            images: folder of images, or one image.
            output: folder for NAME_seg.nii.gz; with --dicom for segmentation.dcm and segmentation.nii.gz.
            bundle: a packaged bundle (folder or .zip), instead of RUN.
            dicom: folder of one DICOM series, instead of IMAGES.
            ckpt: other weights.
            probabilities: also write NAME_prob.nii.gz, one channel per class.
            uncertainty: also write NAME_uncertainty.nii.gz: 0 certain, 1 a guess.
            tta: average over mirrored views, along the axes that the preset's augmentation allows.
            measurements: with --dicom, also write a structured report with the volumes in ml.
            jobs: threads that read and write beside the network.
            memory_gb: for images under way at one time.
            overwrite: segment again what is there already.
            **overrides: ids of the bundle's configs/inference.yaml: --amp off, --device cpu, --datalist FILE ...
        """
        from monai_ssl.bundle import library as bundles
        from monai_ssl.engines.segment import Segmenter
        from monai_ssl.runs.predict import predict_folder

        if (run is None) == (bundle is None):
            raise UsageError("predict: give either RUN or --bundle DIR")
        if (images is None) == (dicom is None):
            raise UsageError("predict: give either IMAGES or --dicom SERIES_DIR")
        if measurements and dicom is None:
            raise UsageError("predict: --measurements goes with --dicom")
        target = Path(output).expanduser().resolve()
        if target.exists() and not target.is_dir():
            raise DataError(f"output: must be a folder, got the file {target}")
        with bundles.opened(Path(str(run or bundle)).expanduser()) as source:
            if (source / RUN).is_file() or not (source / "configs" / "inference.yaml").is_file():
                folder, settings, _ = self._of_run(source, ckpt, ["inference.yaml"], overrides)
            else:
                folder, settings = source, _of_package(source, ckpt, overrides)
            if dicom is not None:
                from monai_ssl.deploy.dicom import predict_series

                segmenter = Segmenter(folder, settings, tta)
                meta = bundles.read_json(folder / "configs" / "metadata.json")
                name, version = str(meta.get("name", folder.name)), str(meta.get("version", "0"))
                written = predict_series(segmenter, dicom, target, name, version, measurements, uncertainty, overwrite)
                print("\n".join(map(str, written)))
                return
            entries, root = _images(Path(str(images)).expanduser(), target, overrides)
            settings |= {"dataset_dir": str(root)}
            if not bundles.standard_inference(folder):
                if tta or uncertainty:
                    raise DataError("predict: --tta and --uncertainty need the inference.yaml of a shipped bundle")
                settings |= {"output_dir": str(target), "probabilities": probabilities}
                bundles.run_bundle(folder, ["inference.yaml"], settings)
                done, former = len(entries), 0
            else:
                segmenter = Segmenter(folder, settings, tta)
                done, former = predict_folder(
                    segmenter, entries, target, root, probabilities, uncertainty, jobs, memory_gb, overwrite
                )
        print(f"{_plural(done, 'segmentation')}: {target}" + (f" ({former} were there already)" if former else ""))

    def report(
        self,
        output: str,
        method: str,
        floor: str | None = None,
        matched_floor: str | None = None,
        ceiling: str | None = None,
        title: str = "Comparison",
    ) -> None:
        """One page from the results folders of floor, matched floor, method and ceiling.

        Args:
            output: path of the HTML file.
            method: results folder (with per_case.csv) of the method.
            floor: of the run on the labeled cases alone.
            matched_floor: of the method's run with --method#unsupervised_weight 0.
            ceiling: of the supervised run with all labels.
            title: of the page.
        """
        from monai_ssl.runs.evaluate import comparison_report

        given = {"floor": floor, "matched_floor": matched_floor, "method": method, "ceiling": ceiling}
        if Path(output).suffix.lower() not in {".html", ".htm"}:
            raise DataError(f"output: must be an .html file, got {output!r}")
        results = {role: Path(p).expanduser() for role, p in given.items() if p is not None}
        print(comparison_report(Path(output).expanduser(), title, results))

    def package(
        self, run: str, output: str, name: str | None = None, onnx: bool = False, ckpt: str | None = None
    ) -> None:
        """Make a bundle that stands on its own from a trained run: weights, exported networks, configs, model card.

        Args:
            run: folder that `monai-ssl train` wrote; evaluate it first, so that the model card has scores.
            output: new folder.
            name: title of the model; default: data set and method.
            onnx: also export ONNX.
            ckpt: other weights than RUN/model.pt.
        """
        from monai_ssl.deploy.package import package_run

        configs = ["train.yaml", "inference.yaml"]
        folder, settings, record = self._of_run(run, ckpt, configs, {})
        weights = Path(settings.pop("ckpt"))
        settings.pop("dataset")
        target = package_run(folder, Path(run).expanduser(), record, settings, weights, output, name, onnx)
        print(f"bundle: {target}\nmodel card: {target / 'docs' / 'README.md'}")

    def bundle(self, name: str, output: str) -> None:
        """Write a shipped bundle to a folder, to edit it or to load it in MONAI Label.

        Args:
            name: dtc, supervised, ... (`monai-ssl list`).
            output: new folder.
        """
        from monai_ssl.bundle.library import copy_bundle

        print(copy_bundle(name, output))

    def label_app(
        self,
        output: str,
        bundles: str = "dtc",
        dataset: str | None = None,
        flavor: str | None = None,
        **overrides: Any,
    ) -> None:
        """Write an app of MONAI Label: it trains on the labeled and the unlabeled scans of its datastore.

        Args:
            output: new folder.
            bundles: names, or folders of packaged bundles, separated by commas.
            dataset: preset: a name or the path of your own YAML; default: the bundle's own.
            flavor: of the preset; default: practical, where there is one.
            **overrides: any id of the bundles' configs/train.yaml, for example --labeled_batch_size 4
        """
        from monai_ssl.deploy.package import write_label_app

        names = [name.strip() for name in bundles.split(",") if name.strip()]
        if not names:
            raise UsageError(f"--bundles: must name a bundle, got {bundles!r}")
        target = write_label_app(output, names, dataset, flavor, overrides)
        start = f"monailabel start_server --app {target} --studies SCANS --host 127.0.0.1"
        print(f"app: {target}\nin the environment of MONAI Label: {start}")

    def list(self) -> None:
        """Show the shipped bundles and dataset presets."""
        from monai_ssl.bundle.library import available_bundles
        from monai_ssl.data import available_presets

        print("bundles: ", *available_bundles())
        print("datasets:", *available_presets())

    @staticmethod
    def _of_run(
        run: Any, ckpt: str | None, configs: Sequence[str], overrides: dict[str, Any]
    ) -> tuple[Path, dict[str, Any], dict[str, Any]]:
        """Bundle folder, settings with which a run was trained (as far as ``configs`` know them), and its record."""
        from monai.bundle import ConfigParser

        from monai_ssl.bundle import library as bundles

        run = Path(str(run)).expanduser()
        record = _record(run)
        folder = bundles.find_bundle(record["bundle"])
        bundles.check_ids(folder, configs, overrides)
        known = ConfigParser.load_config_files([str(folder / "configs" / config) for config in configs])
        settings = {key: value for key, value in record["overrides"].items() if re.split("#|::", key)[0] in known}
        for key in ("flavor", "output_dir", "num_workers", "resume", "device", "ckpt"):
            settings.pop(key, None)
        settings |= {"dataset": str((run / PRESET).resolve()), **overrides}
        settings["ckpt"] = str(_weights(run, record, ckpt))
        return folder, settings, record


# ------------------------------------------------------------------------------------------------------ the run folder


def _record(folder: Path) -> dict[str, Any]:
    from monai_ssl.bundle.library import read_json

    if not folder.is_dir():
        raise DataError(f"run: {folder} is no folder; train first: {PROGRAM} train BUNDLE DATASET_DIR")
    for name in (RUN, PRESET):
        if not (folder / name).is_file():
            raise DataError(
                f"run: {folder} holds no {name}, so it is no run of `{PROGRAM} train`; name its output folder"
            )
    record = read_json(folder / RUN)
    if missing := [key for key in ("bundle", "overrides", "dataset_dir", "datalist") if key not in record]:
        raise DataError(f"{folder / RUN}: must hold {', '.join(missing)}; was it written by `{PROGRAM} train`?")
    return record


def _of_package(folder: Path, ckpt: str | None, overrides: dict[str, Any]) -> dict[str, Any]:
    """Settings with which a packaged bundle segments."""
    from monai_ssl.bundle import library as bundles

    bundles.check_ids(folder, ["inference.yaml"], overrides)
    bundles.read_json(folder / "configs" / "metadata.json")
    path = Path(ckpt).expanduser().resolve() if ckpt is not None else folder / "models" / "model.pt"
    if not path.is_file():
        hint = "check the path" if ckpt else f"train it, then `{PROGRAM} package` the run"
        raise DataError(f"ckpt: {path} does not exist; {hint}")
    return {**overrides, "ckpt": str(path)}


def _images(source: Path, target: Path, overrides: dict[str, Any]) -> tuple[list[dict[str, Any]], Path]:
    """The images to segment and the folder whose layout the results repeat."""
    from monai_ssl.data import images_to_segment
    from monai_ssl.data.cases import image_files

    if not source.exists():
        raise DataError(f"images: {source} does not exist; check the path")
    source = source.resolve()
    entries = images_to_segment(source, overrides.get("datalist"), overrides.get("section", "testing"))
    if not entries:
        raise DataError(f"images: no image below {source}; give a folder with NIfTI files (or one file)")
    root = source if source.is_dir() else source.parent
    if target == root:
        raise DataError(f"output: must not be the folder of the images, {target}: results would be read as images")
    folders = (os.path.dirname(os.path.abspath(file)) for entry in entries for file in image_files(entry))
    return entries, Path(os.path.commonpath([root, *folders]))


def _weights(run: Path, record: dict[str, Any], ckpt: str | None) -> Path:
    """The weights to use; says so when they are of an unfinished run."""
    from monai_ssl.runs.weights import load

    if ckpt is not None:
        path = Path(ckpt).expanduser().resolve()
        if not path.is_file():
            raise DataError(f"ckpt: {path} does not exist; check the path")
        return path
    path, checkpoint = run / "model.pt", run / "checkpoint.pt"
    again = f"type its command again to go on: {record.get('command', PROGRAM + ' train ...')}"
    if not path.is_file():
        raise DataError(f"run: {run} has no weights yet (stopped before the first checkpoint); {again}")
    if record.get("status") != "complete" and checkpoint.is_file():
        done, total = load(checkpoint).get("iteration"), record.get("max_iterations")
        if done != total:
            print(f"note: this run is unfinished, weights of iteration {done} of {total}; {again}", file=sys.stderr)
    return path.resolve()


def _check_run_folder(run: Path, dataset_dir: Path) -> None:
    """Refuse a folder in which training would overwrite what is not its own."""
    if run.exists() and not run.is_dir():
        raise DataError(f"output: must be a folder, got the file {run}")
    if run == dataset_dir:
        raise DataError(f"output: must not be the folder of the data, {run}; give a folder for the run")
    ours = any((run / name).exists() for name in (RUN, "checkpoint.pt", f".{RUN}.pending"))
    foreign = [name for name in ("model.pt", "training.csv", "validation.csv") if (run / name).exists()]
    if foreign and not ours:
        raise DataError(
            f"output: {run} holds a {foreign[0]} that no run of `{PROGRAM} train` wrote; give another folder"
        )


@contextmanager
def _only_writer(run: Path) -> Iterator[None]:
    """Hold the run's lock; the system lets it go when the process ends, however it ends."""
    import fcntl

    with open(run / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise DataError(f"output: another training writes to {run} just now; give another folder") from None
            # file systems without locks
        yield


def _check_data(cases: Any, preset: Any) -> None:
    """Stop at data that cannot be trained on, before the long run."""
    from monai_ssl.curation.verify import verify

    problems = verify(cases, preset, sections=("training", "unlabeled", "validation"))
    groups: dict[str, list[Any]] = {}
    for problem in problems:
        if problem.severity == "warning":
            groups.setdefault(problem.rule, []).append(problem)
    for group in list(groups.values())[:WARNINGS_SHOWN]:
        # verify() has merged long lists of equal warnings already
        merged = [re.search(r" \(and (\d+) more cases of this list\)$", str(problem)) for problem in group]
        n = len(group) - 1 + sum(int(match[1]) for match in merged if match)
        text = str(group[0])[: merged[0].start()] if merged[0] else str(group[0])
        print(f"{text} (and {n} more like this)" if n else text, file=sys.stderr)
    if len(groups) > WARNINGS_SHOWN:
        rest = len(groups) - WARNINGS_SHOWN
        print(f"warning: {rest} more kinds of warning; `{PROGRAM} check` shows all", file=sys.stderr)
    errors = [problem for problem in problems if problem.severity == "error"]
    for problem in errors:
        print(problem, file=sys.stderr)
    if errors:
        raise DataError(f"data: {_plural(len(errors), 'error')}, nothing was trained; correct them, then train again")


def _iterations(bundle: Path, settings: dict[str, Any]) -> int | None:
    """How many iterations the bundle's config asks for."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.yaml"))
    parser.update(settings)
    return int(parser.get_parsed_content("max_iterations")) if "max_iterations" in parser else None


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.items())


def _plural(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


# ----------------------------------------------------------------------------------------------- reading a command line


def _commands() -> dict[str, Callable[..., None]]:
    commands = Commands()
    return {name.replace("_", "-"): getattr(commands, name) for name in vars(Commands) if not name.startswith("_")}


def _is_option(token: str) -> bool:
    return token.startswith("-") and len(token) > 1 and not re.fullmatch(r"-(\d|\.\d).*", token)


def parse(name: str, command: Callable[..., None], tokens: list[str]) -> dict[str, Any]:
    """Arguments of a command from the words behind it: ``VALUE``, ``--key VALUE``, ``--key=VALUE``, ``--key`` (True).

    Values are read as the parameter's annotation says, so that a folder called ``2024`` stays text. What goes to a
    bundle is read as ``python -m monai.bundle run`` reads it.

    Args:
        name: of the command, for messages.
        command: the function.
        tokens: the words.

    Raises:
        UsageError: for a missing, unknown, repeated or unreadable argument.
    """
    from fire.parser import DefaultParseValue

    signature = inspect.signature(command)
    hints = get_type_hints(command)
    named = {k: p for k, p in signature.parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    free = len(named) < len(signature.parameters)
    given: dict[str, Any] = {}
    positions: list[str] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if not _is_option(token):
            positions.append(token)
            continue
        key, equals, text = token.lstrip("-").partition("=")
        # MONAI's ids may hold any character; our own parameters may be typed with hyphens
        key = key.replace("-", "_") if key.replace("-", "_") in named else key
        if not equals:
            text = rest.pop(0) if rest and not _is_option(rest[0]) else "True"
        if key in given:
            raise UsageError(f"--{key}: given twice")
        if key in named:
            given[key] = _value(key, text, hints[key])
        elif free and key:
            near = difflib.get_close_matches(key, named, n=1, cutoff=0.85)
            if near:
                raise UsageError(f"{name}: unknown option --{key}; did you mean --{near[0]}?")
            given[key] = DefaultParseValue(text)
        else:
            near = difflib.get_close_matches(key, named, n=1)
            hint = f"; did you mean --{near[0]}?" if near else ""
            raise UsageError(f"{name}: unknown option {token.partition('=')[0]}{hint} (see {PROGRAM} {name} --help)")
    places = [key for key in named if key not in given]
    if len(positions) > len(places):
        raise UsageError(
            f"{name}: too many arguments, from {positions[len(places)]!r} on; usage: {_usage(name, command)}"
        )
    for key, text in zip(places, positions, strict=False):
        given[key] = _value(key, text, hints[key])
    missing = [key for key, p in named.items() if p.default is p.empty and key not in given]
    if missing:
        raise UsageError(f"{name}: missing {missing[0].upper()}; usage: {_usage(name, command)}")
    return given


def _value(key: str, text: str, hint: Any) -> Any:
    """``text`` as the annotation ``hint`` wants it."""
    kinds = {kind.strip().split("[")[0] for kind in str(getattr(hint, "__name__", hint) if isinstance(hint, type)
                                                        else hint).split("|")}  # fmt: skip
    if "None" in kinds and text in ("None", "null", ""):
        return None
    if "str" in kinds:
        if text == "":
            raise UsageError(f"--{key}: must not be empty")
        return text
    if "bool" in kinds:
        words = {
            "true": True,
            "yes": True,
            "on": True,
            "1": True,
            "false": False,
            "no": False,
            "off": False,
            "0": False,
        }
        if text.lower() not in words:
            raise UsageError(f"--{key}: must be True or False, got {text!r}")
        return words[text.lower()]
    if "int" in kinds:
        if not re.fullmatch(r"[+-]?\d+", text):
            raise UsageError(f"--{key}: must be an integer, got {text!r}")
        return int(text)
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        content = None
    if not isinstance(content, dict):
        raise UsageError(f'--{key}: must look like "{{1: organ}}", got {text!r}')
    return content


# ------------------------------------------------------------------------------------------------------------ help


def _usage(name: str, command: Callable[..., None]) -> str:
    words = [PROGRAM, name]
    parameters = inspect.signature(command).parameters.values()
    words += [p.name.upper() for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    words += {"evaluate": ["[RUN]"], "predict": ["[RUN]", "[IMAGES]"], "split": ["[SOURCE]"]}.get(name, [])
    if len(words) < len(parameters) + 2:
        words.append("[OPTIONS]")
    return " ".join(words)


def _help() -> str:
    documentation = inspect.cleandoc(Commands.__doc__ or "").splitlines()
    lines = [f"{documentation[0]} {' '.join(documentation[2:])}", "", f"usage: {PROGRAM} COMMAND ...", ""]
    for name, command in _commands().items():
        summary = (inspect.getdoc(command) or "").splitlines()[0]
        lines += textwrap.wrap(summary, 100, initial_indent=f"  {name:<10} ", subsequent_indent=" " * 13)
    lines += ["", f"  {PROGRAM} COMMAND --help    arguments of a command",
              f"  {PROGRAM} --version", "",
              f"A first look:    {PROGRAM} demo",
              f"Your own data:   {PROGRAM} split, check, train, evaluate, predict"]  # fmt: skip
    return "\n".join(lines)


def _command_help(name: str, command: Callable[..., None]) -> str:
    text, _, arguments = (inspect.getdoc(command) or "").partition("\nArgs:\n")
    lines = [f"usage: {_usage(name, command)}", "", text.strip()]
    parameters = inspect.signature(command).parameters
    if not parameters:
        return "\n".join(lines)
    lines += ["", "arguments:"]
    # an entry begins at the docstring's own indentation; deeper lines continue it
    entries = re.sub(r"\n\s{5,}", " ", textwrap.indent(textwrap.dedent(arguments), "    ").rstrip()).split("\n")
    for entry in entries:
        key, _, about = entry.strip().partition(": ")
        if key.startswith("**"):
            shown = "--ID VALUE"
        else:
            default = parameters[key].default
            shown = key.upper() if default is inspect.Parameter.empty else f"--{key}"
            if default is not inspect.Parameter.empty and default is not None and not isinstance(default, bool):
                about += f" (default: {default})"
        lines += textwrap.wrap(about, 110, initial_indent=f"  {shown:<17} ", subsequent_indent=" " * 20)
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------- main


def users_mistake(error: BaseException) -> str | None:
    """One line for an error that a user can act on; None for a bug of ours, which deserves its traceback.

    MONAI wraps what goes wrong inside a config into RuntimeErrors: the chain of causes is searched.
    """
    import torch

    from monai_ssl.engines import TrainingDivergedError

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for link in chain:
        if isinstance(link, (DataError, TrainingDivergedError)):
            return _line(link)
        if isinstance(link, torch.OutOfMemoryError):
            return (
                f"out of GPU memory ({_line(link)[:80]}...); try --accumulation_steps 2, smaller --labeled_batch_size "
                "and --unlabeled_batch_size, or a smaller patch_size in the preset"
            )
    for link in chain:
        if isinstance(link, OSError):
            return f"{link.filename}: {link.strerror}" if link.filename and link.strerror else _line(link)
    root = chain[-1]
    frames = traceback.extract_tb(root.__traceback__)
    ours = bool(frames) and Path(frames[-1].filename).is_relative_to(Path(monai_ssl.__file__).parent)
    if isinstance(root, (ValueError, TypeError)) and ours:
        return _line(root)
    wrapped = any(
        type(link) is RuntimeError and re.match(r"Failed to (instantiate|evaluate)", str(link)) for link in chain
    )
    if wrapped:
        return f"{_line(root)} ({type(root).__name__} in the bundle's config; MONAI_SSL_DEBUG=1 shows the traceback)"
    return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Show what the user asked for: our own records as plain lines, MONAI's and Ignite's only where something fails."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    ours = logging.getLogger("monai_ssl")
    others = list(logging.root.handlers)
    levels = {name: logging.getLogger(name).level for name in ("monai_ssl", "monai", "ignite")}
    noisy = [name for name in logging.root.manager.loggerDict if name.startswith(("monai.", "ignite."))]
    noisy += ["monai.bundle.scripts", "monai.bundle.workflows", "monai_ssl.engines.trainer.SemiSupervisedTrainer",
              "monai.engines.evaluator.SupervisedEvaluator"]  # fmt: skip
    levels |= {name: logging.getLogger(name).level for name in noisy}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    ours.setLevel(logging.INFO)
    # on the root, so that the logging.conf of a user's own bundle takes its place
    logging.root.addHandler(handler)
    seen: set[str] = set()

    def show(message: Warning | str, category: type[Warning], filename: str, *args: Any, **kwargs: Any) -> None:
        text = " ".join(str(message).split())
        if text not in seen:
            seen.add(text)
            print(f"warning: {text}", file=sys.stderr)

    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=r"monai_ssl(\.|$)", category=UserWarning)
        warnings.showwarning = show
        try:
            yield
        finally:
            logging.root.handlers[:] = others
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def main(arguments: list[str] | None = None) -> None:
    """Entry point; a user's mistake ends in one line and exit status 2, not in a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # loader processes
    try:
        with _quiet():
            _dispatch(words)
    except KeyboardInterrupt:
        hint = "; run the same command again to resume" if words[:1] in (["train"], ["demo"], ["prepare"]) else ""
        print(f"\ninterrupted{hint}", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:
        mistake = None if os.environ.get("MONAI_SSL_DEBUG") else users_mistake(error)
        if mistake is None:
            raise
        print(f"{PROGRAM}: error: {mistake}", file=sys.stderr)
        raise SystemExit(2) from None


def _dispatch(words: list[str]) -> None:
    commands = _commands()
    if not words or words[0] in ("-h", "--help", "help"):
        chosen = words[1] if len(words) > 1 and words[0] == "help" else None
        print(_command_help(chosen, commands[chosen]) if chosen in commands else _help())
        return
    if words[0] in ("--version", "version"):
        print(f"{PROGRAM} {monai_ssl.__version__}")
        return
    name, *rest = words
    if name not in commands:
        near = difflib.get_close_matches(name, commands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(commands)}"
        raise UsageError(f"unknown command {name!r}: {hint} (see {PROGRAM} --help)")
    if any(word in ("-h", "--help") for word in rest):
        print(_command_help(name, commands[name]))
        return
    commands[name](**parse(name, commands[name], rest))


if __name__ == "__main__":
    main()
