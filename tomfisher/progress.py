"""One progress bar for the whole project."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any


def progress_bar(
    iterable: Iterable[Any] | None = None,
    total: int | None = None,
    desc: str = "",
    unit: str = "it",
    enabled: bool = True,
) -> Any:
    """A tqdm bar on standard error, silent where standard error is no terminal.

    Args:
        iterable: what to walk over; None for a bar that is moved with `.update(n)`.
        total: number of units when `iterable` has no length.
        desc: short label in front of the bar.
        unit: the word behind the count ("token", "prompt").
        enabled: False switches the bar off.

    Returns:
        A `tqdm.auto.tqdm`, usable as an iterable and as a context manager.
    """
    from tqdm.auto import tqdm

    disable = not (enabled and sys.stderr.isatty())
    return tqdm(iterable, total=total, desc=desc, unit=unit, disable=disable, dynamic_ncols=True)
