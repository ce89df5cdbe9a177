"""Keep what a study found: its report, tables and figures as a page of the results.

    python benchmarks/study_results.py --results docs/results/label_fraction --study studies/label_fraction
    python benchmarks/study_results.py --results docs/results/label_fraction     # findings were written anew

``report.md`` becomes ``README.md``; ``FINDINGS.md`` of the results, written by hand, follows its first section. The
command on the page names the file in ``benchmarks/studies`` of the same name, not the folder on the machine.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import fire

from monai_ssl.errors import DataError
from monai_ssl.files import write_text

ROOT = Path(__file__).parents[1]


def main(results: str, study: str = "") -> None:
    """Copy tables and figures, write ``README.md``.

    Args:
        results: folder of the results; its name is that of the study's file.
        study: folder of a study, all of its runs done; left out, the page that is there gets new findings.

    Raises:
        DataError: when there is no report, no page, or no such study file.
    """
    source, target = Path(study), Path(results)
    if not study:
        _renew_findings(target)
        return
    file = ROOT / "benchmarks" / "studies" / f"{target.name}.yaml"
    if not (source / "report.md").is_file():
        raise DataError(f"study: must have a report.md, got {source}; run `monai-ssl compare {source}` first")
    if not file.is_file():
        raise DataError(f"results: must be named like a study of {file.parent}, got {target.name}")
    for folder in ("results", "figures"):
        shutil.rmtree(target / folder, ignore_errors=True)
        shutil.copytree(source / folder, target / folder)
    command = f"- command: `MONAI_SSL_DATA=DIR monai-ssl compare {file.relative_to(ROOT)}`"
    text = re.sub(r"^- command: .*$", command, (source / "report.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    head, mark, rest = text.partition("\n## ")
    findings = target / "FINDINGS.md"
    if findings.is_file():
        head += "\n" + findings.read_text(encoding="utf-8").strip() + "\n"
    write_text(target / "README.md", head + mark + rest)
    print(target)


def _renew_findings(results: Path) -> None:
    """Put ``FINDINGS.md`` into the page where its first heading stands."""
    page, findings = results / "README.md", results / "FINDINGS.md"
    if not page.is_file() or not findings.is_file():
        raise DataError(f"results: must have README.md and FINDINGS.md, got {results}; name the study that makes them")
    new, text = findings.read_text(encoding="utf-8").strip() + "\n", page.read_text(encoding="utf-8")
    heading = new.partition("\n")[0]
    before, found, former = text.partition(f"\n{heading}\n")
    if not found or re.search("^## ", new[len(heading) :], flags=re.MULTILINE):
        raise DataError(
            f"results: {page} must hold the one heading of FINDINGS.md, {heading!r}; write it with its study"
        )
    _, mark, rest = former.partition("\n## ")
    write_text(page, f"{before}\n{new}{mark}{rest}")
    print(results)


if __name__ == "__main__":
    fire.Fire(main)
