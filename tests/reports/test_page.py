"""Templates: everything that is put into a page is data."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import jinja2
import pytest

from monai_ssl.reports.figures import new_figure
from monai_ssl.reports.page import Picture, Table, code_span, markdown_text, render_html, render_markdown

EVIL = "</p><script>alert('x')</script>\"' onload=1 | `a` [b](c) {{ 7 * 7 }}"
CARD = {
    "name": EVIL, "description": EVIL, "dataset": EVIL, "flavor": EVIL, "dataset_description": EVIL, "cases": EVIL,
    "channels": EVIL, "modality": EVIL, "classes": EVIL, "ranges": [EVIL], "bundle": EVIL, "iteration": 3,
    "max_iterations": 4, "unfinished": True, "members": None, "seed": EVIL, "patch": EVIL, "versions": EVIL,
    "status": EVIL,
    "results": [{"section": "testing", "table": Table([EVIL], [[EVIL]]), "failure_dice": 0.5}],
    "differences": [("model.ts", "1e-6")], "intended_use": EVIL, "drawn": EVIL, "references": [EVIL],
}  # fmt: skip


class Words(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.words.append(data)


def test_html_is_escaped_in_text_and_attributes():
    table = Table([EVIL, EVIL], [[EVIL, EVIL]], (0,), ["#123456"], (0,))
    context = dict.fromkeys(("lists", "volumes"), table) | {
        "title": EVIL, "subtitle": EVIL, "findings": [EVIL], "pictures": [], "sizes": _picture(), "cases": table,
        "volume_figure": _picture(), "picture_note": EVIL, "source": EVIL,
    }  # fmt: skip
    text = render_html("dataset.html.j2", **context)
    page = Words(text)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [attrs for _, attrs in page.tags if any(key.startswith("on") for key, _ in attrs)]
    assert [value for _, attrs in page.tags for key, value in attrs if key == "alt"] == [EVIL, EVIL]
    assert page.words.count(EVIL) >= 16
    assert "49" not in re.sub(r"#123456", "", "".join(page.words))  # a value is no template


def _picture():
    from types import SimpleNamespace

    return SimpleNamespace(caption=EVIL, alternative=EVIL, width=96, uri="data:image/png;base64,AA+/=")


def test_figures_of_a_page_have_letters_of_one_size():
    """A figure of half the width was stretched over the whole page: its letters were twice as large."""
    broad, narrow = Picture(_drawn(12), "", ""), Picture(_drawn(6), "", "")
    assert broad.width == pytest.approx(12 * 96, abs=16)  # cropped to what was drawn
    assert narrow.width == pytest.approx(6 * 96, abs=16)


def _drawn(width):
    figure = new_figure(width, 2)
    figure.subplots()
    return figure


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="subtitle"):
        render_html("dataset.html.j2", title="t")
    with pytest.raises(jinja2.UndefinedError, match="name"):
        render_markdown("model_card.md.j2")


def test_markdown_is_escaped():
    card = render_markdown("model_card.md.j2", **CARD)
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", card)  # code spans show what they hold
    assert "<" not in outside
    assert "](c)" not in outside.replace("\\](c)", "")
    assert "49" not in card
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {2}
    assert "\n\n\n" not in card
    for heading in ("## Data", "## Training", "## Results", "## Limits", "## License"):
        assert f"\n\n{heading}\n\n" in card
    assert "the weights are those of iteration 3 of 4" in card


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b", "a_b"),
        ("_a_ __b__", r"\_a\_ \_\_b\_\_"),
        ("two\nlines", "two lines"),
        ("[0.1, 0.2]", "[0.1, 0.2]"),
        ("[a](b) [a][b] [a]: b", r"[a\](b) [a\][b] [a\]: b"),
        ("a\\|b", r"a\\\|b"),
        ("<b>&", "&lt;b&gt;&amp;"),
    ],
)
def test_markdown_text(text, expected):
    assert markdown_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("a", "`a`"), ("a`b", "``a`b``"), ("`a", "`` `a ``"), ("a\n# b", "`a # b`")]
)
def test_code_span(text, expected):
    assert code_span(text) == expected
