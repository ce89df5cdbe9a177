"""What the finished runs of a study wrote, but for their weights: a study that takes days goes on elsewhere.

    python benchmarks/study_records.py keep --study studies/la_field_literature --file records.tar.xz --hide DIR
    python benchmarks/study_records.py restore --study studies/la_field_literature --file records.tar.xz

``monai-ssl compare`` takes restored runs for done, as long as scans, settings and code say the same training, and the
report shows them; only what goes on with their weights cannot be made. Some 20 kB per run.
"""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fire

from monai_ssl.errors import DataError
from monai_ssl.files import write_bytes
from monai_ssl.runs.study.compare import STUDY
from monai_ssl.runs.study.tasks import PLAN, RUNS, STATE, Task, done, read_task

KEPT = (".json", ".csv", ".yaml", ".txt")


def keep(study: str, file: str, hide: str = "") -> None:
    """Pack the tables, records and scores of all finished runs.

    Args:
        study: folder of the study.
        file: to write, ``*.tar.xz``; the same runs give the same bytes.
        hide: comma-separated folders that need not be known elsewhere; their paths are written as ``DIR``.

    Raises:
        DataError: when nothing is done.
    """
    home = Path(study).resolve()
    if not (home / PLAN).is_file():
        raise DataError(f"study: must be the folder of a study that has begun, got {home}")
    names = [entry["name"] for entry in json.loads((home / PLAN).read_text(encoding="utf-8"))]
    tasks = [task for task in (read_task(home, name) for name in names) if done(task, home)]
    if not tasks:
        raise DataError(f"study: no run of {home} is done; there is nothing to keep")
    hidden = [str(home), *(str(Path(folder).resolve()) for folder in hide.split(",") if folder)]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for path in (home / STUDY, *(path for task in tasks for path in _files(task, home))):
            text = path.read_text(encoding="utf-8")
            for folder in sorted(hidden, key=len, reverse=True):
                text = text.replace(folder, "DIR")
            content = text.encode()
            entry = tarfile.TarInfo(str(path.relative_to(home)))
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    write_bytes(Path(file), packed.getvalue())
    print(f"{file}: {len(tasks)} of {len(names)} runs, {len(packed.getvalue()) // 1000} kB")


def _files(task: Task, study: Path) -> Iterator[Path]:
    """Text of a run and of its scores; neither weights nor pictures nor predictions."""
    for path in sorted(task.folder(study).rglob("*")):
        if path.is_file() and path.suffix in KEPT and path.name != "log.txt":
            yield path


def restore(study: str, file: str) -> None:
    """Unpack into the folder of a study; what lies there stays.

    Args:
        study: folder of the study, new or begun.
        file: that ``keep`` wrote.

    Raises:
        DataError: when the file cannot be read.
    """
    home = Path(study)
    try:
        with tarfile.open(file) as archive:
            entries = [entry for entry in archive if entry.isfile()]
            there = {path.parent.name for path in (home / RUNS).glob(f"*/{STATE}")}  # begun here, or restored before
            new = [entry for entry in entries if not _is_there(entry.name, there, home)]
            new.sort(key=lambda entry: Path(entry.name).name == STATE)  # last: until then a run is not done
            archive.extractall(home, members=new, filter="data")
    except (OSError, EOFError, lzma.LZMAError, tarfile.TarError) as error:
        raise DataError(f"file: {file} cannot be read: {error}") from None
    names = {Path(entry.name).parts[1] for entry in new if entry.name.startswith(f"{RUNS}/")}
    print(f"{home}: {len(names)} runs restored")


def _is_there(name: str, runs: set[str], home: Path) -> bool:
    parts = Path(name).parts
    return parts[1] in runs if parts[0] == RUNS else (home / name).exists()


if __name__ == "__main__":
    fire.Fire({"keep": keep, "restore": restore})
