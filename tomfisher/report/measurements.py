"""Measurements of the analysis as mappings and arrays, whether they come from a file or from memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def as_mapping(measured: Any) -> Mapping[str, Any]:
    """A measurement as a mapping.

    Args:
        measured: something with `to_dict` (`RopeSpectrum`, `AttentionSinks`, `MaskProfile`, `Analysis`), or what it
            gave.

    Returns:
        The mapping.

    Raises:
        TypeError: it is neither.
    """
    mapping = measured.to_dict() if hasattr(measured, "to_dict") else measured
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"A measurement of tomfisher.analysis or its to_dict() can be drawn, got {type(measured).__name__}."
        )
    return mapping


def numbers(values: Any) -> np.ndarray:
    """Nested lists as a float64 array; None becomes NaN."""
    return np.array(values, dtype=np.float64)


def grid(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Rows of unequal length as one float64 matrix, filled up with NaN."""
    width = max((len(row) for row in rows), default=0)
    matrix = np.full((len(rows), width), np.nan)
    for row, values in zip(matrix, rows, strict=True):
        row[: len(values)] = values
    return matrix
