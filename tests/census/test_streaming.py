"""A streamed Fisher is that of the model in memory, or refused by name: a third of the architectures, and suspects."""

from __future__ import annotations

from collections import Counter

import pytest
import transformers

from census import configs, pool, streaming, table

pytestmark = pytest.mark.timeout(1200)  # the first test waits for all rows


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest):
    """Rows by architecture: of those that the chosen tests are about, or of all that are looked at here."""
    parameters = [
        getattr(item, "callspec", None) for item in request.session.items if item.module is request.module
    ]
    named = {call.params["model_type"] for call in parameters if call is not None}
    some = None not in parameters
    return {
        row["type"]: row
        for row in pool.rows([n for n in streaming.chosen() if n in named or not some], "streaming")
    }


@pytest.mark.parametrize("model_type", streaming.chosen())
def test_a_streamed_fisher_is_the_resident_one_or_refused(rows, model_type):
    row = rows[model_type]
    if not row["built"]:
        pytest.skip(row["reason"])
    assert "failed" not in row, row["failed"]
    assert row["verdict"] in (streaming.BITS, streaming.ROUNDING, streaming.REFUSED), row["note"]


def test_most_of_them_give_the_same_bits(rows):
    assert Counter(row.get("verdict") for row in rows.values())[streaming.BITS] >= len(rows) / 2


def test_the_docs_say_what_was_found_and_that_at_least_60_give_the_same_bits(rows):
    page = table.PATH.read_text(encoding="utf-8")
    lines = table.streamed_lines(page)
    assert Counter(cells[1] for cells in lines.values())[streaming.BITS] >= 60
    if table.version_of(page) == transformers.__version__:
        found = {name: _stable(table.streamed_cells(row)) for name, row in rows.items() if row["built"]}
        said = {name: _stable(cells) for name, cells in lines.items() if name in found}
        assert said == found, "run `make census`"
        assert lines.keys() <= set(configs.model_types())


def _stable(cells):
    """What does not depend on where tensors happen to lie in memory, as the last bit of a product may."""
    return ["computed"] if cells[1] in (streaming.BITS, streaming.ROUNDING) else cells
