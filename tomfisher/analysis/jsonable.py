"""Results as plain values that JSON holds."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def jsonable(value: Any) -> Any:
    """Tensors become nested lists, and numbers that are not finite become None.

    Args:
        value: nested mappings and sequences of tensors, numbers, strings and None.

    Returns:
        The same nesting of dicts and lists.
    """
    if isinstance(value, Tensor):
        return jsonable(value.tolist())
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
