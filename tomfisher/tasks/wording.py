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
            `tomfisher.writing.gap_between` says: one space, but nothing behind white space or full-width punctuation
            and between letters of scripts without spaces. "space", "none" and "newline", or a text without letters
            and digits, stand before every answer and overrule the stories.
        bos: begin-of-sequence token in front: "auto" (as the tokenizer does for a text), "yes" or "no". A prompt that
            brings its own gets no second one.
        chat_template: the prompt becomes the user's turn in the tokenizer's chat template, up to where the model's
            turn begins. The answer follows there without a gap, and the template alone says which special tokens
            there are (as transformers applies it), unless `gap` and `bos` say otherwise.
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
            return ""
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


def _in_template(tokenizer: Any, text: str, system: str | None) -> str:
    """The text as the user's turn, with the beginning of the model's turn behind it."""
    from jinja2 import TemplateError

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
    try:
        shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError) as error:
        what = "a user's turn" if system is None else "a system's and a user's turn"
        raise ValueError(
            f"The tokenizer's chat template does not take {what}: {error}. "
            + (
                "Write the prompts as plain text."
                if system is None
                else "Leave --system_prompt (system=) out."
            )
        ) from error
    for role, content in (("system", system), ("user", text)):
        if content is not None and content.strip() not in shown:
            raise ValueError(
                f"The tokenizer's chat template leaves out the text of the {role}'s turn ({content[:40]!r}). "
                f"{'Leave --system_prompt (system=) out.' if role == 'system' else 'Write the prompts as plain text.'}"
            )
    return str(shown)
