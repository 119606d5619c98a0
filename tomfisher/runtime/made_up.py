"""Weights that were not read: made-up numbers, which take the memory of one parameter for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_PERIOD = 65_537  # a prime: rows of a matrix differ
_VECTOR_MEAN, _VECTOR_SPREAD = 0.5, 0.1


@contextmanager
def made_up(parameters: Iterable[nn.Parameter]) -> Iterator[Callable[[], bool]]:
    """Inside the block parameters on the CPU hold made-up numbers; afterwards what they held before, or nothing.

    All matrices of a dtype begin at the same numbers, of such a size that products neither grow nor vanish, and so do
    all vectors, whose numbers are positive. Nothing is read, and the memory is that of the largest parameter.

    Args:
        parameters: of a model.

    Yields:
        What says whether the numbers are still the same: a model may write to its weights.
    """
    unique = list({id(parameter): parameter for parameter in parameters}.values())
    before = [parameter.data for parameter in unique]
    kinds: dict[tuple[torch.dtype, bool], list[nn.Parameter]] = {}
    for parameter in unique:
        kinds.setdefault((parameter.dtype, parameter.ndim > 1), []).append(parameter)
    numbers = {kind: _numbers(members, kind[1]) for kind, members in kinds.items()}
    try:
        for kind, members in kinds.items():
            for parameter in members:
                parameter.data = numbers[kind][: parameter.numel()].view(parameter.shape)
        yield lambda: all(torch.equal(numbers[kind], _numbers(m, kind[1])) for kind, m in kinds.items())
    finally:
        for parameter, data in zip(unique, before, strict=True):
            parameter.data = data


def _numbers(members: list[nn.Parameter], are_matrices: bool) -> Tensor:
    """As many numbers as the largest of these has; zeros where they are no floating-point numbers."""
    size, dtype = max(parameter.numel() for parameter in members), members[0].dtype
    if not dtype.is_floating_point:
        return torch.zeros(size, dtype=dtype)
    numbers = torch.randn(min(size, _PERIOD), generator=torch.Generator().manual_seed(0))
    if are_matrices:
        numbers *= max(max(parameter.shape[-1], 1) for parameter in members) ** -0.5
    else:
        numbers = _VECTOR_MEAN + _VECTOR_SPREAD * numbers
    return numbers.to(dtype).repeat(-(-size // _PERIOD))[:size] if size else numbers.to(dtype)
