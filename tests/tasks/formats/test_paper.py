"""Items in the paper's layout, written for this test."""

from __future__ import annotations

import json
import unicodedata
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
    "txt_informed": "Then Ada tells him where the pen is: in the urn.",
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
    text = (
        "A hamper of ropes stands in the hall. It is closed, and its tag says pans. Ingrid comes in. She has never "
        'seen it; her brother did not tell her. "She reads the tag," the brother says, and she does.'
    )
    assert written.story == f"{text} Without opening the hamper or looking inside, Ingrid reads the label."
    assert written.prompt.startswith(
        f"Complete the following story: {written.story} On the phone, Ingrid tells"
    )
    assert written.prompt.endswith("the hamper, which Ingrid has only just found, is full of")
    swapped = made["contents/file/4/false-belief/swapped/reality"]
    assert swapped.story.startswith("A hamper of pans") and "says ropes" in swapped.story
    assert swapped.prompt.endswith("Ingrid sees that the hamper is full of")


def test_who_has_not_looked_is_said_to_have_not_and_who_opens_looks(tmp_path: Path) -> None:
    made = stories(tmp_path, CONTENTS)
    told = {c: made[f"contents/file/4/{c}/as-written/belief"].story for c in ("false-belief", "open")}
    for condition in ("correct-label", "informed"):
        told[condition] = made[f"contents/file/4/{condition}/as-written/belief"].story
    unseen = "Without opening the hamper or looking inside, Ingrid reads the label."
    assert [condition for condition in told if unseen in told[condition]] == [
        *("false-belief", "correct-label", "informed")
    ]
    assert told["open"].endswith("Before reading the label, Ingrid opens the hamper and looks inside.")
    call = told["informed"].removeprefix(told["false-belief"])
    assert "calls Ingrid" in call and "full of ropes" in call and "says pans, must be ignored" in call
    assert call.endswith("Ingrid believes the friend.")
    swapped = made["contents/file/4/informed/swapped/belief"].story
    assert "full of pans" in swapped and "says ropes, must be ignored" in swapped


@pytest.mark.parametrize(
    ("container", "opens", "unseen", "verb"),
    [
        ("hamper", "opens the hamper and looks inside", "opening the hamper", "is"),
        ("tins", "opens the tins and looks inside", "opening the tins", "are"),
        ("box of CDs", "opens the box of CDs and looks inside", "opening the box of CDs", "is"),
        ("glass", "opens the glass and looks inside", "opening the glass", "is"),
        ("hard drive", "connects to the hard drive", "connecting to the hard drive", "is"),
        ("USB stick", "connects to the USB stick", "connecting to the USB stick", "is"),
        ("CD", "plays the CD and listens to what", "playing the CD or listening", "is"),
        ("pile of CDs", "plays the pile of CDs and listens", "playing the pile of CDs", "is"),
        ("CDs", "plays the CDs and listens to what", "playing the CDs or listening", "are"),
    ],
)
def test_containers_are_opened_connected_to_or_listened_to(
    tmp_path: Path, container: str, opens: str, unseen: str, verb: str
) -> None:
    made = stories(tmp_path, {**CONTENTS, "c": container})
    assert opens in made["contents/file/4/open/as-written/belief"].story
    told = made["contents/file/4/false-belief/as-written/reality"]
    assert unseen in told.story and opens in told.question
    for kind in ("belief", "reality"):
        assert made[f"contents/file/4/open/swapped/{kind}"].prompt.endswith(f" {verb} full of")


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


@pytest.mark.parametrize(
    "addition", ["Ada tells Igor: the pen is in the urn.", "Ada tells Igor.", "Not in the vase!"]
)
def test_informed_is_the_story_and_its_addition(tmp_path: Path, addition: str) -> None:
    made = stories(tmp_path, {**TRANSFER, "txt_informed": addition})
    assert len(made) == 16
    informed = made["transfer/file/9/informed/as-written/belief"]
    assert informed.story == f"{TRANSFER['txt']} {addition}" and informed.answer_text == "urn"
    whole = stories(tmp_path, {**TRANSFER, "txt_informed": f"{TRANSFER['txt']} {addition}"})
    assert whole == made  # an item that repeats the story is not told it twice
    swapped = made["transfer/file/9/informed/swapped/belief"].story
    assert swapped.startswith("Igor lays the pen in the urn and goes. Ada puts the pen in the vase.")


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
    assert (ironic.answer_text, literal.answer_text) == ("No", "Yes")
    assert (ironic.condition, literal.condition) == ("irony/ironic", "irony/literal")
    assert made["irony/file/2/ironic/as-written/belief"].question == "Say yes or no:"


@pytest.mark.parametrize("end", ["?", '?"', "?)", "? ", "？"])
def test_irony_that_asks_itself_gets_no_second_question(tmp_path: Path, end: str) -> None:
    item = {**IRONY, "txt": f"It pours. Ben says: lovely. Does Ben literally think so{end}"}
    made = stories(tmp_path, item)
    asked = made["irony/file/1/ironic/as-written/belief"].question
    assert asked == "The correct answer, Yes or No, is"
    assert made["irony/file/1/literal/as-written/belief"].question == (
        f"Does the speaker literally think so? {asked}"
    )


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
        (CONTENTS, {"xnam": None}, "field 'xnam' is missing"),
        (CONTENTS, {"c": ""}, "'c' must be a non-empty text"),
        (CONTENTS, {"o2": "ropes"}, "both 'ropes'"),
        (CONTENTS, {"o2": "Ropes"}, "both 'ropes'"),
        (TRANSFER, {"q2": " "}, "'q2' must be a non-empty text"),
        (TRANSFER, {"o1": 3}, "'o1' must be a non-empty text"),
        (TRANSFER, {"start": "vase"}, "'start' must be 'o1' or 'o2'"),
        (IRONY, {"txt": None, "txt_reverse": 3}, "field 'txt' is missing"),
    ],
)
def test_items_of_which_nothing_can_be_told_are_refused_with_line_and_reason(
    tmp_path: Path, item: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError) as caught:
        stories(tmp_path, {**item, **changes})
    assert f"{tmp_path / 'items.jsonl'}, line 1" in str(caught.value) and reason in str(caught.value)
    with pytest.warns(UserWarning) as said:
        made = stories(tmp_path, {**item, **changes}, {**IRONY, "NUMBER": 77})
    assert [reason in str(w.message) and str(w.message).endswith("The item is left out.") for w in said] == [
        True
    ]
    assert set(made) == {f"irony/file/77/{name}/as-written/belief" for name in ("ironic", "literal")}


@pytest.mark.parametrize("lacking", ["txt", "txt_reverse"])
def test_an_irony_item_of_one_text_is_read_beside_others(tmp_path: Path, lacking: str) -> None:
    half = {key: value for key, value in IRONY.items() if key != lacking} | {"NUMBER": 2}
    for items in ((half, IRONY), (IRONY, half)):
        with pytest.warns(UserWarning, match=f"field '{lacking}' is missing .*Item 2 is read without irony/"):
            made = stories(tmp_path, *items)
        assert Counter(key.split("/")[2] for key in made) == {"1": 2, "2": 1}


FRENCH = {
    "NUMBER": 3,
    "txt": "Anna le met dans le panier. Tom le met dans le café.",
    "txt_notransfer": "Anna le met dans le panier.",
    "txt_informed": "Tom dit: il est dans le café.",
    "txt_present": "Du panier au café.",
    "o1": "café",
    "o2": "panier",
    "q1": "Il est dans le",
    "q2": "Anna cherche dans le",
}


@pytest.mark.parametrize("field", ["txt", "txt_informed", "txt_present", "o1", "all"])
def test_places_are_exchanged_however_their_accents_are_encoded(tmp_path: Path, field: str) -> None:
    decomposed = {
        key: unicodedata.normalize("NFD", value) if field in (key, "all") and key != "NUMBER" else value
        for key, value in FRENCH.items()
    }
    assert decomposed != FRENCH
    assert stories(tmp_path, decomposed) == stories(tmp_path, FRENCH)


@pytest.mark.parametrize(
    ("word", "place"),
    [("café", "ca\u00adfé"), ("café", "ｃａｆé"), ("Ann's café", "Ann’s café"), ("cafe", "ca\u200bfe")],
)
def test_a_place_that_cannot_be_exchanged_is_said(tmp_path: Path, word: str, place: str) -> None:
    item = {key: v.replace("café", word) if isinstance(v, str) else v for key, v in FRENCH.items()}
    informed = f"Tom dit: il est dans le {place}."
    with pytest.warns(UserWarning, match="in other letters .*read without transfer/informed"):
        made = stories(tmp_path, item | {"txt_informed": informed})
    assert len(made) == 12 and not any("/informed/" in key for key in made)


@pytest.mark.parametrize(
    ("item", "changes", "lost", "reason"),
    [
        (CONTENTS, {"txt": "Nothing here."}, ("false-belief", "informed", "open"), "no placeholder S1"),
        (CONTENTS, {"txt_correctlabel": None}, ("correct-label",), "'txt_correctlabel' is missing"),
        (CONTENTS, {"pos_pro": None}, ("false-belief", "informed", "open"), "'pos_pro' is missing"),
        (
            TRANSFER,
            {"txt_present": "Igor stays."},
            ("present",),
            "'txt_present' contains neither 'urn' nor S1",
        ),
        (TRANSFER, {"txt_notransfer": "In the urn."}, ("no-transfer",), "neither 'vase' nor S2"),
        (
            TRANSFER,
            {"txt_informed": ["no", "text"]},
            ("informed",),
            "'txt_informed' must be a non-empty text",
        ),
        (TRANSFER, {"txt": "In the urn."}, ("false-belief",), "'txt' contains neither 'vase' nor S2"),
        (TRANSFER, {"txt": None}, ("false-belief", "informed"), "'txt' is missing"),
        (IRONY, {"txt_reverse": 3}, ("literal",), "'txt_reverse' must be a non-empty text"),
    ],
)
def test_a_condition_that_cannot_be_told_is_left_out_and_said(
    tmp_path: Path, item: dict[str, Any], changes: dict[str, Any], lost: tuple[str, ...], reason: str
) -> None:
    whole = stories(tmp_path, IRONY, item | {"NUMBER": 31})
    with pytest.warns(UserWarning) as caught:
        made = stories(tmp_path, IRONY, item | changes | {"NUMBER": 31})
    (warning,) = caught
    said = str(warning.message)
    family = next(key for key in whole if "/31/" in key).split("/")[0]
    assert f"{tmp_path / 'items.jsonl'}, line 2" in said and reason in said and "\n" not in said
    assert said.endswith(f"Item 31 is read without {', '.join(f'{family}/{name}' for name in lost)}.")
    without = {key for key in whole if not any(f"/31/{name}/" in key for name in lost)}
    assert set(made) == without


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
