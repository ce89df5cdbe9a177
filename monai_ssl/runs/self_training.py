"""Self-training in rounds: a floor labels the pool, and trains on with labels and pseudo-labels."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_ssl.errors import PROGRAM, DataError, UsageError, enumerated, figure, plural
from monai_ssl.runs.folder import RECORD, SELF_TRAINING, Run

if TYPE_CHECKING:
    import numpy as np

    from monai_ssl.data.datalist import Datalist
    from monai_ssl.data.partial import Annotated
    from monai_ssl.data.preset import Preset
    from monai_ssl.reports.self_training import Labeling
    from monai_ssl.runs.pseudo_labels import Rules

console = logging.getLogger("monai_ssl.console")

FLOOR, METHOD = "supervised", "self_training"
PAGE = "report.html"
TUNED = "fine-tuned"
# a class that has less than this share of its voxels in the labeled scans has all but vanished from the pool's labels
VANISHING = 0.2
# and with more than this many times its share, it covers what it is not
GROWING = 3.0
# a label of which more is ignored is none of a whole scan
MOSTLY = 0.5


@dataclass
class SelfTraining:
    """What self-training made.

    Attributes:
        folder: of everything.
        floors: runs trained on labels only, which labeled the pool; empty where the pseudo-labels were given.
        labels: folder of pseudo-labels of each round.
        rounds: runs of each round.
        fine_tuned: run that went on from the last round on the labels alone; None where that was not asked for.
        alarms: sentences about classes that vanish.
        page: the HTML page about the pseudo-labels; None where they were given.
    """

    folder: Path
    floors: list[Run] = field(default_factory=list)
    labels: list[Path] = field(default_factory=list)
    rounds: list[Run] = field(default_factory=list)
    fine_tuned: Run | None = None
    alarms: list[str] = field(default_factory=list)
    page: Path | None = None

    @property
    def run(self) -> Run:
        """The run to use: the last one."""
        return self.fine_tuned or self.rounds[-1]


def self_train(
    dataset_dir: str | Path,
    datalist: str | Path = "datalist.json",
    dataset: str | Path | None = None,
    output: str | Path | None = None,
    rounds: int = 1,
    networks: int = 1,
    tta: bool | str = "auto",
    drop: float = 0.1,
    sure: float = 0.0,
    largest_component: bool | str = "auto",
    pseudo_labels: str | Path | None = None,
    warm_start: bool = True,
    fine_tune: float = 0.0,
    seed: int = 0,
    check: bool = True,
    gpus: int = 1,
    **overrides: Any,
) -> SelfTraining:
    """Train on a few labeled scans and a pool without labels. Repeat the call to go on after an interruption.

    Trains a network on the labels (the floor), lets it label the pool, judges each of these pseudo-labels, drops the
    worst, and trains on with both. Every training is an ordinary run folder in `output`: floor, round-1, ...;
    the last one is the result. Costs two to four supervised trainings.

    Args:
        dataset_dir: folder of the data.
        datalist: JSON inside it (or a path); `monai-ssl split` writes one.
        dataset: preset, or the path of your own YAML; default: left_atrium.
        output: folder; default: runs/self-train-PRESET-FOLDER-seedSEED, with your own preset
            runs/self-train-FOLDER-seedSEED.
        rounds: how often the pool is labeled anew and learned.
        networks: floors with different seeds, whose mean labels the pool; each costs one more training.
        tta: the mean of mirrored views labels the pool; auto: where the preset allows flips.
        drop: share of the pool, the scans with the least reliable labels, that teaches nothing.
        sure: voxels whose class is less probable than this teach nothing; 0: all do.
        largest_component: keep the largest component of each class in pseudo-labels; auto: of classes that are one
            piece in every labeled scan.
        pseudo_labels: folder of label maps of the pool by another tool, named CASE_seg.nii.gz or like the images; no
            floor is trained then.
        warm_start: every round begins with the weights of the network that drew its labels (of several floors the
            first); False: with new ones, which gave less wherever it was measured.
        fine_tune: at the end, go on from the last round on the labels alone, at a tenth of the learning rate, for this
            share of the iterations (0.1, for example); 0: do not.
        seed: of all trainings.
        check: read all scans first and stop at bad data; False skips it.
        gpus: that train together, a process each; batch sizes are those of one process. One of them labels the pool.
        **overrides: any id of configs/train.yaml of the bundle self_training: flavor, max_iterations, method#weight,
            device, network_def#base_channels, ...; the floor gets those that it knows, too (of the method none).

    Returns:
        the runs and folders.

    Raises:
        DataError: for data that cannot be trained on, or an option out of its range.

    Example:
        >>> done = self_train("scans", dataset="my_data.yaml", max_iterations=3000)  # doctest: +SKIP
        >>> done.run.model, done.page  # doctest: +SKIP
    """
    check_rounds(rounds, networks, tta, drop, sure, largest_component, warm_start, fine_tune)
    if pseudo_labels is not None:
        _refuse_idle(rounds, {"networks": networks}, {"tta": tta, "drop": drop, "sure": sure,
                                                      "largest_component": largest_component})  # fmt: skip
    from monai_ssl.bundle.library import find_bundle
    from monai_ssl.bundle.overrides import check_overrides
    from monai_ssl.data.loading import load_datalist
    from monai_ssl.runs.pseudo_labels import set_aside
    from monai_ssl.runs.together import check_gpus
    from monai_ssl.runs.train import american_overrides, refuse_preset_keys, train, verified
    from monai_ssl.runs.warm_start import weights_file

    overrides = american_overrides(overrides)
    refuse_preset_keys(overrides)
    check_overrides(find_bundle(METHOD), ["train.yaml"], {**overrides, "seed": seed})
    if (init := overrides.get("init")) is not None:
        start = weights_file(init.folder if isinstance(init, Run) else init)
    for bundle in (FLOOR, METHOD):
        check_gpus(gpus, find_bundle(bundle), overrides.get("device"))
    cases = load_datalist(datalist, dataset_dir)
    cases.require("training")
    if not cases.unlabeled:
        raise DataError(f"{cases.path}: there is no unlabeled image to learn from; train on labels: {PROGRAM} train "
                        f"{FLOOR} {dataset_dir}")  # fmt: skip
    preset = _preset(dataset, overrides)
    if overrides.get("unlabeled_batch_size", preset.training.unlabeled_batch_size) == 0:
        raise UsageError(f"--unlabeled_batch_size: must be 1 or more, got 0: the pool would teach nothing; to train on "
                         f"labels alone: {PROGRAM} train {FLOOR} {dataset_dir}")  # fmt: skip
    for key in ("method#weight", "method#unsupervised_weight"):
        if overrides.get(key) == 0:
            raise UsageError(
                f"--{key}: must be above 0, got 0: the pool would teach nothing; the matched floor is {PROGRAM} train "
                f"{METHOD} {dataset_dir} --method#unsupervised_weight 0 --init FLOOR"
            )
    flips = _flips(preset, tta)
    tuning = _fine_tuning(floors_options(overrides), preset, fine_tune) if fine_tune else None
    folder = Path(output).expanduser().resolve() if output else _folder(preset, cases, seed)
    data = Path(dataset_dir).expanduser().resolve()
    if init is not None and _is_part(start, folder):
        raise DataError(f"init: must not be a part of the self-training that begins with it, got {start}; give another "
                        "--output")  # fmt: skip
    Run(folder).refuse_foreign(data, rounds=True)
    if output is None:
        Run(folder).refuse_other_data(data, rounds=True)
    if check:  # once for all trainings, and the pool, too: else its faults would show when the floor has been trained
        verified(cases, preset, pool=True, pseudo_labels=None if pseudo_labels is None else Path(pseudo_labels))
    shared: dict[str, Any] = {"dataset_dir": dataset_dir, "datalist": datalist, "dataset": dataset, "check": False,
                              "gpus": gpus}  # fmt: skip
    done, told = SelfTraining(folder), _Summary(folder)

    def trained(bundle: str, name: str, number: int, given: Mapping[str, Any]) -> Run:
        run, start = Run(folder / name), time.monotonic()
        former, aside = run.record.max_iterations if _finished(run) else None, run.previous()
        if former is None:
            told.not_ended()
        console.info("== %s: %s", name, run.folder)
        if name == TUNED and (run.folder / RECORD).is_file() and run.record.max_iterations != given["max_iterations"]:
            with run.locked():  # prolonged, a share of the iterations would be neither of the two
                told.not_ended()
                console.info("   another share of the iterations; the former is kept in %s", run.set_aside())
        # also a complete one: it knows whether it was trained with these settings, data and pseudo-labels
        try:
            train(bundle, output=run.folder, seed=number, **{**shared, **given})
        except BaseException:
            told.unbegun()
            raise
        goes_on = former is not None and run.previous() == aside  # neither begun now nor set aside
        if goes_on and run.record.max_iterations == former:
            console.info("   %s was complete", name)
        else:
            told.took(name, time.monotonic() - start, more=goes_on)
        return run

    if pseudo_labels is None:
        known = floors_options(overrides)
        for number in range(networks):
            name = "floor" if networks == 1 else f"floor-{number + 1}"
            done.floors.append(trained(FLOOR, name, seed + number, known))
    teachers = done.floors
    labelings: list[Labeling] = []
    rules = None if pseudo_labels is not None and rounds == 1 else _rules(cases, preset, flips, drop, sure,
                                                                          largest_component)  # fmt: skip
    for number in range(1, rounds + 1):
        if pseudo_labels is not None and number == 1:
            place = Path(pseudo_labels).expanduser().resolve()
            done.alarms = _alarms_of_given(cases, preset, place)
        else:
            place = folder / f"pseudo_labels-{number}"
            assert rules is not None
            rows = _labeled(teachers, cases, preset, place, rules, overrides, told)
            labelings.append(_tell(rows, cases, preset, place))
            done.alarms = list(labelings[-1].alarms)
        done.labels.append(place)
        given = {**overrides, "pseudo_labels": place}
        if warm_start and teachers:
            given["init"] = teachers[0].folder
        done.rounds.append(trained(METHOD, f"round-{number}", seed, given))
        teachers = [done.rounds[-1]]
    if tuning is not None:
        done.fine_tuned = trained(FLOOR, TUNED, seed, {**tuning, "init": done.rounds[-1].folder})
    for labeling, run in zip(labelings[::-1], done.rounds[::-1], strict=False):
        labeling.alarms = [*labeling.alarms, *(f"training of {run.folder.name}: {text}" for text in run.alarms)]
    done.alarms = [*done.alarms, *(f"training of {done.rounds[-1].folder.name}: {a}" for a in done.rounds[-1].alarms)]
    if labelings:
        from monai_ssl.reports.self_training import report_self_training

        title = f"Self-training: {cases.path.parent.name if cases.path else folder.name}"
        done.page = report_self_training(folder / PAGE, title, preset.labels, labelings)
    elif (folder / PAGE).is_file():  # of labels that this result has not learned
        set_aside(folder / PAGE, "a page about label maps of another training")
    told.ended(done)
    return done


# ---------------------------------------------------------------------------------------------------- options


def check_rounds(
    rounds: int = 1,
    networks: int = 1,
    tta: bool | str = "auto",
    drop: float = 0.1,
    sure: float = 0.0,
    largest_component: bool | str = "auto",
    warm_start: bool = True,
    fine_tune: float = 0.0,
) -> None:
    """The options of :func:`self_train` that no config knows.

    Raises:
        UsageError: for the first that breaks its rule.
    """
    for name, value, high in (("rounds", rounds, 10), ("networks", networks, 20)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
            raise UsageError(f"--{name}: must be an integer from 1 to {high}, got {value!r}")
    for name, share in (("drop", drop), ("sure", sure), ("fine_tune", fine_tune)):
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            raise UsageError(f"--{name}: must be a share in [0, 1), got {share!r}")
    for name, choice in (("tta", tta), ("largest_component", largest_component)):
        if not isinstance(choice, bool) and choice != "auto":
            raise UsageError(f"--{name}: must be true, false or auto, got {choice!r}")
    if not isinstance(warm_start, bool):
        raise UsageError(f"--warm_start: must be true or false, got {warm_start!r}")


def _refuse_idle(rounds: int, of_floors: Mapping[str, Any], of_labels: Mapping[str, Any]) -> None:
    """Options that would change nothing where the pseudo-labels are given.

    Raises:
        UsageError: for the first.
    """
    import inspect

    usual = {name: parameter.default for name, parameter in inspect.signature(check_rounds).parameters.items()}
    for name, value in of_floors.items():
        if value != usual[name]:
            raise UsageError(f"--{name}: must be left out with --pseudo_labels, which needs no floor, got {value!r}")
    for name, value in of_labels.items():
        if value != usual[name] and rounds == 1:
            raise UsageError(
                f"--{name}: must be left out where no network labels the pool, got {value!r}: with --pseudo_labels it "
                "is for --rounds 2 and more; a scan is left out by reliability.csv (kept: 0) or without its file"
            )


def _is_part(file: Path, folder: Path) -> bool:
    """Whether a file is of a training that a self-training makes in a folder."""
    if not file.is_relative_to(folder):
        return False
    first = file.relative_to(folder).parts[0]
    return first.startswith(("floor", "round-")) or first == TUNED


def _preset(dataset: str | Path | None, overrides: Mapping[str, Any]) -> Preset:
    from monai_ssl.bundle.library import find_bundle, own_dataset
    from monai_ssl.data.preset import load_preset

    return load_preset(dataset if dataset is not None else own_dataset(find_bundle(METHOD)), overrides.get("flavor"))


def _flips(preset: Preset, tta: bool | str) -> bool:
    from monai_ssl.data.pipelines import plausible_flips

    try:
        return bool(plausible_flips(preset)) and tta is not False
    except DataError:
        if tta is True:
            raise
        return False


def _folder(preset: Preset, cases: Datalist, seed: int) -> Path:
    from monai_ssl.runs.train import default_folder

    assert cases.dataset_dir is not None
    return default_folder("self-train", preset, cases.dataset_dir, seed, cases.path).resolve()


def floors_options(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What the floor's bundle knows of the options; those of the method are the rounds' own."""
    from monai_ssl.bundle.library import find_bundle
    from monai_ssl.bundle.overrides import merged_config, root_id

    known = merged_config(find_bundle(FLOOR), ["train.yaml"])
    return {key: value for key, value in overrides.items() if root_id(key) in known and root_id(key) != "method"}


def _fine_tuning(options: Mapping[str, Any], preset: Preset, share: float) -> dict[str, Any]:
    """A short training at a low rate, from what has been learned."""
    iterations = options.get("max_iterations", preset.training.max_iterations)
    rate = options.get("learning_rate", preset.training.learning_rate)
    if not isinstance(iterations, int) or not isinstance(rate, (int, float)):
        raise UsageError(
            "--fine_tune: goes with numbers for --max_iterations and --learning_rate, not with expressions"
        )
    return {**options, "max_iterations": max(round(share * iterations), 1), "learning_rate": rate / 10,
            "lr_scheduler#warmup": 0.0}  # fmt: skip


def _finished(run: Run) -> bool:
    """Whether there is nothing left to do; whatever else is in the folder is `train`'s matter."""
    return run.complete and run.model.is_file() and run.iteration == run.record.max_iterations


def _rules(
    cases: Datalist, preset: Preset, tta: bool, drop: float, sure: float, largest_component: bool | str
) -> Rules:
    from monai_ssl.runs.pseudo_labels import Rules, anatomy

    one_piece, always = anatomy(cases.training, preset)
    if largest_component is not True and largest_component != "auto":
        one_piece = ()
    elif largest_component is True:
        one_piece = tuple(range(1, preset.n_classes))
    return Rules(tta=tta, sure=sure, drop=drop, one_piece=one_piece, always=always)


# ---------------------------------------------------------------------------------------------------- labels


def _labeled(
    teachers: Sequence[Run],
    cases: Datalist,
    preset: Preset,
    place: Path,
    rules: Rules,
    overrides: Mapping[str, Any],
    told: _Summary,
) -> list[dict[str, str]]:
    from monai_ssl.runs.pseudo_labels import Teacher, draw

    given = {key: overrides[key] for key in ("device", "amp") if key in overrides}
    console.info("== %s: labels of the pool (%s)", place.name, plural(len(cases.unlabeled), "scan"))
    labelers = [Teacher.of(run, **given) for run in teachers]
    rows, seconds = draw(labelers, cases.unlabeled, preset, place, rules, told.not_ended)
    if seconds:
        told.took(place.name, seconds)
    return rows


def _tell(rows: Sequence[Mapping[str, str]], cases: Datalist, preset: Preset, place: Path) -> Labeling:
    """Say what the labels are worth; returns what the page shows of them."""
    kept = [row for row in rows if row["kept"] == "1"]
    values = sorted(float(row["reliability"]) for row in rows)
    console.info("   reliability %.2f (median), %.2f (worst); %d of %d scans are kept; %s", values[len(values) // 2],
                 values[0], len(kept), len(rows), place / "reliability.csv")  # fmt: skip
    if not kept and any(float(row["reliability"]) > 0 and float(row["unsure"]) < 1 for row in rows):
        raise DataError(f"{place / 'reliability.csv'}: kept must be 1 for one scan at least, got 0 for all "
                        f"{plural(len(rows), 'scan')}; lower --drop or --sure, or keep some in the table")  # fmt: skip
    if not kept and all(float(row["unsure"]) == 1 for row in rows):
        raise DataError(f"{place}: no voxel of the pool is as sure as --sure asks, so nothing is left to learn from; "
                        "lower it, or train the floor longer")  # fmt: skip
    if not kept:
        raise DataError(f"{place}: no scan of the pool has a label map to learn from; annotate more scans, or look at "
                        "the floor: does it find anything?")  # fmt: skip
    shares = class_shares(rows, cases, preset)
    found = alarms(rows, shares, preset, whole=any_whole(cases, preset))
    for alarm in found:
        console.warning("warning: %s", alarm)
    from monai_ssl.data.cases import case_names, prediction_files
    from monai_ssl.reports.self_training import Labeling

    files = zip(case_names(cases.unlabeled), cases.unlabeled, prediction_files(place, cases.unlabeled), strict=True)
    entries = {name: {"image": entry["image"], "label": str(drawn[0])} for name, entry, drawn in files if drawn}
    return Labeling(place.name.replace("pseudo_labels-", "round "), rows, entries, shares, found, preset)


def _alarms_of_given(cases: Datalist, preset: Preset, place: Path) -> list[str]:
    """What label maps of another tool lack, said before the training."""
    import numpy as np

    from monai_ssl.data.cases import case_name
    from monai_ssl.data.pseudo_labels import pseudo_label_preset, pseudo_labeled
    from monai_ssl.data.reading import read_label

    stored, rows = pseudo_label_preset(preset), []
    for entry in pseudo_labeled(cases.unlabeled, place):
        label = read_label(entry["label"], stored.label_map, stored.ignore_label)[0]
        counts = {f"voxels_{value}": str(np.count_nonzero(label == value)) for value in range(preset.n_classes)}
        rows.append({"case": case_name(entry), "kept": "1", **counts})
    # no floor and no pictures: what is odd here is the numbers of the classes, as a rule
    odd = alarms(rows, class_shares(rows, cases, preset), preset, whole=any_whole(cases, preset))
    told = [text.partition("; ")[0] for text in odd]
    found = [f"{text}: are the label maps written with the preset's classes?" for text in told]
    for alarm in found:
        console.warning("warning: %s", alarm)
    return found


def class_shares(rows: Sequence[Mapping[str, str]], cases: Datalist, preset: Preset) -> dict[int, tuple[float, float]]:
    """Class -> its share of the voxels in the labeled scans, where somebody has looked, and in kept pseudo-labels.

    Scans of which single slices are annotated count only where no other is: those slices show more of an organ than
    whole scans do.
    """
    import numpy as np

    from monai_ssl.labels import IGNORE_LABEL
    from monai_ssl.runs.pseudo_labels import known_label

    found, known = np.zeros(preset.n_classes), np.zeros(preset.n_classes)
    some = any_whole(cases, preset)
    for entry in cases.training:
        annotated, label = known_label(entry, preset)
        if some and not _whole(annotated, label):
            continue
        for value in (0, *(annotated.classes or range(1, preset.n_classes))):
            found[value] += np.count_nonzero(label == value)
            known[value] += np.count_nonzero(label != IGNORE_LABEL)
    kept = [row for row in rows if row["kept"] == "1"]
    drawn = np.array([[float(row[f"voxels_{value}"]) for value in range(preset.n_classes)] for row in kept]).sum(0)
    labeled = found / np.maximum(known, 1)
    return {v: (float(labeled[v]), float(drawn[v] / max(drawn.sum(), 1))) for v in range(1, preset.n_classes)}


def any_whole(cases: Datalist, preset: Preset) -> bool:
    """Whether a labeled scan was looked at from end to end: its shares are those of whole scans."""
    from monai_ssl.runs.pseudo_labels import known_label

    return any(_whole(*known_label(entry, preset)) for entry in cases.training)


def _whole(annotated: Annotated, label: np.ndarray) -> bool:
    from monai_ssl.data.rules import ignored_share

    return annotated.slices is None and ignored_share(label) <= MOSTLY


def alarms(
    rows: Sequence[Mapping[str, str]],
    shares: Mapping[int, tuple[float, float]],
    preset: Preset,
    whole: bool = True,
) -> list[str]:
    """Sentences about classes that the pseudo-labels lack.

    Args:
        rows: of ``reliability.csv``.
        shares: of :func:`class_shares`.
        preset: names the classes.
        whole: the labels' shares are those of whole scans, and may be compared.
    """
    kept = [row for row in rows if row["kept"] == "1"]
    found = []
    for value, (labeled, drawn) in shares.items():
        of_drawn, of_labels = f"{figure(100 * drawn)} % of their voxels", f"{figure(100 * labeled)} % of the labels'"
        missing = [row["case"] for row in kept if row[f"voxels_{value}"] == "0"]
        if labeled > 0 and drawn < VANISHING * labeled and (whole or not drawn):
            found.append(
                f"class {value} ({preset.labels[value]}) vanishes from the pseudo-labels: {of_drawn}, "
                f"{of_labels}; the network will lose it. Label scans that show it"
            )
        elif whole and labeled > 0 and drawn > GROWING * labeled:
            found.append(
                f"class {value} ({preset.labels[value]}) takes {figure(drawn / labeled)} times its share in the "
                f"pseudo-labels: {of_drawn}, {of_labels}; look at the pictures, and train the floor longer"
            )
        elif len(missing) > len(kept) / 2:
            found.append(
                f"class {value} ({preset.labels[value]}) is missing in {len(missing)} of {len(kept)} pseudo-labels "
                f"({enumerated(missing)})"
            )
    return found


class _Summary:
    """``self_training.json``: what was done, and what each part took. Until the end it names no result."""

    def __init__(self, folder: Path) -> None:
        self.path, self.new = folder / SELF_TRAINING, not folder.exists()
        try:
            self.seconds = dict(json.loads(self.path.read_text(encoding="utf-8"))["seconds"])
        except (OSError, ValueError, TypeError, KeyError):
            self.seconds = {}

    def not_ended(self) -> None:
        """Something is going to be trained or labeled: what the folder held before is not its result any more."""
        self._write({})

    def unbegun(self) -> None:
        """A training has failed: where nothing was made, as with an option that is refused, the folder goes again."""
        if self.new and [path.name for path in self.path.parent.iterdir()] == [self.path.name]:
            self.path.unlink()
            self.path.parent.rmdir()

    def took(self, name: str, seconds: float, more: bool = False) -> None:
        """Note the time of a part; of one that was prolonged it is ``more``, beside what it took before."""
        self.seconds[name] = round(seconds + (self.seconds.get(name, 0) if more else 0), 1)
        self._write({})

    def ended(self, done: SelfTraining) -> None:
        """Name the result."""
        runs = [*done.floors, *done.rounds, *([done.fine_tuned] if done.fine_tuned else [])]
        parts = {place.name for place in (*(run.folder for run in runs), *done.labels)}
        self.seconds = {name: value for name, value in self.seconds.items() if name in parts}
        self._write({
            "floors": [run.folder.name for run in done.floors],
            "pseudo_labels": [str(p.name if p.parent == done.folder else p) for p in done.labels],
            "rounds": [run.folder.name for run in done.rounds],
            "fine_tuned": done.fine_tuned.folder.name if done.fine_tuned else None,
            "alarms": done.alarms,
        })  # fmt: skip

    def _write(self, content: Mapping[str, Any]) -> None:
        from monai_ssl.files import write_text
        from monai_ssl.metrics import environment

        write_text(self.path, json.dumps({**content, "seconds": self.seconds, **environment()}, indent=1) + "\n")
