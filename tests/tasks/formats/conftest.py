"""Where samples of published data lie: they are no part of the project, and tests of them are skipped without them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

VARIABLE = "TOMFISHER_TOM_DATA"
BESIDE = Path(__file__).parents[4] / "shared" / "data" / "tom"


@pytest.fixture
def sample() -> Callable[[str], Path]:
    """Gives the path of a sample by its name, or skips the test."""
    folder = Path(os.environ.get(VARIABLE, BESIDE))

    def path(name: str) -> Path:
        if not (folder / name).exists():
            pytest.skip(f"no published sample {name} in {folder}; {VARIABLE} may name another folder")
        return folder / name

    return path
