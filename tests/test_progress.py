"""Progress where standard error is no terminal, as under pytest; the clock is made up."""

from __future__ import annotations

import sys

import pytest

from tomfisher import progress
from tomfisher.progress import progress_bar


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def walk(bar, clock, seconds):
    with bar:
        for _ in bar:
            clock[0] += seconds


def test_a_line_every_thirty_seconds_where_they_are_later_than_ten_percent(clock, capsys):
    walk(progress_bar(range(100), desc="points", unit="point"), clock, 2.0)  # 10 % are 20 s
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines() == [
        "tomfisher: points: 15 of 100 points, about 3 min left",
        "tomfisher: points: 30 of 100 points, about 2 min left",
        "tomfisher: points: 45 of 100 points, about 2 min left",
        "tomfisher: points: 60 of 100 points, about 80 s left",
        "tomfisher: points: 75 of 100 points, about 50 s left",
        "tomfisher: points: 90 of 100 points, about 20 s left",
    ]


def test_a_line_every_ten_percent_where_they_are_later_than_thirty_seconds(clock, capsys):
    bar = progress_bar(total=1000, desc="Fisher", unit="token")
    with bar:
        for _ in range(50):
            clock[0] += 60
            bar.set_postfix(loss=1)
            bar.update(20)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in lines] == [str(n) for n in range(100, 900, 100)] + ["900", "1,000"]


def test_short_work_and_work_without_progress_are_silent(clock, capsys):
    walk(progress_bar(range(100), desc="quick"), clock, 0.2)
    walk(progress_bar(range(100), desc="off", enabled=False), clock, 60.0)
    assert capsys.readouterr() == ("", "")


def test_work_of_unknown_length_tells_what_is_done(clock, capsys):
    walk(progress_bar(iter(range(3)), desc="files", unit="file"), clock, 31.0)
    assert capsys.readouterr().err.splitlines()[0] == "tomfisher: files: 1 files"


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar(range(3), desc="bar") as bar:
        assert not bar.disable and list(bar) == [0, 1, 2]


def test_what_is_muted_says_nothing(clock, capsys):
    with progress.muted():
        progress.note("heard from another process")
        walk(progress_bar(range(100), desc="points", unit="point"), clock, 2.0)
    assert capsys.readouterr().err == ""
    progress.note("heard")
    assert capsys.readouterr().err == "tomfisher: heard\n"
