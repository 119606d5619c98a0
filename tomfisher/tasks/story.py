"""One story with one question: the unit of a task."""

from __future__ import annotations

from dataclasses import dataclass

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

    The prompt is `template.format(story=story, question=question)`; the right completion is
    `" " + choices[answer]`.

    Args:
        story: the text that is told.
        question: a stem that the answer completes, e.g. `"Anna thinks that the bag is full of"`; may be empty.
        choices: at least two different completions, without surrounding spaces.
        answer: index of the right one.
        condition: what is varied, e.g. `"contents/false-belief"`.
        order: belief order: 0 asks for reality, 1 for a belief, 2 for a belief about a belief.
        id: unique name; stories whose ids differ only in their last `/` part form one cell, of which all
            questions must be answered rightly together. `<scene>/<condition>/<direction>/<question>`, with a
            direction of `DIRECTIONS`, also says which stories are told of one scene (see `scene_of`).
        template: how story and question become the prompt.

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

    def __post_init__(self) -> None:
        what = f"Story {self.id!r}"
        if not self.id or not self.condition:
            raise ValueError(f"{what}: id and condition must not be empty. Give both a name.")
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
            raise ValueError(f"{what}: choices must be two or more different texts, got {self.choices!r}.")
        if any(not choice or choice != choice.strip() for choice in self.choices):
            raise ValueError(
                f"{what}: choices must be non-empty and without surrounding spaces, got {self.choices!r}. "
                "Strip them; the one space before the answer is added for you."
            )
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

    @property
    def prompt(self) -> str:
        """Everything before the answer, without a trailing space."""
        return self.template.format(story=self.story, question=self.question).rstrip()

    @property
    def answer_text(self) -> str:
        """The right completion, without its leading space."""
        return self.choices[self.answer]

    @property
    def full_text(self) -> str:
        """Prompt, one space, answer."""
        return f"{self.prompt} {self.answer_text}"

    @property
    def kind(self) -> str:
        """What is asked: `"reality"` for order 0, else `"belief"`.

        In conditions `second-order/...` the belief is the belief about a belief; a question of order 1, about the
        belief of the other person, is a control of kind `"first-order"`.
        """
        if self.order == 1 and self.condition.startswith(f"{SECOND_ORDER}/"):
            return "first-order"
        return "belief" if self.order else "reality"

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
        """The row of a result table: the condition for beliefs, `<condition>/<kind>` for the other questions."""
        return self.condition if self.kind == "belief" else f"{self.condition}/{self.kind}"
