"""The model card of a packaged bundle: data, training, scores with intervals, intended use, limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monai_ssl.data.preset import Preset
from monai_ssl.reports.numbers import interval_text, number_text
from monai_ssl.reports.page import Table, render_markdown

__all__ = ["model_card", "times"]


def times(values: Iterable[float]) -> str:
    """Sizes as text.

    Example:
        >>> times([112, 112, 2.5])
        '112 x 112 x 2.5'
    """
    return " x ".join(f"{value:g}" for value in values)


def model_card(
    meta: Mapping[str, Any],
    preset: Preset,
    record: Mapping[str, Any],
    results: Mapping[str, Any],
    data: Mapping[str, Any],
    differences: Mapping[str, float],
) -> str:
    """Write ``docs/README.md`` of a package.

    Args:
        meta: content of the package's ``metadata.json``.
        preset: the data set.
        record: content of the run's ``run.json``; ``iteration``, where it is given, counts the iterations of the
            packaged weights, which are fewer than ``max_iterations`` in an unfinished run; ``members``, where the mean
            of several networks is packaged, holds bundle, seed and iterations of each.
        results: per evaluated list, a block with ``summary`` (see :func:`~monai_ssl.metrics.summarize`).
        data: ``counts`` of cases per list; ``spacing`` and ``shape`` of the training images as three rows: minimum,
            median, maximum.
        differences: file -> largest difference of an exported network's logits.

    Returns:
        Markdown text; every value that is put in is escaped.

    Raises:
        KeyError: when ``record`` or ``meta`` lacks what every run and bundle has.

    Example:
        >>> text = model_card(meta, preset, record, {}, {}, {"model.ts": 1e-6})  # doctest: +SKIP
    """
    counts = data.get("counts", {})
    ranges = []
    for key, unit in (("spacing", " mm"), ("shape", " voxels")):
        if key in data:
            low, middle, high = (times(values) for values in data[key])
            ranges.append(f"{key} of the training images: median {middle}{unit} (from {low} to {high})")
    versions = record.get("versions", {})
    asked = record.get("max_iterations")
    done = record.get("iteration")
    unfinished = done is not None and done != asked
    if record.get("members"):
        unfinished = any(facts["iteration"] != facts["max_iterations"] for facts in record["members"])
    return render_markdown(
        "model_card.md.j2",
        name=meta["name"],
        description=meta["description"],
        dataset=preset.name,
        flavor=preset.flavor,
        dataset_description=preset.description,
        cases=", ".join(f"{n} {key}" for key, n in counts.items())
        or "unknown (the data were not at hand when packaging)",
        channels=", ".join(preset.channels),
        modality=preset.modality,
        classes=meta["label_classes"],
        ranges=ranges,
        bundle=Path(str(record["bundle"])).name,
        iteration=asked if done is None else done,
        max_iterations=asked,
        unfinished=unfinished,
        seed=record["overrides"].get("seed", 0),
        members=members_table(record["members"]) if record.get("members") else None,
        patch=times(preset.patch_size),
        versions=f"monai_ssl {versions.get('monai_ssl')}, MONAI {versions.get('monai')}, "
        f"PyTorch {versions.get('torch')}",
        status=record.get("status", "unknown"),
        results=[
            {
                "section": section,
                "table": score_table(block["summary"]),
                "failure_dice": block["summary"].get("failure_dice", 0.5),
            }
            for section, block in results.items()
        ],
        differences=[(name, f"{difference:.1e}") for name, difference in differences.items()],
        intended_use=meta["intended_use"],
        drawn=", ".join(list(preset.labels.values())[1:]),
        references=list(meta.get("references", [])),
    )


def members_table(members: Iterable[Mapping[str, Any]]) -> Table:
    """The networks of an ensemble."""
    rows = [
        [str(number), facts["bundle"], str(facts["seed"]), f"{facts['iteration']} of {facts['max_iterations']}"]
        for number, facts in enumerate(members, 1)
    ]
    return Table(["network", "bundle", "seed", "iterations"], rows, (0, 1))


def score_table(summary: Mapping[str, Any]) -> Table:
    """Dice, 95HD and ASSD of every class, with intervals."""
    columns = (("dice", "Dice", 3), ("hd95_mm", "95HD, mm", 2), ("assd_mm", "ASSD, mm", 2))
    rows = [
        [
            label,
            str(scores["dice"]["n"]),
            str(scores["n_failed"]),
            *(_with_interval(scores[key], digits) for key, _, digits in columns),
        ]
        for label, scores in summary["classes"].items()
    ]
    return Table(["class", "n", "failed", *(title for _, title, _ in columns)], rows)


def _with_interval(spread: Mapping[str, Any], digits: int) -> str:
    if spread.get("mean") is None:
        return "not defined"
    text = number_text(spread["mean"], digits)
    if spread.get("ci_low") is None:
        return text
    return f"{text} {interval_text(spread['ci_low'], spread['ci_high'], digits)}"
