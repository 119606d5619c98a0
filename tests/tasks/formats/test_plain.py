from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tomfisher.tasks.formats import read_stories, read_texts

GOOD = {"prompt": "Two and two is", "choices": ["four", "five"], "answer": "four"}


def lines(path: Path, *records: Any) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_stories(path)
    return str(caught.value)


def test_plain_records(tmp_path: Path) -> None:
    other = {
        "story": "It rains.",
        "question": "The street is",
        "choices": ["wet", "dry", "red"],
        "answer": 0,
        "condition": "weather",
        "order": 0,
        "id": "rain/1",
        "template": "{story} Therefore: {question}",
    }
    first, second = read_stories(lines(tmp_path / "q.jsonl", GOOD, "", other))
    assert first.prompt == "Two and two is" and first.answer_text == "four"
    assert (first.condition, first.order) == ("task", 1)
    assert second.prompt == "It rains. Therefore: The street is" and second.answer_text == "wet"
    assert (second.group, second.cell) == ("weather/reality", "rain")


@pytest.mark.parametrize("layout", ["jsonl", "array", "indented", "object", "jsonl named json"])
def test_layouts_give_the_same_stories(tmp_path: Path, layout: str) -> None:
    records = [{**GOOD, "id": f"q/{i}"} for i in range(3)]
    path = tmp_path / ("q.jsonl" if layout == "jsonl" else "q.json")
    text = {
        "array": json.dumps(records),
        "indented": json.dumps(records, indent=2),
        "object": json.dumps({"s1": records[:2], "s2": records[2:]}, indent=1),
    }.get(layout, "\n".join(map(json.dumps, records)))
    path.write_text("\ufeff" + text.replace("\n", "\r\n"), encoding="utf-8")
    assert [story.id for story in read_stories(path)] == ["q/0", "q/1", "q/2"]


def test_records_without_id_stand_alone(tmp_path: Path) -> None:
    stories = read_stories(lines(tmp_path / "q.jsonl", GOOD, GOOD))
    assert len({story.id for story in stories}) == len({story.cell for story in stories}) == 2


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"choices": ["a", "b"], "answer": 0}, "neither 'prompt' nor 'story'"),
        ({"story": "S.", "choices": ["a", "b"], "answer": 0}, "field 'question' is missing"),
        ({**GOOD, "prompt": ""}, "'prompt' must be a non-empty text"),
        ({**GOOD, "prompt": 5}, "'prompt' must be a non-empty text, got 5"),
        ({**GOOD, "choices": "four"}, "'choices' must be a list of texts"),
        ({**GOOD, "choices": ["four", 5]}, "'choices' must be a list of texts"),
        ({**GOOD, "choices": ["four", "four"]}, "two or more different"),
        ({**GOOD, "choices": ["four"], "answer": 0}, "two or more different"),
        ({**GOOD, "answer": 2}, "index from 0 to 1"),
        ({**GOOD, "answer": -1}, "index from 0 to 1 or one of 'four', 'five'; got -1"),
        ({**GOOD, "answer": True}, "index from 0 to 1"),
        ({**GOOD, "answer": "six"}, "got 'six'"),
        ({k: v for k, v in GOOD.items() if k != "answer"}, "got None"),
        ({**GOOD, "order": "first"}, "'order' must be"),
        ({**GOOD, "template": "{story} {x}"}, "'template' is no template"),
        ({**GOOD, "template": "{question}"}, "must contain {story}"),
        (["a", "b"], "expected an object, got list"),
        ("not json", "not valid JSON"),
        ('{"prompt": "a",', "not valid JSON"),
    ],
)
def test_a_malformed_record_is_refused_with_file_line_and_reason(
    tmp_path: Path, record: Any, reason: str
) -> None:
    path = lines(tmp_path / "mine.jsonl", GOOD, "", record, GOOD)
    message = refusal(path)
    assert message.startswith(f"{path}, line 3") and reason in message, message


def test_places_in_arrays_name_line_and_record(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([GOOD, {**GOOD, "answer": 9}], indent=1))
    line = path.read_text()[: path.read_text().index("9")].count("\n") + 1
    begin = line - 6
    assert refusal(path).startswith(f"{path}, line {begin}, record 2: field 'answer'")
    path.write_text(json.dumps({"s1": [GOOD], "s2": [{**GOOD, "id": "x"}, {"prompt": "P"}]}, indent=1))
    assert "record 2 of 's2'" in refusal(path)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('[\n{"a": 1},\n{"a": }\n]', 3, "record 2: not valid JSON"),
        ('[\n{"a": 1}\n{"a": 2}]', 3, "comma is missing"),
        ('[\n{"prompt": "p"},\n', 2, "not closed"),
        ('[{"a": 1}]\n[{"a": 2}]', 2, "after the list's closing bracket"),
        ('{\n"prompt": "p",\n"choices": [}', 3, "not valid JSON"),
    ],
)
def test_broken_json_is_located(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_stories(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}") and reason in message, message


def test_an_id_that_comes_twice_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "q.jsonl", {**GOOD, "id": "x"}, {**GOOD, "id": "x"})
    message = refusal(path)
    assert message.startswith(f"{path}, line 2") and "line 1" in message


@pytest.mark.parametrize(("data", "reason"), [(b"", "is empty"), (b" \n", "is empty"), (b"[]", "no records")])
def test_files_with_nothing_in_them(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "q.json"
    path.write_bytes(data)
    assert reason in refusal(path) and "q.json" in refusal(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        read_stories(tmp_path / "none.json")
    assert "is a folder" in refusal(tmp_path)
    bad = tmp_path / "latin.jsonl"
    bad.write_bytes(b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n')
    assert refusal(bad).startswith(f"{bad}, line 2: byte") and "UTF-8" in refusal(bad)


def test_texts_of_records_and_of_paragraphs(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", {"txt": " one "}, {"text": "two"}, '"three"')
    assert read_texts(path) == [" one ", "two", "three"]
    array = tmp_path / "t.json"
    array.write_text(json.dumps([{"txt": "one"}, "two"]))
    assert read_texts(array) == ["one", "two"]
    plain = tmp_path / "t.txt"
    plain.write_text("  one\nstill one \n \n\n\ntwo\n")
    assert read_texts(plain) == ["  one\nstill one ", "two"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"body": "x"}, "no field 'txt' or 'text' (fields given: body)"),
        ({"txt": ""}, "'txt' must be a non-empty text"),
        (7, "expected a text or an object, got int"),
    ],
)
def test_records_without_text_are_refused(tmp_path: Path, record: Any, reason: str) -> None:
    path = lines(tmp_path / "t.jsonl", {"txt": "fine"}, record)
    with pytest.raises(ValueError) as caught:
        read_texts(path)
    assert str(caught.value).startswith(f"{path}, line 2") and reason in str(caught.value)
