"""Sizes in bytes, and speeds, as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([kmgtp]?)(i?)b?(?:/s)?", re.IGNORECASE)


def bytes_of(text: str) -> int:
    """A size or speed such as "80GB", "16GiB", "2.5GB/s" or "1000000" in bytes.

    Raises:
        ValueError: it is none.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"must be a size such as 80GB, 16GiB or 2GB/s, got {text!r}.")
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** _UNITS[unit.lower()])
