"""Whether a study has enough questions to find anything: the smallest p that its test can give."""

from __future__ import annotations

import math

ALPHA = 0.05


def smallest_p(clusters: int, kappas: int) -> float:
    """The p of the best outcome after Holm's correction: every cluster changes in the same direction, at one κ.

    min(1, kappas · 2^(1 - clusters)), of the exact two-sided sign-flip test.

    Args:
        clusters: number of clusters that the questions form.
        kappas: number of κ that are tested.
    """
    return min(1.0, kappas * math.ldexp(1.0, 1 - clusters))


def too_few(clusters: int, kappas: int, noun: str = "kappa") -> str | None:
    """Why nothing can be found, and the way out; None where something can.

    Args:
        clusters: number of clusters that the headline questions form.
        kappas: number of κ, or of masks, that are tested.
        noun: which of the two: "kappa" or "mask".
    """
    best = smallest_p(clusters, kappas)
    if best < ALPHA:
        return None
    needed = next(n for n in range(clusters + 1, 1100) if smallest_p(n, kappas) < ALPHA)
    several, fewer = ("values of kappa", "--kappas") if noun == "kappa" else ("masks", "masks")
    tested = f" with {kappas} {several}" if kappas > 1 else ""
    return (
        f"not enough questions to find anything: even if every answer became wrong, p would be {best:.2g} after Holm"
        f"{tested}, and {ALPHA:g} is the limit. The questions form {_counted(clusters)}; at least "
        f"{needed} are needed (a larger --limit or task file"
        + (f", or fewer {fewer})." if kappas > 1 else ").")
    )


def _counted(clusters: int) -> str:
    return f"{clusters} cluster" if clusters == 1 else f"{clusters} clusters"
