"""How text is written: which scripts put spaces between words, where a word ends, when two words are the same."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable

# How the Unicode names of letters begin in scripts that are written without spaces between words.
SPACELESS = (
    *("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "CJK RADICAL", "KANGXI", "IDEOGRAPHIC", "BOPOMOFO"),
    *("HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "HENTAIGANA", "YI SYLLABLE", "TANGUT", "NUSHU"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI ", "NEW TAI", "JAVANESE", "BALINESE"),
)
IDEOGRAPHIC_PLANES = range(0x20000, 0x40000)  # nothing but Han, of which an older Python does not know all
TSHEG = "\u0f0b\u0f0c"  # stands between the syllables of a Tibetan word
VARIATION_SELECTORS = (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
LETTER, MARK, NUMBER, PUNCTUATION = "L", "M", "N", "P"


@functools.lru_cache(maxsize=4096)
def is_spaceless(character: str) -> bool:
    """Whether this is a letter of a script that puts no spaces between words (Han, kana, Thai, Lao, Khmer, ...)."""
    if _kind(character) not in (LETTER, MARK):
        return False
    if ord(character) in IDEOGRAPHIC_PLANES:
        return True
    return unicodedata.name(character, "").startswith(SPACELESS)


def gap_between(before: str, after: str) -> str:
    """What joins two texts as a writer would join them: one space, or nothing.

    It is nothing

    - where `before` ends or `after` begins with white space, or one of them is empty;
    - where the character of one of them next to the seam is full-width punctuation, which brings its own space;
    - where `before` ends with an opening bracket or quotation mark (Unicode's Ps and Pi);
    - where the letters of both that are nearest to the seam belong to scripts that put no spaces between words (digits
      and punctuation before them are passed over; where one text has no letter, the other decides).

    Everywhere else it is one space.

    Args:
        before: such as a prompt.
        after: such as its answer.

    Returns:
        `""` or `" "`.
    """
    if not before or not after:
        return ""
    if before[-1].isspace() or after[0].isspace():
        return ""
    if _is_wide_punctuation(before[-1]) or _is_wide_punctuation(after[0]):
        return ""
    if unicodedata.category(before[-1]) in ("Ps", "Pi"):
        return ""
    letters = [_first_letter(reversed(before)), _first_letter(after)]
    known = [letter for letter in letters if letter]
    return "" if known and all(map(is_spaceless, known)) else " "


def first_word(text: str) -> str:
    """The first word of a text in lower case, without punctuation around it; `""` where there is none.

    Words end at white space, at full-width punctuation, and in scripts without spaces at any punctuation; what is a
    letter, a mark or punctuation is what Unicode says. Where such a script gives no sign, its "word" goes on to the
    next punctuation: see `begins_with`.
    """
    words = text.split()
    if not words:
        return ""
    word = words[0].strip("".join(c for c in set(words[0]) if _surrounds(c)))
    spaceless = bool(word) and is_spaceless(word[0])
    end = next((i for i, c in enumerate(word) if _ends_word(c, spaceless)), len(word))
    return word[:end].lower()


def join_spaceless(text: str) -> str:
    """The text without the spaces between letters of scripts that have none, which some tokenizers put there."""
    return "".join(
        c
        for i, c in enumerate(text)
        if c != " " or not (0 < i < len(text) - 1 and is_spaceless(text[i - 1]) and is_spaceless(text[i + 1]))
    )


def fold(word: str) -> str:
    """A form that is equal for words which differ only in case, compatibility forms or invisible characters.

    NFKC and full case folding; format characters (joiners, marks of direction) and variation selectors are left out.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", word).casefold())
    kept = (c for c in folded if unicodedata.category(c) != "Cf" and ord(c) not in VARIATION_SELECTORS)
    return unicodedata.normalize("NFC", "".join(kept))


def begins_with(written: str, word: str) -> bool:
    """Whether a first word as it was written is this word.

    Both must be equal (`fold`); but next to a letter of a script without spaces nothing shows where a word ends, so
    there it is enough that `written` begins with `word` and no mark follows that would change its last letter.

    Args:
        written: `first_word` of a text.
        word: `first_word` of what it may be; empty, it is never.
    """
    folded, wanted = fold(written), fold(word)
    if not wanted or folded == wanted:
        return bool(wanted)
    seam = folded[len(wanted) - 1 : len(wanted) + 1]
    return folded.startswith(wanted) and _kind(seam[1]) != MARK and any(map(is_spaceless, seam))


def _kind(character: str) -> str:
    return unicodedata.category(character)[0]


def _first_letter(characters: Iterable[str]) -> str:
    """The first letter among some characters; `""` where there is none."""
    return next((c for c in characters if _kind(c) == LETTER), "")


def _is_wide_punctuation(character: str) -> bool:
    return _kind(character) == PUNCTUATION and unicodedata.east_asian_width(character) in "WF"


def _surrounds(character: str) -> bool:
    """Whether it may stand around a word without being part of it."""
    category = unicodedata.category(character)
    ascii_symbol = character.isascii() and category[0] == "S"
    return category[0] == PUNCTUATION or category in ("Cc", "Cf") or ascii_symbol


def _ends_word(character: str, spaceless: bool) -> bool:
    if _is_wide_punctuation(character):
        return True
    return spaceless and _kind(character) not in (LETTER, MARK, NUMBER, "C") and character not in TSHEG
