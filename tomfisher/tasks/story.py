"""One story with one question: the unit of a task."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tomfisher.tasks.gap import AUTO, check_gap, gap_text
from tomfisher.text_files import check_text

COMPLETE_THE_STORY = "Complete the following story: {story} {question}"
SECOND_ORDER = "second-order"
DIRECTIONS = ("as-written", "original", "swapped")


def scene_of(cell: str) -> str:
    """The scene of a cell: what its questions share with those of the other conditions and of the other direction.

    Args:
        cell: `Story.cell`. Of `<scene>/<condition>/<direction>`, where the direction is one of `DIRECTIONS`, it is
            the scene; any other cell is a scene of its own.
    """
    parts = cell.rsplit("/", 2)
    return parts[0] if len(parts) == 3 and parts[2] in DIRECTIONS else cell


@dataclass(frozen=True)
class Story:
    """A story, a cloze question about it and the words that may complete the question.

    The prompt is `template.format(story=story, question=question)`; the right completion is `choices[answer]`, with
    `gap` before it.

    Args:
        story: the text that is told.
        question: a stem that the answer completes, e.g. `"Anna thinks that the bag is full of"`; may be empty.
        choices: at least two different completions; spaces and newlines around them are part of them.
        answer: index of the right one.
        condition: what is varied, e.g. `"contents/false-belief"`.
        order: belief order: 0 asks for reality, 1 for a belief, 2 for a belief about a belief.
        id: unique name; stories whose ids differ only in their last `/` part form one cell, of which all
            questions must be answered rightly together. `<scene>/<condition>/<direction>/<question>`, with a
            direction of `DIRECTIONS`, also says which stories are told of one scene (see `scene_of`).
        template: how story and question become the prompt; without a question, the white space before it is left out.
        gap: what stands between prompt and answer: "space", "none", "newline" or a text without letters and digits;
            "auto" is one space where the writing has spaces (`tomfisher.writing.gap_between`).

    Raises:
        ValueError: a field breaks one of these rules.
    """

    story: str
    question: str
    choices: tuple[str, ...]
    answer: int
    condition: str
    order: int
    id: str
    template: str = "{story} {question}"
    gap: str = AUTO

    def __post_init__(self) -> None:
        what = f"Story {self.id!r}"
        for text in (self.story, self.question, *self.choices, self.condition, self.id, self.template):
            check_text(text, f"A field of story {self.id!a}")
        if not self.id or not self.condition:
            raise ValueError(f"{what}: id and condition must not be empty. Give both a name.")
        words = [choice.strip() for choice in self.choices]
        if len(words) < 2 or len(set(words)) < len(words):
            raise ValueError(
                f"{what}: choices must be two or more different texts, and differ in more than the white space around "
                f"them, got {self.choices!r}."
            )
        if not all(words):
            raise ValueError(f"{what}: choices must be non-empty, got {self.choices!r}.")
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(
                f"{what}: answer must be an index into the {len(self.choices)} choices (from 0), "
                f"got {self.answer}."
            )
        if self.order < 0:
            raise ValueError(f"{what}: order must be 0 (reality), 1, 2, ..., got {self.order}.")
        if not self.story.strip():
            raise ValueError(f"{what}: the story is empty. Give the text that comes before the answer.")
        if "{story}" not in self.template:
            raise ValueError(f"{what}: the template must contain {{story}}, got {self.template!r}.")
        try:
            check_gap(self.gap)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None

    @property
    def prompt(self) -> str:
        """Everything before the gap and the answer."""
        template = self.template if self.question else re.sub(r"\s*\{question\}", "{question}", self.template)
        return template.format(story=self.story, question=self.question)

    @property
    def answer_text(self) -> str:
        """The right completion, without the gap before it."""
        return self.choices[self.answer]

    @property
    def full_text(self) -> str:
        """Prompt, gap, answer."""
        return self.prompt + gap_text(self.gap, self.prompt, self.answer_text) + self.answer_text

    @property
    def kind(self) -> str:
        """What is asked: for order 0 `"reality"`, or `"memory"` in conditions `.../memory`; else `"belief"`.

        In conditions `second-order/...` the belief is the belief about a belief; a question of order 1, about the
        belief of the other person, is a control of kind `"first-order"`.
        """
        if self.order == 1 and self.condition.startswith(f"{SECOND_ORDER}/"):
            return "first-order"
        if self.order:
            return "belief"
        return "memory" if self.condition.endswith("/memory") else "reality"

    @property
    def cell(self) -> str:
        """The id without its last part: shared by the questions that are asked about one telling."""
        return self.id.rsplit("/", 1)[0]

    @property
    def scene(self) -> str:
        """What the stories of one scene share, in every condition and both directions: see `scene_of`."""
        return scene_of(self.cell)

    @property
    def group(self) -> str:
        """The row of a result table: the condition for beliefs, `<condition>/<kind>` for the other questions.

        A condition that is named after the kind, `.../reality` or `.../memory`, is the row itself.
        """
        named = self.kind == "belief" or self.condition.endswith(f"/{self.kind}")
        return self.condition if named else f"{self.condition}/{self.kind}"
