from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tomfisher.tasks.formats import read_published

PLOTS = {
    key: {
        "plot": f"Uma moved the hat of Vic {key}.",
        "plot_info": {
            **{"mover": "Uma", "observer": "Vic", "eoi": "hat"},
            **{"original_place": "bag", "move_to_place": "a shelf"},
        },
        "observed": seen,
        "narrative": f"Uma took hat {key} out of the bag and put it on a shelf. Vic {'saw' if seen else 'missed'} it.",
    }
    for key, seen in (("1", False), ("2", True))
}
WHO = "From {}'s perspective, "
LAST = "where is the hat located precisely by the end of the story?"
FINE = [
    (WHO.format("narrator") + "where is hat located by the end of the story?", "a shelf", "location-fo"),
    (WHO.format("narrator") + "where is hat located in the beginning of the story?", "bag", "location-fo"),
    (WHO.format("Uma") + LAST, "a shelf", "location-fo"),
    (WHO.format("Vic") + LAST, "bag", "location-fo"),
]
COARSE = [
    (WHO.format("Uma") + "does Vic think that the hat is in its initial location?", "Yes", "location-so")
]
FULL = [
    (WHO.format("Uma") + "how does bag's fullness change?", "less full", "multihop-fo"),
    (WHO.format("Vic") + "how does bag's fullness change?", "equally full", "multihop-fo"),
    (WHO.format("Vic") + "how would hat's accessibility change?", "equally accessible", "multihop-fo"),
]
FULL_SECOND = [
    (WHO.format("Uma") + "how does Vic think bag's fullness would change?", "equally full", "multihop-so")
]
ATTITUDE = [("As Vic, what is your attitude towards Uma's action?", "negative", "attitude")]


def questions(*asked: tuple[str, str, str]) -> list[dict[str, str]]:
    return [{"question": question, "answer": answer, "type": kind} for question, answer, kind in asked]


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_questions_and_conditions(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        meta_data=PLOTS,
        location_fg_fo={"1": questions(("an older version", "bag", "location-fo"))},
        location_fg_fo_new={"1": questions(*FINE)},
        location_cg_so={"1": questions(*COARSE)},
        multihop_fo={"1": questions(*FULL), "2": questions(FULL[1])},
        multihop_so={"1": questions(*FULL_SECOND)},
        attitude={"1": questions(*ATTITUDE)},
    )
    stories = read_published("opentom", folder)
    assert [(s.group, s.order, s.answer_text) for s in stories] == [
        ("opentom/reality", 0, "a shelf"),
        ("opentom/memory", 0, "bag"),
        ("opentom/true-belief", 1, "a shelf"),
        ("opentom/false-belief", 1, "bag"),
        ("opentom/coarse/second-order/false-belief", 2, "Yes"),
        ("opentom/fullness/true-belief", 1, "less full"),
        ("opentom/fullness/false-belief", 1, "equally full"),
        ("opentom/accessibility/false-belief", 1, "equally accessible"),
        ("opentom/fullness/true-belief", 1, "equally full"),
        ("opentom/second-order/fullness", 2, "equally full"),
        ("opentom/attitude", 1, "negative"),
    ]
    assert len({s.scene for s in stories}) == 2 and stories[0].story == PLOTS["1"]["narrative"]
    assert [set(s.choices) for s in stories[:4]] == [{"bag", "a shelf"}] * 4


def test_rows_that_hold_plot_and_question(tmp_path: Path) -> None:
    one = {**PLOTS["1"], "question": questions(*FINE)[3]}
    info = {**one["plot_info"], "eoi": "Vic's hat"}
    as_text = {**one, "plot_info": str(info)}
    (tmp_path / "rows.json").write_text(json.dumps([one, as_text]))
    stories = read_published("opentom", tmp_path / "rows.json")
    assert [story.condition for story in stories] == ["opentom/false-belief"] * 2


def test_what_is_missing_or_malformed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no meta_data\.json"):
        read_published("opentom", tmp_path)
    write(tmp_path, meta_data=PLOTS)
    with pytest.raises(FileNotFoundError, match="holds no questions"):
        read_published("opentom", tmp_path)
    for asked, reason in (
        ({"9": questions(*FINE)}, r"attitude\.json, record '9': meta_data\.json holds no such plot"),
        (
            {"1": questions(("Q?", "a", "b"))},
            r"attitude\.json, record '1': field 'type' is none of OpenToM's: 'b'",
        ),
        ({"1": [3]}, r"attitude\.json, record '1': field 'question' must be an object, got 3"),
        (
            {"1": questions((ATTITUDE[0][0], "so", "attitude"))},
            r"record '1': the right answer 'so' is none of",
        ),
    ):
        with pytest.raises(ValueError, match=reason):
            read_published("opentom", write(tmp_path, attitude=asked))


def test_published_sample(sample: Callable[[str], Path]) -> None:
    stories = read_published("opentom", sample("opentom"))
    assert Counter(s.group for s in stories) == {
        "opentom/reality": 40,
        "opentom/memory": 40,
        "opentom/true-belief": 63,
        "opentom/false-belief": 17,
        "opentom/coarse/true-belief": 63,
        "opentom/coarse/false-belief": 17,
        "opentom/coarse/second-order/true-belief": 38,
        "opentom/coarse/second-order/false-belief": 42,
        "opentom/fullness/true-belief": 126,
        "opentom/fullness/false-belief": 34,
        "opentom/accessibility/true-belief": 63,
        "opentom/accessibility/false-belief": 17,
        "opentom/attitude": 40,
    }
    asked = [json.loads(f.read_text()) for f in sample("opentom").glob("*.json") if f.stem != "meta_data"]
    assert len(stories) == sum(len(entries) for file in asked for entries in file.values()) == 600
    assert len({s.scene for s in stories}) == 40
