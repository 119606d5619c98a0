"""A setting of a study: a dataclass field that the command line and the YAML reader know how to read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any


def setting(
    default: Any,
    help: str,
    kind: str | None = None,
    choices: tuple[str, ...] | None = None,
    nullable: bool = False,
    bare: str | None = None,
) -> Any:
    """A dataclass field with what the command line and the YAML reader need to know about it.

    `kind` is "str", "int", "float", "bool", "floats", "words", "auto or int" or "word"; without it, the default's
    type. A word is a text for which YAML may read true or false, such as yes and no. A nullable setting may be none.
    `bare` is the value of a flag without one.
    """
    kind = kind or type(default).__name__
    optional = nullable or default is None
    metadata = {"help": help, "kind": kind, "choices": choices, "nullable": optional, "bare": bare}
    return dataclasses.field(default=default, metadata=metadata)


def coerce(field: dataclasses.Field[Any], value: Any) -> Any:
    """A value from the command line or YAML as the field's kind; YAML reads 1e-5 as a text, for one.

    Raises:
        ValueError: the value is none of that kind.
    """
    kind = field.metadata["kind"]
    if field.metadata["nullable"] and value in (None, "none"):
        return None
    try:
        return _READERS[kind](value)
    except (TypeError, ValueError):
        raise ValueError(f"{field.name} must be {_WORDS[kind]}, got {value!r}.") from None


def _read_int(value: Any) -> int:
    if isinstance(value, bool) or int(value) != float(value):
        raise ValueError
    return int(value)


def _read_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _read_str(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike, int, float)) or isinstance(value, bool):
        raise TypeError
    return str(value)


def _read_word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _read_str(value)


def _read_floats(value: Any) -> tuple[float, ...]:
    if isinstance(value, (int, float)):
        value = [value]
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(sorted({float(part) for part in parts if str(part).strip()}))


def _read_words(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(dict.fromkeys(str(part).strip() for part in parts if str(part).strip()))


_READERS: dict[str, Callable[[Any], Any]] = {
    "str": _read_str,
    "int": _read_int,
    "float": float,
    "bool": _read_bool,
    "floats": _read_floats,
    "word": _read_word,
    "words": _read_words,
    "auto or int": lambda value: "auto" if value == "auto" else _read_int(value),
}
_WORDS = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "floats": "numbers such as 1e-5,1e-4",
    "word": "a word",
    "words": "words, comma-separated",
    "auto or int": "'auto' or a whole number",
}
