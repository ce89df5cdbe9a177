"""Which of the unlabeled scans to annotate next."""

from __future__ import annotations

import base64
import csv
import io
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_ssl.errors import DataError, UsageError, plural
from monai_ssl.progress import followed
from monai_ssl.runs.folder import Run

if TYPE_CHECKING:
    import numpy as np

    from monai_ssl.data.cases import Entry
    from monai_ssl.data.datalist import Datalist
    from monai_ssl.deploy.disagreement import DisagreementScorer

console = logging.getLogger("monai_ssl.console")

RECORD, ROWS, TABLE, PAGE, SEGMENTATIONS = (
    "ranking.json", "scans.jsonl", "ranking.csv", "ranking.html", "segmentations"
)  # fmt: skip
COLUMNS = ("rank", "case", "score", "disagreement", "uncertainty", "mark", "near_duplicate_of", "nearest_labeled",
           "distance")  # fmt: skip
DUPLICATE, OUTLIER, EMPTY = "near-duplicate", "outlier", "nothing drawn"


@dataclass(frozen=True)
class Ranking:
    """What :func:`rank` found.

    Attributes:
        folder: with ranking.csv, ranking.html and the segmentations.
        rows: of the table, the scan that is most worth annotating first; values as text.
        opinions: what was compared: ``"method"``, ``"members"`` of an ensemble, or ``""`` where there is one opinion.
        ranked: scans that were looked at now; the others had been before.
        problems: case -> why it could not be read.
    """

    folder: Path
    rows: tuple[Mapping[str, str], ...]
    opinions: str
    ranked: int = 0
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def table(self) -> Path:
        """The CSV file."""
        return self.folder / TABLE

    @property
    def page(self) -> Path:
        """The HTML page."""
        return self.folder / PAGE

    def first(self, n: int = 5) -> list[str]:
        """Names of the cases to annotate first, without near-duplicates of labeled scans or of those before them."""
        return [row["case"] for row in self.rows if not row["near_duplicate_of"]][:n]

    def __str__(self) -> str:
        return f"{plural(len(self.rows), 'scan')}, first: {', '.join(self.first()) or 'none'}"


def rank(
    run: str | Path | Run | Sequence[str | Path | Run],
    images: str | Path | None = None,
    output: str | Path | None = None,
    datalist: str | Path | None = None,
    dataset_dir: str | Path | None = None,
    overwrite: bool = False,
    **overrides: Any,
) -> Ranking:
    """List the unlabeled scans, the one that is most worth annotating first.

    A trained model segments every scan of the pool, and says how much it contradicts itself (its two tasks, its
    teacher, the networks of an ensemble) and how unsure it is. Near-duplicates, and scans unlike all labeled ones, are
    marked. No label of the pool is read. Repeat the command to continue; scans that are done are not done again.

    Args:
        run: folder that `monai-ssl train` or `monai-ssl package` wrote. Several runs, one after the other, are compared
            with one another.
        images: folder of scans to rank, or one scan; default: the unlabeled list of the run's datalist.
        output: folder for ranking.csv, ranking.html and the model's segmentations; default: RUN/ranking.
        datalist: what is labeled already; default: the run's. Scans with a label in it are left out of IMAGES.
        dataset_dir: folder of the data; default: the training's.
        overwrite: look at every scan again; what is there is moved to ranking-previous-1.
        **overrides: ids of the bundle's configs/inference.yaml: device, amp, ...

    Returns:
        the table, and where it is.

    Raises:
        DataError: when run, weights or scans are missing; and at the end, when scans could not be read (the others are
            in the table).

    Example:
        >>> rank("runs/dtc-left_atrium-seed0").first(3)  # doctest: +SKIP
        ['scan_0412', 'scan_0077', 'scan_0301']
    """
    from monai_ssl.data.cases import PREDICTION_FILE, case_names
    from monai_ssl.runs.ensemble import members_of
    from monai_ssl.runs.pseudo_labels import set_aside

    members = members_of(run)
    first = members.runs[0] if members is not None else _as_run(run)
    if first is None and (images is None or output is None):
        raise UsageError("rank: with a packaged bundle give IMAGES and --output DIR")
    cases = _cases(first, datalist, dataset_dir)
    if output is not None:
        folder = Path(output).expanduser().resolve()
    else:
        assert first is not None
        folder = (members.folder if members is not None else first.folder) / "ranking"
    if folder.exists() and not folder.is_dir():
        raise DataError(f"output: must be a folder, got the file {folder}")
    pool, left_out = _pool(images, cases, folder)
    if left_out:
        console.info("%s of IMAGES have a label already, or are labels, and are left out", plural(left_out, "file"))
    labeled = list(cases.training) if cases is not None else []

    with _scorer(run, overrides) as scorer:
        record = {"model": scorer.fingerprint(), "descriptor": 1}
        stated = folder / RECORD
        if folder.is_dir() and any(folder.iterdir()):
            if not stated.is_file():
                raise DataError(f"output: {folder} holds files of something else; give another folder")
            if overwrite or json.loads(stated.read_text(encoding="utf-8")) != record:
                set_aside(folder, "a ranking")
        folder.mkdir(parents=True, exist_ok=True)
        from monai_ssl.files import write_text

        write_text(stated, json.dumps(record, indent=1) + "\n")
        # no walk through a folder of images takes the label maps for images
        marker = folder / SEGMENTATIONS / PREDICTION_FILE
        marker.parent.mkdir(exist_ok=True)
        write_text(marker, json.dumps(scorer.segmenter.fingerprint(), indent=2) + "\n")
        work = _Looker(scorer, folder)
        known = work.look_at_all(labeled, pool)
        preset = scorer.segmenter.preset
        opinions = scorer.opinions
    names = case_names(pool)
    rows = _rows(names, pool, case_names(labeled), labeled, known)
    classes = preset.labels if preset is not None else {}
    write_text(folder / TABLE, _table(rows))
    problems = {name: str(known[_key(entry)]["error"]) for name, entry in zip(names, pool, strict=True)
                if "error" in known[_key(entry)]}  # fmt: skip
    result = Ranking(folder, tuple({key: _text(value) for key, value in row.items()} for row in rows), opinions,
                     work.done, problems)  # fmt: skip
    from monai_ssl.reports.ranking import report_ranking

    title = f"What to annotate next: {(first.folder if first is not None else folder).name}"
    report_ranking(folder / PAGE, title, classes, result.rows, opinions, len(labeled), result.first(), problems,
                   {name: {"image": entry["image"], "label": str(work.write.file(name, entry))}
                    for name, entry in zip(names, pool, strict=True)})  # fmt: skip
    if problems:
        shown = "; ".join(f"{name}: {text}" for name, text in list(problems.items())[:5])
        raise DataError(f"{len(problems)} of {len(pool)} scans could not be read: {shown}; the others are in {folder}")
    return result


# ------------------------------------------------------------------------------------------------------- what there is


def _as_run(run: Any) -> Run | None:
    """The run that an argument names; None for a packaged bundle."""
    if isinstance(run, Run):
        return Run.open(run)
    place = Path(str(run)).expanduser()
    if not (place / "run.json").is_file() and ((place / "configs").is_dir() or place.suffix.lower() == ".zip"):
        return None
    return Run.open(place)


def _cases(run: Run | None, datalist: str | Path | None, dataset_dir: str | Path | None) -> Datalist | None:
    from monai_ssl.data.loading import load_datalist

    if datalist is None and dataset_dir is None and run is None:
        return None
    data = dataset_dir if dataset_dir is not None or run is None else run.record.dataset_dir
    listed = datalist if datalist is not None or run is None else run.record.datalist
    return load_datalist(listed, data)


def _pool(images: str | Path | None, cases: Datalist | None, output: Path) -> tuple[list[Entry], int]:
    """The scans to rank, and how many files were left out because the datalist has labels for them, or of them."""
    from monai_ssl.data.cases import image_files, real_path
    from monai_ssl.data.images import images_to_segment

    if images is None:
        assert cases is not None
        if not cases.unlabeled:
            raise DataError(f"{cases.path}: 'unlabeled' has no scan to rank; give IMAGES, a folder of scans")
        return [{"image": entry["image"]} for entry in cases.unlabeled], 0
    place = Path(os.path.abspath(Path(images).expanduser()))
    if not place.exists():
        raise DataError(f"images: {place} does not exist; check the path")
    found = images_to_segment(place)
    known: set[str] = set()
    if cases is not None:
        done = [entry for entry in (*cases.training, *cases.validation, *cases.testing) if "label" in entry]
        known = {real_path(file) for entry in done for file in (*image_files(entry), str(entry["label"]))}
    left = [entry for entry in found if not known & {real_path(file) for file in image_files(entry)}]
    left = [entry for entry in left if output not in Path(image_files(entry)[0]).resolve().parents]
    if not left:
        raise DataError(f"images: no unlabeled scan below {place}; give a folder with scans that have no label yet")
    return left, len(found) - len(left)


@contextmanager
def _scorer(run: Any, overrides: Mapping[str, Any]) -> Iterator[DisagreementScorer]:
    from monai_ssl.bundle.overrides import check_overrides
    from monai_ssl.deploy.disagreement import DisagreementScorer
    from monai_ssl.deploy.predict import opened_model

    alone = None if isinstance(run, (list, tuple)) else _as_run(run)
    with opened_model(run, None, overrides) as (bundle, settings):
        check_overrides(bundle, ["inference.yaml"], overrides)
        if alone is not None:
            settings = {**alone.settings(["train.yaml", "inference.yaml"], overrides)[1], **settings}
        checkpoint = alone.checkpoint if alone is not None else None
        yield DisagreementScorer(bundle, checkpoint, **settings)


# ------------------------------------------------------------------------------------------------------- scan by scan


class _Looker:
    """Looks at scans, and remembers those that it has looked at."""

    def __init__(self, scorer: DisagreementScorer, folder: Path) -> None:
        from monai_ssl.files import write_text
        from monai_ssl.runs.pseudo_labels import LabelWriter, whole_lines

        self.scorer, self.folder, self.done = scorer, folder, 0
        self.write = LabelWriter(folder / SEGMENTATIONS)
        self.known: dict[str, dict[str, Any]] = {row["key"]: row for row in whole_lines(folder / ROWS)}
        # without a line that a kill cut
        write_text(folder / ROWS, "".join(json.dumps(row) + "\n" for row in self.known.values()))

    def look_at_all(self, labeled: Sequence[Entry], pool: Sequence[Entry]) -> dict[str, dict[str, Any]]:
        """What is known of every scan, by :func:`_key`."""
        from monai_ssl.data.cases import case_names

        scans: list[tuple[str | None, Entry]] = [(None, entry) for entry in labeled]
        scans += zip(case_names(pool), pool, strict=True)
        jobs = [(name, entry) for name, entry in scans if not self._is_known(name, entry)]
        for name, entry in followed(jobs, "rank", len(jobs), unit="scan"):
            key = _key(entry)
            self.known[key] = {"key": key, **self._look(name, entry)}
            self.done += name is not None
            with open(self.folder / ROWS, "a", encoding="utf-8") as file:
                file.write(json.dumps(self.known[key]) + "\n")
        return self.known

    def _is_known(self, name: str | None, entry: Entry) -> bool:
        row = self.known.get(_key(entry))
        whole = row is not None and "error" not in row and (name is None or "uncertainty" in row)
        return whole and (name is None or self.write.file(name, entry).is_file())

    def _look(self, name: str | None, entry: Entry) -> dict[str, Any]:
        from monai_ssl.data.descriptor import image_descriptor

        try:
            if name is None:  # labeled: what it looks like, and nothing else
                return {"descriptor": _packed(image_descriptor(self.scorer.segmenter.prepare(entry["image"])["image"]))}
            look = self.scorer.look(entry["image"])
        except DataError as error:
            return {"error": " ".join(str(error).split())}
        self.write(name, entry, look.segmentation.labels)
        drawn = look.segmentation.labels.as_tensor().flatten()
        preset = self.scorer.segmenter.preset
        n_classes = preset.n_classes if preset is not None else int(drawn.max()) + 1
        return {
            "disagreement": look.doubt.disagreement,
            "uncertainty": look.doubt.uncertainty,
            "voxels": [int((drawn == value).sum()) for value in range(n_classes)],
            "descriptor": _packed(image_descriptor(look.prepared)),
        }


def _key(entry: Mapping[str, Any]) -> str:
    """What tells a scan from every other, and from itself before it was changed."""
    from monai_ssl.data.cases import image_files

    parts = []
    for file in image_files(entry):
        try:
            state = os.stat(file)
            parts.append(f"{file} {state.st_size} {state.st_mtime_ns}")
        except OSError:
            parts.append(str(file))
    return "\n".join(parts)


def _packed(descriptor: np.ndarray) -> str:
    return base64.b64encode(descriptor.astype("<f2").tobytes()).decode("ascii")


def _unpacked(text: str) -> np.ndarray:
    import numpy as np

    return np.frombuffer(base64.b64decode(text), dtype="<f2").astype(np.float32)


# ------------------------------------------------------------------------------------------------------------ the table


def places(values: Sequence[float]) -> list[float]:
    """Places in the order of the values, from 0 (smallest) to 1 (largest); equal values share the mean of theirs.

    Example:
        >>> places([0.2, 0.9, 0.2, 0.4])
        [0.16666666666666666, 1.0, 0.16666666666666666, 0.6666666666666666]
    """
    n = len(values)
    if n < 2:
        return [1.0] * n
    return [(sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2) / (n - 1)
            for value in values]  # fmt: skip


def _rows(
    names: Sequence[str],
    pool: Sequence[Entry],
    labeled_names: Sequence[str],
    labeled: Sequence[Entry],
    known: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Rows of the table, most worth annotating first."""
    from monai_ssl.data.cases import image_files
    from monai_ssl.data.descriptor import neighborhood

    read = [(name, entry, known[_key(entry)]) for name, entry in zip(names, pool, strict=True)]
    read = [case for case in read if "error" not in case[2]]
    if not read:
        return []
    doubts = [places([row["uncertainty"] for *_, row in read])]
    if all(row["disagreement"] is not None for *_, row in read):
        doubts.append(places([row["disagreement"] for *_, row in read]))
    scores = [sum(values) / len(doubts) for values in zip(*doubts, strict=True)]
    order = sorted(range(len(read)), key=lambda k: (-scores[k], read[k][0]))
    read, scores = [read[k] for k in order], [scores[k] for k in order]
    seen = [(name, known[_key(entry)]) for name, entry in zip(labeled_names, labeled, strict=True)]
    seen = [(name, row) for name, row in seen if "error" not in row]
    around = neighborhood([_unpacked(row["descriptor"]) for *_, row in read],
                          [_unpacked(row["descriptor"]) for _, row in seen])  # fmt: skip
    rows = []
    for number, (name, entry, row) in enumerate(read):
        twin, nearest = around.duplicate_of[number], around.nearest[number]
        marks = [DUPLICATE] * (twin is not None) + [OUTLIER] * around.outlier[number]
        marks += [EMPTY] * (not any(row["voxels"][1:]))
        rows.append({
            "rank": number + 1,
            "case": name,
            "score": scores[number],
            "disagreement": row["disagreement"],
            "uncertainty": row["uncertainty"],
            "mark": "; ".join(marks),
            "near_duplicate_of": "" if twin is None else seen[twin[1]][0] if twin[0] == "labeled" else read[twin[1]][0],
            "nearest_labeled": "" if nearest is None else seen[nearest][0],
            "distance": around.distance[number],
            **{f"voxels_{value}": count for value, count in enumerate(row["voxels"])},
            "image": " ".join(map(str, image_files(entry))),
        })  # fmt: skip
    return rows


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    from monai_ssl.files import cell

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0] if rows else COLUMNS)
    for row in rows:
        writer.writerow([cell(_text(value)) for value in row.values()])
    return text.getvalue()
