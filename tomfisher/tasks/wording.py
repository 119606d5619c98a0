"""How a prompt is put to a model: what stands before the answer, special tokens, the tokenizer's chat template."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tomfisher.tasks.gap import AUTO, check_gap, gap_text
from tomfisher.tokens import check_bos, common_length, encode_text, split_continuation


@dataclass(frozen=True)
class Wording:
    """One way of putting questions, the same for evaluation, generation and Fisher samples.

    Nothing that the user wrote is stripped: the model reads prompt, gap and answer as they stand.

    Args:
        gap: what stands between prompt and answer. "auto" is a story's own gap, and without one what
            `tomfisher.writing.gap_between` says: one space, but nothing after white space or full-width
            punctuation and between letters of scripts without spaces. "space", "none" and "newline", or a text
            without letters and digits, stand before every answer and overrule the stories.
        bos: begin-of-sequence token in front: "auto" (as the tokenizer does for a text), "yes" or "no". A prompt that
            brings its own gets no second one.
        chat_template: the prompt becomes the user's turn in the tokenizer's chat template, up to where the model's
            turn begins. The answer follows where and as the template itself writes one: after its header, after a
            thinking block that it closes, with the spaces that it puts there. The template alone says which special
            tokens there are (as transformers applies it). `gap` and `bos` may say otherwise.
        system: the system's turn before it; None: what the template does without one.

    Raises:
        ValueError: an unknown gap or bos, or a system text without `chat_template`.
    """

    gap: str = AUTO
    bos: str = AUTO
    chat_template: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        check_gap(self.gap)
        check_bos(self.bos)
        if self.system is not None and not self.chat_template:
            raise ValueError(
                f"A system text ({self.system[:40]!r}) needs the chat template. Give chat_template=True "
                "(--chat_template) too, or write it into the prompts."
            )

    def prompt(self, tokenizer: Any, text: str) -> str:
        """The text that the model reads before the gap.

        Raises:
            ValueError: the tokenizer has no chat template, or its template refuses or loses the system's or the
                user's text.
        """
        return _in_template(tokenizer, text, self.system) if self.chat_template else text

    def join(self, prompt: str, answer: str, own: str = AUTO) -> str:
        """The gap between a prompt, as `prompt` gives it, and an answer; `own` is the story's."""
        if self.gap == AUTO and self.chat_template:
            return prompt.gap if isinstance(prompt, Turn) else ""
        return gap_text(own if self.gap == AUTO else self.gap, prompt, answer)

    def split(self, tokenizer: Any, prompt: str, answer: str, own: str = AUTO) -> tuple[list[int], list[int]]:
        """The ids of a prompt, as `prompt` gives it, and of gap and answer: see `split_continuation`."""
        return split_continuation(tokenizer, prompt, self.join(prompt, answer, own) + answer, self._bos)

    def branch(
        self, tokenizer: Any, prompt: str, answers: Sequence[str], own: str = AUTO
    ) -> tuple[list[int], list[list[int]]]:
        """The ids that a prompt has in common before all of these answers, and the ids that follow for each.

        Where an answer merges with the end of the prompt into one token, that end is not among the common ids, so
        that every answer follows on the same beginning.

        Raises:
            ValueError: an answer has no token of its own, or there is no common one before them.
        """
        parts = [self.split(tokenizer, prompt, answer, own) for answer in answers]
        first = parts[0][0]
        cut = min(common_length(first, before) for before, _ in parts)
        if cut == 0:
            raise ValueError(
                f"The prompt {prompt!r} has no token of its own before the answers. Give a longer prompt, or bos='yes'."
            )
        return first[:cut], [(before + after)[cut:] for before, after in parts]

    def encode(self, tokenizer: Any, text: str) -> list[int]:
        """The ids of a text that stands alone: a prompt, as `prompt` gives it, or a plain text."""
        return encode_text(tokenizer, text, self._bos)

    def to_dict(self) -> dict[str, Any]:
        """`{"gap", "bos", "chat_template", "system"}`, fit for JSON."""
        return asdict(self)

    @property
    def _bos(self) -> str:
        return "no" if self.chat_template and self.bos == AUTO else self.bos


class Turn(str):
    """A prompt in a chat template, and the spaces that the template puts between it and an answer."""

    gap: str = ""


def _in_template(tokenizer: Any, text: str, system: str | None) -> Turn:
    """The text as the user's turn, with the model's turn after it up to where the template writes its text."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"This tokenizer ({getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__}) has no chat "
            "template. Leave --chat_template (chat_template=True) out, or set tokenizer.chat_template."
        )
    if "strftime_now" in str(tokenizer.chat_template):
        warnings.warn(
            "The tokenizer's chat template writes today's date into every prompt: results of another day differ.",
            stacklevel=2,
        )
    turns = [] if system is None else [{"role": "system", "content": system}]
    turns.append({"role": "user", "content": text})
    shown = _render(tokenizer, turns, system is not None, add_generation_prompt=True)
    mark = _absent_from(shown)
    _check_taken(tokenizer, turns, shown, mark)
    return _until_answer(tokenizer, turns, shown, mark)


def _render(tokenizer: Any, turns: list[dict[str, str]], system: bool, **options: bool) -> str:
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
    except Exception as error:  # a template is a program: it may raise anything
        what = "a system's and a user's turn" if system else "a user's turn"
        raise ValueError(
            f"The tokenizer's chat template does not take {what}: {error}. "
            + ("Leave --system_prompt (system=) out." if system else "Write the prompts as plain text.")
        ) from error


def _absent_from(text: str) -> str:
    """A word that does not occur in a text."""
    mark = "Answer"
    while mark in text:
        mark += "s"
    return mark


def _check_taken(tokenizer: Any, turns: list[dict[str, str]], shown: str, mark: str) -> None:
    """Refuse a template that leaves a turn out, also where its text happens to stand elsewhere."""
    for i, turn in enumerate(turns):
        marked = [*turns[:i], {**turn, "content": f"{turn['content']} {mark}"}, *turns[i + 1 :]]
        seen = _render(tokenizer, marked, len(turns) > 1, add_generation_prompt=True)
        if turn["content"].strip() not in shown or mark not in seen:
            out = (
                "Leave --system_prompt (system=) out."
                if turn["role"] == "system"
                else "Write the prompts as plain text."
            )
            raise ValueError(
                f"The tokenizer's chat template leaves out the text of the {turn['role']}'s turn "
                f"({turn['content'][:40]!r}). {out}"
            )


def _until_answer(tokenizer: Any, turns: list[dict[str, str]], shown: str, mark: str) -> Turn:
    """What the template writes before an answer, which is not always what it writes to ask for one."""
    system = len(turns) > 1
    try:
        told = _render(tokenizer, [*turns, {"role": "assistant", "content": mark}], system)
    except ValueError as error:
        return _unseen(shown, f"does not take an answer ({error.__cause__})")
    asked = _render(tokenizer, turns, system)
    known = next((text for text in (shown, asked) if told.startswith(text)), None)
    end = -1 if known is None else told.find(mark, len(known))
    if known is None or end < 0:
        return _unseen(shown, "writes an answer otherwise than after the user's turn")
    before = told[:end]
    if not before.startswith(shown):
        warnings.warn(
            f"The chat template asks for an answer with {shown[len(asked) :]!r} but writes a given one after "
            f"{before[len(asked) :]!r}. Answers follow on the latter, outside of any thinking block.",
            stacklevel=2,
        )
    turn = Turn(before.rstrip(" "))
    turn.gap = before[len(turn) :]
    return turn


def _unseen(shown: str, why: str) -> Turn:
    warnings.warn(
        f"The chat template {why}, so what belongs between a prompt and its answer cannot be asked of it. Answers "
        f"follow directly on {shown[-30:]!r}; set the gap (--gap, gap=) where that is wrong.",
        stacklevel=2,
    )
    return Turn(shown)
