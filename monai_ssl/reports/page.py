"""Pages from templates. Whatever goes into a page is data: the template engine escapes it, in HTML and in Markdown.

Templates are in ``templates/``: ``page.html.j2`` is the skeleton of every HTML page, ``page.css`` its style,
``parts.*.j2`` what pages share.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from monai_ssl.reports.figures import DPI, figure_png

__all__ = ["Picture", "Table", "code_span", "markdown_text", "render_html", "render_markdown"]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        header: one cell per column.
        rows: cells of every row; the first names it.
        text_columns: columns that hold words, not numbers.
        colors: color of every row's dot, as in the figures; empty for none.
        marked: rows that stand out.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Collection[int] = (0,)
    colors: Sequence[str] = ()
    marked: Collection[int] = ()


@dataclass(frozen=True)
class Picture:
    """A figure on a page.

    Attributes:
        figure: a matplotlib figure.
        caption: sentence above it.
        alternative: what it shows, for those who cannot see it.
    """

    figure: Figure
    caption: str
    alternative: str

    @cached_property
    def png(self) -> bytes:
        """The figure as a PNG file."""
        return figure_png(self.figure)

    @property
    def width(self) -> int:
        """Width on the page in CSS pixels, 96 to an inch: letters of all figures of a page are then of one size."""
        # of the file, which is cropped to what was drawn; the header of a PNG begins with it
        return round(int.from_bytes(self.png[16:20], "big") * 96 / DPI)

    @property
    def uri(self) -> str:
        """The figure as PNG, inside the page."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def markdown_text(value: Any) -> Markup:
    """Make ``value`` plain text in Markdown: one line, no mark, no tag, no column of a table.

    Example:
        >>> print(markdown_text("a_b | <i>* [1, 2] [x](y)"))
        a_b \\| &lt;i&gt;\\* [1, 2] [x\\](y)
    """
    text = html.escape(" ".join(str(value).split()), quote=False)
    text = re.sub(r"([\\|`*#])", r"\\\1", text)
    text = re.sub(r"\](?=[(\[:])", r"\\]", text)  # else a bracket links nothing
    return Markup(re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text))  # inside a word it marks nothing


def code_span(value: Any) -> Markup:
    """Make ``value`` a code span of Markdown.

    Example:
        >>> print(code_span("a`b"))
        ``a`b``
    """
    text = " ".join(str(value).split())
    ticks = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return Markup(ticks + pad + text + pad + ticks)


def _put_in(value: Any) -> Any:
    return value if isinstance(value, Markup) else markdown_text(value)


@lru_cache(maxsize=2)
def _environment(markdown: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("monai_ssl.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_put_in if markdown else None,
    )
    environment.filters["code"] = code_span
    return environment


def render_html(template: str, **context: Any) -> str:
    """Fill an HTML template.

    Args:
        template: file in ``templates/``.
        context: what it names; every value is escaped.

    Returns:
        The page.

    Raises:
        jinja2.UndefinedError: when the template names something that is not given.

    Example:
        >>> "<h1>a &lt; b</h1>" in render_html("page.html.j2", title="a < b")
        True
    """
    return _environment(False).get_template(template).render(context)


def render_markdown(template: str, **context: Any) -> str:
    """Fill a Markdown template; as :func:`render_html`, with the escapes of Markdown."""
    text = _environment(True).get_template(template).render(context)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
