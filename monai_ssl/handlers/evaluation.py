"""From predictions to result files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from monai_ssl.data.cases import case_name, case_names
from monai_ssl.data.partial import NOTE, scored_classes
from monai_ssl.data.patients import patients_of
from monai_ssl.data.reading import read_scan
from monai_ssl.data.scan import spacing_of
from monai_ssl.errors import DataError
from monai_ssl.metrics import case_metrics, with_patients, write_results
from monai_ssl.reports.figures import overlay_figure, upright
from monai_ssl.weights import content_digest, load


class EvaluationResults:
    """Scores every case on the grid of its label file and writes ``per_case.csv`` and ``summary.json``.

    Attach to a MONAI evaluator whose post-processing gives ``pred`` on the original grid.

    Args:
        output_dir: where the files go; both appear only when every case is done.
        labels: class index -> name.
        meta: provenance for the summary (bundle, data set, checkpoint, ...). Where ``ckpt`` names a file of weights,
            the summary also gets their content, ``weights``: the file may hold others tomorrow.
        patients: first image file of a case -> patient, :meth:`~monai_ssl.data.Datalist.known_patients`; None: names
            tell. Written as a column where a patient has several of the scored scans: intervals count patients.

    Raises:
        DataError: when a case has no label.
    """

    def __init__(
        self,
        output_dir: str | Path,
        labels: Mapping[int, str],
        meta: Mapping[str, Any] | None = None,
        patients: Mapping[str, str] | None = None,
    ) -> None:
        self.output_dir, self.labels, self.meta = Path(output_dir), dict(labels), dict(meta or {})
        self.patients = patients
        self.images: list[str] = []
        self.rows: list[list[dict[str, Any]]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        self.images, self.rows = [], []
        ckpt = self.meta.get("ckpt")
        if isinstance(ckpt, (str, Path)) and Path(ckpt).is_file():
            self.meta["weights"] = content_digest(load(ckpt))

    def collect(self, engine: Any) -> None:
        for item in engine.state.output:
            prediction, label = item["pred"], item["label"]
            path = str(prediction.meta["filename_or_obj"])
            name = case_name({"image": path})
            if label is None:
                raise DataError(f"case {name}: has no label; evaluation needs labeled cases")
            spacing = spacing_of(prediction.affine.cpu().numpy(), prediction.dim() - 1)
            self.images.append(path)
            classes = scored_classes(getattr(label, "meta", {}).get(NOTE), self.labels)
            drawn, truth = (volume[0].cpu().numpy() for volume in (prediction, label))
            self.rows.append(case_metrics(drawn, truth, classes, spacing, case=name))

    def write(self, engine: Engine) -> None:
        meta = {"command": " ".join(sys.argv), **self.meta}
        # only now is it known which file names occur in several folders
        entries = [{"image": path} for path in self.images]
        names = case_names(entries)
        rows = [{**row, "case": name} for name, rows in zip(names, self.rows, strict=True) for row in rows]
        write_results(self.output_dir, with_patients(rows, names, patients_of(entries, self.patients)), meta)


class Preview:
    """A picture of the first validation case (image, label, prediction) after every validation.

    Pictures go to ``output_dir/previews/iteration-000500.png``.

    Args:
        output_dir: folder of the run.
        evaluator: the engine that validates; attach this handler to the TRAINER, whose iteration names the file.
        labels: class index -> name, for the legend.
    """

    def __init__(self, output_dir: str | Path, evaluator: Engine, labels: Mapping[int, str]) -> None:
        self.folder, self.evaluator, self.labels = Path(output_dir) / "previews", evaluator, dict(labels)

    def attach(self, engine: Engine) -> None:
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=1), self.draw, engine)

    def draw(self, engine: Any, trainer: Any) -> None:
        if trainer.state.rank != 0 or not engine.state.output:
            return
        item = engine.state.output[0]
        scan = read_scan(item["pred"].meta["filename_or_obj"])
        image, spacing, directions = upright(np.asarray(scan.channel_first[0], dtype=np.float32), scan.affine)
        label, prediction = (upright(item[key][0].cpu().numpy(), scan.affine)[0] for key in ("label", "pred"))
        self.folder.mkdir(parents=True, exist_ok=True)
        overlay_figure(
            image,
            label,
            prediction,
            path=self.folder / f"iteration-{trainer.state.iteration:06d}.png",
            spacing=spacing,
            labels=self.labels,
            directions=directions,
        )
