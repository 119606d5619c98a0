"""`masked_fill_mean_` by the C++ extension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tomfisher.ops.cpp.scatter import scatter_cpp
from tomfisher.ops.dispatch import register


@register("masked_fill_mean_", "cpp")
def masked_fill_mean_cpp(
    weights: Sequence[Tensor], indices: Sequence[Tensor], undo: Sequence[Tensor], sums: Tensor | None
) -> Tensor:
    """Fill each index with the mean of the other entries; the old values go to `undo`.

    A non-contiguous weight is filled as a copy, and the filled entries are then written back.

    Returns:
        int64 `[1]`: -1, or the position of the first weight without a finite mean: then nothing was written.
    """
    plain = [weight.contiguous() for weight in weights]
    positions = [index.contiguous() for index in indices]
    logs = [log.contiguous() for log in undo]
    known = None if sums is None else sums.contiguous()
    done = torch.tensor([-1])
    failed = torch.ops.tomfisher_cpp.masked_fill_mean_(plain, positions, logs, known, torch.get_num_threads())
    if failed >= 0:
        return torch.tensor([failed])
    try:
        _write_back(weights, plain, indices)
        for log, copy in zip(undo, logs, strict=True):
            if copy.data_ptr() != log.data_ptr():
                log.copy_(copy)
    except BaseException:
        scatter_cpp(weights, indices, logs)
        raise
    return done


def _write_back(weights: Sequence[Tensor], plain: Sequence[Tensor], indices: Sequence[Tensor]) -> None:
    copied = [i for i, weight in enumerate(weights) if not weight.is_contiguous()]
    if copied:
        filled = [plain[i].view(-1)[indices[i]] for i in copied]
        scatter_cpp([weights[i] for i in copied], [indices[i] for i in copied], filled)
