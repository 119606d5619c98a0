"""The name that a misspelt one probably means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name most like a word, letters of either case alike; None where none is as like as `cutoff`, of 1."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), names, n=1, cutoff=cutoff)
    return names[close[0]] if close else None


FEW = 16  # names that a message can list


def unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """The message about a name that is not known: with the one that is meant, and all that are known unless too many.

    Args:
        kind: of name, such as "task".
        word: what was given.
        known: what could have been.

    Returns:
        "Unknown task 'irnoy'. Did you mean 'irony'? Tasks: false-belief, irony."
    """
    names = list(known)
    close = nearest(word, names)
    hints = [f"Did you mean {close!r}?"] if close else []
    if not close or len(names) <= FEW:
        hints.append(f"{kind.capitalize()}s: {', '.join(names)}.")
    return f"Unknown {kind} {word!r}. {' '.join(hints)}"
