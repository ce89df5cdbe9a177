"""Names in any script: what matplotlib's own font lacks, a font of this machine draws."""

from __future__ import annotations

import logging
from collections.abc import Set
from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text

__all__ = ["choose_fonts"]

logger = logging.getLogger(__name__)
OWN, BOXES = "DejaVu Sans", "Last Resort High-Efficiency"  # come with matplotlib


def choose_fonts(figure: Figure) -> None:
    """Let fonts that are installed draw the letters that matplotlib's own font has not: Chinese, Korean, Ethiopic, ...

    Letters that no font here has become boxes; a warning says so once. Texts that need nothing are left alone.

    Args:
        figure: whose texts get the fonts.

    Example:
        >>> choose_fonts(Figure())
    """
    texts = [text for text in figure.findobj(Text) if not text.get_text().isascii()]
    wanted = {letter for text in texts for letter in text.get_text() if letter.isprintable()}
    lacking = frozenset(letter for letter in wanted if ord(letter) not in _letters(findfont(OWN)))
    if not lacking:
        return
    names = _fonts_for(lacking)
    for text in texts:
        # a text without these letters keeps its font, bit for bit
        if lacking & set(text.get_text()):
            text.set_fontfamily([OWN, *names])
            if BOXES in names:
                text.set_fontweight("normal")  # it has no other, and matplotlib would say so


@cache
def _files() -> dict[str, str]:
    """Name -> file of the installed fonts, without the one that draws a box for every letter there is."""
    upright = [entry for entry in fontManager.ttflist if entry.style == "normal" and entry.name != BOXES]
    regular_last = sorted(upright, key=lambda entry: (entry.weight in (400, "normal"), entry.name))
    return {entry.name: entry.fname for entry in regular_last}


@cache
def _letters(path: str) -> Set[int]:
    try:
        return get_font(path).get_charmap().keys()
    except (OSError, RuntimeError):  # FreeType cannot read it
        return frozenset()


@cache
def _fonts_for(lacking: frozenset[str]) -> list[str]:
    """Names of as few fonts as a greedy search finds."""
    left, names = {ord(letter) for letter in lacking}, []
    files = _files()
    while left:
        # of equals the one without serifs, as the rest of a picture is
        found = {name: (len(left & _letters(file)), "Sans" in name) for name, file in files.items()}
        best = max(found, key=found.__getitem__, default="")
        if not best or not found[best][0]:
            break
        names.append(best)
        left -= _letters(files[best])
    if left:
        letters = "".join(sorted(map(chr, left))[:10])
        logger.warning("no font of this machine draws %s: pictures show boxes instead; install one, for example Noto "
                       "Sans of that script (for Chinese, Japanese and Korean: fonts-noto-cjk)", letters)  # fmt: skip
        names += {entry.name for entry in fontManager.ttflist} & {BOXES}  # else matplotlib warns of every letter
    return names
