"""The tests that docs/guarantees.md names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROWS = [
    row.split("|")[-2]
    for row in (TESTS.parent / "docs" / "guarantees.md").read_text(encoding="utf-8").splitlines()
    if row.startswith("| ") and ".py" in row
]


def test_there_are_rows() -> None:
    assert len(ROWS) > 40


@pytest.mark.parametrize("row", ROWS)
def test_the_tests_of_a_row_exist(row: str) -> None:
    file = ""
    for named in re.findall(r"`([^`]+)`", row):
        path, _, test = named.partition("::")
        file = path or file
        source = (TESTS / file).read_text(encoding="utf-8")
        assert not test or re.search(rf"^(    )?def {test}\(", source, re.MULTILINE), named
