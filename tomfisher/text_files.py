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
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]|-?(?:NaN|Infinity)|-?\d[\d.eE+-]*', re.DOTALL)
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
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
            f"{path}, line {line}: byte {at} is NUL, so this is no text. Save the file as UTF-8."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _line(data: bytes, at: int) -> int:
    return len(re.findall(rb"\r\n|\r|\n", data[:at])) + 1


def check_text(text: Any, what: str) -> None:
    """Refuse what is no text: no string, or one with half a surrogate pair, which no encoding can write.

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
            f"{what} is no text: character {error.start} is {text[error.start]!a}, half of a surrogate pair, after "
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
        numbers = {"parse_constant": _refuse, "parse_float": _finite} if finite else {}
        super().__init__(object_pairs_hook=_unique, parse_int=_whole, **numbers)  # type: ignore[arg-type]
        self._finite = finite

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        """As `json.JSONDecoder.raw_decode`.

        Raises:
            json.JSONDecodeError: not JSON, or one of the things that are refused, with its position.
        """
        try:
            value, end = super().raw_decode(s, idx)
        except (_Fault, RecursionError):
            raise self._error(s, idx) from None
        deep = s.count("[", idx, end) + s.count("{", idx, end) > DEEPEST and _depth(value) > DEEPEST
        if deep or (_HALF.search(s, idx, end) and self._first(s, idx) is not None):
            raise self._error(s, idx)
        return value, end

    def _error(self, text: str, start: int) -> json.JSONDecodeError:
        at, reason = self._first(text, start) or (start, "nested too deep")
        return json.JSONDecodeError(reason, text, at)

    def _first(self, text: str, start: int) -> tuple[int, str] | None:
        """Position and name of the first thing that is refused in the value that begins at `start`."""
        opened: list[set[str] | None] = []  # the keys so far of every open object; None for an array
        for match in _TOKEN.finditer(text, start):
            token, at = match.group(), match.start()
            if token in "[{":
                opened.append(set() if token == "{" else None)
                if len(opened) > DEEPEST:
                    return at, f"nested more than {DEEPEST} levels deep"
            elif token in "]}":
                opened.pop()
                if not opened:
                    return None
            elif token.startswith('"'):
                if (reason := _of_string(token, text, match.end(), opened)) is not None:
                    return at, reason
            elif token.lstrip("-").isdigit() and _too_long(token):
                return at, f"a number of {len(token)} digits"
            elif self._finite and not math.isfinite(float(token)):
                return at, f"{token[:40]} is no finite number"
        return None


class _Fault(Exception):
    """Something that Python's json takes, but that is refused here."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Fault
    return found


def _refuse(constant: str) -> float:
    raise _Fault


def _finite(token: str) -> float:
    value = float(token)
    if not math.isfinite(value):
        raise _Fault
    return value


def _whole(token: str) -> int:
    try:
        return int(token)
    except ValueError:  # Python converts no more than some thousand digits
        raise _Fault from None


def _too_long(token: str) -> bool:
    try:
        int(token)
    except ValueError:
        return True
    return False


def _depth(value: Any) -> int:
    """How deep lists and objects nest, up to `DEEPEST` + 1; without recursion."""
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        inner = [entry for entry in level if isinstance(entry, (list, dict))]
        depth += bool(inner)
        level = [x for entry in inner for x in (entry.values() if isinstance(entry, dict) else entry)]
    return depth


def _of_string(token: str, text: str, end: int, opened: list[set[str] | None]) -> str | None:
    """What is refused of a string: half of a surrogate pair, or a key that its object has already."""
    try:
        string = str(json.loads(token))
        string.encode()
    except UnicodeEncodeError:
        return f"{token[:40]} holds half of a surrogate pair"
    except json.JSONDecodeError:  # the parser says so itself
        return None
    keys = opened[-1] if opened else None
    if keys is None or not re.match(r"\s*:", text[end : end + 100]):
        return None
    if string in keys:
        return f"the key {string[:40]!r} is given twice"
    keys.add(string)
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
            reason = f"{node.value[:40]!r} is no value of the type {kind}"
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
