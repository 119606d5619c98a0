"""Texts with exchangeable words: placeholders that are filled, and two words that change places."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping

SLOTS = ("S1", "S2")
PRONOUNS = ("XPRO", "OBJ_PRO", "POS_PRO")
_SLOT = re.compile(r"(?<![A-Za-z0-9])(?:S1|S2|CX|XNAM|XPRO|OBJ_PRO|POS_PRO)(?![A-Z0-9])")
_OPENING = " \n\t\"'“‘«(["
_CLOSING = "\"'”’»)]"


def fill(text: str, words: Mapping[str, str]) -> str:
    """Replace the placeholders S1, S2, CX, XNAM, XPRO, OBJ_PRO and POS_PRO, all at once.

    A pronoun is capitalised exactly where a sentence begins; the other words stay as they are given.

    Args:
        text: e.g. `"XNAM reads that the CX holds S2."`.
        words: placeholder to word, for those that are there.
    """

    def put(match: re.Match[str]) -> str:
        word = words[match.group()]
        if match.group() not in PRONOUNS:
            return word
        return _capital(word) if _begins_sentence(match) else word[0].lower() + word[1:]

    return _SLOT.sub(put, text)


class Pair:
    """Two words of one text, such as two places, that can be exchanged.

    Each may have several words itself and may lie within the other (`"box"` and `"red box"`, `"cup"` and `"cups"`): at
    every place the longest one counts. Only whole words count; capitals at the start or throughout are kept.

    Args:
        first: what the placeholder S1 stands for.
        second: what S2 stands for.
    """

    def __init__(self, first: str, second: str) -> None:
        self._words = (first, second)
        self._forms: dict[str, tuple[int, Callable[[str], str]]] = {
            slot: (which, str) for which, slot in enumerate(SLOTS)
        }
        for which, word in enumerate(self._words):
            for form, manner in _forms(word):
                self._forms.setdefault(form, (which, manner))
        self._pattern = re.compile("|".join(map(_whole_word, sorted(self._forms, key=len, reverse=True))))

    def named(self, text: str) -> set[str]:
        """Those of the two words that the text names, as words or placeholders."""
        return {self._words[self._found(match)[0]] for match in self._pattern.finditer(text)}

    def reads_all(self, text: str) -> bool:
        """Whether `swapped` finds every mention of the words, those that differ in invisible characters too."""
        normalised = _plain_pair(*self._words)
        return len(self._pattern.findall(text)) == len(normalised._pattern.findall(_plain(text)))

    def other(self, word: str) -> str:
        """The one of the two words that `word` is not."""
        return self._words[1 - self._words.index(word)]

    def as_written(self, text: str) -> str:
        """The text with its placeholders filled."""
        return self._pattern.sub(lambda match: self._new(match, 0) if match[0] in SLOTS else match[0], text)

    def swapped(self, text: str) -> str:
        """The text with the first word wherever the second stood, and the other way round, both at once."""
        return self._pattern.sub(lambda match: self._new(match, 1), text)

    def _new(self, match: re.Match[str], exchange: int) -> str:
        which, manner = self._found(match)
        new = manner(self._words[which ^ exchange])
        return _capital(new) if match[0][0].isupper() and _begins_sentence(match) else new

    def _found(self, match: re.Match[str]) -> tuple[int, Callable[[str], str]]:
        return self._forms[" ".join(match[0].split())]


def _plain(text: str) -> str:
    """The text without what only looks different: compatibility forms, invisible characters, curved apostrophes."""
    kept = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return kept.replace("’", "'")


@functools.lru_cache(maxsize=64)
def _plain_pair(first: str, second: str) -> Pair:
    return Pair(_plain(first), _plain(second))


def _forms(word: str) -> Iterator[tuple[str, Callable[[str], str]]]:
    """How a word may be written in a text, and how another word is written in the same manner."""
    spaced = " ".join(word.split())
    yield spaced, str
    if spaced.isupper():
        return  # "IT" is not "it"
    yield _capital(spaced), _capital
    yield spaced.upper(), str.upper
    yield spaced.lower(), lambda new: new if new.isupper() else new.lower()


def _whole_word(word: str) -> str:
    """A pattern of the word that does not match within a longer one; scripts without spaces have no such bounds."""
    body = r"\s+".join(map(re.escape, word.split()))
    front, back = (r"\w" if _has_case(end) else "" for end in (word[0], word[-1]))
    return (rf"(?<!{front})" if front else "") + body + (rf"(?!{back})" if back else "")


def _has_case(character: str) -> bool:
    return character.isdigit() or character.lower() != character.upper()


def _capital(word: str) -> str:
    return word[0].upper() + word[1:]


def _begins_sentence(match: re.Match[str]) -> bool:
    before = match.string[: match.start()].rstrip(_OPENING).rstrip(_CLOSING).rstrip()
    return not before or before[-1] in ".!?…"
