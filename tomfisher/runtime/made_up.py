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


def make_up_(tensor: Tensor) -> None:
    """Fill a tensor with such numbers."""
    numbers = _pattern(tensor.numel(), tensor.dtype, tensor.shape[-1] if tensor.ndim > 1 else None)
    if not tensor.is_contiguous():
        tensor.copy_(_repeated(numbers, tensor.numel()).view(tensor.shape))
    elif tensor.numel():
        flat = tensor.view(-1)
        whole = len(flat) // len(numbers) * len(numbers)
        flat[:whole].view(-1, len(numbers)).copy_(numbers)
        flat[whole:].copy_(numbers[: len(flat) - whole])


def _numbers(members: list[nn.Parameter], are_matrices: bool) -> Tensor:
    """As many numbers as the largest of these has."""
    size = max(parameter.numel() for parameter in members)
    widest = max(parameter.shape[-1] for parameter in members) if are_matrices else None
    return _repeated(_pattern(size, members[0].dtype, widest), size)


def _pattern(size: int, dtype: torch.dtype, width: int | None) -> Tensor:
    """The numbers that are repeated: of matrices of so many columns, or of vectors; zeros where they are no floats."""
    number = min(size, _PERIOD)
    if not dtype.is_floating_point:
        return torch.zeros(number, dtype=dtype)
    numbers = torch.randn(number, generator=torch.Generator().manual_seed(0))
    numbers = _VECTOR_MEAN + _VECTOR_SPREAD * numbers if width is None else numbers * max(width, 1) ** -0.5
    return numbers.to(dtype)


def _repeated(numbers: Tensor, size: int) -> Tensor:
    return numbers.repeat(-(-size // len(numbers)))[:size] if size else numbers
