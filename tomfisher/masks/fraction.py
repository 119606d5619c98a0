"""κ: the fraction of entries to select, and how many entries that is."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Context, Decimal
from fractions import Fraction


def checked_kappa(kappa: float, name: str = "kappa") -> float:
    """κ as a float strictly between 0 and 1.

    Args:
        kappa: fraction of entries, dimensionless.
        name: what a message calls it.

    Returns:
        The same number as a float.

    Raises:
        TypeError: κ is no number.
        ValueError: κ is not strictly between 0 and 1 (NaN included).
    """
    if isinstance(kappa, (bool, str)):
        raise TypeError(f"{name} must be a number, got {kappa!r}.")
    value = float(kappa)
    if not 0.0 < value < 1.0:
        raise ValueError(
            f"{name} must lie strictly between 0 and 1 (a fraction of the entries), got {kappa}. "
            "For no perturbation at all leave the mask out."
        )
    return value


def count(kappa: float, numel: int) -> int:
    """How many entries κ selects: k = floor(κ·numel), with κ read as the decimal that it prints as.

    The float 0.29 lies just below 29/100, and 0.29 * 100 is 28.999…; a user who writes 0.29 means 29 of 100.
    So the product is taken exactly, on the shortest decimal that names the float.

    Args:
        kappa: a checked κ.
        numel: number of entries to select from.

    Returns:
        k, at least 0 and below `numel` unless both are 0.
    """
    return math.floor(Fraction(repr(kappa)) * numel)


def smallest_kappa(numel: int, k: int = 1) -> float:
    """The smallest κ of three digits for which `count` gives at least k of `numel` > 0 entries."""
    return float(Context(prec=3, rounding=ROUND_CEILING).divide(Decimal(k), Decimal(numel)))
