"""`squared_gradient_`: per-sample squared weight gradients of a linear layer, summed into F."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tomfisher.ops.checks import integers, valid_lengths
from tomfisher.ops.dispatch import Impl, register, resolve, traced

Precision = Literal["ieee", "tf32x3", "tf32"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def squared_gradient_(
    F: Tensor,
    grad_output: Tensor,
    input: Tensor,
    offsets: Sequence[int] | Tensor | None = None,
    targets: Sequence[int] | Tensor | None = None,
    lengths: Sequence[int] | Tensor | None = None,
    impl: Impl = "auto",
    precision: Precision = "ieee",
) -> Tensor:
    """Add to F the square of each segment's weight gradient: `F[o,i] += Σ_n (Σ_{t∈n} Y[t,o]·X[t,i])²`.

    Equivalent PyTorch, for `[B, T, ·]` operands::

        F += torch.einsum("bto,bti->boi", grad_output.float(), input.float()).square().sum(0)

    A segment is one sample (or, for fused experts, one sample's tokens of one expert). The square is of the
    segment's summed gradient, never of a token's or of the batch's. For a weight stored as `[d_in, d_out]`
    (transformers' Conv1D) swap `grad_output` and `input`.

    Args:
        F: float32, contiguous, shape `[d_out, d_in]`; with `targets` `[E, d_out, d_in]`. Changed in place.
        grad_output: gradient with respect to the layer's output, `[B, T, d_out]` or packed `[N, d_out]`.
        input: the layer's input, `[B, T, d_in]` or packed `[N, d_in]`; same dtype and device.
        offsets: for packed operands, `S + 1` rising row numbers; segment s is rows `offsets[s]:offsets[s+1]`.
        targets: for `[E, d_out, d_in]`, the slice of F that each of the S segments adds to. The Triton kernels
            take offsets and targets that are tensors on F's device without waiting for them; what is wrong with
            their numbers is then a `RuntimeError`, on a GPU at its next synchronisation.
        lengths: for `[B, T, ·]`, how many leading positions of each sample count; the rest is padding.
        impl: "auto", "triton", "triton-hopper" (16 bits, rows of F at multiples of 16 bytes), "cpp" or "reference".
        precision: of the products of float32 operands in the Triton kernels: "ieee" (exact), "tf32x3" (tensor cores,
            each operand as a sum of two of 10 bits, three products) or "tf32" (tensor cores, 10 bits). The other
            implementations multiply exactly, and so does everything in 16 bits.

    Returns:
        F.

    Raises:
        TypeError: F is not float32, the operands' dtypes differ or are no floating-point dtype, or offsets,
            targets or lengths are no integers.
        ValueError: shapes, devices, offsets, lengths or targets do not fit together, or no such precision.

    Source:
        Diagonal of the empirical Fisher; arXiv 2504.04238, section on sensitivity.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    _check_tensors(F, grad_output, input, targets is not None)
    with torch.no_grad():
        Y, X = grad_output.flatten(0, -2), input.flatten(0, -2)
        if traced(F, grad_output, input):
            bounds, chosen = _numbers(F, grad_output, offsets, targets, lengths)
            starts, stops = [start for start, _ in bounds], [stop for _, stop in bounds]
            _op(F, Y, X, starts, stops, chosen, impl, precision)
            return F
        _check_apart(F, grad_output, input)
        name, run = _implementation(F, impl, precision)
        packed = offsets is not None and lengths is None and grad_output.ndim == 2
        if packed and name in _TAKE_TENSORS and _on_device(F, offsets, targets):
            run(F, Y, X, *_tensors(F, Y, offsets, targets))
        else:
            run(F, Y, X, *_numbers(F, grad_output, offsets, targets, lengths))
    if not F.is_inference():
        torch.autograd.graph.increment_version(F)  # autograd shall notice that F was written, as after any op
    return F


_TAKE_TENSORS = ("triton", "triton-hopper")


def _implementation(F: Tensor, impl: str, precision: str) -> tuple[str, Callable[..., None]]:
    """Name and function of what runs, which takes F, the rows of the operands, bounds and targets."""
    name, run = resolve("squared_gradient_", impl, F.device)
    return name, partial(run, precision=precision) if name == "triton" else run


@torch.library.custom_op("tomfisher::squared_gradient_", mutates_args={"F"})
def _op(
    F: Tensor,
    grad_output: Tensor,
    input: Tensor,
    starts: Sequence[int],
    stops: Sequence[int],
    targets: Sequence[int] | None,
    impl: str,
    precision: str = "ieee",
) -> None:
    _check_apart(F, grad_output, input)
    _, run = _implementation(F, impl, precision)
    with torch.no_grad():
        run(F, grad_output, input, list(zip(starts, stops, strict=True)), targets)


_op.register_fake(lambda *_: None)


@register("squared_gradient_", "reference")
def _reference(
    F: Tensor,
    grad_output: Tensor,
    input: Tensor,
    bounds: Sequence[tuple[int, int]],
    targets: Sequence[int] | None,
) -> None:
    """Add the squared weight gradient of every segment to F, one segment at a time.

    Args:
        F: float32 `[d_out, d_in]`, or `[E, d_out, d_in]` with `targets`.
        grad_output: `[N, d_out]`, all segments one after another.
        input: `[N, d_in]`.
        bounds: first and last-plus-one row of each segment.
        targets: slice of F that each segment adds to.
    """
    # all memory is taken before the first write, so running out of it leaves F as it was
    gradient = torch.empty(F.shape[-2:], dtype=torch.float32, device=F.device)
    Y, X = grad_output.float(), input.float()
    for segment, (start, stop) in enumerate(bounds):
        if start == stop:
            continue
        torch.mm(Y[start:stop].T, X[start:stop], out=gradient)
        (F if targets is None else F[targets[segment]]).addcmul_(gradient, gradient)


def _check_tensors(F: Tensor, grad_output: Tensor, input: Tensor, has_targets: bool) -> None:
    if F.dtype != torch.float32:
        raise TypeError(
            f"F must be float32, got {F.dtype}: squares underflow in 16 bits. Use torch.zeros(shape)."
        )
    if grad_output.dtype != input.dtype or not input.dtype.is_floating_point:
        raise TypeError(
            f"grad_output and input must share one floating-point dtype, got {grad_output.dtype} and {input.dtype}."
        )
    if not (F.device == grad_output.device == input.device):
        raise ValueError(
            f"F, grad_output and input must be on one device, got {F.device}, {grad_output.device}, {input.device}."
        )
    rank = 3 if has_targets else 2
    if F.ndim != rank or not F.is_contiguous():
        raise ValueError(
            f"F must be contiguous with {rank} dimensions{' (targets given)' if has_targets else ''}, "
            f"got shape {tuple(F.shape)}, strides {F.stride()}."
        )
    if grad_output.ndim not in (2, 3) or grad_output.shape[:-1] != input.shape[:-1]:
        raise ValueError(
            "grad_output and input must be [B, T, ·] or [N, ·] with equal leading dimensions, "
            f"got {tuple(grad_output.shape)} and {tuple(input.shape)}."
        )
    if (grad_output.shape[-1], input.shape[-1]) != tuple(F.shape[-2:]):
        raise ValueError(
            f"F's last two dimensions must be [d_out, d_in] = [{grad_output.shape[-1]}, {input.shape[-1]}], "
            f"got {tuple(F.shape)}."
        )


def _check_apart(F: Tensor, grad_output: Tensor, input: Tensor) -> None:
    memory = F.untyped_storage().data_ptr()
    if memory and memory in (grad_output.untyped_storage().data_ptr(), input.untyped_storage().data_ptr()):
        raise ValueError(
            "F shares memory with grad_output or input; it is written while they are read. Clone F."
        )


def _numbers(
    F: Tensor,
    grad_output: Tensor,
    offsets: Sequence[int] | Tensor | None,
    targets: Sequence[int] | Tensor | None,
    lengths: Sequence[int] | Tensor | None,
) -> tuple[Sequence[tuple[int, int]], list[int] | None]:
    """Row ranges of the segments in the flattened operands, and their slices of F, as numbers of the host."""
    bounds = _segments(grad_output, offsets, lengths)
    return bounds, None if targets is None else _targets(targets, len(bounds), F.shape[0])


def _segments(
    grad_output: Tensor, offsets: Sequence[int] | Tensor | None, lengths: Sequence[int] | Tensor | None
) -> Sequence[tuple[int, int]]:
    if grad_output.ndim == 2:
        if lengths is not None:
            raise ValueError("lengths belong to [B, T, ·] operands; for packed [N, ·] operands give offsets.")
        ends = [0, grad_output.shape[0]] if offsets is None else integers(offsets, "offsets")
        rising = all(map(operator.le, ends, ends[1:]))
        if not ends or ends[0] < 0 or ends[-1] > grad_output.shape[0] or not rising:
            raise ValueError(
                f"offsets must rise from >= 0 to <= {grad_output.shape[0]} (the number of rows), got {ends[:8]}."
            )
        return list(itertools.pairwise(ends))
    if offsets is not None:
        raise ValueError("offsets belong to packed [N, ·] operands; for [B, T, ·] operands give lengths.")
    B, T = grad_output.shape[:2]
    if lengths is None:
        return _equal(B, T)
    return [(b * T, b * T + n) for b, n in enumerate(valid_lengths(lengths, B, T))]


@lru_cache(maxsize=64)
def _equal(B: int, T: int) -> tuple[tuple[int, int], ...]:
    """The segments of all layers of a batch: one object, which a schedule is then found by at once."""
    return tuple((b * T, (b + 1) * T) for b in range(B))


def _targets(targets: Sequence[int] | Tensor, segments: int, slices: int) -> list[int]:
    chosen = integers(targets, "targets")
    if len(chosen) != segments or (chosen and not 0 <= min(chosen) <= max(chosen) < slices):
        raise ValueError(
            f"targets must be {segments} numbers (one per segment) between 0 and {slices - 1}, got {chosen[:8]}."
        )
    return chosen


def _on_device(F: Tensor, *given: object) -> bool:
    """Whether what is given are integer vectors where F is."""
    return all(
        isinstance(numbers, Tensor)
        and numbers.device == F.device
        and numbers.dtype in (torch.int32, torch.int64)
        and numbers.ndim == 1
        for numbers in given
        if numbers is not None
    )


def _tensors(F: Tensor, Y: Tensor, offsets: Any, targets: Any) -> tuple[Tensor, Tensor | None]:
    """As `_numbers`, of tensors where F is: `[S, 2]` and `[S]`, checked there, so that nothing waits."""
    rows, segments = len(Y), len(offsets) - 1
    if segments < 0 or (targets is not None and len(targets) != segments):
        raise ValueError(
            f"offsets must be one number more than there are segments, and targets one for each segment, got "
            f"{len(offsets)} and {'no' if targets is None else len(targets)}."
        )
    bounds = torch.stack([offsets[:-1], offsets[1:]], 1)
    steps = torch.cat([offsets[:1], offsets.diff(), rows - offsets[-1:]])
    torch._assert_async((steps >= 0).all(), f"offsets must rise from >= 0 to <= {rows} (the number of rows)")
    if targets is not None:
        inside = (targets >= 0) & (targets < F.shape[0])
        torch._assert_async(inside.all(), f"targets must be between 0 and {F.shape[0] - 1}")
    return bounds, targets
