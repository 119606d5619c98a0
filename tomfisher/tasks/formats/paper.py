"""Story items in the file format of arXiv 2504.04238: what each field means, and how a cell is told.

The texts are the file's; the sentences that the format asks for beside them are our own (`paper_sentences`).

- contents items (`txt`, `txt_correctlabel`, `o1`, `o2`, `c`, `xnam`, `xpro`, `obj_pro`, `pos_pro`): the placeholders
  S1, S2 (inside, on the label), CX (container), XNAM, XPRO, OBJ_PRO, POS_PRO are filled. Neither text says what the
  protagonist does with the container; a sentence after it does: "false-belief" and "informed" are `txt`, and
  "correct-label" is `txt_correctlabel`, left unopened and with the label read; "open" is `txt`, opened. "informed" has
  a call besides, which names S1, tells to ignore the label S2, and is believed.
- transfer items (`txt`, `txt_notransfer`, `txt_informed`, `txt_present`, `o1`, `o2`, `q1`, `q2`): `txt_informed`
  follows `txt`, each other text is a whole story. `q1` asks where the thing is, `q2` where the protagonist will look.
  In `txt` the thing is in `o1` at the end and the protagonist left it in `o2`; in `txt_notransfer` it stays in `o2`.
  An item told the other way round says `"start": "o1"`. `txt_same` is not asked.
- irony items (`txt`, `txt_reverse`): the text ends in the question whether the speaker literally thinks so: No for the
  ironic `txt`, Yes for the literal `txt_reverse`; a field `q` replaces the stem after it.

`NUMBER` names an item. The swapped direction exchanges `o1` and `o2` in the whole item (`placeholders.Pair`).
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tomfisher.tasks import paper_sentences
from tomfisher.tasks.placeholders import Pair, fill
from tomfisher.tasks.records import Record
from tomfisher.tasks.story import COMPLETE_THE_STORY, Story
from tomfisher.writing import fold

DIRECTIONS = ("as-written", "swapped")
MARKS = {  # fields that no other kind of record has
    "contents": ("txt_correctlabel", "xnam"),
    "transfer": ("txt_notransfer", "txt_informed", "txt_present", "q1"),
    "irony": ("txt_reverse",),
}
PERSONS = {"CX": "c", "XNAM": "xnam", "XPRO": "xpro", "OBJ_PRO": "obj_pro", "POS_PRO": "pos_pro"}
TRANSFER_FIELDS = {
    "false-belief": "txt",
    "no-transfer": "txt_notransfer",
    "informed": "txt_informed",
    "present": "txt_present",
}
IRONY_FIELDS = {"ironic": ("txt", "No"), "literal": ("txt_reverse", "Yes")}
Asked = tuple[str, str]  # a stem and the word that completes it rightly


class UntoldItem(ValueError):
    """An item of which no condition can be told."""


def family_of(record: Record) -> str | None:
    """Tell which of the paper's three kinds a record is by its fields; None when it is none of them."""
    if not isinstance(record.value, dict):
        return None
    return next((family for family, marks in MARKS.items() if any(m in record.value for m in marks)), None)


def families_of(records: Sequence[Record]) -> list[str | None]:
    """`family_of` each; beside irony items, one that has `txt` and no question of another kind is one of them too."""
    families = [family_of(record) for record in records]
    if "irony" not in families:
        return families
    return [
        family or ("irony" if _has_only_text(r) else None)
        for family, r in zip(families, records, strict=True)
    ]


def _has_only_text(record: Record) -> bool:
    value = record.value
    return isinstance(value, dict) and "txt" in value and not {"prompt", "story", "choices"} & value.keys()


def stories_of(record: Record, family: str) -> list[Story]:
    """Make all stories of one item: every condition, both directions, both questions.

    A condition that cannot be told, for want of a field or of a word in its text, is left out with a `UserWarning`.

    Raises:
        UntoldItem: no condition at all can be told.
    """
    tell, conditions = {
        "contents": (_contents, ("false-belief", "correct-label", "informed", "open")),
        "transfer": (_transfer, tuple(TRANSFER_FIELDS)),
        "irony": (_irony, tuple(IRONY_FIELDS)),
    }[family]
    # one spelling of accents throughout, by which words are found (macOS writes another one)
    record = replace(record, value={key: _composed(value) for key, value in record.value.items()})
    number = _number(record)
    stories: list[Story] = []
    untold: dict[str, list[str]] = {}
    for condition in conditions:
        try:
            stories += list(tell(record, f"{family}/file/{number}", condition))
        except ValueError as error:
            untold.setdefault(str(error), []).append(f"{family}/{condition}")
    if not stories:
        raise UntoldItem(next(iter(untold)))
    for reason, left_out in untold.items():
        warnings.warn(f"{reason} Item {number} is read without {', '.join(left_out)}.", stacklevel=3)
    return stories


def _contents(record: Record, stem: str, condition: str) -> Iterator[Story]:
    words = _two_words(record)
    field = "txt_correctlabel" if condition == "correct-label" else "txt"
    text = record.text(field)
    if "S1" not in text:
        raise record.refuse(
            f"{field!r} has no placeholder S1 (the contents)", "Write S1 where they are named."
        )
    sentences = paper_sentences.around(record.text("c"))
    telling = f"{text} {sentences.told(condition)}"
    persons = {slot: record.text(field) for slot, field in PERSONS.items() if slot in telling}
    for direction in DIRECTIONS:
        inside, label = words if direction == "as-written" else words[::-1]
        put = partial(fill, words={**persons, "S1": inside, "S2": label})
        believed = label if condition == "false-belief" else inside
        belief, reality = (put(sentences.belief), believed), (put(sentences.reality), inside)
        yield from _cell(stem, condition, direction, put(telling), words, belief, reality)


def _transfer(record: Record, stem: str, condition: str) -> Iterator[Story]:
    words = _two_words(record)
    start = record.value.get("start", "o2")
    if start not in ("o1", "o2"):
        raise record.refuse(
            f"field 'start' must be 'o1' or 'o2', got {start!r}", "Name the first place of the thing."
        )
    pair = Pair(*words)
    left, final = (words[0], words[1]) if start == "o1" else (words[1], words[0])
    true = left if condition == "no-transfer" else final
    believed = left if condition in ("false-belief", "no-transfer") else final
    field = TRANSFER_FIELDS[condition]
    text = record.text(field)
    if condition == "informed" and not text.startswith(record.text("txt")):
        text = f"{record.text('txt')} {text}"
    for word in dict.fromkeys((true, believed)):
        if word not in pair.named(text):
            slot = "S1" if word == words[0] else "S2"
            raise record.refuse(
                f"{field!r} contains neither {word!r} nor {slot}", "Use the words of o1 and o2 in the text."
            )
    reality, belief = record.text("q1"), record.text("q2")
    for name, told in ((field, text), ("q1", reality), ("q2", belief)):
        if not pair.reads_all(told):
            raise record.refuse(
                f"{name!r} names a place in other letters than o1 and o2 (full-width or invisible characters, another "
                "apostrophe), so it cannot be exchanged",
                "Write it as in o1 and o2.",
            )
    for direction in DIRECTIONS:
        put = pair.as_written if direction == "as-written" else pair.swapped
        answers = [w if direction == "as-written" else pair.other(w) for w in (believed, true)]
        asked = ((put(belief), answers[0]), (put(reality), answers[1]))
        yield from _cell(stem, condition, direction, put(text), words, *asked)


def _irony(record: Record, stem: str, condition: str) -> Iterator[Story]:
    field, answer = IRONY_FIELDS[condition]
    text = record.text(field)
    asked = record.text("q") if "q" in record.value else paper_sentences.after_irony(text)
    choices = ("Yes", "No")
    identity = f"{stem}/{condition}/as-written/belief"
    yield Story(
        *(text, asked, choices, choices.index(answer), f"irony/{condition}", 1, identity, COMPLETE_THE_STORY)
    )


def _cell(
    stem: str,
    condition: str,
    direction: str,
    text: str,
    words: tuple[str, str],
    belief: Asked,
    reality: Asked,
) -> Iterator[Story]:
    """Yield the belief and the reality question about one telling."""
    family = stem.split("/", 1)[0]
    for kind, order, (question, answer) in (("belief", 1, belief), ("reality", 0, reality)):
        identity = f"{stem}/{condition}/{direction}/{kind}"
        yield Story(
            *(text, question, words, words.index(answer), f"{family}/{condition}", order, identity),
            template=COMPLETE_THE_STORY,
        )


def _composed(value: Any) -> Any:
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


def _number(record: Record) -> str:
    number = record.value.get("NUMBER")
    return str(record.number if number in (None, "") else number).replace("/", "-")


def _two_words(record: Record) -> tuple[str, str]:
    words = record.text("o1"), record.text("o2")
    if fold(words[0]) == fold(words[1]):
        raise record.refuse(f"o1 and o2 are both {words[0]!r}", "The two answers must differ.")
    return words
