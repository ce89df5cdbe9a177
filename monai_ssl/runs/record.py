"""What is noted about a run: ``run.json``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from monai_ssl.errors import PROGRAM, DataError


class Record(BaseModel):
    """Content of ``run.json``: what was trained, on what, how, and whether it is finished.

    Attributes:
        bundle: name of a shipped bundle, or folder of your own.
        overrides: ids of the bundle's ``train.yaml`` -> values that the training was given.
        dataset, flavor: name and flavor of the preset; its content is next to the record.
        dataset_dir, datalist: the data.
        max_iterations: iterations asked for; None where the config does not say.
        status: ``started`` or ``complete``.
        command: what to type to train it again, or to resume it.

    Further entries (``versions``, ``machine``) are kept as they are.
    """

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    bundle: str
    overrides: dict[str, Any]
    dataset: str = ""
    # "flavour" until version 0.1
    flavor: str | None = Field(default=None, validation_alias=AliasChoices("flavor", "flavour"))
    dataset_dir: str
    datalist: str
    max_iterations: int | None = None
    status: Literal["started", "complete"] = "started"
    command: str = f"{PROGRAM} train ..."

    @field_validator("overrides")
    @classmethod
    def _american(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        return {"flavor" if key == "flavour" else key: value for key, value in overrides.items()}

    @classmethod
    def read(cls, path: Path) -> Record:
        """The record in a file.

        Raises:
            DataError: when the file is missing, no JSON object, or no record of a run.
        """
        from monai_ssl.bundle.library import read_json

        content = read_json(path)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            missing = [str(e["loc"][0]) for e in error.errors() if e["type"] == "missing"]
            rule = f"must hold {', '.join(missing)}" if missing else f"{first['loc'][0]}: {first['msg']}"
            raise DataError(f"{path}: {rule}; was it written by `{PROGRAM} train`?") from None

    def text(self) -> str:
        """The record as JSON."""
        return json.dumps(self.model_dump(), indent=2, default=str) + "\n"


def training_command(bundle: str, options: Mapping[str, Any]) -> str:
    """What to type for a training, whoever started it.

    Example:
        >>> training_command("dtc", {"dataset_dir": "my scans", "seed": 1, "resume": True})
        "monai-ssl train dtc --dataset_dir 'my scans' --seed 1 --resume true"
    """
    words = [PROGRAM, "train", bundle]
    for key, value in options.items():
        text = json.dumps(value) if value is None or isinstance(value, (bool, dict, list, tuple)) else str(value)
        words += [f"--{key}", text]
    return shlex.join(words)
