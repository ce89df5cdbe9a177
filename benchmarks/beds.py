"""Beds on which a gain from unlabeled scans can be seen: very few labels, a pool, and every reference that is fair.

    python benchmarks/beds.py data --source DIR --output beds            # once
    python benchmarks/beds.py run --data beds --output runs/beds --jobs 2
    python benchmarks/beds_tables.py --runs runs/beds --results docs/results/gain

A *repetition* is a seed together with a fold of validation cases: repetition k trains with seed k and is judged on fold
k. Three repetitions judge three folds, so that at least 36 patients decide and none twice. Folds go in pairs (0 and 1,
2 and 3): the labeled cases of a repetition are the first ones of the other fold of its pair, so no two repetitions
share a labeled case. Labeled sets are nested: the two labels of ``la_2`` are the first two of the four of ``la_4``. No
test list is read.

Arms of every bed, all with the same recipe, iterations and labeled images per step:

* ``floor``: supervised, the labels only.
* ``matched_floor``: the bundle ``self_training`` with weight 0: same batches and passes, the pool teaches nothing.
* ``self_training``: one round with new weights; the floor labels the pool, a tenth of the scans is dropped.
* ``no_pool``: the same with copies of the labeled scans as pool: what the strong changes alone are worth.
* ``oracle``: the same with the true labels of the pool: what perfect pseudo-labels would be worth.
* ``ceiling``: supervised, all labels.
* ``floor_long`` (where asked for): the floor with twice the iterations. A self-training is two trainings one after the
  other; what the second one gains could be length alone.
* ``self_training_long`` (where asked for): self-training from that longer floor, its round as long.
* ``warm_start`` (where asked for): the round begins with the floor's weights, as `monai-ssl self-train` does; with
  ``warm_matched_floor`` (weight 0) and ``warm_no_pool``, which begin there, too. Floor and labels are those of
  ``self_training``, which must be there.
* ``floor_sgd`` (where asked for): the floor with SGD 0.01, as the papers train, for as many iterations.

A run that is killed goes on where it was, a finished arm is skipped. The last iterate is scored, with and without the
mean of mirrored views where the preset allows flips.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np

import monai_ssl
from monai_ssl.data import load_datalist, load_preset
from monai_ssl.errors import DataError
from monai_ssl.files import atomic_path, cell, text_of_cell, write_text

HERE = Path(__file__).parent
SIDE = 128  # of a slice of the ACDC bed


@dataclass(frozen=True)
class Bed:
    """One data set with one number of labels.

    Attributes:
        data: folder below the beds' data.
        preset: file in ``benchmarks/presets``.
        labeled: patients with labels.
        fold: patients that validate in a repetition.
        title: for tables.
        ceiling_of: another bed with the same scans and folds, whose ceiling is this one's, too.
        iterations: of every training; 0: as the preset says.
    """

    data: str
    preset: str
    labeled: int
    fold: int
    title: str
    ceiling_of: str = ""
    iterations: int = 0


BEDS = {
    "la_4": Bed("left_atrium", "la_quarter", 4, 16, "left atrium at 2.5 mm, 4 labels + 60"),
    "acdc_3": Bed("acdc", "acdc_128", 3, 12, "ACDC at 128 x 128, 3 patients + 55", iterations=400),
    "hippocampus_3": Bed("hippocampus", "hippocampus_bed", 3, 20, "hippocampus, 3 labels + 187"),
    "la_2": Bed("left_atrium", "la_quarter", 2, 16, "left atrium at 2.5 mm, 2 labels + 62", "la_4"),
    "acdc_1": Bed("acdc", "acdc_128", 1, 12, "ACDC at 128 x 128, 1 patient + 57", "acdc_3", 400),
    # the same as `acdc_3`, trained longer: the networks of the others are far from finished
    "acdc_3_long": Bed("acdc", "acdc_128", 3, 12, "ACDC at 128 x 128, 3 patients + 55, longer", iterations=1000),
}
# where the cases of each data set come from: (list, its sections), all of them for development
SOURCES = {
    "left_atrium": ("la_8_72.json", ("training", "unlabeled")),
    "hippocampus": ("hippocampus_dev_full_190_val20.json", ("training", "validation")),
    "acdc": ("acdc_full_70_val10.json", ("training",)),
}
# the most expensive first: what depends on a floor, then what does not
ARMS = ("self_training", "matched_floor", "oracle", "ceiling")
# where asked for
OTHERS = ("floor_long", "self_training_long", "floor_sgd", "warm_start", "warm_matched_floor", "warm_no_pool")


# ------------------------------------------------------------------------------------------------------------ data


def data(source: str, output: str, repetitions: int = 3) -> None:
    """Write images, labels and datalists of all beds, and that of `studies/hippocampus_few.yaml`; files are kept.

    Args:
        source: folder with ``left_atrium``, ``acdc`` and ``hippocampus``, each with images, labels and datalists.
        output: new folder.
        repetitions: folds per bed.
    """
    for name, (listed, sections) in SOURCES.items():
        root, target = Path(source) / name, Path(output) / name
        cases = json.loads((root / listed).read_text(encoding="utf-8"))
        entries = [entry for section in sections for entry in cases[section]]
        images = [entry["image"] for entry in entries]
        labels = [image.replace("images", "labels", 1) for image in images]
        if name == "left_atrium":
            import la_quarter

            la_quarter.main(str(root), str(target))
        else:
            for file in (*images, *labels):
                _copy(root / file, target / file, resized=name == "acdc")
        for bed_name, bed in BEDS.items():
            if bed.data == name:
                for repetition in range(repetitions):
                    _write_lists(target, bed_name, bed, repetition, list(zip(images, labels, strict=True)))
        if name == "hippocampus":
            training, validation = cases["training"], cases["validation"]
            pool = [{"image": entry["image"]} for entry in training[5:65]]
            content = {"training": training[:5], "unlabeled": pool, "validation": validation}
            write_text(target / "hippocampus_5_60_val20.json", json.dumps(content, indent=1) + "\n")
        print(target)


def _copy(source: Path, target: Path, resized: bool) -> None:
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if not resized:
        shutil.copyfile(source, target)
        return
    volume = nib.load(source)
    values = volume.get_fdata(dtype=np.float32)
    x, y = (((np.arange(SIDE) + 0.5) * n / SIDE).astype(int) for n in values.shape[:2])
    if source.parent.name == "images":  # stored as shares of 1
        values = np.round(255 * values)
    with atomic_path(target) as temporary:
        nib.save(nib.Nifti1Image(values[x][:, y].astype(np.uint8), np.eye(4)), temporary)


def _write_lists(folder: Path, name: str, bed: Bed, repetition: int, cases: list[tuple[str, str]]) -> None:
    """Datalists of one repetition: the bed's own, that of the ceiling, that without a pool."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for image, label in cases:
        patient = Path(image).name.split("_frame")[0]
        groups.setdefault(patient, []).append((image, label))
    patients = list(groups)
    fold = patients[repetition * bed.fold : (repetition + 1) * bed.fold]
    if len(patients) < ((repetition | 1) + 1) * bed.fold:
        raise DataError(f"{name}: {len(patients)} patients have no fold {repetition | 1} of {bed.fold}")
    partner = (repetition ^ 1) * bed.fold
    rest = [patient for patient in patients[partner:] + patients[:partner] if patient not in fold]

    def entries(of: list[str]) -> list[dict[str, str]]:
        return [{"image": image, "label": label} for patient in of for image, label in groups[patient]]

    labeled, pool, validation = entries(rest[: bed.labeled]), entries(rest[bed.labeled :]), entries(fold)
    copies = []
    for entry in labeled:
        image = Path(entry["image"])
        copy = Path("copies") / image.name.replace(".nii", "_copy.nii")
        _copy(folder / image, folder / copy, resized=False)
        copies.append({"image": str(copy)})
    stem = folder / f"{name}-{repetition}"
    for suffix, training, unlabeled in (
        ("", labeled, [{"image": entry["image"]} for entry in pool]),
        ("-all", labeled + pool, []),
        ("-no_pool", labeled, copies),
    ):
        content = {"training": training, "unlabeled": unlabeled, "validation": validation}
        write_text(stem.with_name(f"{stem.name}{suffix}.json"), json.dumps(content, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------------------ runs


def run(
    data: str,
    output: str,
    beds: str = "",
    repetitions: str = "0,1,2",
    arms: str = "",
    jobs: int = 1,
    device: str = "cpu",
    minutes: float = 0,
) -> None:
    """Train and score; what is done is skipped.

    Args:
        data: what ``data`` wrote.
        output: folder of the runs.
        beds: comma-separated; default: all.
        repetitions: comma-separated numbers.
        arms: of ``self_training`` (with floor and no_pool), ``matched_floor``, ``oracle``, ``ceiling``, ``floor_long``,
            ``self_training_long``, ``floor_sgd``, ``warm_start``, ``warm_matched_floor``, ``warm_no_pool``, and of the
            ablations; default: the first four.
        jobs: trainings at a time, one thread each.
        device: of all.
        minutes: no training is begun, and those under way are stopped, after this many; 0: no limit.
    """
    listed = [_words(text) for text in (beds, repetitions, arms)]
    todo = [
        (bed, int(repetition), arm)
        for bed in listed[0] or list(BEDS)
        for arm in listed[2] or ARMS
        for repetition in listed[1]
        if arm != "ceiling" or not BEDS[bed].ceiling_of
    ]
    # chains of three trainings first; then bed by bed
    todo.sort(key=lambda job: (job[2] != "self_training", list(BEDS).index(job[0])))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    end = time.monotonic() + 60 * minutes if minutes else None
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda job: _in_a_process(*job, Path(data).resolve(), Path(output).resolve(), device, end), todo))


def _words(text: Any) -> list[str]:
    """Fire makes tuples and numbers of what looks like them."""
    parts = text if isinstance(text, (tuple, list)) else str(text).split(",")
    return [str(part) for part in parts if str(part) != ""]


def _in_a_process(
    bed: str, repetition: int, arm: str, data: Path, output: Path, device: str, end: float | None
) -> None:
    left = None if end is None else end - time.monotonic()
    if left is not None and left < 30:
        return
    name = f"{bed} {arm} {repetition}"
    start = time.monotonic()
    process = get_context("spawn").Process(target=one, args=(bed, repetition, arm, data, output, device))
    process.start()
    process.join(left)
    if process.is_alive():
        process.kill()
        process.join()
        print(f"{name}: stopped", flush=True)
    elif process.exitcode:
        print(f"{name}: failed with status {process.exitcode}", flush=True)
    else:
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)


def one(bed_name: str, repetition: int, arm: str, data: Path, output: Path, device: str) -> None:
    """One job; what it says goes to ``log.txt`` beside its runs."""
    bed = BEDS[bed_name]
    folder = output / bed_name / str(repetition)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"log-{arm}.txt", "a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("monai_ssl").setLevel(logging.INFO)
    place = data / bed.data
    common: dict[str, Any] = {
        "dataset_dir": place, "dataset": str(HERE / "presets" / f"{bed.preset}.yaml"), "flavor": "practical",
        "seed": repetition, "num_workers": 0, "check": False, "device": device, "val_interval": 1000,
    }  # fmt: skip
    iterations = bed.iterations or load_preset(common["dataset"], flavor="practical").training.max_iterations
    common["max_iterations"] = iterations
    own = {**common, "datalist": f"{bed_name}-{repetition}.json"}
    if arm == "self_training":
        done = monai_ssl.self_train(**own, output=folder / arm, warm_start=False)
        score(done.floors[0], folder / "floor", device)
        score(done.run, folder / arm / "scores", device)
        without = {**common, "datalist": f"{bed_name}-{repetition}-no_pool.json"}
        labels = _label_copies(done.floors[0], place / without["datalist"], folder / "copies_labels", device)
        trained = monai_ssl.train("self_training", **without, output=folder / "no_pool", pseudo_labels=labels)
        score(trained, folder / "no_pool" / "scores", device)
        return
    if arm == "ceiling":
        trained = monai_ssl.train("supervised", **{**common, "datalist": f"{bed_name}-{repetition}-all.json"},
                                  output=folder / arm)  # fmt: skip
    elif arm == "oracle":
        trained = monai_ssl.train("self_training", **own, output=folder / arm, pseudo_labels=_true_labels(place))
    elif arm == "matched_floor":
        trained = monai_ssl.train("self_training", **own, output=folder / arm, **{"method#unsupervised_weight": 0})
    elif arm == "floor_long":
        trained = monai_ssl.train("supervised", **{**own, "max_iterations": 2 * iterations}, output=folder / arm)
    elif arm == "self_training_long":
        if (folder / "floor_long").is_dir() and not (folder / arm / "floor").exists():
            shutil.copytree(folder / "floor_long", folder / arm / "floor", ignore=shutil.ignore_patterns("scores"))
        longer = {**own, "max_iterations": 2 * iterations}
        trained = monai_ssl.self_train(**longer, output=folder / arm, warm_start=False).run
    elif arm == "floor_sgd":
        sgd = {"optimizer#algorithm": "sgd", "learning_rate": 0.01, "optimizer#weight_decay": 1e-4,
               "lr_scheduler#warmup": 0.0}  # fmt: skip
        trained = monai_ssl.train("supervised", **own, output=folder / arm, **sgd)
    elif arm.startswith("warm_"):
        begun = {"init": folder / "self_training" / "floor"}
        if arm == "warm_matched_floor":
            trained = monai_ssl.train("self_training", **own, **begun, output=folder / arm,
                                      **{"method#unsupervised_weight": 0})  # fmt: skip
        elif arm == "warm_no_pool":
            without = {**common, "datalist": f"{bed_name}-{repetition}-no_pool.json"}
            trained = monai_ssl.train("self_training", **without, **begun, output=folder / arm,
                                      pseudo_labels=folder / "copies_labels")  # fmt: skip
        else:
            labels = folder / "self_training" / "pseudo_labels-1"
            trained = monai_ssl.train("self_training", **own, **begun, output=folder / arm / "round-1",
                                      pseudo_labels=labels)  # fmt: skip
    elif arm in VARIANTS:
        trained = _variant(arm, own, folder, device)
    else:
        raise DataError(f"arms: must be of {', '.join((*ARMS, *OTHERS, *VARIANTS))}, got {arm!r}")
    score(trained, folder / arm / "scores", device)


def _true_labels(place: Path) -> Path:
    return next(path for path in (place / "labels", place / "labelsTr") if path.is_dir())


def _label_copies(floor: Any, datalist: Path, target: Path, device: str) -> Path:
    """The floor labels the labeled scans, as it labels a pool; none is dropped, there are too few."""
    from monai_ssl.runs.pseudo_labels import Rules, Teacher, anatomy, draw
    from monai_ssl.runs.self_training import _flips

    cases, preset = load_datalist(datalist), load_preset(floor.preset)
    one_piece, always = anatomy(cases.training, preset)
    rules = Rules(tta=_flips(preset, "auto"), drop=0.0, one_piece=one_piece, always=always)
    draw([Teacher.of(floor, device=device)], cases.unlabeled, preset, target, rules)
    return target


def score(trained: Any, target: Path, device: str) -> None:
    """Scores of the validation cases, without and with mirrored views; predictions are not kept."""
    for name, options in (("plain", {}), ("mirrored", {"tta": True})):
        place = target / name
        if (place / "summary.json").is_file():
            continue
        try:
            monai_ssl.evaluate(trained, "validation", output=place, device=device, **options)
        except DataError as error:
            if "allows no mirroring" not in str(error):
                raise
        shutil.rmtree(place / "predictions", ignore_errors=True)


# ------------------------------------------------------------------------------------------------------------ ablation

# arm -> what is different from `self_training`: options of the labeling, of the method, or something of its own
VARIANTS: dict[str, dict[str, Any]] = {
    "one_view": {"tta": False},
    "keep_all": {"drop": 0.0},
    "drop_quarter": {"drop": 0.25},
    "drop_half": {"drop": 0.5},
    "sure_70": {"sure": 0.7},
    "no_strong_view": {"method#strength": 0.0},
    "stronger_view": {"method#strength": 1.0},
    "no_cutmix": {"method#cutmix_probability": 0.0},
    "weight_1": {"method#weight": 1.0},
    "weight_025": {"method#weight": 0.25},
    "with_dice": {"method#dice": True},
    "two_rounds": {"rounds": 2},
    "two_networks": {"networks": 2},
    "fine_tuned": {"fine_tune": 0.1},
    "pool_batch_4": {"unlabeled_batch_size": 4},
}


def _variant(arm: str, own: dict[str, Any], folder: Path, device: str) -> Any:
    """The floor and, where they are the same, the labels are those of the arm `self_training`."""
    target, source = folder / arm, folder / "self_training"
    changed = VARIANTS[arm]
    if changed.keys() == {"drop"} and (source / "pseudo_labels-1" / "reliability.csv").is_file():
        labels = _dropped(source / "pseudo_labels-1", target / "pseudo_labels-1", changed["drop"])
        return monai_ssl.train("self_training", **own, output=target / "round-1", pseudo_labels=labels)
    if changed.keys() == {"unlabeled_batch_size"}:
        labels = source / "pseudo_labels-1"
        return monai_ssl.train("self_training", **own, output=target / "round-1", pseudo_labels=labels, **changed)
    for name in ("floor", "pseudo_labels-1", "round-1"):
        if name == "floor" and "networks" in changed:
            name = "floor-1"
        former = source / ("floor" if name.startswith("floor") else name)
        same = name.startswith("floor") or not changed.keys() & {"tta", "drop", "sure", "networks"}
        if name == "round-1":
            same = changed.keys() <= {"rounds", "fine_tune"}
        if same and former.is_dir() and not (target / name).exists():
            shutil.copytree(former, target / name)
    return monai_ssl.self_train(**own, output=target, warm_start=False, **changed).run


def _dropped(source: Path, target: Path, share: float) -> Path:
    """The same label maps, of which another share is left out."""
    with (source / "reliability.csv").open(newline="", encoding="utf-8") as file:
        rows = [{key: text_of_cell(value) for key, value in row.items()} for row in csv.DictReader(file)]
    order = sorted(rows, key=lambda row: (float(row["reliability"]), row["case"]))
    out = {row["case"] for row in order[: int(share * len(rows))]}
    shutil.copytree(source, target, dirs_exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        useless = float(row["reliability"]) == 0 or float(row["unsure"]) == 1
        kept = int(row["case"] not in out and not useless)
        writer.writerow({key: cell(str(value)) for key, value in {**row, "kept": kept}.items()})
    write_text(target / "reliability.csv", text.getvalue())
    return target


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    fire.Fire({"data": data, "run": run})
