"""Definition of `square_accumulate_`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tomfisher.ops.dispatch import register


@register("square_accumulate_", "reference")
def square_accumulate_reference(F_list: Sequence[Tensor], grad_list: Sequence[Tensor]) -> None:
    """`F += g.float() ** 2`, one tensor after another."""
    for F, gradient in zip(F_list, grad_list, strict=True):
        g = gradient.float()
        F.addcmul_(g, g)
