"""What the operations on ordered numbers ask of their tensors: one dtype with an order, one device, finite values."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tomfisher.ops.checks import DTYPES


def vectors_of(
    values: Tensor | Sequence[Tensor], way_out: str, what: str = "values"
) -> tuple[list[Tensor], bool]:
    """One tensor or several as detached vectors that can be put in an order.

    Args:
        values: a tensor, or a list of them.
        way_out: what to do about tensors that differ; `{}` becomes "dtype" or "device".
        what: the argument's name, for messages.

    Returns:
        The vectors, row-major (copied where a tensor is not contiguous), and whether `values` was one tensor.

    Raises:
        TypeError: no tensor, a dtype without an order here, or dtypes that differ.
        ValueError: devices that differ.
    """
    single = isinstance(values, Tensor)
    tensors = [values] if isinstance(values, Tensor) else list(values)
    labels = labels_of(len(tensors), single, what)
    flats = [_flattened(label, tensor) for label, tensor in zip(labels, tensors, strict=True)]
    for kind, found, error in (
        ("dtype", {str(flat.dtype) for flat in flats}, TypeError),
        ("device", {str(flat.device) for flat in flats}, ValueError),
    ):
        if len(found) > 1:
            raise error(f"{what} must share one {kind}, got {sorted(found)}. {way_out.format(kind)}")
    return flats, single


def labels_of(count: int, single: bool, what: str = "values") -> list[str]:
    """What messages call each of `count` tensors."""
    return [what] if single else [f"{what}[{i}]" for i in range(count)]


def _flattened(label: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{label} must be a tensor, got {type(tensor).__name__}.")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{label} must be float16, bfloat16, float32 or float64, got {tensor.dtype}.")
    return tensor.detach().reshape(-1)


def check_counts(k: int | Sequence[int], flats: Sequence[Tensor], single: bool) -> list[int]:
    """How many to select from each vector, once every number is known to be possible.

    Args:
        k: one number for all vectors, or one for each.
        flats: the vectors.
        single: whether the caller gave one tensor.

    Raises:
        TypeError: no integer.
        ValueError: another number of counts than vectors, or a count out of range.
    """
    if not isinstance(k, (int, Sequence)):
        raise TypeError(f"k must be an integer, or one per tensor, got {k!r}.")
    counts = [k] * len(flats) if isinstance(k, int) else list(k)
    if len(counts) != len(flats):
        raise ValueError(f"k must be one number or one per tensor, got {len(counts)} for {len(flats)}.")
    for label, flat, count in zip(labels_of(len(flats), single), flats, counts, strict=True):
        check_count(count, flat.numel(), label)
    return counts


def check_count(k: int, numel: int, label: str) -> None:
    """Refuse a k that is no integer from 0 to `numel`, the number of entries of `label`."""
    if not isinstance(k, int) or isinstance(k, bool):
        raise TypeError(f"k must be an integer, got {k!r} for {label}.")
    if not 0 <= k <= numel:
        raise ValueError(f"k must be between 0 and {numel} (the entries of {label}), got {k}.")


def check_finite(labels: Sequence[str], flats: Sequence[Tensor], status: Tensor) -> None:
    """Refuse the first tensor that an implementation found a NaN or an infinity in.

    Args:
        labels: what to call each tensor.
        flats: the tensors as vectors.
        status: int64, -1 or the first position without a finite value, one per tensor.

    Raises:
        ValueError: a position is not -1.
    """
    for label, flat, first in zip(labels, flats, status.tolist(), strict=True):
        if first >= 0:
            raise ValueError(
                f"{label} must be finite (it is put in an order), got {flat[first].item()} at flat index {first}."
            )
