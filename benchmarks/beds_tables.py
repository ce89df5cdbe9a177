"""Tables and a picture of what `beds.py run` left, and the files of every bed that they are made of.

    python benchmarks/beds_tables.py --runs runs/beds --results docs/results/gain

Everything that a table says is computed from the two files of a bed in the results, never from the runs themselves:

* ``per_case.csv``: one row per arm, repetition, views (plain or mirrored), case and class.
* ``runs.json``: how each arm was trained: command, options, seed, iterations, seconds, versions and machine.

What `reliability.py` has written beside them is shown, too.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fire
import matplotlib.pyplot as plt
import numpy as np
import reliability
from beds import BEDS

from monai_ssl.data.patients import patients_of
from monai_ssl.errors import enumerated
from monai_ssl.files import cell, text_of_cell, write_text
from monai_ssl.metrics import case_values, gap_closed, is_failed, read_results

FLOOR, CEILING, METHOD = "matched_floor", "ceiling", "self_training"
WARM, WARM_FLOOR = "warm_start", "warm_matched_floor"
# in the order of tables; other arms, those of ablations, follow in a table of their own
ARMS = {
    "floor": "supervised, labels only (floor)",
    "floor_long": "the same, twice the iterations",
    "floor_sgd": "the floor with SGD 0.01, as the papers train",
    FLOOR: "self-training with weight 0 (matched floor)",
    METHOD: "**self-training, one round**",
    "self_training_long": "the same, twice the iterations in floor and round",
    "no_pool": "the labeled scans as pool",
    WARM: "**self-training, begun with the floor's weights**",
    WARM_FLOOR: "the same with weight 0 (its matched floor)",
    "warm_no_pool": "the same with the labeled scans as pool",
    "oracle": "true labels of the pool as pseudo-labels",
    CEILING: "supervised, all labels (ceiling)",
}
# what an ablation changes, of the labeling or of the round
VARIANTS = {
    "one_view": "the pool labeled by one view, not by mirrored ones",
    "keep_all": "no scan dropped, not a tenth",
    "drop_quarter": "a quarter of the scans dropped",
    "drop_half": "half of the scans dropped",
    "sure_70": "voxels below 70 % left open",
    "no_strong_view": "no change of gray values",
    "stronger_view": "twice as strong a change of gray values",
    "no_cutmix": "no CutMix",
    "weight_1": "weight 1, not 0.5",
    "weight_025": "weight 0.25",
    "with_dice": "also the Dice of pseudo-labels",
    "two_rounds": "a second round",
    "two_networks": "two floors label",
    "fine_tuned": "a tenth of the iterations on the labels alone, at the end",
    "pool_batch_4": "four pool patches in a step, not two",
}
VIEWS = ("plain", "mirrored")
NUMBERS = ("dice", "jaccard", "hd95_voxel", "asd_voxel")
COLUMNS = ("arm", "repetition", "views", "case", "class", "status", *NUMBERS)

DESCRIPTION = """
Very few labels, a pool, and every reference that is fair. A *repetition* is a seed together with its own fold of
validation cases: repetition k trains with seed k and is judged on fold k, so three repetitions judge three disjoint
folds, 36 patients or more, none twice. No two repetitions have a labeled scan in common, except repetitions 1 and 2 of
the hippocampus, which were trained before that rule. Beds of one data set have the same folds, and the few labels are
the first of the many: their results are not independent, and beds as long as each other share one ceiling. All are
development cases; no test list was read.

**Share of the gap** closed by an arm: (arm − matched floor) / (ceiling − matched floor), a ratio of means over
repetitions; of arms that begin with the floor's weights, with the matched floor that begins there, too. Its 95 %
interval draws repetitions, then patients within them with all their scans (two of ACDC), the same for all arms
([why](../../decisions/0013-share-of-the-gap.md)): with three repetitions it is rough, and rather too short. A bound is
a dash where too many resamples have no gap. A scan has failed where a class has a Dice below 0.5, or exactly one mask
is empty.

Written by `python benchmarks/beds_tables.py`; the command of every training is in `runs.json` of its bed.
"""

# arm -> views -> repetition -> rows of all its cases
Scores = dict[str, dict[str, dict[int, list[dict[str, Any]]]]]


def collect(runs: str, results: str) -> None:
    """Write files, tables and the picture; a bed without new runs keeps its files.

    Args:
        runs: what `beds.py run` wrote.
        results: folder of the tables; files that are there are replaced, `FINDINGS.md` is appended to the page.
    """
    source, target = Path(runs), Path(results)
    found = {}
    for bed in BEDS:
        if (source / bed).is_dir():
            gather(source / bed, target / bed)
        if (target / bed / "per_case.csv").is_file():
            found[bed] = scores(target / bed / "per_case.csv")
    if not found:
        raise SystemExit(f"runs: no scores of {enumerated(list(BEDS))} below {source}; `beds.py run` comes first")
    for bed, arms in found.items():
        # the same scans, folds and seeds: trained once
        if CEILING not in arms and CEILING in (other := found.get(BEDS[bed].ceiling_of, {})):
            arms[CEILING] = other[CEILING]
    _write(target, found)
    print(target / "README.md")


def _write(results: Path, found: Mapping[str, Scores]) -> None:
    titles = {bed: BEDS[bed].title for bed in found}
    summary = {bed: summarized(arms) for bed, arms in found.items()}
    write_text(results / "summary.json", json.dumps(summary, indent=1) + "\n")
    picture(summary, titles, results / "gain.png")
    lines = ["# Beds: what a pool of unlabeled scans is worth", "", DESCRIPTION.strip(), ""]
    lines += _overview(summary, titles)
    lines += ["", "![Dice of every arm and repetition, and the gap](gain.png)", ""]
    lines += ["Dots: repetitions; gray: the gap, from the mean of the matched floor to that of the ceiling."]
    for bed, arms in summary.items():
        lines += ["", f"## {titles[bed]}", "", *_machines(results / bed / "runs.json"), "", *_table(arms)]
        lines += [*_against(arms, found[bed]), *_ablation(arms, found[bed])]
    lines += reliability.table(results, titles)
    findings = results / "FINDINGS.md"
    if findings.is_file():
        lines += ["", findings.read_text(encoding="utf-8").strip()]
    write_text(results / "README.md", "\n".join(lines) + "\n")


# ---------------------------------------------------------------------------------------------------------- gather


def gather(source: Path, target: Path) -> None:
    """Two files from the folders of one bed: REPETITION/ARM, with the scores in it or in its folder `scores`.

    What the files hold of other arms and repetitions stays: beds are trained in parts, on whatever machine is free.
    """
    rows: dict[tuple[str, int], list[list[str]]] = {}
    runs: dict[tuple[str, int], dict[str, Any]] = {}
    for arm, repetition, views, folder in _scored(source):
        scored, _, meta = read_results(folder)
        if bool(meta.get("test_time_augmentation")) != (views == "mirrored"):
            raise SystemExit(f"{folder}: was not scored with {views} views; remove it and run `beds.py run` again")
        for row in scored:
            texts = [cell(str(row[key])) for key in ("case", "class", "status")]
            values = [arm, str(repetition), views, *texts, *(f"{row[key]:.6g}" for key in NUMBERS)]
            rows.setdefault((arm, repetition), []).append(values)
        if views == VIEWS[0]:
            runs[arm, repetition] = {
                "arm": arm,
                "repetition": repetition,
                **_record(meta, source / str(repetition), arm),
            }
    if not runs:
        return
    rows, runs = _former_rows(target / "per_case.csv") | rows, _former_runs(target / "runs.json") | runs
    order = sorted(runs, key=lambda key: (key[1], list(ARMS).index(key[0]) if key[0] in ARMS else len(ARMS), key[0]))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    environments: list[dict[str, Any]] = []
    told = []
    for key in order:
        writer.writerows(rows.get(key, []))
        environment = runs[key].pop("environment")
        if environment not in environments:
            environments.append(environment)
        told.append({**runs[key], "environment": environments.index(environment)})
    write_text(target / "per_case.csv", buffer.getvalue())
    write_text(target / "runs.json", json.dumps({"environments": environments, "runs": told}, indent=1) + "\n")


def _former_rows(path: Path) -> dict[tuple[str, int], list[list[str]]]:
    found: dict[tuple[str, int], list[list[str]]] = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                found.setdefault((row["arm"], int(row["repetition"])), []).append([row[key] for key in COLUMNS])
    return found


def _former_runs(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return {
        (run["arm"], run["repetition"]): {**run, "environment": content["environments"][run["environment"]]}
        for run in content["runs"]
    }


def _scored(source: Path) -> Iterator[tuple[str, int, str, Path]]:
    for repetition in sorted(int(path.name) for path in source.iterdir() if path.name.isdigit()):
        folder = source / str(repetition)
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        for arm in sorted(names, key=lambda name: (list(ARMS).index(name) if name in ARMS else len(ARMS), name)):
            for views in VIEWS:
                for place in (folder / arm / "scores" / views, folder / arm / views):
                    if (place / "summary.json").is_file() and (place / "per_case.csv").is_file():
                        yield arm, repetition, views, place


def _record(meta: Mapping[str, Any], folder: Path, arm: str) -> dict[str, Any]:
    """How an arm was trained; what the scores do not know is in the run folder, where that was kept."""
    weights = Path(str(meta["ckpt"])).parent.name
    # a floor lies in the folder of the method that uses it
    places = (folder / arm / "run.json", folder / arm / weights / "run.json", folder / METHOD / weights / "run.json")
    trained = next((json.loads(path.read_text(encoding="utf-8")) for path in places if path.is_file()), {})
    trained = meta | meta["training"] | trained
    keys = ("bundle", "overrides", "flavor", "max_iterations", "datalist", "command", "date")
    return relative({key: trained.get(key) for key in keys}) | {
        "seconds": _seconds(places) or training_seconds(folder, arm, weights),
        "environment": {key: trained[key] for key in ("versions", "machine")},
    }


def _seconds(runs: Iterable[Path]) -> float | None:
    """Seconds of training over all sessions, as the run itself noted them; None where it is gone."""
    notes = (run.with_name("costs.json") for run in runs)
    return next((json.loads(path.read_text(encoding="utf-8"))["seconds"] for path in notes if path.is_file()), None)


def training_seconds(folder: Path, arm: str, run: str) -> float | None:
    """Time of the training loop as the last session that worked on it logged it; None where no log tells."""
    found = None
    for log in sorted(folder.glob("log-*.txt")):
        mine = False
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if begun := re.search(r", output (.+)$", line):
                *_, above, name = ("", *Path(begun[1]).parts)
                mine = name == run and (arm in (above, name) or arm == "floor")
            elif mine and (took := re.search(r"training: iteration .* took (?:(\d+):(\d+):(\d+)|(\d+) s)$", line)):
                hours, minutes, seconds, short = (int(text or 0) for text in took.groups())
                found = float(3600 * hours + 60 * minutes + seconds + short)
    return found


# ---------------------------------------------------------------------------------------------------------- numbers


def scores(path: Path) -> Scores:
    """Rows of one bed by arm, views and repetition."""
    found: Scores = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            row = {key: text_of_cell(value) for key, value in row.items()}
            numbers = {key: float(row[key]) for key in NUMBERS}
            place = found.setdefault(row["arm"], {}).setdefault(row["views"], {})
            place.setdefault(int(row["repetition"]), []).append({**row, **numbers})
    return found


def summarized(found: Scores) -> dict[str, dict[str, dict[str, Any]]]:
    """Arm -> views -> numbers of each repetition, means, share of the gap, and what self-training has more."""
    return {
        arm: {
            views: {
                **_numbers(repetitions),
                "closed": _closed(found, arm, views),
                "self_training_minus": _difference(found, METHOD, arm, views),
            }
            for views, repetitions in by.items()
        }
        for arm, by in found.items()
    }


def _numbers(repetitions: Mapping[int, list[dict[str, Any]]]) -> dict[str, Any]:
    each = {}
    for number, rows in repetitions.items():
        dice = np.array(list(case_values(rows).values()))
        failed = {row["case"] for row in rows if is_failed(row)}
        each[number] = {
            "cases": len(dice),
            "dice": float(dice.mean()),
            "sd": float(dice.std(ddof=1)) if len(dice) > 1 else None,
            "median": float(np.median(dice)),
            "min": float(dice.min()),
            "failed": len(failed),
            "hd95_voxel": float(np.mean(list(case_values(rows, "hd95_voxel").values()))),
        }
    mean = {key: float(np.mean([values[key] for values in each.values()])) for key in ("dice", "median", "hd95_voxel")}
    return {"repetitions": each, "mean": mean, "failed": sum(v["failed"] for v in each.values()),
            "cases": sum(v["cases"] for v in each.values()), "min": min(v["min"] for v in each.values())}  # fmt: skip


def _closed(found: Scores, arm: str, views: str) -> dict[str, Any] | None:
    """Share of the gap over the repetitions that arm, matched floor and ceiling all have; None without one."""
    floor = WARM_FLOOR if arm.startswith("warm_") else FLOOR
    return None if arm == floor else _compared(found, (arm, floor, CEILING), views)


def _difference(found: Scores, arm: str, other: str, views: str) -> dict[str, Any] | None:
    """Gain of one arm over another, on the repetitions that both have; no ceiling is needed for that."""
    return None if arm == other else _compared(found, (arm, other, arm), views)


def _compared(found: Scores, names: tuple[str, str, str], views: str) -> dict[str, Any] | None:
    trio = [found.get(name, {}).get(views, {}) for name in names]
    common = sorted(set(trio[0]) & set(trio[1]) & set(trio[2]))
    if not common:
        return None
    values = [[case_values(by[number]) for number in common] for by in trio]
    # the two frames of a patient of ACDC are one observation: repetitions share no patient
    cases = [case for repetition in values[0] for case in repetition]
    whose = dict(zip(cases, patients_of([{"image": f"/{case}.nii"} for case in cases]), strict=True))
    closed = gap_closed(*values, patients=whose)
    return {"repetitions": common, **asdict(closed)}


# ---------------------------------------------------------------------------------------------------------- tables


def _of(arms: Mapping[str, Any], arm: str) -> dict[str, Any] | None:
    """An arm with the views that its bed deploys: mirrored ones where the preset allows them."""
    views = VIEWS[1] if any(VIEWS[1] in by for by in arms.values()) else VIEWS[0]
    return arms.get(arm, {}).get(views)


def _bounds(closed: Mapping[str, Any], name: str, form: str) -> str:
    bounds = [closed[f"{name}_{side}"] for side in ("low", "high")]
    return f"[{', '.join('–' if value is None else format(100 * value, form) for value in bounds)}]"


def _share(closed: Mapping[str, Any] | None) -> str:
    if closed is None:
        return "–"
    if closed["share"] is None:
        return f"no gap ({100 * closed['gap']:+.1f})"
    return f"{100 * closed['share']:.0f} % {_bounds(closed, 'share', '.0f')}"


def _points(closed: Mapping[str, Any] | None) -> str:
    return "–" if closed is None else f"{100 * closed['gain']:+.1f} {_bounds(closed, 'gain', '+.1f')}"


def _overview(summary: Mapping[str, Any], titles: Mapping[str, str]) -> list[str]:
    """One row per bed, and the mean of the shares."""
    judged = (METHOD, "no_pool", "oracle", WARM)
    head = ["bed", "repetitions, scans", "matched floor", "self-training", "ceiling", "closed by self-training",
            "by no pool", "by the oracle", "begun with the floor's weights"]  # fmt: skip
    lines = ["Dice in percent, with mirrored views where the preset allows flips, over the repetitions that matched",
             "floor, self-training and ceiling have; the share of the gap that arms close, with intervals.", "",
             f"| {' | '.join(head)} |", "|---" * len(head) + "|"]  # fmt: skip
    shares: dict[str, list[float]] = {arm: [] for arm in judged}
    for bed, arms in summary.items():
        closed = {arm: (_of(arms, arm) or {}).get("closed") for arm in judged}
        for arm in judged:
            if closed[arm] and closed[arm]["share"] is not None:
                shares[arm].append(closed[arm]["share"])
        cells = [titles[bed], *_levels(arms, closed[METHOD]), *(_share(closed[arm]) for arm in judged)]
        lines.append(f"| {' | '.join(cells)} |")
    means = [f"**{100 * np.mean(values):.0f} %** ({len(values)})" if values else "–" for values in shares.values()]
    return [*lines, f"| mean over beds (their number) | | | | | {' | '.join(means)} |"]


def _levels(arms: Mapping[str, Any], closed: Mapping[str, Any] | None) -> list[str]:
    """Repetitions and scans, and the three levels on just these."""
    if closed is None:
        return ["–"] * 4
    shown = [_of(arms, arm) for arm in (FLOOR, METHOD, CEILING)]
    means = [np.mean([found["repetitions"][n]["dice"] for n in closed["repetitions"]]) for found in shown if found]
    return [f"{closed['n_repetitions']}, {closed['n_cases']}", *(f"{100 * mean:.1f}" for mean in means)]


def _table(arms: Mapping[str, Any]) -> list[str]:
    """One row per arm."""
    mirrored = any(VIEWS[1] in by for by in arms.values())
    head = ["arm", "Dice (each repetition)", "median (mean over repetitions)", "worst case", "failed cases",
            "gain over the matched floor", "share of the gap"]  # fmt: skip
    head += ["mirrored: Dice", "failed", "gain", "share of the gap"] if mirrored else []
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for arm in (name for name in ARMS if name in arms):
        plain, other = (arms[arm].get(views) for views in VIEWS)
        cells = [ARMS[arm]]
        if plain:
            each = ", ".join(f"{100 * values['dice']:.1f}" for values in plain["repetitions"].values())
            cells += [f"**{100 * plain['mean']['dice']:.1f}** ({each})", f"{100 * plain['mean']['median']:.1f}",
                      f"{100 * plain['min']:.0f}", f"{plain['failed']} of {plain['cases']}"]  # fmt: skip
            cells += [_points(plain["closed"]), _share(None if arm == CEILING else plain["closed"])]
        else:
            cells += ["–"] * 6
        if mirrored:
            cells += [f"{100 * other['mean']['dice']:.1f}", str(other["failed"]), _points(other["closed"]),
                      _share(None if arm == CEILING else other["closed"])] if other else ["–"] * 4  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _against(arms: Mapping[str, Any], found: Scores) -> list[str]:
    """What self-training has more than a floor, and than itself without a pool."""
    lines = []
    for method, title, others in (
        (METHOD, "Self-training", {"no_pool": "without a pool", "floor": "floor"}),
        (WARM, "Begun with the floor's weights", {
            METHOD: "with new weights", "warm_no_pool": "without a pool", "floor": "floor",
            "floor_long": "floor, twice the iterations",
        }),
    ):  # fmt: skip
        sentences = []
        for arm, text in others.items():
            both = [_difference(found, method, arm, views) for views in VIEWS if views in arms.get(arm, {})]
            points = [_points(values) for values in both if values]
            if points:
                sentences.append(f"minus {text} {', mirrored '.join(points)}")
        if sentences:
            lines += ["", f"{title}, in points: {'; '.join(sentences)}."]
    return lines


def _ablation(arms: Mapping[str, Any], found: Scores) -> list[str]:
    """Other arms against self-training, on the repetitions that both have."""
    others = [arm for arm in arms if arm not in ARMS]
    if not others:
        return []
    head = [
        "variant",
        "repetitions",
        "Dice",
        "minus self-training",
        "mirrored: Dice",
        "minus self-training",
        "failed cases",
    ]
    lines = ["", "Variants, each compared with self-training on the repetitions that both have, in points:", "",
             f"| {' | '.join(head)} |", "|---" * len(head) + "|"]  # fmt: skip
    for arm in others:
        repetitions = max(len(values["repetitions"]) for values in arms[arm].values())
        cells = [f"{VARIANTS.get(arm, '')} (`{arm}`)", str(repetitions)]
        for views in VIEWS:
            values = arms[arm].get(views)
            cells.append(f"{100 * values['mean']['dice']:.1f}" if values else "–")
            cells.append(_points(_difference(found, arm, METHOD, views)))
        shown = _of(arms, arm)
        cells.append(f"{shown['failed']} of {shown['cases']}" if shown else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _machines(path: Path) -> list[str]:
    """Where it was trained, and how long that took."""
    record = json.loads(path.read_text(encoding="utf-8"))
    machines = []
    for environment in record["environments"]:
        machine, versions = environment["machine"], environment["versions"]
        machines.append(f"{', '.join(machine['cuda_devices']) or machine['cpu']}, PyTorch {versions['torch']}, MONAI "
                        f"{versions['monai']}")  # fmt: skip
    seconds: dict[str, list[float]] = {}
    for run in record["runs"]:
        if run["seconds"] is not None and run["arm"] in ARMS:
            seconds.setdefault(run["arm"], []).append(run["seconds"])
    text = f"Machines: {'; '.join(sorted(set(machines)))}."
    if seconds:
        means = ", ".join(f"{arm} {np.mean(values):.0f}" for arm, values in seconds.items())
        text += f" Seconds of training as logged, several trainings at a time: {means}."
    return [text]


# ---------------------------------------------------------------------------------------------------------- picture


def picture(summary: Mapping[str, Any], titles: Mapping[str, str], path: Path) -> None:
    """One panel per bed: a dot per arm and repetition, and the gap as a bar behind them."""
    columns = min(3, len(summary))
    rows = -(-len(summary) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 3.4 * rows), squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(summary) :]:
        panel.axis("off")
    for panel, (bed, arms) in zip(panels.flat, summary.items(), strict=False):
        shown = {arm: found for arm in ARMS if (found := _of(arms, arm))}
        if FLOOR in shown and CEILING in shown:
            ends = [100 * shown[arm]["mean"]["dice"] for arm in (FLOOR, CEILING)]
            panel.axhspan(*ends, color="0.9", zorder=0)
        for place, (arm, found) in enumerate(shown.items()):
            values = [100 * each["dice"] for each in found["repetitions"].values()]
            color = "tab:red" if arm == METHOD else "tab:blue"
            panel.scatter(np.linspace(-0.12, 0.12, len(values)) + place, values, s=22, color=color, zorder=2)
            panel.hlines(np.mean(values), place - 0.3, place + 0.3, color=color, lw=1.5, zorder=1)
        panel.set_xticks(range(len(shown)), [arm.replace("_", "\n") for arm in shown], fontsize=8)
        panel.set_title(titles[bed], fontsize=10, loc="left")
        panel.set_ylabel("Dice, %", fontsize=8)
        panel.tick_params(axis="y", labelsize=8)
        panel.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def relative(value: object) -> object:
    """Without the folders of one machine."""
    if isinstance(value, str) and "/" in value:
        return " ".join(Path(word).name if word.startswith("/") else word for word in value.split(" "))
    if isinstance(value, list):
        return [relative(v) for v in value]
    return {k: relative(v) for k, v in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    fire.Fire(collect)
