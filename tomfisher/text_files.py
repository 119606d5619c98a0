"""Text, and reading it, JSON and YAML from files: what is no such thing is refused with file and line."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

DEEPEST = 100
DIGITS = 4300  # which Python converts to a whole number at most
_STRINGS_AND_BRACKETS = r'"(?:[^"\\]|\\.)*"|[\[\]{}]'
_TOKENS = re.compile(rf"({_STRINGS_AND_BRACKETS}|-?(?:NaN|Infinity)|-?\d[\d.eE+-]*)(\s*:)?", re.DOTALL)
_WITHOUT_NUMBERS = re.compile(rf"({_STRINGS_AND_BRACKETS})(\s*:)?", re.DOTALL)
_MARKS = {  # the longer ones first: that of UTF-32 begins with that of UTF-16
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_OLD_NUMBER = re.compile(r"[-+]?(?:0[0-9_]*[1-9_][0-9_]*$|[0-9_]+:)")  # octal and sexagesimal


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a UTF-8 file; a byte order mark is dropped, and every end of line becomes a line feed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder, is not UTF-8, or holds a NUL, which no text does.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, but a file is needed. Give the path of one file in it.")
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file. Check the path (relative to {Path.cwd()}).")
    data = path.read_bytes()
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            raise ValueError(f"{path}, line 1: the file is {encoding}, not UTF-8. Save the file as UTF-8.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = _line(data, error.start)
        raise ValueError(
            f"{path}, line {line}: byte {error.start} is not UTF-8 ({error.reason}). Save the file as UTF-8."
        ) from None
    if (at := data.find(b"\x00")) >= 0:
        line = _line(data, at)
        raise ValueError(
            f"{path}, line {line}: byte {at} is NUL, so this is not text. Save the file as UTF-8."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _line(data: bytes, at: int) -> int:
    return len(re.findall(rb"\r\n|\r|\n", data[:at])) + 1


def check_text(text: Any, what: str) -> None:
    """Refuse what is not text: no string, or one with half a surrogate pair, which no encoding can write.

    Args:
        text: a string.
        what: what the message calls it.

    Raises:
        TypeError: it is no string.
        ValueError: it holds a lone surrogate.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a string, got a value of type {type(text).__name__}.")
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} is not text: character {error.start} is {text[error.start]!a}, half of a surrogate pair, after "
            f"{text[max(0, error.start - 20) : error.start]!a}. Read the text with the encoding it was written in."
        ) from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read one JSON value as this package writes it: NaN and Infinity are numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as for `read_text`; or it is not JSON as `StrictDecoder` takes it, with file, line and reason.
    """
    try:
        return StrictDecoder(finite=False).decode(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from None


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read one YAML document of plain values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as for `read_text`; or it is no YAML, gives a key twice, or nests without end.
    """
    try:
        return yaml.load(read_text(path), _UniqueKeys)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(
            f"{path}{line}: no valid YAML ({error.problem}). Write one `key: value` per line."
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}. Write one `key: value` per line.") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deep. Write one `key: value` per line.") from None


class StrictDecoder(json.JSONDecoder):
    """JSON as it is meant: no key twice, no NaN or Infinity, no half of a surrogate pair, no nesting without end.

    Args:
        finite: refuse NaN, Infinity and numbers beyond float64.
    """

    def __init__(self, finite: bool = True) -> None:
        super().__init__()
        self._tokens = _TOKENS if finite else _WITHOUT_NUMBERS

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        """As `json.JSONDecoder.raw_decode`.

        Raises:
            json.JSONDecodeError: not JSON, or one of the things that are refused, with its position.
        """
        try:
            value, end = super().raw_decode(s, idx)
        except json.JSONDecodeError:
            raise
        except (RecursionError, ValueError):  # ValueError: Python converts no more than some thousand digits
            at, reason = _refused(s, idx, len(s), _TOKENS) or (idx, "nested too deep")
            raise json.JSONDecodeError(reason, s, at) from None
        if (found := _refused(s, idx, end, self._tokens)) is not None:
            raise json.JSONDecodeError(found[1], s, found[0])
        return value, end


def _refused(text: str, start: int, end: int, tokens: re.Pattern[str]) -> tuple[int, str] | None:
    """Position and name of the first thing that is refused in valid JSON, or in what nests too deep to be read."""
    opened: list[set[str]] = []  # the keys so far of every open object; nothing for an array
    for match in tokens.finditer(text, start, end):
        token, at, is_key = match[1], match.start(), match[2] is not None
        if token[0] == '"':
            string = token[1:-1]
            if "\\" in string:
                string = json.loads(token)
                if any("\ud800" <= character <= "\udfff" for character in string):
                    return at, f"{token[:40]} holds half of a surrogate pair"
            if is_key and string in opened[-1]:
                return at, f"the key {string[:40]!r} is given twice"
            if is_key:
                opened[-1].add(string)
        elif token in "[{":
            opened.append(set())
            if len(opened) > DEEPEST:
                return at, f"nested more than {DEEPEST} levels deep"
        elif token in "]}":
            opened.pop()
        elif len(token) > DIGITS and token.lstrip("-").isdigit():
            return at, f"a number of {len(token)} digits"
        elif not math.isfinite(float(token)):
            return at, f"{token[:40]} is not a finite number"
    return None


class _UniqueKeys(yaml.SafeLoader):
    """YAML of plain values in which a key stands once in its mapping, and every text can be written.

    Numbers are those of YAML 1.2: `0100` is 100 and `1:30` is a text, which YAML 1.1 reads as 64 and 90.
    """

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep)
        kind = node.tag.rpartition(":")[2]
        if kind in ("int", "float") and (old := _OLD_NUMBER.match(node.value)):
            return node.value if old[0].endswith(":") else int(node.value.replace("_", ""), 10)
        try:
            return super().construct_object(node, deep)
        except (
            ValueError,
            KeyError,
            AttributeError,
            OverflowError,
        ):  # as the loader's readers of values fail
            reason = f"{node.value[:40]!r} is not a value of the type {kind}"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from None

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # which the loader refuses itself
            if key in seen:
                reason = f"the key {str(key)[:40]!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, reason, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                reason = "half of a surrogate pair"
                raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from None
        return value
