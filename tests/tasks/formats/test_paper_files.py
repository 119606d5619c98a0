"""Whole files in the paper's layout and of its size, written by a generator of this test."""

from __future__ import annotations

import json
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from tomfisher.tasks import load
from tomfisher.tasks.formats import read_stories, read_texts
from tomfisher.tasks.story import Story

CONTAINERS = ("hamper", "hard drive", "CDs", "tin can", "sack", "USB stick")
NAMES = ("Ola", "IVO", "Ann Lee", "Søren", "S. Ruiz")
PLACES = ("urn", "red urn", "TV", "attic", "cup", "cups", "Red Room", "glass jar")
BELIEVED = {  # the answer in each direction is the first (o1) or second (o2) of the item's words
    "contents": {"false-belief": (0, 1), "correct-label": (0, 0), "informed": (0, 0), "open": (0, 0)},
    "transfer": {"false-belief": (0, 1), "no-transfer": (1, 1), "informed": (0, 0), "present": (0, 0)},
}


def contents(number: int) -> dict[str, Any]:
    she = number % 2
    return {
        "NUMBER": number,
        "txt": "A CX full of S1 is by the door, not of S2. Still, its label says S2. XNAM finds the CX. XPRO has not "
        "seen it before, nobody told OBJ_PRO of it, and POS_PRO eyes cannot see what it holds.",
        "txt_correctlabel": "A CX full of S1 is by the door. Its label says S1. XNAM finds the CX; XPRO is new here.",
        "o1": f"thing{number}",
        "o2": f"other things {number}",
        "c": CONTAINERS[number % len(CONTAINERS)],
        "xnam": NAMES[number % len(NAMES)],
        "xpro": "she" if she else "he",
        "obj_pro": "her" if she else "him",
        "pos_pro": "her" if she else "his",
    }


def transfer(number: int) -> dict[str, Any]:
    final, first = PLACES[number % len(PLACES)], PLACES[(number + 1) % len(PLACES)]
    name = NAMES[number % len(NAMES)]
    begin = f"{name} leaves the key in the {first}. {first[0].upper()}{first[1:]} or not, {name} goes out."
    moved = f"Then a draught carries the key into the {final}."
    return {
        "NUMBER": number,
        "txt": f"{begin} {moved} {name} comes home.",
        "txt_notransfer": f"{begin} Nothing moves. {name} comes home. The {final} is empty.",
        "txt_informed": f"A neighbour calls: the key is in the {final}."
        if number % 3
        else f"A neighbour says that the {first} is empty and the {final} is not.",
        "txt_present": f"{begin} {name} turns around. {moved} {name} watches it.",
        "txt_same": f"{begin} Nobody knows.",
        "o1": final,
        "o2": first,
        "q1": "The key is in the",
        "q2": f"{name} looks for the key in the",
    }


def irony(number: int) -> dict[str, Any]:
    asked = "Does Kim literally think so?" if number % 2 else "Does Kim think so, literally? "
    return {
        "NUMBER": number,
        "txt": f"Rain falls for {number + 2} days. Kim says that this is weather for a picnic. {asked}",
        "txt_reverse": f"The sun shines for {number + 2} days. Kim says that this is weather for a picnic. {asked}",
    }


LISTS = {
    "s1": [contents(number) for number in range(1, 21)],
    "s2": [transfer(number) for number in range(1, 21)],
    "s3": [irony(number) for number in range(1, 13)],
}


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> list[Story]:
    path = tmp_path_factory.mktemp("paper") / "stories.json"
    path.write_text(json.dumps(LISTS, indent=2), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_stories(path)


def test_every_question_is_read(stories: list[Story]) -> None:
    counts = Counter(story.condition for story in stories)
    assert counts == {f"{family}/{c}": 80 for family, cells in BELIEVED.items() for c in cells} | {
        "irony/ironic": 12,
        "irony/literal": 12,
    }
    assert len({story.id for story in stories}) == len(stories) == 320 + 320 + 24


def test_the_lists_may_be_files_of_their_own(tmp_path: Path, stories: list[Story]) -> None:
    separate = []
    for name, items in LISTS.items():
        array, lines, named = (tmp_path / f"{name}{end}" for end in (".json", ".jsonl", "-named.json"))
        array.write_text(json.dumps(items))
        lines.write_text("\n".join(map(json.dumps, items)))
        named.write_text(json.dumps({name: items}))
        read = [read_stories(path) for path in (array, lines, named)]
        assert read[0] == read[1] == read[2]
        separate += read[0]
    assert separate == stories


def test_answers(stories: list[Story]) -> None:
    for story in stories:
        family, _, number, condition, direction, kind = story.id.split("/")
        if family == "irony":
            assert story.answer_text == {"ironic": "No", "literal": "Yes"}[condition]
            assert story.choices == ("Yes", "No")
            assert story.prompt.endswith("? The correct answer, Yes or No, is")
            continue
        item = {"contents": contents, "transfer": transfer}[family](int(number))
        words = (item["o1"], item["o2"]) if direction == "as-written" else (item["o2"], item["o1"])
        reality, belief = (words[which] for which in BELIEVED[family][condition])
        assert story.answer_text == (belief if kind == "belief" else reality), story.id
        assert set(story.choices) == {item["o1"], item["o2"]} and story.order == (kind == "belief")


def test_nothing_is_left_unfilled(stories: list[Story]) -> None:
    for story in stories:
        assert not any(slot in story.prompt for slot in ("S1", "S2", "CX", "XNAM", "PRO")), story.prompt


def test_cells_pair_the_two_questions_and_scenes_hold_an_item(stories: list[Story]) -> None:
    cells, scenes = defaultdict(list), defaultdict(list)
    for story in stories:
        cells[story.cell].append(story)
        scenes[story.scene].append(story)
    paired = [members for members in cells.values() if members[0].condition.split("/")[0] != "irony"]
    assert len(paired) == 20 * 4 * 2 * 2 and len(cells) == len(paired) + 24
    for members in paired:
        assert sorted(story.kind for story in members) == ["belief", "reality"]
        assert len({story.story for story in members}) == 1
    assert Counter(map(len, scenes.values())) == {16: 40, 2: 12}


def test_swapped_stories_exchange_the_two_words_and_nothing_else(stories: list[Story]) -> None:
    told = {story.id: story for story in stories if not story.id.startswith("irony")}
    for name, story in told.items():
        if "/as-written/" not in name:
            continue
        other = told[name.replace("/as-written/", "/swapped/")]
        first, second = story.choices
        marked = [
            text.replace(long, "@").replace(short, "@").replace(long.upper(), "@")
            for text in (story.prompt.lower(), other.prompt.lower())
            for long, short in [sorted((first.lower(), second.lower()), key=len, reverse=True)]
        ]
        assert marked[0] == marked[1] and story.prompt != other.prompt
        assert story.answer_text != other.answer_text


def test_transfer_stories_name_the_place_that_answers(stories: list[Story]) -> None:
    for story in stories:
        if story.condition.startswith("transfer/"):
            assert story.answer_text.lower() in story.story.lower(), story.id
        if story.condition == "transfer/informed" and story.id.endswith("/as-written/belief"):
            item = transfer(int(story.id.split("/")[2]))
            assert story.story == f"{item['txt']} {item['txt_informed']}"


def test_a_file_is_cut_into_halves_by_item(tmp_path: Path) -> None:
    path = tmp_path / "stories.json"
    path.write_text(json.dumps(LISTS))
    fisher, evaluation = load(path, split="fisher"), load(path)
    assert {story.condition for story in fisher} == {"contents/false-belief", "transfer/false-belief"}
    assert all(story.kind == "belief" for story in fisher)
    assert not {story.scene for story in fisher} & {story.scene for story in evaluation}


def test_fisher_texts(tmp_path: Path) -> None:
    texts = [f"Complete the following story: thing {number} is in the" for number in range(5)]
    array, lines = tmp_path / "a.json", tmp_path / "b.jsonl"
    array.write_text(json.dumps([{"txt": text} for text in texts]))
    lines.write_text("\n".join(json.dumps({"txt": text}) for text in texts))
    assert read_texts(array) == read_texts(lines) == texts
    with pytest.raises(ValueError, match=r"line 1.*text without a question.*--texts"):
        read_stories(lines)


@pytest.mark.parametrize("name", sorted(LISTS))
def test_story_items_are_no_fisher_texts(tmp_path: Path, name: str) -> None:
    path = tmp_path / "items.json"
    path.write_text(json.dumps(LISTS[name]))
    with pytest.raises(ValueError, match=r"line 1, record 1: an item of stories.*--task"):
        read_texts(path)
