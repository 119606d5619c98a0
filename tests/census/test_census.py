"""The census against its definitions."""

from __future__ import annotations

from collections import Counter

import pytest

from census import configs, pool


@pytest.fixture(scope="session")
def rows():
    return {row["type"]: row for row in pool.rows(configs.model_types())}


def test_at_least_150_architectures_are_built_and_exact(rows):
    verdicts = Counter(row["checks"]["fisher"]["verdict"] for row in rows.values() if "checks" in row)
    assert verdicts["exact"] >= 150
