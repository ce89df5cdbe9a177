"""Datalists: which scans are labeled, unlabeled, for validation and for testing (MONAI/Decathlon JSON)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from monai_ssl.data.cases import Entry, case_name
from monai_ssl.errors import DataError, counted, enumerated

SECTIONS = ("training", "unlabeled", "validation", "testing")


@dataclass(repr=False)
class Datalist:
    """The cases of one dataset, as absolute paths.

    Attributes:
        training: labeled cases, ``{"image": path or list of paths, "label": path}``; partly labeled ones with the keys
            of :class:`monai_ssl.data.partial.Annotated`.
        unlabeled: cases without label, ``{"image": ...}``; never carries a ``label`` key.
        validation: labeled cases on which a checkpoint may be picked.
        testing: held-out cases; the label is optional.
        labels: name of every class by its value, 0 = background; empty where the JSON names none.
        channels: names of the images' channels; empty where the JSON names none (Decathlon's ``modality``).
        description: free text of the JSON.
        patients: first image file of a case -> its patient, of the cases of which the JSON says so.
        path: the JSON file, None where there was none (``strict=False``).
        dataset_dir: the folder against which relative paths were resolved.

    Example:
        >>> Datalist(training=[{"image": "/d/a.nii.gz", "label": "/d/a_seg.nii.gz"}]).counts()
        {'training': 1, 'unlabeled': 0, 'validation': 0, 'testing': 0}
    """

    training: list[Entry] = field(default_factory=list)
    unlabeled: list[Entry] = field(default_factory=list)
    validation: list[Entry] = field(default_factory=list)
    testing: list[Entry] = field(default_factory=list)
    labels: dict[int, str] = field(default_factory=dict)
    channels: list[str] = field(default_factory=list)
    description: str = ""
    patients: dict[str, str] = field(default_factory=dict)
    path: Path | None = None
    dataset_dir: Path | None = None

    def section(self, name: str) -> list[Entry]:
        """The list called ``name``, one of :data:`SECTIONS`.

        Raises:
            ValueError: if there is no such list.

        Example:
            >>> Datalist().section("unlabeled")
            []
        """
        if name not in SECTIONS:
            raise ValueError(f"section must be one of {', '.join(SECTIONS)}, got {name!r}")
        return getattr(self, name)

    def require(self, name: str) -> list[Entry]:
        """The list called ``name``, which must not be empty and whose cases must have labels.

        Raises:
            DataError: if the list is empty or a case of it has no label.

        Example:
            >>> Datalist(testing=[{"image": "a.nii", "label": "a_seg.nii"}]).require("testing")
            [{'image': 'a.nii', 'label': 'a_seg.nii'}]
        """
        entries = self.section(name)
        where = self.path or self.dataset_dir or "the datalist"
        if not entries:
            filled = [f"{key} ({n})" for key, n in self.counts().items() if n]
            raise DataError(
                f"{where}: '{name}' has no case; lists with cases: {', '.join(filled) or 'none'}. Check dataset_dir "
                "and datalist, or choose another --section"
            )
        bare = [case_name(entry) for entry in entries if "label" not in entry]
        if bare:
            text = f"'{name}' has {len(bare)} cases without label ({enumerated(bare)})"
            raise DataError(f"{where}: {text}: add the labels")
        return entries

    def known_patients(self) -> dict[str, str]:
        """First image file of a case -> its patient, as the JSON says or names tell, over all lists.

        Example:
            >>> Datalist(training=[{"image": f"/d/p1_visit{number}.nii"} for number in (1, 2)],
            ...          validation=[{"image": "/d/p2_visit1.nii"}]).known_patients()
            {'/d/p1_visit1.nii': 'p1', '/d/p1_visit2.nii': 'p1'}
        """
        from monai_ssl.data.patients import told_patients

        return told_patients([entry for name in SECTIONS for entry in self.section(name)], self.patients)

    def __repr__(self) -> str:  # thousands of paths help nobody
        return f"Datalist({counted(self.counts())}, path={str(self.path) if self.path else None!r})"

    def counts(self) -> dict[str, int]:
        """Number of cases per list."""
        return {name: len(self.section(name)) for name in SECTIONS}
