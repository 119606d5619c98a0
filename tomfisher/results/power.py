"""Whether a study has enough questions to find anything: the smallest p that its test can give."""

from __future__ import annotations

import math

ALPHA = 0.05


def smallest_p(scenes: int, kappas: int) -> float:
    """The p of the best outcome after Holm's correction: every scene changes in the same direction, at one κ.

    min(1, kappas · 2^(1 - scenes)), of the exact two-sided sign-flip test.

    Args:
        scenes: number of scenes that the questions are about.
        kappas: number of κ that are tested.
    """
    return min(1.0, kappas * math.ldexp(1.0, 1 - scenes))


def too_few(scenes: int, kappas: int) -> str | None:
    """Why nothing can be found, and the way out; None where something can.

    Args:
        scenes: number of scenes that the headline questions are about.
        kappas: number of κ that are tested.
    """
    best = smallest_p(scenes, kappas)
    if best < ALPHA:
        return None
    needed = next(n for n in range(scenes + 1, 1100) if smallest_p(n, kappas) < ALPHA)
    tested = f" with {kappas} values of kappa" if kappas > 1 else ""
    return (
        f"not enough questions to find anything: even if every answer became wrong, p would be {best:.2g} after Holm"
        f"{tested}, and {ALPHA:g} is the limit. The questions are about {_counted(scenes)}; ask about at least "
        f"{needed} (a larger --limit or task file" + (", or fewer --kappas)." if kappas > 1 else ").")
    )


def _counted(scenes: int) -> str:
    return f"{scenes} scene" if scenes == 1 else f"{scenes} scenes"
