from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).parents[2] / "examples" / "inside.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source_of(cell):
    """The code of a cell without the magic lines of IPython."""
    return "\n".join(line for line in "".join(cell["source"]).splitlines() if not line.startswith("%"))


def pictures(cell):
    return [
        output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})
    ]


def test_it_was_executed_from_top_to_bottom_without_an_error(notebook):
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds == {"stream", "execute_result"}
    assert all(output.get("name") != "stderr" for cell in cells for output in cell["outputs"])


def test_every_figure_is_stored_and_all_are_small(notebook):
    drawn = [cell for cell in code_cells(notebook) if "report.plot_" in source_of(cell)]
    assert len(drawn) == 6 and all(len(pictures(cell)) == 1 for cell in drawn)
    sizes = [len(base64.b64decode(picture)) for cell in drawn for picture in pictures(cell)]
    assert all(size > 3000 for size in sizes) and sum(sizes) <= 300_000


def test_nothing_of_the_machine_is_in_it(notebook):
    text = re.sub(r'"image/png": "[^"]+"', "", NOTEBOOK.read_text(encoding="utf-8"))
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users|usr|opt)\b", text)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert all(cell["metadata"] == {} for cell in notebook["cells"])


@pytest.mark.timeout(300)
def test_its_cells_run_and_find_what_the_text_says(notebook):
    names: dict = {}
    for cell in code_cells(notebook):
        exec(compile(source_of(cell), NOTEBOOK.name, "exec"), names)
    model, beliefs = names["model"], names["beliefs"]
    score, perturb = names["tomfisher"].evaluate.score, names["tomfisher"].perturb

    def accuracy():
        return score(model, names["tokenizer"], beliefs, progress=False).by_group()["all"].accuracy

    found = {"untouched": accuracy()}
    for name, mask in names["masks"].items():
        with perturb(model, mask):
            found[name] = accuracy()
    assert found["untouched"] == 1.0 and found["random"] == 1.0
    assert found["task-control"] < 0.8  # the effect that the notebook is about
    test = names["profile"].enrichment.at("model", "fast")
    assert all(row.fold > 2 and row.p_pairs < 0.01 for row in test)
