"""Parts that every page is made of."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from monai_ssl.metrics.cases import Row
from monai_ssl.metrics.results import Results
from monai_ssl.reports.figures import figure_png

ROLES = ("floor", "matched_floor", "method", "ceiling")


_ROLE_NAMES = {"floor": "floor", "matched_floor": "matched floor", "method": "method", "ceiling": "ceiling"}


@dataclass(frozen=True)
class Overlay:
    """Arrays or NIfTI files of one case, for the pictures.

    Args:
        image: array (X, Y[, Z]) or path.
        label: integer label map or path.
        prediction: integer label map of this run, or path.
        spacing: voxel size per axis; None takes it from the files (arrays: 1).
    """

    image: Any
    label: Any
    prediction: Any
    spacing: Sequence[float] | None = None


@dataclass(frozen=True)
class ReportRun:
    """One run in a report.

    Args:
        name: what the reader sees, e.g. "supervised (floor)", "dtc, weight 0 (matched floor)", "dtc".
        results: folder written by :func:`~monai_ssl.metrics.write_results`.
        role: one of ``ROLES``; None reads it from the name ("matched floor", "floor", "ceiling", else "method").
        training_log: CSV with the columns ``iteration``, ``loss``, named terms, ``lr``.
        validation_log: CSV with the columns ``iteration`` and one whose name holds "dice".
        overlays: images by case name; the report shows the method's best, median and worst case among them.

    Raises:
        ValueError: if ``role`` is unknown.

    Example:
        >>> ReportRun("dtc, weight 0 (matched floor)", "outputs/floor").role
        'matched_floor'
    """

    name: str
    results: str | os.PathLike[str]
    role: str | None = None
    training_log: str | os.PathLike[str] | None = None
    validation_log: str | os.PathLike[str] | None = None
    overlays: Mapping[str, Overlay] = field(default_factory=dict)

    def __post_init__(self) -> None:
        role = self.role
        if role is None:
            name = self.name.lower().replace("-", " ").replace("_", " ")
            found = [key for key in ("matched_floor", "floor", "ceiling") if _ROLE_NAMES[key] in name]
            role = found[0] if found else "method"
        if role not in ROLES:
            raise ValueError(f"role must be one of {ROLES}, got {role!r}")
        object.__setattr__(self, "role", role)


@dataclass(frozen=True)
class _Loaded:
    run: ReportRun
    results: Results
    summary: dict[str, Any]
    color: str

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def rows(self) -> list[Row]:
        return self.results.rows


Table = tuple[list[str], list[list[str]]]


_CSS = """
:root{--ink:#1f2933;--muted:#5b6774;--line:#e1e5ea;--soft:#f6f8fa;--accent:#0b5c8e}
*{box-sizing:border-box}
body{margin:0;background:#fff;color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1160px;margin:0 auto;padding:40px 28px 56px}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em}
h2{font-size:1.2rem;margin:44px 0 10px;padding-top:18px;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:22px 0 8px}
p{margin:8px 0;max-width:78ch}.muted,.note{color:var(--muted)}.note{font-size:.88rem;max-width:112ch}
.findings{background:var(--soft);border-left:4px solid var(--accent);border-radius:4px;padding:14px 20px;margin:22px 0}
.findings p{margin:6px 0;max-width:none}.findings p:first-child{font-weight:600;font-size:1.06rem}
.wide{overflow-x:auto;margin:10px 0;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;width:100%;font-size:.86rem;font-variant-numeric:tabular-nums}
th{color:var(--muted);font-weight:600;text-align:right;vertical-align:bottom;border-bottom:2px solid var(--line);padding:7px 10px;line-height:1.3}
td{text-align:right;border-bottom:1px solid var(--line);padding:7px 10px;white-space:nowrap}
td.text,th.text{text-align:left}td.text{white-space:normal;min-width:6.5em}td.name{font-weight:600;white-space:normal;min-width:9em;overflow-wrap:anywhere}
tr.method td{background:#eef5fa}
.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.5em}
figure{margin:14px 0 22px}figcaption{font-size:.92rem;margin-bottom:6px;overflow-wrap:anywhere}
img{max-width:100%;height:auto;display:block}.scroll img{min-width:640px}
summary{cursor:pointer;color:var(--accent);font-weight:600;margin:8px 0}
footer{margin-top:44px;padding-top:18px;border-top:1px solid var(--line);font-size:.84rem;color:var(--muted)}
footer dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;margin:6px 0 18px}
footer dt{font-weight:600}footer dd{margin:0;overflow-wrap:anywhere}
code{font:.94em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
@media(max-width:700px){main{padding:24px 16px 40px}h1{font-size:1.5rem}footer dl{grid-template-columns:1fr}footer dd{margin-bottom:6px}}
@media print{main{max-width:none;padding:0}details>*{display:block}}
"""  # noqa: E501


def _escape(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _html_table(table: Table, text_columns: Sequence[int], runs: Sequence[_Loaded] = ()) -> str:
    header, body = table

    def cell(tag: str, index: int, value: str, inside: str = "") -> str:
        names = ["text"] if index in text_columns else []
        names += ["name"] if index == 0 and tag == "td" else []
        kind = f' class="{" ".join(names)}"' if names else ""
        return f"<{tag}{kind}>{inside}{_escape(value)}</{tag}>"

    lines = ['<div class="wide"><table><thead><tr>']
    lines += [cell("th", index, value) for index, value in enumerate(header)]
    lines.append("</tr></thead><tbody>")
    for number, record in enumerate(body):
        run = runs[number] if runs else None
        lines.append('<tr class="method">' if run and run.run.role == "method" else "<tr>")
        dot = f'<span class="dot" style="background:{run.color}"></span>' if run else ""
        lines += [cell("td", index, value, dot if index == 0 else "") for index, value in enumerate(record)]
        lines.append("</tr>")
    return "".join(lines) + "</tbody></table></div>"


def _html_figure(figure: Figure, caption: str, alternative: str, scroll: bool = False) -> str:
    data = base64.b64encode(figure_png(figure)).decode("ascii")
    kind = ' class="wide scroll"' if scroll else ""
    return (
        f"<figure><figcaption>{_escape(caption)}</figcaption><div{kind}>"
        f'<img alt="{_escape(alternative)}" src="data:image/png;base64,{data}"></div></figure>'
    )


def _markdown_text(value: Any) -> str:
    text = html.escape(" ".join(str(value).split()), quote=False)
    for mark in ("\\", "|", "`", "*", "_", "[", "]", "#"):
        text = text.replace(mark, "\\" + mark)
    return text


def _markdown_table(table: Table) -> str:
    header, body = table
    lines = ["| " + " | ".join(_markdown_text(value) for value in header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(_markdown_text(value) for value in record) + " |" for record in body])
