"""Which control masks a mask is compared with."""

from __future__ import annotations

from collections.abc import Collection

from tomfisher.masks import criteria
from tomfisher.results.row import CONTROL_ONLY, RANDOM
from tomfisher.results.rule import Rule


def has_controls(rule: Rule, masks: Collection[str | None]) -> bool:
    """Whether these kinds of control masks are all that a mask of the rule is compared with.

    Args:
        rule: of the mask.
        masks: kinds that were measured, such as "random".
    """
    needed = {RANDOM} if not criteria.get(rule.criterion).reads_texts else {CONTROL_ONLY, RANDOM}
    return needed <= set(masks)
