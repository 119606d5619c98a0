from __future__ import annotations

import json

import pytest

from tomfisher.report import load, write
from tomfisher.report.compare import comparison_sections, incomparable

pytestmark = pytest.mark.slow


def records(right, n=40):
    return [
        {
            "id": f"contents/{i}",
            "group": "contents/false-belief",
            "condition": "contents/false-belief",
            "cell": str(i),
            "kind": "belief",
            "correct": float(i < right),
            "predicted": "x",
            "logprobs": None,
            "margin": None,
            "outcomes": [float(i < right)],
        }
        for i in range(n)
    ]


def keep_records(folder, key, right):
    scores = {"method": "choice", "shared_prefix": False, "records": records(right)}
    (folder / "points").mkdir(exist_ok=True)
    (folder / "points" / f"{key}.json").write_text(json.dumps({"point": {}, "scores": scores}))


def table(sections, id, number=0):
    (section,) = [s for s in sections if s.id == id]
    return section.tables[number]


def test_runs_on_the_same_questions_are_compared_item_by_item(make_run, make_results):
    first = make_run("a")
    second = make_run("b", make_results(model="other"))
    for folder, right in ((first, 36), (second, 26)):
        keep_records(folder, "baseline", right)
    a, b = load(first), load(second)
    assert incomparable(a, b) == []
    sections = comparison_sections(a, b)
    assert [s.id for s in sections] == ["comparison-verdicts", "comparison-items"]
    paired = table(sections, "comparison-items")
    assert [row[0] for row in paired.rows] == ["untouched"] + [
        f"task minus control, κ = {kappa}" for kappa in ("1e-05", "0.0001", "0.001")
    ]
    assert paired.rows[0][4] == f"{2 / 2**10:.2g}"  # ten items lost, none gained
    assert [row[4] for row in paired.rows[1:]] == ["–"] * 3  # no records kept
    differing = table(sections, "comparison-items", 1)
    assert differing.rows == [["model", "tiny", "other"]]


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"task": "riddles"}, "different tasks (stories and riddles)"),
        ({"questions": "b" * 64}, "The questions themselves differ"),
        ({"questions": None}, "does not say which questions"),
    ],
)
def test_runs_on_other_questions_are_not_compared_and_the_reason_is_said(
    make_run, make_results, changes, reason
):
    folders = make_run("a"), make_run("b", make_results(**changes))
    text = write(folders[0], compare_with=folders[1]).read_text()
    assert reason in text and "cannot be compared with each other" in text
    assert "On the same questions" not in text
    assert text.count("<article") == 3 and text.count("<strong>An effect was found.</strong>") == 2


def test_another_way_to_answer_is_a_reason(make_run, make_results):
    other = make_results()
    other.provenance["config"]["method"] = "generate"
    reasons = incomparable(load(make_run("a")), load(make_run("b", other)))
    assert reasons == ["The setting method differs (choice and generate)."]


def test_figures_of_both_runs_are_written_into_their_own_folders(make_run, inside):
    folders = make_run("a", inside=inside), make_run("b")
    write(folders[0], compare_with=folders[1])
    assert len(list((folders[0] / "figures").glob("*.svg"))) == 12
    assert len(list((folders[1] / "figures").glob("*.svg"))) == 3
    assert not (folders[1] / "report.html").exists()
