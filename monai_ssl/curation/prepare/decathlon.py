"""Tasks of the Medical Segmentation Decathlon through their ``dataset.json``; Task04, the hippocampus, by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from monai_ssl.curation.prepare.discover import matching
from monai_ssl.curation.prepare.engine import DatasetRecipe, RawCase, Volume
from monai_ssl.curation.prepare.files import as_label, native, onto_grid
from monai_ssl.curation.prepare.published_splits import Split, seeded_split
from monai_ssl.data.cases import split_suffix
from monai_ssl.data.reading import read_volume
from monai_ssl.errors import DataError


@dataclass(frozen=True)
class Decathlon(DatasetRecipe):
    """Any data set with a Decathlon ``dataset.json``: ``training`` (image, label), ``labels``, ``modality``.

    Files of four axes hold one channel per entry of ``modality`` and become one file per channel. The ``test`` images,
    which have no labels, belong to the challenge and are left out. No split is published: a fifth of the cases is for
    testing, a fifth for validation, by ``RandomState(seed)`` over the sorted names, seed 2024. A preset is proposed
    from the data and written to ``preset.yaml``.

    Attributes:
        task: name of the task to look for or to download, such as ``Task09_Spleen``; empty where the source holds one.
        content: the ``dataset.json``, found by :meth:`at`.
    """

    task: str = ""
    content: Mapping[str, Any] = field(default_factory=dict, repr=False, metadata={"internal": True})
    name: ClassVar[str] = "msd"
    layout: ClassVar[str] = "a folder with dataset.json, imagesTr and labelsTr"
    where: ClassVar[str] = "http://medicaldecathlon.com (or --download True --task Task09_Spleen)"
    n_labeled: ClassVar[int | None] = None

    @property
    def labels(self) -> dict[int, str]:
        return {int(value): str(name) for value, name in self.content["labels"].items()}

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, in order."""
        stated = self.content.get("modality") or self.content.get("channel_names") or {"0": "image"}
        return tuple(str(stated[key]) for key in sorted(stated, key=int))

    @property
    def preset(self) -> tuple[str, str | None]:
        return "preset.yaml", None

    def at(self, source: Path) -> DatasetRecipe:
        found = [path for path, _ in matching(source, r"dataset\.json")]
        if self.task:
            found = [path for path in found if self.task.lower() in (part.lower() for part in path.parts)]
        if len(found) != 1:
            what = f"{len(found)} dataset.json ({', '.join(str(p.parent.name) for p in found)})" if found else "none"
            of_task = f" of {self.task}" if self.task else ""
            raise DataError(
                f"{source}: must hold one dataset.json{of_task}, got {what}; name the task with --task, or its folder "
                "as source"
            )
        try:
            content = json.loads(found[0].read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise DataError(f"{found[0]}: must be a JSON file ({error})") from error
        good = isinstance(content, dict) and isinstance(content.get("training"), list) and content["training"]
        if not good or not isinstance(content.get("labels"), dict):
            raise DataError(
                f"{found[0]}: must hold a list 'training' and 'labels' as in the Decathlon; is it of another kind?"
            )
        if not all(re.fullmatch(r"\d+", str(key)) for key in content["labels"]):
            raise DataError(f'{found[0]}: \'labels\' must map values to names, like {{"1": "spleen"}}')
        return replace(self, content={**content, "folder": str(found[0].parent)})

    def discover(self, source: Path) -> tuple[list[RawCase], list[str]]:
        folder = Path(self.content["folder"])
        cases, remarks = [], []
        for entry in self.content["training"]:
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
                remarks.append(f"dataset.json: entry without image, ignored: {str(entry)[:80]}")
                continue
            image = folder / entry["image"]
            label = folder / entry["label"] if isinstance(entry.get("label"), str) else None
            name = split_suffix(image.name)[0]
            if not image.is_file():
                remarks.append(f"{name}: {entry['image']} is listed in dataset.json and missing, ignored")
                continue
            if label is None or not label.is_file():
                why = "not listed" if label is None else "missing"
                remarks.append(f"{name}: its label is {why}; can only serve as unlabeled")
                label = None
            cases.append(RawCase(name, name, (str(image),), None if label is None else str(label)))
        return cases, remarks

    def convert(self, case: RawCase) -> Volume:
        volume, affine = read_volume(case.images[0])
        if affine is None or volume.ndim != 4:
            raise DataError(f"image must be a NIfTI file of 3 axes (and channels), got shape {volume.shape}")
        if len(volume) != len(self.channels):
            raise DataError(f"image must have the {len(self.channels)} channels of dataset.json, got {len(volume)}")
        single = len(volume) == 1
        images = {"" if single else f"{index:04d}": native(np.ascontiguousarray(channel))
                  for index, channel in enumerate(volume)}  # fmt: skip
        if case.label is None:
            return Volume(images, affine)
        stored, label_affine = read_volume(case.label)
        if stored.shape[0] != 1 or label_affine is None:
            raise DataError(f"label must hold one value per voxel, got shape {stored.shape}")
        values = {value: value for value in self.labels}
        label, remarks = onto_grid(as_label(stored[0], values), label_affine, volume.shape[1:], affine)
        return Volume(images, affine, label, remarks)

    def published_split(self, patients: list[str], seed: int | None, n_testing: int | None) -> Split:
        fifth = max(1, round(len(patients) / 5)) if len(patients) > 2 else 0
        testing = fifth if n_testing is None else n_testing
        return seeded_split(patients, testing, fifth, self.n_labeled, 2024 if seed is None else seed)

    def finish(self, target: Path, lists: Mapping[str, list[dict[str, Any]]]) -> list[str]:
        from monai_ssl.curation.propose import propose_preset, write_preset

        path = target / "preset.yaml"
        if path.exists():  # it may have been edited
            return [f"{path.name}: kept as it is"]
        proposal = propose_preset(
            [{key: absolute(target, value) for key, value in entry.items()}
             for section in ("training", "unlabeled") for entry in lists[section]],
            self.labels, self.channels,
        )  # fmt: skip
        write_preset(path, proposal)
        return [f"preset.yaml: {reason}" for reason in proposal.reasons]

    def download(self, source: Path) -> None:
        from monai.apps import DecathlonDataset, download_and_extract

        offered = sorted(DecathlonDataset.resource)
        if self.task not in offered:
            raise DataError(f"--download: --task must be one of {', '.join(offered)}, got {self.task!r}")
        if (source / self.task / "dataset.json").is_file():
            return
        source.mkdir(parents=True, exist_ok=True)
        try:
            download_and_extract(
                DecathlonDataset.resource[self.task], source / f"{self.task}.tar", source,
                hash_val=DecathlonDataset.md5[self.task], hash_type="md5",
            )  # fmt: skip
        except Exception as error:  # whatever the network does
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"--download: {self.task} could not be downloaded ({reason}); get "
                f"{DecathlonDataset.resource[self.task]} by other means and unpack it into {source}"
            ) from error


def absolute(folder: Path, value: str | list[str]) -> str | list[str]:
    """Paths of a datalist entry, from the datalist's folder."""
    return [str(folder / item) for item in value] if isinstance(value, list) else str(folder / value)


@dataclass(frozen=True)
class Hippocampus(Decathlon):
    """Task04 of the Decathlon: 260 T1-weighted crops, anterior and posterior hippocampus.

    TAC divides 260 cases into 210 and 50 at random, several times, and publishes no list: the division here is
    ``RandomState(seed)`` over the sorted names, the first 50 for testing, seed 2024. The first 10 of the others are
    labeled.

    Attributes:
        task: of the Decathlon.
        content: the ``dataset.json``.
    """

    task: str = field(default="Task04_Hippocampus", metadata={"internal": True})
    name: ClassVar[str] = "hippocampus"
    where: ClassVar[str] = "http://medicaldecathlon.com (or --download True)"
    n_labeled: ClassVar[int | None] = 10

    @property
    def preset(self) -> tuple[str, str | None]:
        return "hippocampus", None

    def at(self, source: Path) -> DatasetRecipe:
        # the folder may have any name, unless it holds several tasks
        several = len(matching(source, r"dataset\.json")) > 1
        found = Decathlon.at(self if several else replace(self, task=""), source)
        assert isinstance(found, Hippocampus)
        return replace(found, task=self.task)

    def published_split(self, patients: list[str], seed: int | None, n_testing: int | None) -> Split:
        return seeded_split(patients, 50 if n_testing is None else n_testing, 0, self.n_labeled,
                            2024 if seed is None else seed)  # fmt: skip

    def finish(self, target: Path, lists: Mapping[str, list[dict[str, Any]]]) -> list[str]:
        return []
