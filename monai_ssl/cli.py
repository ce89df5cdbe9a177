"""The command line: ``monai-ssl ...`` and ``python -m monai_ssl ...``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import fire

from monai_ssl.data.datalist import DataError


class Commands:
    """Semi-supervised medical image segmentation.

    A first look:    monai-ssl demo
    Your own data:   monai-ssl split, check, train, evaluate, predict
    """

    def demo(self, output: str = "demo", seeds: int = 1, seed: int = 0, iterations: int | None = None) -> None:
        """Write a synthetic data set, train with and without unlabelled images, compare, write a report.

        Args:
            output: folder for data, runs and report.
            seeds: number of repetitions (each takes minutes).
            seed: first seed.
            iterations: iterations per training; default: what the demo's settings say.
        """
        from monai_ssl.demo import run_demo

        run_demo(Path(output), seeds=seeds, first_seed=seed, iterations=iterations)

    def train(
        self,
        bundle: str,
        dataset_dir: str,
        datalist: str = "datalist.json",
        dataset: str = "left_atrium",
        output: str | None = None,
        **overrides: Any,
    ) -> None:
        """Train a bundle; a thin face of `python -m monai.bundle run`. Run again to resume.

        Args:
            bundle: dtc, supervised, ... or the folder of your own bundle.
            dataset_dir: folder of the data.
            datalist: Decathlon-style JSON inside it (or a path); `monai-ssl split` writes one.
            dataset: preset: left_atrium, hippocampus, phantom or the path of your own YAML.
            output: folder of the run; default runs/BUNDLE-DATASET-seedSEED.
            **overrides: any id of the bundle's configs, for example --flavour practical --max_iterations 3000
                --seed 1 --labeled_batch_size 4 --amp off --method#unsupervised_weight 0
        """
        from monai_ssl import bundles
        from monai_ssl.data import dump_preset, load_datalist, load_preset
        from monai_ssl.files import write_text
        from monai_ssl.metrics import environment

        folder = bundles.find_bundle(bundle)
        preset = load_preset(dataset, overrides.get("flavour"))
        cases = load_datalist(datalist, dataset_dir)
        cases.require("training")
        name = f"{folder.name}-{preset.name}-seed{overrides.get('seed', 0)}"
        run = Path(output or Path("runs") / name).expanduser().resolve()
        settings = {
            "dataset": str(Path(dataset).resolve()) if dataset.endswith((".yaml", ".yml")) else dataset,
            "dataset_dir": str(Path(dataset_dir).expanduser().resolve()),
            "datalist": str(cases.path),
            "output_dir": str(run),
            **overrides,
        }
        summary = f"{bundle}: {preset.name} ({preset.flavour}), {cases.counts()}, output {run}"
        print(summary, flush=True)
        record = {"bundle": str(bundle), "overrides": overrides, "dataset": preset.name, "flavour": preset.flavour,
                  "dataset_dir": settings["dataset_dir"], "datalist": settings["datalist"],
                  "command": " ".join(sys.argv), **environment()}  # fmt: skip
        bundles.run_bundle(folder, ["train.yaml"], settings)
        write_text(run / "preset.yaml", dump_preset(preset))
        write_text(run / "run.json", json.dumps(record, indent=2) + "\n")
        print(f"weights: {run / 'model.pt'}\nnext: monai-ssl evaluate {run} --section validation")

    def predict(self, run: str, images: str, output: str, ckpt: str | None = None, **overrides: Any) -> None:
        """Segment every image of a folder with a trained run; results lie on the grid of the images.

        Args:
            run: folder that `monai-ssl train` wrote.
            images: folder of images, or one image.
            output: folder for <name>_seg.nii.gz.
            ckpt: other weights than RUN/model.pt.
            **overrides: ids of the bundle's inference config: --probabilities True, --amp off, --device cpu ...
        """
        from monai_ssl import bundles
        from monai_ssl.data import images_to_segment

        folder, settings = self._of_run(run, ckpt, "inference.yaml")
        source = Path(images).expanduser()
        if not images_to_segment(source, overrides.get("datalist"), overrides.get("section", "testing")):
            raise DataError(f"images: no image below {source}; give a folder with NIfTI files (or one file)")
        settings |= {"dataset_dir": str(source.resolve()), "output_dir": str(Path(output).expanduser().resolve())}
        bundles.run_bundle(folder, ["inference.yaml"], settings | overrides)
        print(f"segmentations: {output}")

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
            run: folder that `monai-ssl train` wrote.
            section: list of the datalist that is scored: testing or validation.
            output: folder for results; default RUN/evaluation-SECTION.
            dataset_dir: folder of the data; default: the training's.
            datalist: default: the training's.
            predictions: score these files (named <case>_seg.nii.gz or like the images) instead of running a network.
            dataset: preset that names the classes, with --predictions.
            against: results folder of another run on the same cases.
            ckpt: other weights than RUN/model.pt.
            **overrides: ids of the bundle's configs, with RUN.
        """
        from monai_ssl.evaluation import evaluate_predictions, evaluate_run, print_summary, report_evaluation

        if (run is None) == (predictions is None):
            raise DataError("evaluate: give either RUN or --predictions")
        if predictions is not None:
            results = evaluate_predictions(predictions, dataset or "left_atrium", dataset_dir, datalist, section, output)
        else:
            folder, settings = self._of_run(run, ckpt, "train.yaml")
            record = _record(run)
            settings |= {
                "dataset_dir": str(Path(dataset_dir or record["dataset_dir"]).expanduser().resolve()),
                "datalist": str(datalist or record["datalist"]),
                "section": section,
            }
            results = evaluate_run(
                folder, Path(str(run)), settings | overrides, Path(output) if output else None, record
            )
        page = report_evaluation(results, against)
        print_summary(results, against)
        print(f"report: {page}")

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
            floor: of the run on the labelled cases alone.
            matched_floor: of the method's run with --method#unsupervised_weight 0.
            ceiling: of the supervised run with all labels.
            title: of the page.
        """
        from monai_ssl.evaluation import comparison_report

        given = {"floor": floor, "matched_floor": matched_floor, "method": method, "ceiling": ceiling}
        print(comparison_report(Path(output), title, {role: Path(p) for role, p in given.items() if p is not None}))

    def check(
        self,
        dataset_dir: str,
        datalist: str | None = None,
        dataset: str = "left_atrium",
        flavour: str | None = None,
    ) -> None:
        """Verify datalist and files before a long run: one line per problem, exit status 1 when there is an error.

        Args:
            dataset_dir: folder of the data.
            datalist: JSON inside it or path; default: the datalist found there.
            dataset: preset that says what the data must be.
            flavour: of the preset.
        """
        from monai_ssl.data import load_datalist, load_preset
        from monai_ssl.data.verify import verify

        preset = load_preset(dataset, flavour)
        cases = load_datalist(datalist, dataset_dir)
        problems = verify(cases, preset)
        for problem in problems:
            print(problem)
        errors = sum(problem.severity == "error" for problem in problems)
        print(f"{cases.path}: {cases.counts()}; {errors} errors, {len(problems) - errors} warnings")
        if errors:
            raise SystemExit(1)

    def split(self, source: str, output: str | None = None, **options: Any) -> None:
        """Folder or MSD dataset.json -> datalist, reproducible by its seed.

        Args:
            source: folder with images (and labels), or a dataset.json.
            output: the datalist to write; default datalist.json beside the images.
            **options: --n_labeled 8 --n_validation 16 --n_testing 20 --seed 0 --labels DIR --patient_pattern REGEX
                --overwrite True
        """
        from monai_ssl.data.split import make_split

        path = make_split(source, output=output, **options)
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        counts = {key: len(content.get(key, [])) for key in ("training", "unlabeled", "validation", "testing")}
        print(f"{path}: {counts}")

    def bundle(self, name: str, output: str) -> None:
        """Write a shipped bundle to a folder, to edit it.

        Args:
            name: dtc, supervised, ...
            output: new folder.
        """
        from monai_ssl.bundles import copy_bundle

        print(copy_bundle(name, output))

    def list(self) -> None:
        """Shipped bundles and dataset presets."""
        from monai_ssl.bundles import available_bundles
        from monai_ssl.data import available_presets

        print("bundles: ", *available_bundles())
        print("datasets:", *available_presets())

    @staticmethod
    def _of_run(run: Any, ckpt: str | None, config: str) -> tuple[Path, dict[str, Any]]:
        """Bundle folder and settings with which a run was trained, as far as ``config`` knows them."""
        from monai.bundle import ConfigParser

        from monai_ssl import bundles

        record = _record(run)
        folder = bundles.find_bundle(record["bundle"])
        known = ConfigParser.load_config_file(str(folder / "configs" / config))
        settings = {key: value for key, value in record["overrides"].items() if key.split("#")[0] in known}
        for key in ("flavour", "output_dir", "num_workers", "resume"):
            settings.pop(key, None)
        preset = Path(str(run)) / "preset.yaml"
        settings |= {"dataset": str(preset.resolve()), "ckpt": str(Path(ckpt or Path(str(run)) / "model.pt").resolve())}
        return folder, settings


def _record(run: Any) -> dict[str, Any]:
    from monai_ssl.bundles import read_json

    folder = Path(str(run)).expanduser()
    if not folder.is_dir():
        raise DataError(f"run: {folder} is no folder; train first: monai-ssl train ...")
    return read_json(folder / "run.json")


def users_mistake(error: BaseException | None) -> BaseException | None:
    """The error in a chain of causes that a user can act on, if there is one."""
    from monai_ssl.engines import TrainingDivergedError

    while error is not None:
        if isinstance(error, (DataError, TrainingDivergedError)) or type(error) is OSError or isinstance(
            error, (FileNotFoundError, PermissionError)
        ):
            return error
        error = error.__cause__ or error.__context__
    return None


def main(arguments: list[str] | None = None) -> None:
    """Entry point; a user's mistake ends in one line and exit status 2, not in a traceback."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # loader processes
    import logging
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"monai|ignite|torch")
    for name in ("ignite", "monai_ssl.engines.trainer.SemiSupervisedTrainer"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("PAGER", "cat")  # fire pages its help otherwise
    try:
        fire.Fire(Commands, command=arguments, name="monai-ssl")
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to resume", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        mistake = users_mistake(error)
        if mistake is None and not isinstance(error, (ValueError, TypeError)):
            raise
        if mistake is None and os.environ.get("MONAI_SSL_DEBUG"):
            raise
        print(f"monai-ssl: error: {mistake or error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
