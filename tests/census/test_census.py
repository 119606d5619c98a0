"""The census against its definitions, and the table in the docs against the census."""

from __future__ import annotations

from collections import Counter

import pytest
import transformers

from census import configs, pool, table

pytestmark = pytest.mark.timeout(2400)  # the first test waits for the whole census

RIGHT = {
    "fisher": {"exact", "refused"},
    "selection": {"right"},
    "choice": {"right", "refused"},
    "generate": {"right", "refused"},
    "perplexity": {"right", "refused"},
    "perturbation": {"right"},
    "structure": {"found", "refused"},
    "frequencies": {"found", "refused"},
    "sinks": {"found", "refused"},
}


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest):
    """Rows by architecture: of those that the chosen tests are about, or of all."""
    parameters = [
        getattr(item, "callspec", None) for item in request.session.items if "rows" in item.fixturenames
    ]
    chosen = {call.params["model_type"] for call in parameters if call is not None}
    some = None not in parameters
    return {
        row["type"]: row
        for row in pool.rows([name for name in configs.model_types() if name in chosen or not some])
    }


@pytest.mark.parametrize("model_type", configs.model_types())
def test_an_architecture_is_exact_or_refused(rows, model_type):
    row = rows[model_type]
    if not row["built"]:
        pytest.skip(row["reason"])
    assert "failed" not in row, row["failed"]
    assert not {name: found for name, found in row["checks"].items() if found["verdict"] not in RIGHT[name]}


def test_at_least_150_architectures_are_built_and_exact(rows):
    verdicts = Counter(row["checks"]["fisher"]["verdict"] for row in rows.values() if "checks" in row)
    assert verdicts["exact"] >= 150


def test_frequencies_and_sinks_are_found_in_at_least_100_architectures(rows):
    checks = [row["checks"] for row in rows.values() if "checks" in row]
    assert (
        sum(found["frequencies"]["verdict"] == found["sinks"]["verdict"] == "found" for found in checks)
        >= 100
    )


def test_the_table_in_the_docs_is_what_was_found(rows):
    page, found = table.PATH.read_text(encoding="utf-8"), table.render(list(rows.values()))
    if table.version_of(page) == transformers.__version__:
        assert table.parted(page)[0] == found, "run `make census`"
    else:
        ours, theirs = table.verdicts(page), table.verdicts(found)
        both = ours.keys() & theirs.keys()
        assert {name: theirs[name] for name in both} == {name: ours[name] for name in both}
