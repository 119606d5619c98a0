"""`square_accumulate_` by the C++ extension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import tomfisher._C  # noqa: F401  (registers torch.ops.tomfisher_cpp)
from tomfisher.ops.dispatch import register


@register("square_accumulate_", "cpp")
def square_accumulate_cpp(F_list: Sequence[Tensor], grad_list: Sequence[Tensor]) -> None:
    """`F += g.float() ** 2`, all pairs at once; what is not contiguous goes through a copy."""
    plain = [F.contiguous() for F in F_list]
    torch.ops.tomfisher_cpp.square_accumulate_(
        plain, [gradient.contiguous() for gradient in grad_list], torch.get_num_threads()
    )
    for F, copy in zip(F_list, plain, strict=True):
        if copy is not F:
            F.copy_(copy)
