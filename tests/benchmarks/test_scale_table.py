"""The memory table of docs/scale.md is the one that the code gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tomfisher.benchmarks.scale_table import memory_table, written

PAGE = Path(__file__).parents[2] / "docs/scale.md"


def test_the_page_holds_the_generated_table():
    page = PAGE.read_text(encoding="utf-8")
    assert written(page, memory_table()) == page, "make scale-table writes it"


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="must hold the lines"):
        written("# a page", "| a |")
