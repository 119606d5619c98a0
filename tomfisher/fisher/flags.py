"""Yes or no about many tensors, for which the host waits once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def where(flags: Mapping[str, Tensor]) -> list[str]:
    """The names whose flag, a boolean tensor of one entry on any device, is true."""
    if not flags:
        return []
    device = next(iter(flags.values())).device
    true = torch.stack([flag.to(device) for flag in flags.values()]).tolist()
    return [name for name, flag in zip(flags, true, strict=True) if flag]
