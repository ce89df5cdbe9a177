"""Work on many cases: a bar on a terminal, a line now and then elsewhere, nothing where it is over at once."""

from __future__ import annotations

import logging
import sys

import pytest

from monai_ssl import progress


@pytest.fixture
def clock(monkeypatch):
    """Ten seconds pass between two looks at the clock."""
    ticks = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress, "monotonic", lambda: next(ticks))


def test_a_line_now_and_then(clock, caplog):
    with caplog.at_level(logging.INFO, progress.logger.name):
        assert list(progress.followed("abcdefghi", "label the pool", 9)) == list("abcdefghi")
    # every fourth case is the first that comes more than half a minute after the last line
    assert [record.message for record in caplog.records] == [
        "label the pool: case 3 of 9, 80 s left",
        "label the pool: case 7 of 9, 23 s left",
    ]


def test_what_is_over_at_once_says_nothing(caplog):
    with caplog.at_level(logging.INFO, progress.logger.name):
        list(progress.followed(range(100), "verify", 100))
    assert not caplog.records


def test_silence_on_request(clock, caplog, monkeypatch, capsys):
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with caplog.at_level(logging.INFO, progress.logger.name):
            list(progress.followed(range(20), "phantom", 20, shown=False))
    assert not caplog.records
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(capsys, monkeypatch, caplog):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with caplog.at_level(logging.INFO, progress.logger.name):
        assert sum(progress.followed(range(5), "rank", 5, unit="scan")) == 10
    assert "rank: 100%" in capsys.readouterr().err
    assert not caplog.records


def test_nothing_to_do(capsys):
    assert list(progress.followed([], "verify", 0)) == []
    assert capsys.readouterr().err == ""
