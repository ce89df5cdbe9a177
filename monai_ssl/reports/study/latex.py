"""Tables as LaTeX, in the style of ``booktabs``."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from monai_ssl.reports.numbers import DASH, MINUS
from monai_ssl.reports.page import Table

__all__ = ["latex_file", "latex_table", "latex_text"]

HEAD = r"""% Tables of a study. In your document: \usepackage[T1]{fontenc}, \usepackage[utf8]{inputenc},
% \usepackage{booktabs}, \usepackage{graphicx}, then \input this file.
"""
SPECIALS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "[": "{[}", "]": "{]}", "`": r"\textasciigrave{}",
    MINUS: "$-$", DASH: "--", "±": r"$\pm$", "×": r"$\times$", "\u2014": "---", "\u2026": r"\ldots{}",
    "\u2018": "`", "\u2019": "'", "\u201c": "``", "\u201d": "''", "\u00a0": "~",
}  # fmt: skip


def latex_text(value: str) -> str:
    """``value`` as plain text in LaTeX: no command, no mark.

    Letters that the font encoding T1 lacks are written without their accents, or as a question mark.

    Example:
        >>> print(latex_text("50% of $x_1$ \u2212 3"))
        50\\% of \\$x\\_1\\$ $-$ 3
    """
    return "".join(_letter(letter) for letter in " ".join(str(value).split()))


def _letter(letter: str) -> str:
    if letter in SPECIALS:
        return SPECIALS[letter]
    code = ord(letter)
    if 0x20 <= code < 0x7F or (
        unicodedata.category(letter) in ("Lu", "Ll") and code < 0x180 and letter not in "ĸŉſĿŀĦħŦŧ"
    ):
        return letter
    parts = [each for each in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(each)]
    return "".join(SPECIALS.get(each, each if each.isascii() and each.isprintable() else "?") for each in parts)


def latex_table(table: Table, caption: str, label: str, groups: Sequence[int] = ()) -> str:
    """One ``table`` as wide as the text.

    Args:
        table: what is on the page.
        caption: sentence under the heading "Table".
        label: for ``\\ref``, without its prefix.
        groups: rows before which a thin rule is drawn.

    Returns:
        LaTeX text.
    """
    columns = "".join("l" if number in table.text_columns else "r" for number in range(len(table.header)))
    lines = [
        r"\begin{table}[htb]",
        r"\centering",
        rf"\caption{{{latex_text(caption)}}}",
        rf"\label{{tab:{re.sub(r'[^a-zA-Z0-9:.-]+', '-', label)}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(latex_text(text) for text in table.header) + r" \\",
        r"\midrule",
    ]
    for number, row in enumerate(table.rows):
        if number in groups and number:
            lines.append(r"\midrule")
        cells = [latex_text(text) for text in row]
        if number in table.marked:
            cells[0] = rf"\textbf{{{cells[0]}}}"
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def latex_file(tables: Sequence[str]) -> str:
    """All tables in one file for ``\\input``."""
    return "\n".join([HEAD, *tables])
