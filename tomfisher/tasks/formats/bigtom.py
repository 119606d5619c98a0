"""BigToM (Gandhi et al., 2023): a belief, an event that makes it false, and whether the person notices.

A row of the CSV (`;` between cells, no header) is one scene; its story has five sentences, of which the fourth says
what is believed and the last tells the event. Of each row there are ten questions, which are the authors' conditions
with the initial belief told:

- forward belief and forward action: the story, and that the person notices the event (true belief) or not (false
  belief); in the controls another event takes the place of the last sentence, so that nothing is to be noticed;
- backward belief: the story, and what the person then does, which shows the belief.

The questions about desires are not asked: their two answers are often the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from tomfisher.tasks.formats.base import Asked, Format
from tomfisher.tasks.formats.rows import read_cells
from tomfisher.tasks.records import Record
from tomfisher.tasks.story import Story

NAME = "bigtom"
COLUMNS = (  # of the published file
    *("story", "aware", "unaware", "action aware", "action unaware"),
    *("belief question", "desire question", "action question"),
    *("belief answer aware", "desire answer aware", "action answer aware"),
    *("belief answer unaware", "desire answer unaware", "action answer unaware"),
    *("control event", "aware of control event", "unaware of control event", "source", "index"),
)
SENTENCES = 5
_SENTENCE = re.compile(r"[^.]+\.")


def records(path: str | os.PathLike[str]) -> list[Record]:
    """Read the rows as mappings from `COLUMNS`."""
    rows = read_cells(path, ";", (len(COLUMNS),))
    return [Record(dict(zip(COLUMNS, row.value, strict=True)), row.where, row.number) for row in rows]


def stories(records: Sequence[Record], part: str) -> list[Story]:
    """Make the ten questions of each row.

    Raises:
        ValueError: a story has not five sentences, or the two answers to a question are the same.
    """
    asked = Asked(NAME, part)
    for record in records:
        row = record.value
        story = row["story"]
        sentences = _SENTENCE.findall(story)
        if len(sentences) != SENTENCES:
            raise record.refuse(
                f"a story has {SENTENCES} sentences, the last of which tells the event, got {len(sentences)}",
                "Mend the story.",
            )
        calm = f"{''.join(sentences[:-1])} {row['control event']}"
        tellings = {
            "true-belief": (f"{story} {row['aware']}", "aware"),
            "false-belief": (f"{story} {row['unaware']}", "unaware"),
            "true-control": (f"{calm} {row['aware of control event']}", "unaware"),
            "false-control": (f"{calm} {row['unaware of control event']}", "unaware"),
        }
        done = {
            "true-belief": (f"{story} {row['action aware']}", "aware"),
            "false-belief": (f"{story} {row['action unaware']}", "unaware"),
        }
        for what, topic, told in (
            ("forward-belief", "belief", tellings),
            ("forward-action", "action", tellings),
            ("backward-belief", "belief", done),
        ):
            choices = [row[f"{topic} answer aware"], row[f"{topic} answer unaware"]]
            for condition, (text, right) in told.items():
                answer = row[f"{topic} answer {right}"]
                condition = f"{NAME}/{what}/{condition}"
                asked.add(record, text, row[f"{topic} question"], choices, answer, condition, 1, scene=story)
    return asked.stories


FORMAT = Format(
    title="an event that a person notices or not: beliefs, actions, beliefs shown by actions; controls",
    source="github.com/cicl-stanford/procedural-evals-tom",
    licence="MIT",
    needs="data/bigtom/bigtom.csv",
    records=records,
    stories=stories,
)
