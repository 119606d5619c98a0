"""Story items in the file format of arXiv 2504.04238: what each field means here, and how a cell is told.

The paper's code has no written format, so the meanings are fixed here:

- contents items (`txt`, `txt_correctlabel`, `o1`, `o2`, `c`, `xnam`, `xpro`, `obj_pro`, `pos_pro`): the placeholders
  S1, S2 (inside, on the label), CX (container), XNAM, XPRO, OBJ_PRO, POS_PRO are filled. "informed" and "open" are
  `txt` with two sentences of ours behind it.
- transfer items (`txt`, `txt_notransfer`, `txt_informed`, `txt_present`, `o1`, `o2`, `q1`, `q2`): `q1` asks where
  the thing is, `q2` where the protagonist will look. In `txt` the thing is in `o1` at the end and the protagonist
  left it in `o2`; in `txt_notransfer` it stays in `o2`. An item told the other way round says `"start": "o1"`.
- irony items (`txt`, `txt_reverse`): Yes for the ironic `txt`, No for the literal `txt_reverse`; a field `q` replaces
  the question.

The swapped direction exchanges `o1` and `o2` everywhere: as placeholders, or as whole words of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tomfisher.tasks.records import Record
from tomfisher.tasks.story import COMPLETE_THE_STORY, Story

TOLD = (
    "{name} calls a friend who has looked into the {container}. The friend says that it is full of {inside} and that "
    "there is no {label} in it, and {name} believes the friend."
)
OPENED = (
    "Then somebody opens the {container}, and {name} looks inside. {name} can clearly see that it is full of "
    "{inside}."
)
IRONY_QUESTION = "Is the last remark meant ironically? Answer:"
DIRECTIONS = ("as-written", "swapped")


def family_of(record: Record) -> str | None:
    """Tell which of the paper's three kinds a record is by its fields; None when it is none of them."""
    value = record.value
    if not isinstance(value, dict) or "txt" not in value:
        return None
    if "txt_correctlabel" in value:
        return "contents"
    if "txt_notransfer" in value:
        return "transfer"
    return "irony" if "txt_reverse" in value else None


def stories_of(record: Record, family: str) -> list[Story]:
    """Make all stories of one item: every condition, both directions, both questions.

    Raises:
        ValueError: a field is missing or empty, or neither word nor placeholder is in a text.
    """
    make = {"contents": _contents, "transfer": _transfer, "irony": _irony}[family]
    number = str(record.value.get("NUMBER", record.number)).replace("/", "-")
    return list(make(record, f"{family}/file/{number}"))


def _contents(record: Record, stem: str) -> Iterator[Story]:
    words = (record.text("o1"), record.text("o2"))
    _require_two(record, words)
    container, name = record.text("c"), record.text("xnam")
    persons = {
        "CX": container,
        "XNAM": name,
        "XPRO": record.text("xpro"),
        "OBJ_PRO": record.text("obj_pro"),
        "POS_PRO": record.text("pos_pro"),
    }
    for key in ("txt", "txt_correctlabel"):
        if not re.search(r"\bS1\b", record.text(key)):
            raise record.refuse(
                f"{key!r} has no placeholder S1 (the contents)", "Write S1 where they are named."
            )
    for direction in DIRECTIONS:
        inside, label = words if direction == "as-written" else words[::-1]
        fill = {**persons, "S1": inside, "S2": label}
        extra = {"name": name, "container": container, "inside": inside, "label": label}
        wrong = _fill(record.text("txt"), fill)
        tellings = {
            "false-belief": wrong,
            "correct-label": _fill(record.text("txt_correctlabel"), fill),
            "informed": f"{wrong} {TOLD.format(**extra)}",
            "open": f"{wrong} {OPENED.format(**extra)}",
        }
        for condition, text in tellings.items():
            believed = label if condition == "false-belief" else inside
            belief = (f"{name} believes that the {container} is full of", believed)
            reality = (f"The {container} is full of", inside)
            yield from _cell(stem, "contents", condition, direction, text, words, belief, reality)


def _transfer(record: Record, stem: str) -> Iterator[Story]:
    words = (record.text("o1"), record.text("o2"))
    _require_two(record, words)
    keys = {
        "false-belief": "txt",
        "no-transfer": "txt_notransfer",
        "informed": "txt_informed",
        "present": "txt_present",
    }
    start = record.value.get("start", "o2")
    if start not in ("o1", "o2"):
        raise record.refuse(
            f"field 'start' must be 'o1' or 'o2', got {start!r}", "Name the first place of the thing."
        )
    for key in keys.values():
        for slot, word in zip(("S1", "S2"), words, strict=True):
            if key in ("txt", "txt_informed", "txt_present") and not _names(record.text(key), slot, word):
                raise record.refuse(
                    f"{key!r} contains neither {word!r} nor {slot}", "Use the words of o1 and o2 in the text."
                )
    for direction in DIRECTIONS:
        places = words if direction == "as-written" else words[::-1]
        left, final = (places[0], places[1]) if start == "o1" else (places[1], places[0])
        for condition, key in keys.items():
            text, reality, belief = (
                _exchange(record.text(field), words, places) for field in (key, "q1", "q2")
            )
            true = left if condition == "no-transfer" else final
            believed = left if condition in ("false-belief", "no-transfer") else final
            yield from _cell(
                stem, "transfer", condition, direction, text, words, (belief, believed), (reality, true)
            )


def _irony(record: Record, stem: str) -> Iterator[Story]:
    for condition, key, answer in (("ironic", "txt", 0), ("literal", "txt_reverse", 1)):
        text = record.text(key)
        asked = (
            record.text("q") if "q" in record.value else ("Answer:" if text.endswith("?") else IRONY_QUESTION)
        )
        yield Story(
            text,
            asked,
            ("Yes", "No"),
            answer,
            f"irony/{condition}",
            1,
            f"{stem}/{condition}/as-written/belief",
            COMPLETE_THE_STORY,
        )


def _cell(
    stem: str,
    family: str,
    condition: str,
    direction: str,
    text: str,
    words: tuple[str, str],
    belief: tuple[str, str],
    reality: tuple[str, str],
) -> Iterator[Story]:
    """Yield the belief and the reality question about one telling, each given as (stem, answer)."""
    for kind, order, (question, answer) in (("belief", 1, belief), ("reality", 0, reality)):
        yield Story(
            text,
            question,
            words,
            words.index(answer),
            f"{family}/{condition}",
            order,
            f"{stem}/{condition}/{direction}/{kind}",
            COMPLETE_THE_STORY,
        )


def _require_two(record: Record, words: tuple[str, str]) -> None:
    if words[0] == words[1]:
        raise record.refuse(f"o1 and o2 are both {words[0]!r}", "The two answers must differ.")


def _fill(text: str, fill: dict[str, str]) -> str:
    """Replace placeholders; a pronoun is capitalised exactly where a sentence begins."""

    def put(match: re.Match[str]) -> str:
        key = match.group()
        word = fill[key]
        if key not in ("XPRO", "OBJ_PRO", "POS_PRO"):
            return word
        before = text[: match.start()].rstrip(" \n\t\"'“‘(")
        begins = not before or before[-1] in ".!?"
        return word[0].upper() + word[1:] if begins else word[0].lower() + word[1:]

    return re.sub(r"\b(?:S1|S2|CX|XNAM|XPRO|OBJ_PRO|POS_PRO)\b", put, text)


def _names(text: str, slot: str, word: str) -> bool:
    return re.search(rf"\b(?:{slot}|{re.escape(word)})\b", text) is not None


def _exchange(text: str, words: tuple[str, str], places: tuple[str, str]) -> str:
    """Put `places` where the text has S1 and S2 or, as whole words, the two `words`."""
    fill = {"S1": places[0], "S2": places[1], words[0]: places[0], words[1]: places[1]}
    longest_first = sorted(fill, key=len, reverse=True)
    return re.sub(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", lambda m: fill[m.group()], text)
