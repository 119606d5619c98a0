"""What stands between a prompt and its answer."""

from __future__ import annotations

import unicodedata

from tomfisher.writing import gap_between

AUTO = "auto"
NAMED = {"space": " ", "none": "", "newline": "\n"}


def check_gap(gap: str) -> None:
    """Raise ValueError unless a gap is `"auto"`, a name of `NAMED`, or a text without letters and digits."""
    if gap != AUTO and gap not in NAMED and any(unicodedata.category(c)[0] in "LN" for c in gap):
        raise ValueError(
            f"gap must be {AUTO}, {', '.join(NAMED)} or a text without letters and digits, got {gap!r}. Words that "
            "stand before every answer belong to the prompt."
        )


def gap_text(gap: str, prompt: str, answer: str) -> str:
    """The text of a gap between two texts: `"auto"` is what `tomfisher.writing.gap_between` says."""
    return gap_between(prompt, answer) if gap == AUTO else NAMED.get(gap, gap)
