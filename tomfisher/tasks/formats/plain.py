"""Stories and texts from a user's files: the paper's formats, and any records of prompt, choices and answer."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

from tomfisher.tasks.formats import paper
from tomfisher.tasks.gap import AUTO
from tomfisher.tasks.records import JSON_SUFFIXES, Record, read_records, read_text_file
from tomfisher.tasks.story import Story

TEXT_FIELDS = ("txt", "text")
REMEDY = (
    'A record is {"prompt": "...", "choices": ["a", "b"], "answer": 0}; '
    '"story" and "question" may stand for "prompt".'
)


def read_stories(path: str | os.PathLike[str]) -> list[Story]:
    """Read every story of a JSON or JSON Lines file.

    Two kinds of records may be mixed. Items of the paper's format (see `tomfisher.tasks.formats.paper`), in a list,
    as JSON Lines or in lists `s1`, `s2`, `s3`. And plain records with the fields

    - `prompt`, or `story` with `question` (a stem that the answer completes);
    - `choices`: two or more texts; `answer`: the index of the right one (from 0), or its text;
    - optional `gap`, what stands between prompt and answer: "space", "none", "newline" or a text without letters and
      digits (default: one space where the writing has spaces, see `tomfisher.writing.gap_between`);
    - optional `condition` (default "task"), `order` (0 for a question about reality, default 1), `template` and `id`;
      ids that differ only in their last `/` part form a cell, whose questions must all be right. Questions on one
      scene are not counted as independent if their ids say so: `SCENE/CONDITION/as-written/QUESTION`, and "swapped"
      for the other direction (`tomfisher.tasks.story.scene_of`).

    The texts of plain records are taken as they are written, with the spaces and newlines around them.

    Args:
        path: the file.

    Returns:
        Stories with unique ids, in file order. An item of the paper's format of which nothing can be told is left out
        with a `UserWarning`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a plain record is malformed, no item at all can be told, or an id is used twice: with file, line
            and reason.
    """
    stem = Path(path).stem
    stories: list[Story] = []
    origin: dict[str, str] = {}
    records = read_records(path)
    families = paper.families_of(records)
    untold: list[ValueError] = []
    for position, (record, family) in enumerate(zip(records, families, strict=True), start=1):
        try:
            made = (
                paper.stories_of(record, family)
                if family
                else [_plain(record, f"{stem}/{position:05d}/question")]
            )
        except paper.UntoldItem as error:
            untold.append(error)
            continue
        for story in made:
            if story.id in origin:
                raise record.refuse(
                    f"id {story.id!r} was used before ({origin[story.id]})",
                    "Give every record its own id (or NUMBER).",
                )
            origin[story.id] = record.where
        stories.extend(made)
    if untold and not stories:
        raise untold[0]
    for reason in untold:
        warnings.warn(f"{reason} The item is left out.", stacklevel=2)
    return stories


def read_texts(path: str | os.PathLike[str]) -> list[str]:
    """Read texts for Fisher samples: one sample each.

    Args:
        path: a JSON or JSON Lines file of strings or of records with a field "txt" or "text"; any other file is plain
            text, whose paragraphs (separated by blank lines) are the texts.

    Returns:
        The texts in file order: those of records as they are written, paragraphs without the line ends around them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a record has no text: with file, line and reason.
    """
    if Path(path).suffix.lower() in JSON_SUFFIXES:
        return [text_of(record) for record in read_records(path)]
    return [part.strip("\n") for part in re.split(r"\n[ \t]*\n", read_text_file(path)) if part.strip()]


def text_of(record: Record, *columns: str) -> str:
    """Return the text of a record: the record itself, or its first field among `columns`, "txt" and "text"."""
    value = record.value
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        raise record.refuse(f"expected a text or an object, got {_kind(value)}", 'Write {"txt": "..."}.')
    if paper.family_of(record):
        raise record.refuse(
            "an item of stories, whose text has placeholders or no question", "Give the file as --task."
        )
    fields = (*columns, *TEXT_FIELDS)
    field = next((name for name in fields if name in value), None)
    if field is None:
        given = ", ".join(sorted(value)) or "none"
        wanted = " or ".join(repr(name) for name in dict.fromkeys(fields))
        raise record.refuse(f"there is no field {wanted} (fields given: {given})", 'Write {"txt": "..."}.')
    return Record(value, record.where, record.number).written(field)


def _plain(record: Record, default_id: str) -> Story:
    value = record.value
    if not isinstance(value, dict):
        raise record.refuse(f"expected an object, got {_kind(value)}", REMEDY)
    if "prompt" not in value and "story" not in value:
        given = ", ".join(sorted(value)) or "none"
        if any(field in value for field in TEXT_FIELDS):
            raise record.refuse(
                f"a text without a question (fields given: {given})",
                "Texts are Fisher samples: tomfisher fisher --texts FILE. " + REMEDY,
            )
        raise record.refuse(f"neither 'prompt' nor 'story' is given (fields given: {given})", REMEDY)
    story, question = (
        (record.written("prompt"), "")
        if "prompt" in value
        else (record.written("story"), record.written("question"))
    )
    choices = _choices(record)
    try:
        return Story(
            story=story,
            question=question,
            choices=choices,
            answer=_answer(record, choices),
            condition=record.text("condition") if "condition" in value else "task",
            order=_order(record),
            id=record.text("id") if isinstance(value.get("id"), str) else str(value.get("id", default_id)),
            template=_template(record, bool(question)),
            gap=_gap(record),
        )
    except ValueError as error:
        if str(error).startswith(record.where):
            raise
        raise record.refuse(str(error).rstrip("."), REMEDY) from None


def _choices(record: Record) -> tuple[str, ...]:
    choices = record.value.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise record.refuse(f"field 'choices' must be a list of texts, got {choices!r}", REMEDY)
    return tuple(choices)


def _answer(record: Record, choices: tuple[str, ...]) -> int:
    answer = record.value.get("answer")
    words = [choice.strip() for choice in choices]
    if isinstance(answer, str) and answer.strip() in words:
        return words.index(answer.strip())
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    raise record.refuse(
        f"field 'answer' must be an index from 0 to {len(choices) - 1} or one of {', '.join(map(repr, choices))}; "
        f"got {answer!r}",
        REMEDY,
    )


def _order(record: Record) -> int:
    order = record.value.get("order", 1)
    if not isinstance(order, int) or isinstance(order, bool) or order < 0:
        raise record.refuse(f"field 'order' must be 0, 1, 2, ..., got {order!r}", "Leave it out for 1.")
    return order


def _gap(record: Record) -> str:
    gap = record.value.get("gap", AUTO)
    if not isinstance(gap, str):
        raise record.refuse(f"field 'gap' must be a text, got {gap!r}", 'Write "none" or "" for nothing.')
    return gap


def _template(record: Record, with_question: bool) -> str:
    if "template" not in record.value:
        return "{story} {question}" if with_question else "{story}"
    template = record.written("template")
    try:
        template.format(story="", question="")
    except (KeyError, IndexError, ValueError) as error:
        raise record.refuse(
            f"field 'template' is no template for {{story}} and {{question}}: {error!r}",
            "Double every other brace.",
        ) from None
    return template


def _kind(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
