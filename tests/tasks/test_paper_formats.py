"""Items in the paper's layout, written for this test."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tomfisher.tasks import load
from tomfisher.tasks.formats import read_stories
from tomfisher.tasks.story import Story

CONTENTS = {
    "NUMBER": 4,
    "txt": "A CX of S1 stands in the hall. It is closed, and its tag says S2. XNAM comes in. XPRO has never seen "
    'it; POS_PRO brother did not tell OBJ_PRO. "XPRO reads the tag," the brother says, and XPRO does.',
    "txt_correctlabel": "A CX of S1 stands in the hall. It is closed, and its tag says S1. XNAM reads the tag.",
    "o1": "ropes",
    "o2": "pans",
    "c": "hamper",
    "xnam": "Ingrid",
    "xpro": "she",
    "obj_pro": "her",
    "pos_pro": "her",
}
TRANSFER = {
    "NUMBER": 9,
    "txt": "Igor lays the pen in the vase and goes. Ada puts the pen in the urn. Igor did not see it.",
    "txt_notransfer": "Igor lays the pen in the vase and goes. Ada looks at it. Igor did not see it.",
    "txt_informed": "Igor lays the pen in the vase and goes. Ada puts it in the urn and tells Igor.",
    "txt_present": "Igor lays the pen in the vase. Ada puts it in the urn while Igor looks on.",
    "o1": "urn",
    "o2": "vase",
    "q1": "The pen is in the",
    "q2": "Igor will look for the pen in the",
}
IRONY = {
    "NUMBER": 1,
    "txt": "It pours. Ben says: lovely weather.",
    "txt_reverse": "Sun. Ben says: lovely weather.",
}


def stories(tmp_path: Path, *items: dict[str, Any]) -> dict[str, Story]:
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, items)))
    return {story.id: story for story in read_stories(path)}


def test_contents_conditions_and_answers(tmp_path: Path) -> None:
    made = stories(tmp_path, CONTENTS)
    assert len(made) == 4 * 2 * 2
    answers = {
        "false-belief": ("pans", "ropes"),
        "correct-label": ("ropes", "ropes"),
        "informed": ("ropes", "ropes"),
        "open": ("ropes", "ropes"),
    }
    other = {"ropes": "pans", "pans": "ropes"}
    for condition, (belief, reality) in answers.items():
        stem = f"contents/file/4/{condition}"
        assert made[f"{stem}/as-written/belief"].answer_text == belief
        assert made[f"{stem}/as-written/reality"].answer_text == reality
        assert made[f"{stem}/swapped/belief"].answer_text == other[belief]
        assert made[f"{stem}/swapped/reality"].answer_text == other[reality]


def test_contents_placeholders_are_filled(tmp_path: Path) -> None:
    made = stories(tmp_path, CONTENTS)
    written = made["contents/file/4/false-belief/as-written/belief"]
    assert written.story == (
        "A hamper of ropes stands in the hall. It is closed, and its tag says pans. Ingrid comes in. She has never "
        'seen it; her brother did not tell her. "She reads the tag," the brother says, and she does.'
    )
    assert written.prompt == (
        f"Complete the following story: {written.story} Ingrid believes that the hamper is full of"
    )
    swapped = made["contents/file/4/false-belief/swapped/reality"]
    assert swapped.story.startswith("A hamper of pans") and "says ropes" in swapped.story
    assert swapped.prompt.endswith("The hamper is full of")


def test_informed_and_open_are_the_false_belief_text_with_our_sentences(tmp_path: Path) -> None:
    made = stories(tmp_path, CONTENTS)
    wrong = made["contents/file/4/false-belief/as-written/belief"].story
    for condition in ("informed", "open"):
        text = made[f"contents/file/4/{condition}/as-written/belief"].story
        assert text.startswith(wrong) and "ropes" in text[len(wrong) :]


def test_transfer_conditions_and_answers(tmp_path: Path) -> None:
    made = stories(tmp_path, TRANSFER)
    assert len(made) == 16
    for condition, belief, reality in (
        ("false-belief", "vase", "urn"),
        ("no-transfer", "vase", "vase"),
        ("informed", "urn", "urn"),
        ("present", "urn", "urn"),
    ):
        cell = f"transfer/file/9/{condition}/as-written"
        assert made[f"{cell}/belief"].answer_text == belief
        assert made[f"{cell}/reality"].answer_text == reality
        assert made[f"{cell}/belief"].question == TRANSFER["q2"]
        assert made[f"{cell}/reality"].question == TRANSFER["q1"]


def test_transfer_is_swapped_as_whole_words(tmp_path: Path) -> None:
    item = {**TRANSFER, "txt": "Igor turns. He lays the pen in the vase. Ada puts it in the urn."}
    made = stories(tmp_path, item)
    swapped = made["transfer/file/9/false-belief/swapped/belief"]
    assert swapped.story == "Igor turns. He lays the pen in the urn. Ada puts it in the vase."
    assert swapped.answer_text == "urn"
    slots = {
        **TRANSFER,
        **{k: v.replace("vase", "S2").replace("urn", "S1") for k, v in TRANSFER.items() if k[:3] == "txt"},
    }
    assert stories(tmp_path, slots) == stories(tmp_path, TRANSFER)


def test_transfer_told_the_other_way_round(tmp_path: Path) -> None:
    made = stories(tmp_path, {**TRANSFER, "o1": "vase", "o2": "urn", "start": "o1"})
    assert made["transfer/file/9/false-belief/as-written/belief"].answer_text == "vase"
    assert made["transfer/file/9/false-belief/as-written/reality"].answer_text == "urn"


def test_irony(tmp_path: Path) -> None:
    made = stories(tmp_path, IRONY, {**IRONY, "NUMBER": 2, "txt": "Is Ben serious?", "q": "Say yes or no:"})
    ironic, literal = (made[f"irony/file/1/{c}/as-written/belief"] for c in ("ironic", "literal"))
    assert ironic.choices == ("Yes", "No")
    assert (ironic.answer_text, literal.answer_text) == ("Yes", "No")
    assert (ironic.condition, literal.condition) == ("irony/ironic", "irony/literal")
    assert made["irony/file/2/ironic/as-written/belief"].question == "Say yes or no:"


def test_three_lists_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    path.write_text(json.dumps({"s1": [CONTENTS], "s2": [TRANSFER], "s3": [IRONY]}, indent=2))
    made = read_stories(path)
    assert Counter(story.id.split("/")[0] for story in made) == {"contents": 16, "transfer": 16, "irony": 2}


def test_fisher_and_evaluation_halves_share_no_item(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(json.dumps({**CONTENTS, "NUMBER": number}) for number in range(6)))
    fisher, evaluation = load(path, split="fisher"), load(path)
    assert len(fisher) == 3 * 2 and {story.group for story in fisher} == {"contents/false-belief"}
    assert len(evaluation) == 3 * 16
    assert not {s.id.split("/")[2] for s in fisher} & {s.id.split("/")[2] for s in evaluation}


@pytest.mark.parametrize(
    ("item", "changes", "reason"),
    [
        (CONTENTS, {"xpro": None}, "field 'xpro' is missing"),
        (CONTENTS, {"o2": "ropes"}, "both 'ropes'"),
        (CONTENTS, {"txt": "Nothing here."}, "'txt' has no placeholder S1"),
        (TRANSFER, {"q2": " "}, "'q2' must be a non-empty text"),
        (TRANSFER, {"txt_present": "Igor stays."}, "'txt_present' contains neither 'urn' nor S1"),
        (TRANSFER, {"start": "vase"}, "'start' must be 'o1' or 'o2'"),
        (IRONY, {"txt_reverse": 3}, "'txt_reverse' must be a non-empty text"),
    ],
)
def test_malformed_items_are_refused_with_line_and_reason(
    tmp_path: Path, item: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError) as caught:
        stories(tmp_path, {**IRONY, "NUMBER": 77}, {**item, **changes})
    assert f"{tmp_path / 'items.jsonl'}, line 2" in str(caught.value) and reason in str(caught.value)


def test_n_keeps_cells_and_direction_pairs_whole(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(json.dumps({**CONTENTS, "NUMBER": number}) for number in range(6)))
    for seed in range(3):
        stories = load(path, n=16, split="all", seed=seed)
        assert set(Counter(story.condition for story in stories).values()) == {4}
        ids = {story.id for story in stories}
        assert {
            i.replace("as-written", "?").replace("swapped", "as-written").replace("?", "swapped") for i in ids
        } == ids
